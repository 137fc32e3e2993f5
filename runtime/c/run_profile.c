/* run_profile.c: --profile. Where the time goes, by timers that take at most 1 % of it.
 *
 * A profiled run times a window of neighbouring steps, as many as 1 % of the run pays for; windows rotate, so that all steps are timed
 * equally often. Before each profiled run goes one that is only timed as a whole, so that both see the same state of the machine, and
 * more of them where one window alone costs more than 1 %. What a reading costs is subtracted from every time.
 *
 * The layers are to add up to the whole, so all are estimated alike, and by a mean: medians of skewed times do not add up, and where the
 * counter is coarse (52 ns on a Raspberry Pi 3) a median is one of its ticks. Of the middle half, because interrupts are in the rest.
 * What no layer has is the call itself, the copying of states, and the waking of the other threads. */
#define _POSIX_C_SOURCE 200809L
#include "measure.h"
#include "run.h"

#include <stdlib.h>
#include <string.h>

/* 1 % of a nanosecond, in picoseconds. */
enum { TIMERS_SHARE_PS = 10 };

typedef struct {
    bevel_model *model;
    size_t steps, passes, parts; /* each pass times every step once, in so many windows */
    measure_clock clock;
    uint64_t cost_ps;          /* of one reading */
    uint64_t readings, all_ns; /* of all runs so far */
    uint64_t *times;           /* readings of one run */
    uint64_t *whole;           /* nanoseconds of the run before each profiled one */
    uint64_t *ticks;           /* of each step, pass after pass */
} profile;

static int affordable(const profile *p, uint64_t readings, uint64_t ns)
{
    return readings * p->cost_ps <= ns * TIMERS_SHARE_PS;
}

static uint64_t run_whole(profile *p)
{
    uint64_t before = now_ns();
    must(bevel_run(p->model), "run");
    uint64_t ns = now_ns() - before;
    p->all_ns += ns;
    return ns;
}

static void run_window(profile *p, size_t pass, size_t part)
{
    size_t first = part * p->steps / p->parts, count = (part + 1) * p->steps / p->parts - first;
    while (!affordable(p, p->readings + count + 1, p->all_ns))
        run_whole(p);
    uint64_t before = now_ns();
    must(bevel_profile(p->model, first, count, p->clock, p->times), "profile");
    p->all_ns += now_ns() - before;
    p->readings += count + 1;
    for (size_t i = 0; i < count; i++)
        p->ticks[pass * p->steps + first + i] = p->times[i + 1] - p->times[i];
}

/* Mean of the middle half. */
static uint64_t midmean(const uint64_t *sorted, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = count / 4; i < count - count / 4; i++)
        sum += sorted[i];
    return sum / (count - count / 4 * 2);
}

/* `ps` picoseconds without the cost of the clock, in nanoseconds. */
static uint64_t without(uint64_t ps, uint64_t cost_ps)
{
    return ps > cost_ps ? (ps - cost_ps + 500) / 1000 : 0;
}

/* Print layer `step`, whose ticks last `ns` / `ticks`; returns its mean. */
static uint64_t print_layer(const profile *p, size_t step, uint64_t ns, uint64_t ticks, uint64_t *column)
{
    const bevel_step *info = bevel_step_at(step);
    /* 20 bits after the point: enough digits, and no overflow for hours. */
    uint64_t scale = (ns << 20) / (ticks ? ticks : 1);
    for (size_t pass = 0; pass < p->passes; pass++)
        column[pass] = (p->ticks[pass * p->steps + step] * scale >> 10) * 1000 >> 10;
    uint64_t median = median_of(column, p->passes);
    uint64_t mean = without(midmean(column, p->passes), p->cost_ps);
    printf("%s{\"name\": ", step ? ", " : "");
    print_string(info->layer);
    printf(", \"op\": ");
    print_string(info->op);
    printf(", \"kernel\": ");
    print_string(info->kernel);
    printf(", \"bits\": ");
    print_string(info->bits);
    printf(", \"macs\": %llu, \"bytes\": %llu, \"ns\": {\"min\": %llu, \"median\": %llu, \"mean\": %llu}}", (unsigned long long)info->macs,
           (unsigned long long)info->bytes, (unsigned long long)without(column[0], p->cost_ps),
           (unsigned long long)without(median, p->cost_ps), (unsigned long long)mean);
    return mean;
}

int mode_profile(bevel_model *model, const options *o)
{
    const char *source = prepare(model, o);
    uint64_t now_ps = clock_cost_ps(now_ns), typical = timed_run(model, now_ps / 1000);
    warm_up(model, o, now_ps / 1000, &typical);
    profile p = {.model = model, .steps = bevel_num_steps(), .passes = (size_t)o->runs, .clock = cheapest_clock(o->sysfs)};
    p.cost_ps = clock_cost_ps(p.clock);
    size_t window = p.steps;
    while (window > 1 && !affordable(&p, window + 1, typical))
        window--;
    p.parts = window ? (p.steps + window - 1) / window : 1;
    if (p.passes > SIZE_MAX / sizeof(uint64_t) / (p.steps + 1))
        fail(EXIT_USAGE, "--runs is too large");
    size_t wholes = p.passes * p.parts;
    p.times = allocate((p.steps + 1) * sizeof *p.times);
    p.ticks = allocate(p.steps * p.passes * sizeof *p.ticks);
    p.whole = allocate(wholes * sizeof *p.whole);
    /* Have the pages now: a first write to one takes as long as a layer. */
    memset(p.ticks, 0, p.steps * p.passes * sizeof *p.ticks);
    memset(p.whole, 0, wholes * sizeof *p.whole);
    uint64_t *column = allocate(p.passes * sizeof *column);
    uint64_t begin_ns = now_ns(), begin = p.clock();
    for (size_t pass = 0; pass < p.passes; pass++)
        for (size_t part = 0; part < p.parts; part++) {
            p.whole[pass * p.parts + part] = run_whole(&p);
            run_window(&p, pass, part);
        }
    uint64_t ticks = p.clock() - begin, ns = now_ns() - begin_ns;
    printf("{");
    print_dims(model);
    printf("\"threads\": %ld, \"runs\": %zu, \"input\": \"%s\", \"layers\": [", o->threads, p.passes, source);
    uint64_t total = 0;
    for (size_t step = 0; step < p.steps; step++)
        total += print_layer(&p, step, ns, ticks, column);
    median_of(p.whole, wholes);
    printf("], \"total_ns\": %llu, \"whole_ns\": %llu", (unsigned long long)total,
           (unsigned long long)without(midmean(p.whole, wholes) * 1000, now_ps));
    printf(", \"clock_ns\": %llu.%03d, \"steps_per_run\": %zu, \"overhead\": 0.%06llu}\n", (unsigned long long)(p.cost_ps / 1000),
           (int)(p.cost_ps % 1000), window, (unsigned long long)(p.readings * p.cost_ps * 1000 / (p.all_ns ? p.all_ns : 1)));
    return 0;
}
