/* measure.h: clocks, the canary, and what the operating system counts about this process. Integers only; times in nanoseconds. */
#ifndef BEVEL_MEASURE_H
#define BEVEL_MEASURE_H

#include <stddef.h>
#include <stdint.h>

uint64_t now_ns(void);

/* A counter that rises steadily. */
typedef uint64_t (*measure_clock)(void);

/* The steady counter that is cheapest to read: the processor's own where it may be read directly and is in step on all cores, else
 * now_ns. `sysfs` is where Linux says whether it trusts the counter. */
measure_clock cheapest_clock(const char *sysfs);

/* Thousandths of a nanosecond that one reading takes. */
uint64_t clock_cost_ps(measure_clock clock);

/* Processor time of all threads of this process. */
uint64_t process_ns(void);

/* How often the system took a core away from a thread of this process. */
int64_t involuntary_switches(void);

/* Peak resident memory of this program in KiB. */
int64_t peak_rss_kib(void);

/* Run the canary: a fixed chain of dependent integer operations in registers, 60-200 us on the boards' cores. It touches no memory and
 * leaves nothing to reorder, so its time follows the core's clock (and who else runs on the core) and nothing else: two runs that
 * differ were not measured at the same speed. It is the same chain on every device and in every process. */
uint64_t canary_ns(void);

/* Keep this thread, and those that it starts, on these CPUs; returns 0, or -1 with errno. */
int pin_to(const int *cpus, size_t count);

/* Put the CPUs that this thread may run on into `cpus`, at most `most`; returns how many. */
size_t allowed_cpus(int *cpus, size_t most);

/* The CPU that runs this thread. */
int current_cpu(void);

/* Put the beginning of a file into `text`, a string of at most size - 1 bytes; returns whether there was anything. */
int read_text(const char *path, char *text, size_t size);

/* Sort and return the middle one; the upper of two. */
uint64_t median_of(uint64_t *values, size_t count);

#endif
