/* kernel_bench.h: the kernels that a measuring program times (kernel_bench.c); the table is generated for each program. */
#ifndef BEVEL_KERNEL_BENCH_H
#define BEVEL_KERNEL_BENCH_H

#include <stddef.h>
#include <stdint.h>

/* Where kernels find their buffers; each kernel knows its offsets. */
typedef struct {
    char *operands;        /* read by all kernels, so that they find them in the caches as in a model */
    const char *constants; /* contents of the data file */
    char *output;          /* written by all kernels */
    void *scratch;
} bench_memory;

/* Elements of a run of operands: random ones of each type that no instruction treats apart. */
typedef enum { BENCH_BYTES, BENCH_FLOAT16, BENCH_FLOAT32 } bench_elements;

typedef struct {
    uint64_t offset, nbytes; /* in operands */
    bench_elements elements;
    uint32_t bits;           /* of each byte that may be set: codes of few bits take a byte each */
} bench_operand;

typedef struct {
    int32_t (*call)(const bench_memory *memory);
    uint32_t problem;      /* kernels of one problem compute the same */
    uint64_t output_bytes;
} bench_kernel;

typedef struct {
    const bench_kernel *kernel;
    const bench_operand *operand;
    size_t kernels, operands, problems;
    uint64_t operand_bytes, constant_bytes, output_bytes, scratch_bytes;
    uint32_t isa;
} bench_table;

extern const bench_table bench_the_table;

#endif
