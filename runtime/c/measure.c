/* measure.c: clocks, canary and process accounting of Linux. */
#define _GNU_SOURCE
#include "measure.h"

#include <errno.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { CANARY_STEPS = 80000, CLOCK_READS = 256, CLOCK_TRIES = 15 };

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t now_ns(void)
{
    return nanoseconds(CLOCK_MONOTONIC);
}

#if defined(__x86_64__)

static uint64_t counter(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

/* The processor promises one rate in all states of power, and Linux itself tells time by it: it found all cores in step. */
static int counter_is_steady(const char *sysfs)
{
    unsigned a, b, c, d;
    char path[4096], name[8];
    snprintf(path, sizeof path, "%s/devices/system/clocksource/clocksource0/current_clocksource", sysfs);
    return read_text(path, name, sizeof name) && strcmp(name, "tsc\n") == 0 && __get_cpuid(0x80000007, &a, &b, &c, &d) && d & 1u << 8;
}

#elif defined(__aarch64__)

static uint64_t counter(void)
{
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
}

/* The architecture has one counter for all cores, and Linux lets programs read it (or answers for it, where it is broken). */
static int counter_is_steady(const char *sysfs)
{
    (void)sysfs;
    return 1;
}

#else

static const measure_clock counter = now_ns;

static int counter_is_steady(const char *sysfs)
{
    (void)sysfs;
    return 0;
}

#endif

measure_clock cheapest_clock(const char *sysfs)
{
    return counter_is_steady(sysfs) && clock_cost_ps(counter) < clock_cost_ps(now_ns) ? counter : now_ns;
}

uint64_t clock_cost_ps(measure_clock clock)
{
    uint64_t spans[CLOCK_TRIES], times[CLOCK_READS];
    for (int i = 0; i < CLOCK_TRIES; i++) {
        uint64_t before = now_ns();
        for (int j = 0; j < CLOCK_READS; j++)
            times[j] = clock();
        spans[i] = now_ns() - before;
        __asm__ volatile("" : : "r"(times) : "memory"); /* stored, as in a profile */
    }
    return median_of(spans, CLOCK_TRIES) * 1000 / CLOCK_READS;
}

uint64_t process_ns(void)
{
    return nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
}

int64_t involuntary_switches(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : 0;
}

int64_t peak_rss_kib(void)
{
    /* Not getrusage: its peak is inherited from the program that started this one. */
    char status[4096];
    if (!read_text("/proc/self/status", status, sizeof status))
        return 0;
    for (const char *line = status; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, "VmHWM:", 6) == 0)
            return strtoll(line + 6, NULL, 10);
    }
    return 0;
}

uint64_t canary_ns(void)
{
    uint64_t before = now_ns();
    uint64_t x = before | 1;
    for (int i = 0; i < CANARY_STEPS; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        /* The compiler may neither merge steps nor drop them. */
        __asm__ volatile("" : "+r"(x));
    }
    return now_ns() - before;
}

int pin_to(const int *cpus, size_t count)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (size_t i = 0; i < count; i++)
        CPU_SET((size_t)cpus[i], &set);
    cpu_set_t found;
    if (sched_setaffinity(0, sizeof set, &set) != 0 || sched_getaffinity(0, sizeof found, &found) != 0)
        return -1;
    /* Linux passes over CPUs that are off or do not exist while one of them does. */
    errno = EINVAL;
    return CPU_EQUAL(&set, &found) ? 0 : -1;
}

size_t allowed_cpus(int *cpus, size_t most)
{
    cpu_set_t set;
    size_t count = 0;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && count < most; cpu++)
        if (CPU_ISSET((size_t)cpu, &set))
            cpus[count++] = cpu;
    return count;
}

int current_cpu(void)
{
    return sched_getcpu();
}

int read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, text, size - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return got > 0;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

uint64_t median_of(uint64_t *values, size_t count)
{
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}
