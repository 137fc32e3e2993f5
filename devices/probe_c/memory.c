/* memory.c: the latency of dependent loads by working set, from which cache sizes show, and the rate of streaming reads. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "probe.h"

enum { PAGE = 4096, LINE = 64, REPETITIONS = 7 };
static const double LATENCY_NS = 1e6, READ_NS = 4e6;

/* Zeroed memory, in huge pages where the kernel has them: fewer misses of the address translation among those of the caches. */
static char *allocate(size_t bytes)
{
    char *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return NULL;
    madvise(data, bytes, MADV_HUGEPAGE);
    memset(data, 1, bytes);
    return data;
}

static uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static void shuffle(uint32_t *items, size_t count, uint32_t *state)
{
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = next_random(state) % (i + 1);
        uint32_t held = items[i];
        items[i] = items[j];
        items[j] = held;
    }
}

/* Links all lines of `bytes` into one cycle: pages in random order, and within a page lines in random order, which no prefetcher
 * follows and which misses the address translation once a page only. */
static int link_lines(char *data, size_t bytes)
{
    enum { LINES = PAGE / LINE };
    size_t pages = bytes / PAGE;
    uint32_t state = 2463534242u, inner[LINES];
    uint32_t *order = malloc(pages * sizeof *order);
    if (!order) return 0;
    for (size_t i = 0; i < pages; i++) order[i] = (uint32_t)i;
    shuffle(order, pages, &state);
    for (uint32_t i = 0; i < LINES; i++) inner[i] = i;
    char *first = NULL, *last = NULL;
    for (size_t page = 0; page < pages; page++) {
        shuffle(inner, LINES, &state);
        for (size_t i = 0; i < LINES; i++) {
            char *here = data + (size_t)order[page] * PAGE + (size_t)inner[i] * LINE;
            if (last)
                memcpy(last, &here, sizeof here);
            else
                first = here;
            last = here;
        }
    }
    memcpy(last, &first, sizeof first);
    free(order);
    return 1;
}

/* Goes on where the last call stopped, so that short repetitions also see the whole working set. */
static void chase(uint64_t steps, const void *context)
{
    char **place = *(char ***)context, *here = *place;
    for (uint64_t i = 0; i < steps; i++) {
        here = *(char **)here;
        __asm__ volatile("" : "+r"(here)); /* the compiler must not skip a link */
    }
    *place = here;
}

void print_latencies(size_t largest)
{
    printf("\"latency\": [");
    char *data = allocate(largest);
    const char *separator = "";
    /* Two sizes an octave. */
    for (size_t octave = PAGE; data && octave <= largest; octave *= 2)
        for (size_t bytes = octave; bytes < 2 * octave && bytes <= largest; bytes += octave / 2) {
            size_t whole = bytes / PAGE * PAGE;
            if (whole != bytes || !link_lines(data, whole)) continue;
            char *here = data, **place = &here;
            struct figure figure = measure(chase, &place, REPETITIONS, LATENCY_NS);
            printf("%s{\"kib\": %zu, \"ns\": %.3f, \"spread\": %.4f}", separator, bytes / 1024, figure.ns, figure.spread);
            separator = ", ";
        }
    if (data) munmap(data, largest);
    printf("]");
}

struct stream {
    const struct reader *reader;
    const char *data;
    size_t bytes;
};

static void read_all(uint64_t passes, const void *context)
{
    const struct stream *stream = context;
    for (uint64_t i = 0; i < passes; i++) stream->reader->run(stream->data, stream->bytes);
}

void print_reads(int count, char **levels)
{
    const struct reader *widest = NULL;
    for (const struct reader *reader = arch_readers; reader->run; reader++)
        if (has_all(reader->needs)) widest = reader;
    printf("\"read\": [");
    for (int i = 0; i < count; i++) {
        char *size = strchr(levels[i], '=');
        size_t bytes = size ? strtoull(size + 1, NULL, 10) / 1024 * 1024 : 0;
        char *data = bytes && widest ? allocate(bytes) : NULL;
        if (!data) continue;
        struct stream stream = {widest, data, bytes};
        struct figure figure = measure(read_all, &stream, REPETITIONS, READ_NS);
        printf("%s{\"level\": \"%.*s\", \"kib\": %zu, \"instruction\": \"%s\", \"gbs\": %.4g, \"spread\": %.4f, \"ghz\": %.4f, "
               "\"accepted\": %d, \"rejected\": %d}",
               i ? ", " : "", (int)(size - levels[i]), levels[i], bytes / 1024, widest->instruction,
               figure.ns > 0 ? (double)bytes / figure.ns : 0.0, figure.spread, figure.ghz, figure.accepted, figure.rejected);
        munmap(data, bytes);
    }
    printf("]");
}
