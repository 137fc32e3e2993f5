/* measure.c: repetitions on a machine that does other things as well. Before and after each repetition a canary runs: a chain of
 * dependent one-cycle operations, whose time is the core's clock. A repetition counts when the thread kept the processor and each canary
 * shows the clock that is usual at its place; others are repeated. The two places may differ: some cores change their clock for wide
 * instructions, and the clock during the loop is then not known. */
#include <stdlib.h>
#include <time.h>

#include "probe.h"

enum { CANARY_ITERATIONS = 512, MOST_REPETITIONS = 64 };
static const double CLOCK_TOLERANCE = 0.02, LEAST_CPU_SHARE = 0.97;

static double read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

double now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

/* GHz of the core now. */
static double canary(void)
{
    double begin = now_ns();
    arch_chain(CANARY_ITERATIONS);
    return CANARY_ITERATIONS * (double)CHAIN_LENGTH / (now_ns() - begin);
}

/* How many units last about `repetition_ns`. */
static uint64_t calibrate(void (*run)(uint64_t units, const void *context), const void *context, double repetition_ns)
{
    for (uint64_t units = 1;; units *= 2) {
        double begin = now_ns();
        run(units, context);
        double took = now_ns() - begin;
        if (took < repetition_ns / 2) continue;
        double exact = (double)units * repetition_ns / took;
        return exact < 1 ? 1 : (uint64_t)exact;
    }
}

struct repetition {
    double ns, before, after; /* time of a unit; GHz around it */
};

static int near(double clock, double usual)
{
    return clock >= (1 - CLOCK_TOLERANCE) * usual && clock <= (1 + CLOCK_TOLERANCE) * usual;
}

/* Times of the repetitions at the usual clock go to `kept`; gives their number and that clock, 0 where it differs before and after. */
static int select_steady(const struct repetition *all, int total, double *kept, double *ghz)
{
    double before[MOST_REPETITIONS], after[MOST_REPETITIONS];
    int accepted = 0;
    for (int i = 0; i < total; i++) before[i] = all[i].before, after[i] = all[i].after;
    double usual_before = median(before, total), usual_after = median(after, total);
    for (int i = 0; i < total; i++)
        if (near(all[i].before, usual_before) && near(all[i].after, usual_after)) kept[accepted++] = all[i].ns;
    *ghz = near(usual_before, usual_after) ? usual_after : 0;
    return accepted;
}

struct figure measure(void (*run)(uint64_t units, const void *context), const void *context, int repetitions, double repetition_ns)
{
    struct repetition all[MOST_REPETITIONS];
    double kept[MOST_REPETITIONS];
    struct figure figure = {0};
    int total = 0, tries = 0;
    uint64_t units = calibrate(run, context, repetition_ns);
    while (figure.accepted < repetitions && tries++ < MOST_REPETITIONS) {
        struct repetition *now = &all[total];
        now->before = canary();
        double cpu = read_clock(CLOCK_THREAD_CPUTIME_ID), begin = now_ns();
        run(units, context);
        double wall = now_ns() - begin;
        cpu = read_clock(CLOCK_THREAD_CPUTIME_ID) - cpu;
        now->after = canary();
        now->ns = wall / (double)units;
        if (cpu < LEAST_CPU_SHARE * wall) continue;
        figure.accepted = select_steady(all, ++total, kept, &figure.ghz);
    }
    figure.rejected = tries - figure.accepted;
    if (figure.accepted == 0) return figure;
    figure.ns = median(kept, figure.accepted);
    figure.spread = (kept[(figure.accepted - 1) * 9 / 10] - kept[(figure.accepted - 1) / 10]) / figure.ns;
    return figure;
}
