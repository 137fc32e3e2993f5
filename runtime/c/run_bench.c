/* run_bench.c: --bench. Times blocks of calls and prints one JSON line for each, at once, with what tells whether it can be trusted.
 *
 * First line {"bench": 1, ...}: what is measured and how; then {"block": i, ...} for each finished block; last {"end": 1, ...}. Times
 * are nanoseconds of one call, without the cost of the clock ("clock_ns" a reading); null is what the device does not tell. What was
 * printed stays true if the rest never comes. SIGTERM and SIGINT end the run in order: the block at hand is dropped, the last line
 * counts those that were printed. */
#define _POSIX_C_SOURCE 200809L
#include "measure.h"
#include "run.h"
#include "sensors.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CANARY_MEDIANS = 5, CANARY_RUNS = 9, WARM_CALLS = 256, AGREEING = 3 };

typedef struct {
    bevel_model *model;
    const options *o;
    uint64_t calls, clock_ns;
    unsigned char *eviction; /* what --cold walks through; NULL otherwise */
    size_t eviction_bytes;
} bench;

typedef struct {
    uint64_t wall_ns, cpu_ns, min_ns, canary_ns;
    int64_t switches, khz, millidegrees, nanojoules;
} block;

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
    (void)signal;
    stopped = 1;
}

static uint64_t without(uint64_t ns, uint64_t cost)
{
    return ns > cost ? ns - cost : 0;
}

static void print_known(const char *key, int64_t value)
{
    if (value == SENSOR_UNKNOWN)
        printf(", \"%s\": null", key);
    else
        printf(", \"%s\": %lld", key, (long long)value);
}

/* Let one line out, whole: a reader at the other end of a connection sees it now. */
static void end_line(void)
{
    puts("}");
    if (fflush(stdout) != 0)
        fail(EXIT_DEVICE, "output: %s", strerror(errno));
}

uint64_t timed_run(bevel_model *model, uint64_t clock_ns)
{
    uint64_t before = now_ns();
    must(bevel_run(model), "run");
    return without(now_ns() - before, clock_ns);
}

int warm_up(bevel_model *model, const options *o, uint64_t clock_ns, uint64_t *typical)
{
    uint64_t least = (uint64_t)o->warmup_ms * 1000000u, block_ns = (uint64_t)o->block_ms * 1000000u;
    uint64_t medians[AGREEING] = {0}, begin = now_ns(), times[WARM_CALLS];
    for (size_t i = 0; !stopped; i++) {
        uint64_t elapsed = now_ns() - begin, lo = UINT64_MAX, hi = 0;
        for (size_t j = 0; j < AGREEING; j++) {
            lo = medians[j] < lo ? medians[j] : lo;
            hi = medians[j] > hi ? medians[j] : hi;
        }
        int agree = i >= AGREEING && (hi - lo) * 50 <= lo;
        if ((agree && elapsed >= least) || elapsed >= 5 * least)
            return agree;
        size_t n = 0;
        for (uint64_t since = now_ns(); n == 0 || (n < WARM_CALLS && now_ns() - since < block_ns && !stopped); n++)
            times[n] = timed_run(model, clock_ns);
        *typical = medians[i % AGREEING] = median_of(times, n);
    }
    return 0;
}

static void walk(const bench *b)
{
    unsigned sum = 0;
    for (size_t i = 0; i < b->eviction_bytes; i += 64)
        sum += b->eviction[i];
    __asm__ volatile("" : : "r"(sum));
}

/* Read through more memory than the caches hold: with several threads on every CPU they may run on, as each has caches of its own. */
static void evict(const bench *b)
{
    int cpus[MAX_CPUS];
    size_t count = b->o->threads > 1 ? allowed_cpus(cpus, MAX_CPUS) : 0;
    for (size_t i = 0; i < count; i++)
        if (pin_to(&cpus[i], 1) == 0)
            walk(b);
    if (count == 0)
        walk(b);
    else
        pin_to(cpus, count);
}

/* Time one block. Returns 0 when a signal ended it early. */
static int measure(const bench *b, block *out)
{
    out->canary_ns = canary_ns();
    if (b->eviction)
        evict(b);
    else if (b->calls > 1)
        must(bevel_run(b->model), "run"); /* the threads fell asleep meanwhile, and the caches saw files read */
    sensor_energy energy = sensor_energy_now();
    int64_t switches = involuntary_switches();
    uint64_t cpu = process_ns(), least = UINT64_MAX, begin = now_ns(), last = begin;
    for (uint64_t i = 0; i < b->calls; i++) {
        must(bevel_run(b->model), "run");
        uint64_t now = now_ns();
        least = now - last < least ? now - last : least;
        last = now;
        if (stopped)
            return 0;
    }
    out->cpu_ns = without(process_ns() - cpu, b->calls * b->clock_ns) / b->calls;
    out->wall_ns = without(last - begin, b->calls * b->clock_ns) / b->calls;
    out->min_ns = without(least, b->clock_ns);
    out->switches = involuntary_switches() - switches;
    sensor_energy after = sensor_energy_now();
    int64_t nanojoules = sensor_energy_between(&energy, &after);
    out->nanojoules = nanojoules == SENSOR_UNKNOWN ? SENSOR_UNKNOWN : nanojoules / (int64_t)b->calls;
    out->khz = sensor_khz(b->o->pins ? b->o->pin[0] : current_cpu());
    out->millidegrees = sensor_hottest();
    return 1;
}

static void print_block(long index, const bench *b, const block *m)
{
    printf("{\"block\": %ld, \"calls\": %llu, \"wall_ns\": %llu, \"cpu_ns\": %llu, \"min_ns\": %llu, \"canary_ns\": %llu", index,
           (unsigned long long)b->calls, (unsigned long long)m->wall_ns, (unsigned long long)m->cpu_ns, (unsigned long long)m->min_ns,
           (unsigned long long)m->canary_ns);
    print_known("switches", m->switches);
    print_known("khz", m->khz);
    print_known("mc", m->millidegrees);
    if (m->nanojoules == SENSOR_UNKNOWN)
        printf(", \"uj\": null");
    else
        printf(", \"uj\": %lld.%03d", (long long)(m->nanojoules / 1000), (int)(m->nanojoules % 1000));
    end_line();
}

static void print_head(const bench *b, const char *source, uint64_t open_ns, uint64_t first_ns, int settled)
{
    printf("{\"bench\": 1, ");
    print_dims(b->model);
    printf("\"threads\": %ld, \"input\": \"%s\", \"calls\": %llu, \"open_ns\": %llu, \"first_run_ns\": %llu, \"clock_ns\": %llu",
           b->o->threads, source, (unsigned long long)b->calls, (unsigned long long)open_ns, (unsigned long long)first_ns,
           (unsigned long long)b->clock_ns);
    printf(", \"canary_ns\": [");
    for (int i = 0; i < CANARY_MEDIANS; i++) {
        uint64_t times[CANARY_RUNS];
        for (int j = 0; j < CANARY_RUNS; j++)
            times[j] = canary_ns();
        printf("%s%llu", i ? ", " : "", (unsigned long long)median_of(times, CANARY_RUNS));
    }
    printf("], \"pinned\": [");
    for (size_t i = 0; i < b->o->pins; i++)
        printf("%s%d", i ? ", " : "", b->o->pin[i]);
    printf("], \"settled\": %s, \"cold\": %s", settled ? "true" : "false", b->o->cold ? "true" : "false");
    print_known("evict_kib", b->o->cold ? (int64_t)(b->eviction_bytes / 1024) : SENSOR_UNKNOWN);
    print_known("cache_kib", sensor_cache_kib(b->o->pins ? b->o->pin[0] : 0));
    printf(", \"energy\": ");
    if (sensor_energy_source())
        print_string(sensor_energy_source());
    else
        printf("null");
    end_line();
}

/* How much --cold walks through: four times the largest cache, so that whatever rule replaces lines, none of ours stay; 32 MiB where
 * the system names no cache; never more than an eighth of the memory. */
static size_t eviction_bytes(const options *o)
{
    int64_t cache = sensor_cache_kib(o->pins ? o->pin[0] : 0);
    int64_t kib = o->evict_kib ? o->evict_kib : cache > 0 ? 4 * cache : 32 * 1024;
    int64_t most = (int64_t)sysconf(_SC_PHYS_PAGES) / 8 * (sysconf(_SC_PAGESIZE) / 1024);
    return (size_t)(o->evict_kib || kib < most ? kib : most) * 1024;
}

int mode_bench(bevel_model *model, const options *o, uint64_t open_ns)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = stop;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sensors_open(o->sysfs);
    const char *source = prepare(model, o);
    bench b = {model, o, 1, clock_cost_ps(now_ns) / 1000, NULL, 0};
    uint64_t first_ns = timed_run(model, b.clock_ns), typical = first_ns;
    int settled = warm_up(model, o, b.clock_ns, &typical);
    int64_t rss_kib = 0;
    if (o->cold) {
        /* Before the memory to walk through counts as the model's. */
        rss_kib = peak_rss_kib();
        b.eviction_bytes = eviction_bytes(o);
        b.eviction = allocate(b.eviction_bytes);
        memset(b.eviction, 1, b.eviction_bytes);
    } else if (typical > 0) {
        uint64_t calls = (uint64_t)o->block_ms * 1000000u / typical;
        b.calls = calls > 1 ? calls : 1;
    }
    print_head(&b, source, open_ns, first_ns, settled);
    int64_t throttled = sensor_throttle_count(), held_back = SENSOR_UNKNOWN;
    long done = 0;
    for (block m; done < o->blocks && !stopped && measure(&b, &m); done++) {
        print_block(done, &b, &m);
        int64_t now = sensor_held_back();
        if (now >= 0)
            held_back = held_back < 0 ? now : held_back + now;
    }
    if (throttled >= 0)
        throttled = sensor_throttle_count() - throttled;
    /* Where the system counts no events, the blocks after which the firmware held the processor back. */
    printf("{\"end\": 1, \"blocks\": %ld, \"rss_kib\": %lld", done, (long long)(o->cold ? rss_kib : peak_rss_kib()));
    print_known("throttled", throttled >= 0 ? throttled : held_back);
    end_line();
    free(b.eviction);
    return 0;
}
