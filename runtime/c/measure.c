/* measure.c: clocks, canary and process accounting of Linux. */
#define _GNU_SOURCE
#include "measure.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

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

uint64_t now_cost_ns(void)
{
    uint64_t spans[CLOCK_TRIES];
    for (int i = 0; i < CLOCK_TRIES; i++) {
        uint64_t before = now_ns(), after = before;
        for (int j = 0; j < CLOCK_READS; j++)
            after = now_ns();
        spans[i] = after - before;
    }
    return median_of(spans, CLOCK_TRIES) / CLOCK_READS;
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
    char line[256];
    long long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (strncmp(line, "VmHWM:", 6) == 0)
            kib = strtoll(line + 6, NULL, 10);
    if (status)
        fclose(status);
    return kib;
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

int current_cpu(void)
{
    return sched_getcpu();
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
