/* run_data.c: input, output and golden files against the model's tensors. */
#define _POSIX_C_SOURCE 200809L
#include "run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const bevel_tensor *tensor_at(const bevel_model *model, int is_input, size_t index)
{
    return is_input ? bevel_input(model, index) : bevel_output(model, index);
}

/* Resolve [NAME=]FILE: the tensor's index, and *path after the name. A file without a name stands for the tensor of its position. */
static size_t resolve(const bevel_model *model, int is_input, const char *argument, size_t position, const char **path)
{
    size_t count = is_input ? bevel_num_inputs() : bevel_num_outputs();
    for (size_t i = 0; i < count; i++) {
        const char *name = tensor_at(model, is_input, i)->name;
        size_t n = strlen(name);
        if (strncmp(argument, name, n) == 0 && argument[n] == '=') {
            *path = argument + n + 1;
            return i;
        }
    }
    if (position >= count)
        fail(EXIT_USAGE, "%s: the model has %zu %s", argument, count, is_input ? "inputs" : "outputs");
    *path = argument;
    return position;
}

/* Index of the dimension called by the first `n` bytes of `name`; the number of dimensions when there is none. */
static size_t dim_called(const char *name, size_t n)
{
    size_t i = 0;
    while (i < bevel_num_dims() && (strncmp(bevel_dim_at(i)->name, name, n) != 0 || bevel_dim_at(i)->name[n] != 0))
        i++;
    return i;
}

static void set_dim(bevel_model *model, size_t index, int64_t extent, int code, const char *where)
{
    const bevel_dim *d = bevel_dim_at(index);
    if (extent < d->lo || extent > d->hi || bevel_set_dim(model, index, (int32_t)extent) != BEVEL_OK)
        fail(code, "%s: dimension '%s' is %lld, expected %d..%d", where, d->name, (long long)extent, (int)d->lo, (int)d->hi);
}

void set_dims(bevel_model *model, const options *o)
{
    for (size_t i = 0; i < o->dims; i++) {
        const char *equal = strrchr(o->dim[i], '=');
        size_t index = equal ? dim_called(o->dim[i], (size_t)(equal - o->dim[i])) : bevel_num_dims();
        if (index == bevel_num_dims())
            fail(EXIT_USAGE, "--dim %s: expected NAME=N; --info lists the dimensions", o->dim[i]);
        char *end;
        long long extent = strtoll(equal + 1, &end, 10);
        if (*end || end == equal + 1)
            fail(EXIT_USAGE, "--dim %s: expected a number", o->dim[i]);
        set_dim(model, index, extent, EXIT_USAGE, "--dim");
    }
}

/* Let the dimensions of input `index` take the extents of array `a`, whose axes begin with `leading` further ones. `known` marks
 * the dimensions that have an extent. With `rows`, axis 0 counts the runs instead. `code` is the exit code of files that do not fit. */
static void fit_dims(bevel_model *model, size_t index, const npy_array *a, int leading, int rows, char *known, int code, const char *where)
{
    const bevel_tensor *t = bevel_input(model, index);
    for (int32_t axis = rows; t->dims && axis < t->rank; axis++) {
        if (t->dims[axis] < 0)
            continue;
        size_t dim = (size_t)t->dims[axis];
        int64_t extent = a->shape[axis + leading];
        if (known[dim] && extent != bevel_get_dim(model, dim))
            fail(code, "%s: dimension '%s' is %lld, --dim or another input makes it %d", where, bevel_dim_at(dim)->name,
                 (long long)extent, (int)bevel_get_dim(model, dim));
        set_dim(model, dim, extent, code, where);
        known[dim] = 1;
    }
}

size_t elements(const bevel_tensor *t)
{
    size_t n = 1;
    for (int32_t i = 0; i < t->rank; i++)
        n *= (size_t)t->shape[i];
    return n;
}

/* How many inputs of type `t` the array holds along a leading axis: [N, shape...], or [N, shape[1:]...] where shape[0] is 1. */
static int64_t rows_of(const npy_array *a, const bevel_tensor *t, int batch)
{
    if (a->dtype < 0)
        return t->nbytes != 0 && a->nbytes % t->nbytes == 0 ? (int64_t)(a->nbytes / t->nbytes) : -1;
    size_t bytes = (size_t)t->rank * sizeof *t->shape;
    if (!batch)
        return a->rank == t->rank && memcmp(a->shape, t->shape, bytes) == 0 ? 1 : -1;
    if (a->rank == t->rank + 1 && memcmp(a->shape + 1, t->shape, bytes) == 0)
        return a->shape[0];
    if (a->rank == t->rank && t->rank > 0 && t->shape[0] == 1 &&
        memcmp(a->shape + 1, t->shape + 1, bytes - sizeof *t->shape) == 0)
        return a->shape[0];
    return -1;
}

void print_shape(FILE *out, int32_t rank, const int64_t *shape)
{
    for (int32_t i = 0; i < rank; i++)
        fprintf(out, "%s%lld", i ? "," : "", (long long)shape[i]);
}

/* Check an input file against its tensor. Returns the number of rows. */
static int64_t check_input(const char *path, const bevel_tensor *t, int batch, const npy_array *a)
{
    int converted = a->dtype == BEVEL_FLOAT32 && t->dtype != BEVEL_FLOAT32;
    if (a->dtype >= 0 && a->dtype != t->dtype && !converted)
        fail(EXIT_USAGE, "%s: %s, input '%s' expects %s%s", path, npy_dtype_name(a->dtype), t->name, npy_dtype_name(t->dtype),
             t->dtype == BEVEL_FLOAT32 ? "" : " codes or float32");
    int64_t rows = rows_of(a, t, batch);
    if (rows < 0 || (!batch && rows != 1)) {
        fprintf(stderr, "bevel-run: %s: shape [", path);
        print_shape(stderr, a->rank, a->shape);
        fprintf(stderr, "] (%zu bytes), input '%s' expects %s[", a->nbytes, t->name, batch ? "N x " : "");
        print_shape(stderr, t->rank, t->shape);
        fprintf(stderr, "] of %s%s\n", npy_dtype_name(t->dtype), batch ? "" : " (many inputs: --batch)");
        exit(EXIT_USAGE);
    }
    return rows;
}

void feed(bevel_model *model, size_t index, const npy_array *a, int64_t row, float *staging)
{
    const bevel_tensor *t = bevel_input(model, index);
    if (!a->data)
        return;
    if (a->dtype != BEVEL_FLOAT32 || t->dtype == BEVEL_FLOAT32) {
        memcpy(t->data, a->data + (size_t)row * t->nbytes, t->nbytes);
        return;
    }
    size_t count = elements(t);
    memcpy(staging, a->data + (size_t)row * count * sizeof *staging, count * sizeof *staging);
    bevel_status status = bevel_set_input_f32(model, index, staging, count);
    if (status != BEVEL_OK)
        fail(EXIT_USAGE, "input '%s': %s", t->name, bevel_strerror(status));
}

size_t largest_staging(const bevel_model *model)
{
    size_t most = 0;
    for (int side = 0; side < 2; side++) {
        size_t count = side ? bevel_num_inputs() : bevel_num_outputs();
        for (size_t i = 0; i < count; i++)
            if (elements(tensor_at(model, side, i)) > most)
                most = elements(tensor_at(model, side, i));
    }
    return most * sizeof(float);
}

sink open_sink(const bevel_model *model, const options *o, size_t position, int64_t rows)
{
    sink s;
    s.index = resolve(model, 0, o->output[position], position, &s.path);
    const bevel_tensor *t = bevel_output(model, s.index);
    s.file = fopen(s.path, "wb");
    if (!s.file)
        fail(EXIT_DEVICE, "%s: %s", s.path, strerror(errno));
    size_t n = strlen(s.path);
    if (n < 4 || strcmp(s.path + n - 4, ".npy") != 0)
        return s;
    int64_t shape[NPY_MAX_RANK + 1];
    int32_t rank = t->rank;
    if (rank > NPY_MAX_RANK)
        fail(EXIT_USAGE, "output '%s' has %d dimensions: write a .bin", t->name, rank);
    memcpy(shape, t->shape, (size_t)rank * sizeof *shape);
    if (o->batch && rank > 0 && shape[0] == 1) {
        shape[0] = rows;
    } else if (o->batch) {
        memmove(shape + 1, shape, (size_t)rank++ * sizeof *shape);
        shape[0] = rows;
    }
    if (npy_write_header(s.file, o->as_float ? BEVEL_FLOAT32 : t->dtype, rank, shape) != 0)
        fail(EXIT_DEVICE, "%s: %s", s.path, strerror(errno));
    return s;
}

void drain(const bevel_model *model, const sink *s, int as_float, float *staging)
{
    const bevel_tensor *t = bevel_output(model, s->index);
    const void *data = t->data;
    size_t nbytes = t->nbytes;
    if (as_float) {
        must(bevel_get_output_f32(model, s->index, staging, elements(t)), t->name);
        data = staging;
        nbytes = elements(t) * sizeof *staging;
    }
    if (fwrite(data, 1, nbytes, s->file) != nbytes)
        fail(EXIT_DEVICE, "%s: %s", s->path, strerror(errno));
}

static int is_state(size_t input)
{
    for (size_t i = 0; i < bevel_num_states(); i++)
        if (bevel_state_at(i)->input == input)
            return 1;
    return 0;
}

npy_array *open_inputs(bevel_model *model, const options *o, int64_t *rows)
{
    size_t count = bevel_num_inputs();
    npy_array *arrays = allocate(count * sizeof *arrays);
    memset(arrays, 0, count * sizeof *arrays);
    const char **given = allocate(count * sizeof *given);
    memset(given, 0, count * sizeof *given);
    char *known = allocate(bevel_num_dims());
    memset(known, 0, bevel_num_dims());
    for (size_t i = 0; i < o->dims; i++)
        known[dim_called(o->dim[i], (size_t)(strrchr(o->dim[i], '=') - o->dim[i]))] = 1;
    for (size_t i = 0; i < o->inputs; i++) {
        const char *path;
        size_t index = resolve(model, 1, o->input[i], i, &path);
        const bevel_tensor *t = bevel_input(model, index);
        npy_array *a = &arrays[index];
        if (given[index])
            fail(EXIT_USAGE, "input '%s' is given twice", t->name);
        const char *wrong = npy_open(path, a);
        if (wrong)
            fail(EXIT_USAGE, "%s: %s", path, wrong);
        given[index] = path;
        int leading = o->batch && a->rank == t->rank + 1;
        if (a->dtype >= 0 && (a->rank == t->rank || leading))
            fit_dims(model, index, a, leading, o->batch && !leading, known, EXIT_USAGE, path);
    }
    *rows = 1;
    for (size_t i = 0, seen = 0; i < count; i++) {
        const bevel_tensor *t = bevel_input(model, i);
        if (!given[i] && is_state(i))
            continue;
        if (!given[i])
            fail(EXIT_USAGE, "input '%s' is missing: give --input %s=FILE", t->name, t->name);
        int64_t n = check_input(given[i], t, o->batch, &arrays[i]);
        if (seen++ && n != *rows)
            fail(EXIT_USAGE, "%s: %lld rows, the inputs before it have %lld", given[i], (long long)n, (long long)*rows);
        *rows = n;
    }
    free(known);
    free(given);
    return arrays;
}

int open_golden(const options *o, long test, const char *kind, size_t index, char path[GOLDEN_BYTES], npy_array *a)
{
    snprintf(path, GOLDEN_BYTES, "%s/%ld.%s.%zu.npy", o->golden, test, kind, index);
    if (access(path, F_OK) != 0)
        return 0;
    const char *wrong = npy_open(path, a);
    if (wrong)
        fail(EXIT_ARTIFACT, "%s: %s", path, wrong);
    return 1;
}

/* Whether array `a` is tensor `t`, or each of its elements stands for a block of equal ones. */
static int stands_for(const npy_array *a, const bevel_tensor *t)
{
    int fits = a->dtype == t->dtype && a->rank == t->rank;
    for (int32_t axis = 0; fits && axis < t->rank; axis++)
        fits = a->shape[axis] == t->shape[axis] || (a->shape[axis] > 0 && t->shape[axis] % a->shape[axis] == 0);
    return fits;
}

/* Fill tensor `t` with the blocks of `a`. */
static void fill_blocks(const bevel_tensor *t, const npy_array *a)
{
    size_t item = npy_item_bytes(t->dtype), count = elements(t);
    int64_t at[NPY_MAX_RANK] = {0};
    for (size_t n = 0; n < count; n++) {
        int64_t from = 0;
        for (int32_t axis = 0; axis < t->rank; axis++)
            from = from * a->shape[axis] + at[axis] / (t->shape[axis] / a->shape[axis]);
        memcpy((char *)t->data + n * item, a->data + (size_t)from * item, item);
        for (int32_t axis = t->rank - 1; axis >= 0 && ++at[axis] == t->shape[axis]; axis--)
            at[axis] = 0;
    }
}

int feed_golden(bevel_model *model, const options *o, long test)
{
    char path[GOLDEN_BYTES];
    npy_array a;
    if (!open_golden(o, test, "out", 0, path, &a))
        return 0;
    npy_close(&a);
    char *known = allocate(bevel_num_dims());
    memset(known, 0, bevel_num_dims());
    for (size_t i = 0; i < bevel_num_inputs(); i++) {
        if (!open_golden(o, test, "in", i, path, &a))
            fail(EXIT_ARTIFACT, "%s: missing", path);
        if (a.rank == bevel_input(model, i)->rank)
            fit_dims(model, i, &a, 0, 0, known, EXIT_ARTIFACT, path);
        npy_close(&a);
    }
    free(known);
    for (size_t i = 0; i < bevel_num_inputs(); i++) {
        const bevel_tensor *t = bevel_input(model, i);
        if (!open_golden(o, test, "in", i, path, &a))
            fail(EXIT_ARTIFACT, "%s: missing", path);
        if (!stands_for(&a, t))
            fail(EXIT_ARTIFACT, "%s: %zu bytes of %s, input '%s' has %zu bytes of %s", path, a.nbytes, npy_dtype_name(a.dtype), t->name,
                 t->nbytes, npy_dtype_name(t->dtype));
        if (a.nbytes == t->nbytes)
            memcpy(t->data, a.data, a.nbytes);
        else
            fill_blocks(t, &a);
        npy_close(&a);
    }
    return 1;
}

const char *prepare(bevel_model *model, const options *o)
{
    if (o->inputs > 0) {
        int64_t rows;
        npy_array *arrays = open_inputs(model, o, &rows);
        if (rows < 1)
            fail(EXIT_USAGE, "the input files are empty");
        float *staging = allocate(largest_staging(model));
        for (size_t i = 0; i < bevel_num_inputs(); i++)
            feed(model, i, &arrays[i], 0, staging);
        free(staging);
        return "given";
    }
    if (o->dims == 0 && o->mode != FIRST && feed_golden(model, o, 0))
        return "selftest";
    for (size_t i = 0; i < bevel_num_inputs(); i++)
        memset(bevel_input(model, i)->data, 0, bevel_input(model, i)->nbytes);
    must(bevel_state_reset(model), "zeros");
    return "zeros";
}
