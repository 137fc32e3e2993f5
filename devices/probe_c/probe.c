/* probe.c: bevel-probe, the program that bevel devices probe runs on a device. Prints one JSON object of what is asked for:
 *   bevel-probe [--cpu N] facts peaks launch latency=LARGEST_KIB read l1=BYTES l2=BYTES ... (read comes last)
 * It measures on the core it is told to run on, and allocates only what latency and read ask for. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"

enum { CLOCK_READS = 1000, PEAK_REPETITIONS = 9 };
static const double PEAK_NS = 4e6;

int has_all(const char *needs)
{
    char name[32];
    while (*needs) {
        size_t length = strcspn(needs, " ");
        snprintf(name, sizeof name, "%.*s", (int)length, needs);
        if (!arch_has(name)) return 0;
        needs += length + (needs[length] == ' ');
    }
    return 1;
}

static int run_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set);
}

static void print_features(void)
{
    const char *separator = "";
    printf("\"features\": [");
    for (const char *const *name = arch_features; *name; name++) {
        if (!arch_has(*name)) continue;
        printf("%s\"%s\"", separator, *name);
        separator = ", ";
    }
    printf("]");
}

/* The cores this process may run on, and the ID register of each. */
static void print_cores(void)
{
    cpu_set_t allowed;
    const char *separator = "";
    int known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
    printf(", \"cpus\": [");
    for (int cpu = 0; known && cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        printf("%s%d", separator, cpu);
        separator = ", ";
    }
    printf("], \"midr\": {");
    separator = "";
    for (int cpu = 0; known && arch_midr() != 0 && cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || run_on(cpu) != 0) continue;
        printf("%s\"%d\": \"0x%08llx\"", separator, cpu, (unsigned long long)arch_midr());
        separator = ", ";
    }
    if (known) sched_setaffinity(0, sizeof allowed, &allowed);
    printf("}");
}

/* Median cost of reading the clock, and of the counter that needs no kernel. */
static void print_clocks(void)
{
    static double costs[CLOCK_READS];
    struct timespec t, resolution = {0};
    clock_getres(CLOCK_MONOTONIC, &resolution);
    for (int i = 0; i < CLOCK_READS; i++) {
        double begin = now_ns();
        for (int k = 0; k < 16; k++) clock_gettime(CLOCK_MONOTONIC, &t);
        costs[i] = (now_ns() - begin) / 17;
    }
    printf(", \"clock\": {\"gettime_ns\": %.2f, \"resolution_ns\": %ld", median(costs, CLOCK_READS), resolution.tv_nsec);
    if (arch_counter() != 0) {
        double hertz = arch_counter_hz(), begin = now_ns();
        uint64_t first = arch_counter();
        while (now_ns() - begin < 5e6) continue;
        double elapsed = now_ns() - begin, counted = (double)(arch_counter() - first);
        for (int i = 0; i < CLOCK_READS; i++) {
            begin = now_ns();
            for (int k = 0; k < 16; k++) arch_counter();
            costs[i] = (now_ns() - begin) / 17;
        }
        printf(", \"counter_ns\": %.2f, \"counter_mhz\": %.3f", median(costs, CLOCK_READS),
               hertz > 0 ? hertz * 1e-6 : counted / elapsed * 1e3);
    }
    printf("}");
}

/* Whether this user may count cycles of his own programs. */
static void print_counters(void)
{
    struct perf_event_attr attributes = {.type = PERF_TYPE_HARDWARE, .size = sizeof attributes, .config = PERF_COUNT_HW_CPU_CYCLES};
    attributes.exclude_kernel = attributes.exclude_hv = 1;
    long file = syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
    printf(", \"cycles\": \"%s\"", file >= 0 ? "allowed" : strerror(errno));
    if (file >= 0) close((int)file);
}

static void run_kernel(uint64_t iterations, const void *context) { ((const struct kernel *)context)->run(iterations); }

static void print_peaks(void)
{
    const char *separator = "";
    printf("\"peaks\": [");
    for (const struct kernel *kernel = arch_kernels; kernel->run; kernel++) {
        if (!has_all(kernel->needs)) continue;
        struct figure figure = measure(run_kernel, kernel, PEAK_REPETITIONS, PEAK_NS);
        double rate = figure.ns > 0 ? kernel->operations / figure.ns : 0;
        printf("%s{\"kind\": \"%s\", \"instruction\": \"%s\", \"gops\": %.5g, \"spread\": %.4f, \"ghz\": %.4f, \"accepted\": %d, "
               "\"rejected\": %d}",
               separator, kernel->kind, kernel->instruction, rate, figure.spread, figure.ghz, figure.accepted, figure.rejected);
        separator = ", ";
    }
    printf("]");
}

int main(int argc, char **argv)
{
    const char *separator = "";
    printf("{");
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--cpu") && i + 1 < argc) {
            if (run_on(atoi(argv[++i])) != 0) {
                fprintf(stderr, "bevel-probe: cannot run on core %s: %s\n", argv[i], strerror(errno));
                return 2;
            }
            continue;
        }
        printf("%s", separator);
        separator = ", ";
        if (!strcmp(argv[i], "facts")) {
            print_features();
            print_cores();
            print_clocks();
            print_counters();
        } else if (!strcmp(argv[i], "peaks")) {
            print_peaks();
        } else if (!strcmp(argv[i], "launch")) {
            struct figure figure = measure_launch();
            printf("\"launch\": {\"ns\": %.3f, \"spread\": %.4f, \"ghz\": %.4f}", figure.ns, figure.spread, figure.ghz);
        } else if (!strncmp(argv[i], "latency=", 8)) {
            print_latencies(1024 * (size_t)strtoull(argv[i] + 8, NULL, 10));
        } else if (!strcmp(argv[i], "read")) {
            print_reads(argc - i - 1, argv + i + 1);
            break;
        } else {
            fprintf(stderr, "bevel-probe: unknown argument %s\n", argv[i]);
            return 2;
        }
    }
    printf("}\n");
    return 0;
}
