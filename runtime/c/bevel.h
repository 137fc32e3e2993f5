/* bevel.h: the C interface of a compiled model.
 *
 * A model is code (libmodel.so or libmodel.a) plus weights.bin. Nothing here allocates after bevel_open returns, and any number of
 * instances may be open at once. One instance must not be used by two threads at the same time; different instances may.
 *
 *     bevel_model *model;
 *     bevel_status status = bevel_open("weights.bin", NULL, 1, &model);
 *     if (status != BEVEL_OK) { fprintf(stderr, "%s\n", bevel_strerror(status)); return 1; }
 *     memcpy(bevel_input(model, 0)->data, pixels, bevel_input(model, 0)->nbytes);
 *     status = bevel_run(model);
 *     consume(bevel_output(model, 0)->data);
 *     bevel_close(model);
 */
#ifndef BEVEL_H
#define BEVEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a function below changes its meaning. */
#define BEVEL_ABI_VERSION 4

#if defined(__GNUC__)
#define BEVEL_API __attribute__((visibility("default")))
#else
#define BEVEL_API
#endif

typedef enum bevel_status {
    BEVEL_OK = 0,
    BEVEL_E_ARGUMENT = 1, /* a null pointer, a bad index, a misaligned or too small buffer, a thread count outside 1..256 */
    BEVEL_E_OPEN = 2,     /* the weights file cannot be opened or mapped; errno says why */
    BEVEL_E_WEIGHTS = 3,  /* the file is not a bevel weights file */
    BEVEL_E_VERSION = 4,  /* the weights file has another format version */
    BEVEL_E_LENGTH = 5,   /* the weights file is truncated or has trailing bytes */
    BEVEL_E_MISMATCH = 6, /* the weights file belongs to another model */
    BEVEL_E_HASH = 7,     /* the weights are damaged */
    BEVEL_E_MEMORY = 8,   /* no memory for the arena */
    BEVEL_E_THREAD = 9,   /* a worker thread could not be started */
    BEVEL_E_ISA = 10,     /* this CPU or kernel lacks an instruction set the model was compiled for */
    BEVEL_E_KERNEL = 11,  /* a kernel reported an error */
    BEVEL_E_TYPE = 12,    /* the tensor has no float view */
    BEVEL_E_DIM = 13      /* the extent is outside the dimension's bounds */
} bevel_status;

typedef enum bevel_dtype {
    BEVEL_BOOL = 0,
    BEVEL_INT8 = 1,
    BEVEL_UINT8 = 2,
    BEVEL_INT16 = 3,
    BEVEL_UINT16 = 4,
    BEVEL_INT32 = 5,
    BEVEL_UINT32 = 6,
    BEVEL_INT64 = 7,
    BEVEL_UINT64 = 8,
    BEVEL_FLOAT16 = 9,
    BEVEL_FLOAT32 = 10,
    BEVEL_FLOAT64 = 11
} bevel_dtype;

/* An input or output of one instance. Memory is row-major in the order of `shape`, without gaps. `shape` and `nbytes` follow
 * bevel_set_dim; `data` stays where it is and is large enough for every extent.
 * real = scale * (code - zero_point) where scale > 0; scale is 0 for a tensor that is not quantized. */
typedef struct bevel_tensor {
    const char *name;
    const int64_t *shape;
    void *data; /* in the arena: write inputs here, read outputs here */
    size_t nbytes;
    int32_t rank;
    int32_t dtype; /* bevel_dtype */
    int32_t zero_point;
    float scale;
    const int32_t *dims; /* for each axis, the index of the dimension that is its extent, or -1; NULL where all are fixed */
} bevel_tensor;

/* A dimension whose extent the program chooses, for example the length of a sentence. */
typedef struct bevel_dim {
    const char *name;
    int32_t lo, hi; /* inclusive */
} bevel_dim;

/* An input that takes the bytes of an output after each successful run: what a recurrent or streaming model remembers. */
typedef struct bevel_state {
    uint32_t input, output; /* indices */
} bevel_state;

/* One kernel call of the model, in the order of execution. */
typedef struct bevel_step {
    const char *layer;  /* name of the node in the original model */
    const char *op;     /* operators it computes, joined by "+" */
    const char *kernel; /* generator and symbol */
    const char *bits;   /* "fp32", "w8a8" */
    uint64_t macs;      /* multiply-accumulates */
    uint64_t bytes;     /* memory traffic */
} bevel_step;

typedef struct bevel_model bevel_model;

/* A counter that rises steadily, in whatever unit. */
typedef uint64_t (*bevel_clock)(void);

/* Open the model. `arena` is NULL (memory is allocated and freed by bevel_close) or at least bevel_arena_bytes(threads) bytes, 64-byte
 * aligned, owned by the caller until bevel_close. `threads` counts the calling thread: 1 starts none. The format, length and model of
 * the weights are checked; their hash is not (see bevel_verify), so that opening stays in the microseconds. */
BEVEL_API bevel_status bevel_open(const char *weights_path, void *arena, int threads, bevel_model **out);

/* The same from `nbytes` bytes of weights.bin in memory, 64-byte aligned, which must outlive the instance. */
BEVEL_API bevel_status bevel_open_memory(const void *weights, size_t nbytes, void *arena, int threads, bevel_model **out);

/* Stop the threads and give everything back. NULL is allowed. */
BEVEL_API void bevel_close(bevel_model *model);

/* Choose the extent of a dimension of this instance; it is `hi` after opening. BEVEL_E_DIM outside lo..hi. The shapes of inputs and
 * outputs follow at once and their contents, those of states excepted, become undefined: set dimensions first, then write the inputs.
 * A run takes time in proportion to the extents chosen; memory is that of the bounds. */
BEVEL_API bevel_status bevel_set_dim(bevel_model *model, size_t index, int32_t extent);

/* The extent in force; 0 when the index is out of range. */
BEVEL_API int32_t bevel_get_dim(const bevel_model *model, size_t index);

/* Compute all outputs from the inputs, in place. Inputs keep their contents, so a run may be repeated, but states: each then holds the
 * bytes of its output, for the next run. A run that fails leaves them alone. */
BEVEL_API bevel_status bevel_run(bevel_model *model);

/* Set all states to real zeros, as after bevel_open. A program may also write a state like any other input. */
BEVEL_API bevel_status bevel_state_reset(bevel_model *model);

/* Like bevel_run, and read `clock` before step `first` and after each of `count` steps from there on: times[0..count], count + 1
 * readings. The difference of two neighbours is the time of a step and of one reading. Where that costs too much, time few steps in a
 * run and others in the next. A `clock` of NULL is CLOCK_MONOTONIC in nanoseconds. After an error `times` is undefined. */
BEVEL_API bevel_status bevel_profile(bevel_model *model, size_t first, size_t count, bevel_clock clock, uint64_t *times);

/* Compare the weights with the SHA-256 compiled into the code. */
BEVEL_API bevel_status bevel_verify(const bevel_model *model);

BEVEL_API size_t bevel_num_inputs(void);
BEVEL_API size_t bevel_num_outputs(void);
BEVEL_API size_t bevel_num_steps(void);
BEVEL_API size_t bevel_num_dims(void);
BEVEL_API size_t bevel_num_states(void);
BEVEL_API size_t bevel_arena_bytes(int threads);

/* Descriptors; NULL when the index is out of range. */
BEVEL_API const bevel_tensor *bevel_input(const bevel_model *model, size_t index);
BEVEL_API const bevel_tensor *bevel_output(const bevel_model *model, size_t index);
BEVEL_API const bevel_step *bevel_step_at(size_t index);
BEVEL_API const bevel_dim *bevel_dim_at(size_t index);
BEVEL_API const bevel_state *bevel_state_at(size_t index);

/* Float convenience: codes = clamp(zero_point + round_half_even(x / scale)) and back; a plain copy for float32 tensors. `count` is the
 * number of elements. NaN becomes the zero point. BEVEL_E_TYPE for tensors that are neither quantized nor float32. */
BEVEL_API bevel_status bevel_set_input_f32(bevel_model *model, size_t index, const float *values, size_t count);
BEVEL_API bevel_status bevel_get_output_f32(const bevel_model *model, size_t index, float *values, size_t count);

BEVEL_API const char *bevel_strerror(bevel_status status);
BEVEL_API uint32_t bevel_abi_version(void);
BEVEL_API const char *bevel_model_name(void);
BEVEL_API const char *bevel_graph_hash(void);

#ifdef __cplusplus
}
#endif

#endif
