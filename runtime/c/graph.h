/* graph.h: what the generated model.c tells the runtime. Private to the library. */
#ifndef BEVEL_GRAPH_H
#define BEVEL_GRAPH_H

#include "bevel.h"

#include <string.h>

#define BEVEL_ALIGN 64u
#define BEVEL_MAX_THREADS 256

enum { BEVEL_IN_ARENA = 0, BEVEL_IN_WEIGHTS = 1 };

/* Instruction sets the code may use; bevel_isa_check tests for them at open. */
enum {
    BEVEL_ISA_AVX2 = 1 << 0,
    BEVEL_ISA_FMA = 1 << 1,
    BEVEL_ISA_AVX512 = 1 << 2, /* F, BW, CD, DQ and VL */
    BEVEL_ISA_AVX512_VNNI = 1 << 3,
    BEVEL_ISA_AMX_INT8 = 1 << 4,
    BEVEL_ISA_NEON = 1 << 5,
    BEVEL_ISA_DOTPROD = 1 << 6,
    BEVEL_ISA_I8MM = 1 << 7,
    BEVEL_ISA_FP16 = 1 << 8, /* arithmetic on half precision, scalars and vectors */
    BEVEL_ISA_VFPV4 = 1 << 9,
    BEVEL_ISA_AVX_VNNI = 1 << 10,
    BEVEL_ISA_AVX512_VPOPCNTDQ = 1 << 11
};

/* One kernel call on [lo, hi) of its parallel axis; `dims` are the extents of the graph's symbolic dimensions. */
typedef int32_t (*bevel_call)(char *arena, const char *weights, const int32_t *dims, int32_t lo, int32_t hi, void *scratch);

typedef struct bevel_graph_step {
    bevel_call call;
    int32_t extent; /* of the parallel axis, every dimension at its bound */
} bevel_graph_step;

/* What one member of a cascade computes of a stripe: units [fresh, end) where a thread begins, else [first, end). The rolling buffer of
 * its result begins with byte `origin` of it and holds it up to byte `done` afterwards. */
typedef struct bevel_stripe {
    int32_t fresh, first, end;
    uint64_t origin, done;
} bevel_stripe;

typedef struct bevel_graph_tensor {
    bevel_tensor tensor; /* every dimension at its bound; data is NULL: filled in for each instance */
    uint64_t offset;
    int32_t space;
} bevel_graph_tensor;

typedef struct bevel_graph {
    const char *name;
    char graph_hash[65];
    unsigned char weights_sha256[32];
    uint64_t weights_bytes; /* payload, without the header */
    uint64_t arena_bytes;
    uint64_t scratch_bytes; /* for each thread, a multiple of 64 */
    uint32_t isa;
    uint32_t inputs, outputs, steps, dims, states;
    uint32_t axes; /* of all inputs and outputs */
    const bevel_graph_tensor *input;
    const bevel_graph_tensor *output;
    const bevel_graph_step *step;
    const bevel_step *info;
    const bevel_dim *dim;
    const bevel_state *state; /* both ends have equal types, of one size */
    void (*set_extents)(const int32_t *dims, int32_t *extent); /* of the steps whose parallel axis is not fixed */
} bevel_graph;

/* Where the whole result would begin whose byte `origin` is the first of a rolling buffer. */
static inline void *bevel_rolling(char *buffer, uint64_t origin)
{
    return (void *)((uintptr_t)buffer - (uintptr_t)origin);
}

/* memmove for a front that lies before `from`. Small static C libraries for ARM go by words in theirs, lines take fewer instructions;
 * on x86 the library's was measured to be the faster one. */
static inline void bevel_move_down(char *front, const char *from, uint64_t bytes)
{
#if defined(__x86_64__)
    memmove(front, from, bytes);
#else
    uint64_t at = 0;
    /* A line is read before it is written, so nothing is overwritten that is still to be read. */
    for (; at + 64 <= bytes; at += 64) {
        uint64_t line[8];
        memcpy(line, from + at, sizeof line);
        memcpy(front + at, line, sizeof line);
        __asm__ volatile("" : : : "memory"); /* or compilers make it a memmove again */
    }
    for (; at < bytes; at++)
        front[at] = from[at];
#endif
}

/* Before a stripe that is not the first: what the buffer holds of the stripe before and still needs moves to the front. `stripe` is a
 * member's entry in a table of `members` a row. */
static inline void bevel_roll(char *buffer, const bevel_stripe *stripe, int32_t members)
{
    const bevel_stripe *before = stripe - members;
    if (stripe->origin > before->origin && before->done > stripe->origin)
        bevel_move_down(buffer, buffer + (stripe->origin - before->origin), before->done - stripe->origin);
}

/* ceil(product / div), at most `most`. */
static inline int32_t bevel_extent(int32_t most, int64_t product, int32_t div)
{
    int64_t units = (product + div - 1) / div;
    return units < most ? (int32_t)units : most;
}

extern const bevel_graph bevel_the_graph;

#endif
