/* probe.h: what the parts of bevel-probe share. The program measures one core: no threads, no floating point results to keep. */
#ifndef BEVEL_PROBE_H
#define BEVEL_PROBE_H

#include <stddef.h>
#include <stdint.h>

/* A loop of one instruction (or of the group that makes one step of a kernel) over independent accumulators. */
struct kernel {
    const char *kind;        /* "fp32", "fp16", "int8", "popcount", "table" */
    const char *instruction; /* for reports */
    const char *needs;       /* features, separated by spaces */
    double operations;       /* per iteration: multiply-accumulates, bytes counted, or bytes looked up */
    void (*run)(uint64_t iterations);
};

/* A streaming read; `bytes` is a multiple of 1024. */
struct reader {
    const char *instruction;
    const char *needs;
    void (*run)(const char *data, size_t bytes);
};

/* The architecture's side (x86_64.c, aarch64.c, armv7.c). Kernels and readers end with an empty entry; of readers the last usable one
 * is the widest. */
extern const struct kernel arch_kernels[];
extern const struct reader arch_readers[];
extern const char *const arch_features[]; /* every name arch_has knows, NULL at the end */
int arch_has(const char *feature);
/* Runs `iterations` times CHAIN_LENGTH dependent operations of one cycle each. */
void arch_chain(uint64_t iterations);
enum { CHAIN_LENGTH = 256 };
/* Main ID register of the core this runs on; 0 where a program may not read it. */
uint64_t arch_midr(void);
/* The cycle-like counter a program may read without the kernel, and its frequency if the CPU tells; 0 where there is none. */
uint64_t arch_counter(void);
double arch_counter_hz(void);

int has_all(const char *needs);

/* measure.c */
struct figure {
    double ns;       /* median of the accepted repetitions, per unit */
    double spread;   /* (90th - 10th percentile) / median of the accepted ones */
    double ghz;      /* core clock around it; 0 where it changed */
    int accepted, rejected;
};
double now_ns(void);
/* Median time of one unit of `run`, repetitions of `repetition_ns` each, those disturbed by other programs or clock changes thrown
 * away and repeated. */
struct figure measure(void (*run)(uint64_t units, const void *context), const void *context, int repetitions, double repetition_ns);
double median(double *values, int count);

/* memory.c */
void print_latencies(size_t largest);
void print_reads(int count, char **levels);

/* launch.c: its ns is that of one call. */
struct figure measure_launch(void);

#endif
