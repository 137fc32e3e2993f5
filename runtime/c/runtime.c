/* runtime.c: instances of the compiled graph. Integer code only: floats live in convert.c. */
#define _POSIX_C_SOURCE 200809L
#include "isa.h"
#include "pool.h"
#include "sha256.h"
#include "weights.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Kernels may read up to 64 bytes past the end of a buffer. */
enum { TAIL = 64 };

/* Where in its page the stack of a run begins (see run_in_place). What counts is where that puts the frames of the kernels: with these
 * values, found by measuring, the arrays that x86's integer kernels keep there begin at cache lines, for 1-5 % less time. */
#if defined(__clang__)
enum { PAGE = 4096, PLACE = 0 };
#else
enum { PAGE = 4096, PLACE = 32 };
#endif

/* One block of memory holds, in this order: arena, tail, scratch of each thread, tail, this struct, descriptors, shapes and extents,
 * workers. */
struct bevel_model {
    char *arena;
    char *scratch;
    const char *weights; /* payload */
    const void *image;   /* whole file */
    size_t image_bytes;
    void *allocated; /* the block when bevel_open allocated it */
    bevel_tensor *tensors; /* inputs, then outputs */
    int64_t *shapes; /* of the descriptors, one after the other */
    int32_t *dims;   /* extents of the symbolic dimensions */
    int32_t *extent; /* of each step's parallel axis */
    bevel_worker *workers;
    uint64_t *times; /* of a profiled run: `marks` readings of `clock`, the first before step `first` */
    bevel_clock clock;
    uint32_t first, marks; /* no marks in other runs */
    int mapped;
    int threads;
    atomic_int failed;
    bevel_pool pool;
};

static size_t round_up(size_t value)
{
    return (value + BEVEL_ALIGN - 1) & ~(size_t)(BEVEL_ALIGN - 1);
}

static size_t tensors_bytes(void)
{
    return round_up((bevel_the_graph.inputs + bevel_the_graph.outputs) * sizeof(bevel_tensor));
}

static size_t extents_bytes(void)
{
    return round_up(bevel_the_graph.axes * sizeof(int64_t) + ((size_t)bevel_the_graph.dims + bevel_the_graph.steps) * sizeof(int32_t));
}

static size_t buffers_bytes(int threads)
{
    return round_up(bevel_the_graph.arena_bytes) + TAIL + (size_t)threads * bevel_the_graph.scratch_bytes + TAIL;
}

size_t bevel_arena_bytes(int threads)
{
    if (threads < 1 || threads > BEVEL_MAX_THREADS)
        return 0;
    return buffers_bytes(threads) + round_up(sizeof(bevel_model)) + tensors_bytes() + extents_bytes() +
           (size_t)threads * sizeof(bevel_worker);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Read the clock if the run is profiled here; boundary i is before step i. */
static inline void mark(bevel_model *model, uint32_t boundary)
{
    uint32_t index = boundary - model->first;
    if (index < model->marks)
        model->times[index] = model->clock();
}

/* The part of [0, extent) that thread `thread` computes. */
static int32_t part(int32_t extent, int thread, int threads)
{
    return (int32_t)((int64_t)extent * thread / threads);
}

static void run_single(void *context, int thread)
{
    bevel_model *model = context;
    (void)thread;
    const bevel_graph_step *step = bevel_the_graph.step;
    mark(model, 0);
    for (uint32_t i = 0; i < bevel_the_graph.steps; i++) {
        if (step[i].call(model->arena, model->weights, model->dims, 0, model->extent[i], model->scratch) != 0) {
            atomic_store_explicit(&model->failed, 1, memory_order_relaxed);
            return;
        }
        mark(model, i + 1);
    }
}

/* Every thread passes every barrier, even after a failure: they stay in step without a second agreement. */
static void run_team(void *context, int thread)
{
    bevel_model *model = context;
    char *scratch = model->scratch + (size_t)thread * bevel_the_graph.scratch_bytes;
    if (thread == 0)
        mark(model, 0);
    for (uint32_t i = 0; i < bevel_the_graph.steps; i++) {
        const bevel_graph_step *step = &bevel_the_graph.step[i];
        int32_t extent = model->extent[i];
        int32_t lo = part(extent, thread, model->threads), hi = part(extent, thread + 1, model->threads);
        if (lo < hi && !atomic_load_explicit(&model->failed, memory_order_relaxed) &&
            step->call(model->arena, model->weights, model->dims, lo, hi, scratch) != 0)
            atomic_store_explicit(&model->failed, 1, memory_order_relaxed);
        bevel_pool_barrier(&model->pool);
        if (thread == 0)
            mark(model, i + 1);
    }
}

/* Call `run` with the stack at a fixed place within its page.
 *
 * Kernels keep values on the stack. Where it lies within its page decides which accesses to the arena a processor takes, at first, for
 * accesses to them: it compares the low 12 bits of addresses. Linux starts the stack of each process somewhere else, and so one process
 * would run up to 10 % faster or slower than the next, for all of its life. */
__attribute__((noinline)) static void run_in_place(void (*run)(void *, int), void *context, int thread)
{
    volatile char *gap = __builtin_alloca(((uintptr_t)__builtin_frame_address(0) - PLACE) % PAGE + 1);
    gap[0] = 0;
    run(context, thread);
    gap[0] = 0; /* still needed here: or else the call may take the place of this frame */
}

static void run_part(void *context, int thread)
{
    run_in_place(run_team, context, thread);
}

static bevel_tensor *state_input(const bevel_model *model, uint32_t index)
{
    return &model->tensors[bevel_the_graph.state[index].input];
}

static const bevel_tensor *state_output(const bevel_model *model, uint32_t index)
{
    return &model->tensors[bevel_the_graph.inputs + bevel_the_graph.state[index].output];
}

bevel_status bevel_state_reset(bevel_model *model)
{
    if (!model)
        return BEVEL_E_ARGUMENT;
    for (uint32_t i = 0; i < bevel_the_graph.states; i++) {
        const bevel_tensor *state = state_input(model, i);
        /* Codes are bytes; other types have zero point 0. */
        memset(state->data, state->zero_point, state->nbytes);
    }
    return BEVEL_OK;
}

bevel_status bevel_run(bevel_model *model)
{
    if (!model)
        return BEVEL_E_ARGUMENT;
    atomic_store_explicit(&model->failed, 0, memory_order_relaxed);
    if (model->threads == 1)
        run_in_place(run_single, model, 0);
    else
        bevel_pool_run(&model->pool);
    if (atomic_load_explicit(&model->failed, memory_order_relaxed))
        return BEVEL_E_KERNEL;
    for (uint32_t i = 0; i < bevel_the_graph.states; i++)
        memcpy(state_input(model, i)->data, state_output(model, i)->data, state_input(model, i)->nbytes);
    return BEVEL_OK;
}

bevel_status bevel_profile(bevel_model *model, size_t first, size_t count, bevel_clock clock, uint64_t *times)
{
    size_t steps = bevel_the_graph.steps;
    if (!model || !times || first > steps || count > steps - first)
        return BEVEL_E_ARGUMENT;
    model->times = times;
    model->clock = clock ? clock : now_ns;
    model->first = (uint32_t)first;
    model->marks = (uint32_t)count + 1;
    bevel_status status = bevel_run(model);
    model->marks = 0;
    return status;
}

/* Let every descriptor and every step follow model->dims. */
static void follow_dims(bevel_model *model)
{
    const bevel_graph *graph = &bevel_the_graph;
    for (uint32_t i = 0; i < graph->inputs + graph->outputs; i++) {
        const bevel_tensor *bound = i < graph->inputs ? &graph->input[i].tensor : &graph->output[i - graph->inputs].tensor;
        bevel_tensor *tensor = &model->tensors[i];
        int64_t *shape = model->shapes + (tensor->shape - model->shapes);
        tensor->nbytes = bound->nbytes;
        for (int32_t axis = 0; tensor->dims && axis < tensor->rank; axis++) {
            int32_t dim = tensor->dims[axis];
            if (dim < 0)
                continue;
            shape[axis] = model->dims[dim];
            tensor->nbytes = tensor->nbytes / (size_t)bound->shape[axis] * (size_t)shape[axis];
        }
    }
    if (graph->set_extents)
        graph->set_extents(model->dims, model->extent);
}

bevel_status bevel_set_dim(bevel_model *model, size_t index, int32_t extent)
{
    if (!model || index >= bevel_the_graph.dims)
        return BEVEL_E_ARGUMENT;
    if (extent < bevel_the_graph.dim[index].lo || extent > bevel_the_graph.dim[index].hi)
        return BEVEL_E_DIM;
    model->dims[index] = extent;
    follow_dims(model);
    return BEVEL_OK;
}

int32_t bevel_get_dim(const bevel_model *model, size_t index)
{
    return model && index < bevel_the_graph.dims ? model->dims[index] : 0;
}

static int64_t *describe(bevel_model *model, bevel_tensor *out, const bevel_graph_tensor *tensor, uint32_t count, int64_t *shapes)
{
    for (uint32_t i = 0; i < count; i++) {
        memcpy(&out[i], &tensor[i].tensor, sizeof out[i]);
        memcpy(shapes, tensor[i].tensor.shape, (size_t)out[i].rank * sizeof *shapes);
        out[i].shape = shapes;
        shapes += out[i].rank;
        /* An output that is a constant lives among the weights: readable, never written. */
        const char *base = tensor[i].space == BEVEL_IN_WEIGHTS ? model->weights : model->arena;
        out[i].data = (void *)(uintptr_t)(base + tensor[i].offset);
    }
    return shapes;
}

static bevel_status open_image(const void *image, size_t nbytes, void *arena, int threads, bevel_model **out)
{
    bevel_status status = bevel_weights_check(image, nbytes);
    if (status != BEVEL_OK)
        return status;
    status = bevel_isa_check(bevel_the_graph.isa);
    if (status != BEVEL_OK)
        return status;
    void *allocated = NULL;
    if (!arena) {
        if (posix_memalign(&allocated, 4096, bevel_arena_bytes(threads)) != 0)
            return BEVEL_E_MEMORY;
        arena = allocated;
    }
    bevel_model *model = (bevel_model *)((char *)arena + buffers_bytes(threads));
    memset(model, 0, sizeof *model);
    model->arena = arena;
    model->scratch = model->arena + round_up(bevel_the_graph.arena_bytes) + TAIL;
    model->weights = (const char *)image + BEVEL_WEIGHTS_HEADER;
    model->image = image;
    model->image_bytes = nbytes;
    model->allocated = allocated;
    model->threads = threads;
    model->tensors = (bevel_tensor *)((char *)model + round_up(sizeof *model));
    model->shapes = (int64_t *)((char *)model->tensors + tensors_bytes());
    model->dims = (int32_t *)(model->shapes + bevel_the_graph.axes);
    model->extent = model->dims + bevel_the_graph.dims;
    model->workers = (bevel_worker *)((char *)model->shapes + extents_bytes());
    int64_t *shapes = describe(model, model->tensors, bevel_the_graph.input, bevel_the_graph.inputs, model->shapes);
    describe(model, model->tensors + bevel_the_graph.inputs, bevel_the_graph.output, bevel_the_graph.outputs, shapes);
    for (uint32_t i = 0; i < bevel_the_graph.steps; i++)
        model->extent[i] = bevel_the_graph.step[i].extent;
    for (uint32_t i = 0; i < bevel_the_graph.dims; i++)
        model->dims[i] = bevel_the_graph.dim[i].hi;
    bevel_state_reset(model);
    if (threads > 1 && bevel_pool_start(&model->pool, model->workers, threads, run_part, model) != 0) {
        free(allocated);
        return BEVEL_E_THREAD;
    }
    *out = model;
    return BEVEL_OK;
}

static int misaligned(const void *pointer)
{
    return (uintptr_t)pointer % BEVEL_ALIGN != 0;
}

bevel_status bevel_open(const char *weights_path, void *arena, int threads, bevel_model **out)
{
    if (!weights_path || !out || misaligned(arena) || bevel_arena_bytes(threads) == 0)
        return BEVEL_E_ARGUMENT;
    *out = NULL;
    const void *image;
    size_t nbytes;
    bevel_status status = bevel_weights_map(weights_path, &image, &nbytes);
    if (status != BEVEL_OK)
        return status;
    status = open_image(image, nbytes, arena, threads, out);
    if (status != BEVEL_OK)
        bevel_weights_unmap(image, nbytes);
    else
        (*out)->mapped = 1;
    return status;
}

bevel_status bevel_open_memory(const void *weights, size_t nbytes, void *arena, int threads, bevel_model **out)
{
    if (!weights || !out || misaligned(weights) || misaligned(arena) || bevel_arena_bytes(threads) == 0)
        return BEVEL_E_ARGUMENT;
    *out = NULL;
    return open_image(weights, nbytes, arena, threads, out);
}

void bevel_close(bevel_model *model)
{
    if (!model)
        return;
    if (model->threads > 1)
        bevel_pool_stop(&model->pool, model->workers);
    if (model->mapped)
        bevel_weights_unmap(model->image, model->image_bytes);
    free(model->allocated); /* holds `model` itself */
}

bevel_status bevel_verify(const bevel_model *model)
{
    if (!model)
        return BEVEL_E_ARGUMENT;
    unsigned char digest[32];
    bevel_sha256(model->weights, bevel_the_graph.weights_bytes, digest);
    return memcmp(digest, bevel_the_graph.weights_sha256, 32) == 0 ? BEVEL_OK : BEVEL_E_HASH;
}

size_t bevel_num_inputs(void)
{
    return bevel_the_graph.inputs;
}

size_t bevel_num_outputs(void)
{
    return bevel_the_graph.outputs;
}

size_t bevel_num_steps(void)
{
    return bevel_the_graph.steps;
}

size_t bevel_num_dims(void)
{
    return bevel_the_graph.dims;
}

size_t bevel_num_states(void)
{
    return bevel_the_graph.states;
}

const bevel_state *bevel_state_at(size_t index)
{
    return index < bevel_the_graph.states ? &bevel_the_graph.state[index] : NULL;
}

const bevel_dim *bevel_dim_at(size_t index)
{
    return index < bevel_the_graph.dims ? &bevel_the_graph.dim[index] : NULL;
}

const bevel_tensor *bevel_input(const bevel_model *model, size_t index)
{
    return model && index < bevel_the_graph.inputs ? &model->tensors[index] : NULL;
}

const bevel_tensor *bevel_output(const bevel_model *model, size_t index)
{
    return model && index < bevel_the_graph.outputs ? &model->tensors[bevel_the_graph.inputs + index] : NULL;
}

const bevel_step *bevel_step_at(size_t index)
{
    return index < bevel_the_graph.steps ? &bevel_the_graph.info[index] : NULL;
}

uint32_t bevel_abi_version(void)
{
    return BEVEL_ABI_VERSION;
}

const char *bevel_model_name(void)
{
    return bevel_the_graph.name;
}

const char *bevel_graph_hash(void)
{
    return bevel_the_graph.graph_hash;
}

const char *bevel_strerror(bevel_status status)
{
    switch (status) {
    case BEVEL_OK: return "success";
    case BEVEL_E_ARGUMENT: return "bad argument: null pointer, index, alignment, count or thread number";
    case BEVEL_E_OPEN: return "the weights file cannot be opened";
    case BEVEL_E_WEIGHTS: return "not a bevel weights file";
    case BEVEL_E_VERSION: return "the weights file has another format version: compile again";
    case BEVEL_E_LENGTH: return "the weights file is truncated or has trailing bytes: copy it again";
    case BEVEL_E_MISMATCH: return "the weights file belongs to another model or target";
    case BEVEL_E_HASH: return "the weights are damaged: copy weights.bin again";
    case BEVEL_E_MEMORY: return "no memory for the arena";
    case BEVEL_E_THREAD: return "a worker thread could not be started";
    case BEVEL_E_ISA: return "this CPU lacks an instruction set the model was compiled for: compile for this device";
    case BEVEL_E_KERNEL: return "a kernel reported an error";
    case BEVEL_E_TYPE: return "the tensor has no float view: it is neither quantized nor float32";
    case BEVEL_E_DIM: return "the extent is outside the bounds of its dimension (bevel_dim_at)";
    }
    return "unknown status";
}
