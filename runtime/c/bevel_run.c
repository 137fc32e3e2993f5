/* bevel_run.c: the program bin/bevel-run. Runs, times, profiles and self-tests the model it is linked with; prints JSON.
 *
 * Exit codes: 0 ok, 1 a check failed, 2 usage or bad input data, 3 damaged or foreign artifact, 4 this device cannot run it. */
#define _POSIX_C_SOURCE 200809L
#include "measure.h"
#include "run.h"
#include "run_float.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void print_string(const char *s)
{
    putchar('"');
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

void print_dims(const bevel_model *model)
{
    for (size_t i = 0; i < bevel_num_dims(); i++) {
        printf(i ? ", " : "\"dims\": {");
        print_string(bevel_dim_at(i)->name);
        printf(": %d", (int)bevel_get_dim(model, i));
    }
    if (bevel_num_dims())
        printf("}, ");
}

static int mode_run(bevel_model *model, const options *o)
{
    int64_t rows;
    npy_array *arrays = open_inputs(model, o, &rows);
    float *staging = allocate(largest_staging(model));
    sink *sinks = allocate(o->outputs * sizeof *sinks);
    for (size_t i = 0; i < o->outputs; i++)
        sinks[i] = open_sink(model, o, i, rows);
    uint64_t total = 0;
    for (int64_t row = 0; row < rows; row++) {
        if (o->reset_state)
            must(bevel_state_reset(model), "--reset-state");
        for (size_t i = 0; i < bevel_num_inputs(); i++)
            feed(model, i, &arrays[i], row, staging);
        uint64_t before = now_ns();
        must(bevel_run(model), "run");
        total += now_ns() - before;
        for (size_t i = 0; i < o->outputs; i++)
            drain(model, &sinks[i], o->as_float, staging);
    }
    for (size_t i = 0; i < o->outputs; i++)
        if (fclose(sinks[i].file) != 0)
            fail(EXIT_DEVICE, "%s: %s", sinks[i].path, strerror(errno));
    printf("{");
    print_dims(model);
    printf("\"runs\": %lld, \"total_ns\": %llu, \"threads\": %ld}\n", (long long)rows, (unsigned long long)total, o->threads);
    return 0;
}

static size_t first_difference(const char *a, const char *b, size_t nbytes)
{
    size_t i = 0;
    while (i < nbytes && a[i] == b[i])
        i++;
    return i;
}

static int mode_selftest(bevel_model *model, const options *o)
{
    must(bevel_verify(model), o->weights);
    long test = 0, failures = 0;
    for (; feed_golden(model, o, test); test++) {
        must(bevel_run(model), "self-test");
        for (size_t i = 0; i < bevel_num_outputs(); i++) {
            char path[GOLDEN_BYTES];
            npy_array a;
            const bevel_tensor *t = bevel_output(model, i);
            if (!open_golden(o, test, "out", i, path, &a))
                fail(EXIT_ARTIFACT, "%s: missing", path);
            if (a.dtype != t->dtype || a.nbytes != t->nbytes)
                fail(EXIT_ARTIFACT, "%s: does not fit output '%s'", path, t->name);
            int is_float = t->dtype == BEVEL_FLOAT32 || t->dtype == BEVEL_FLOAT64;
            int same = is_float ? run_float_close(t->dtype, t->data, a.data, t->nbytes) : memcmp(t->data, a.data, t->nbytes) == 0;
            if (!same) {
                failures++;
                fprintf(stderr, "bevel-run: case %ld: output '%s' differs from byte %zu on\n", test, t->name,
                        first_difference(t->data, a.data, t->nbytes));
            }
            npy_close(&a);
        }
    }
    if (test == 0)
        fail(EXIT_ARTIFACT, "%s: no golden vectors (0.out.0.npy)", o->golden);
    printf("{\"selftest\": \"%s\", \"cases\": %ld, \"failures\": %ld, \"weights\": \"ok\", \"threads\": %ld}\n",
           failures ? "failed" : "passed", test, failures, o->threads);
    return failures ? EXIT_CHECK : 0;
}

static void print_tensors(const bevel_model *model, int is_input)
{
    size_t count = is_input ? bevel_num_inputs() : bevel_num_outputs();
    for (size_t i = 0; i < count; i++) {
        const bevel_tensor *t = tensor_at(model, is_input, i);
        char scale[32];
        run_float_text(&t->scale, scale);
        printf("%s{\"name\": ", i ? ", " : "");
        print_string(t->name);
        printf(", \"dtype\": \"%s\", \"shape\": [", npy_dtype_name(t->dtype));
        print_shape(stdout, t->rank, t->shape);
        printf("], \"scale\": %s, \"zero_point\": %d, \"bytes\": %zu}", scale, (int)t->zero_point, t->nbytes);
    }
}

static int mode_info(const bevel_model *model, const options *o)
{
    printf("{\"model\": ");
    print_string(bevel_model_name());
    printf(", \"abi\": %u, \"graph_hash\": \"%s\", \"arena_bytes\": %zu, \"inputs\": [", (unsigned)bevel_abi_version(), bevel_graph_hash(),
           bevel_arena_bytes((int)o->threads));
    print_tensors(model, 1);
    printf("], \"outputs\": [");
    print_tensors(model, 0);
    printf("]");
    for (size_t i = 0; i < bevel_num_dims(); i++) {
        const bevel_dim *d = bevel_dim_at(i);
        printf(i ? ", {\"name\": " : ", \"dims\": [{\"name\": ");
        print_string(d->name);
        printf(", \"lo\": %d, \"hi\": %d, \"extent\": %d}", (int)d->lo, (int)d->hi, (int)bevel_get_dim(model, i));
    }
    fputs(bevel_num_dims() ? "]" : "", stdout);
    for (size_t i = 0; i < bevel_num_states(); i++) {
        const bevel_state *s = bevel_state_at(i);
        printf(i ? ", {\"input\": " : ", \"states\": [{\"input\": ");
        print_string(bevel_input(model, s->input)->name);
        printf(", \"output\": ");
        print_string(bevel_output(model, s->output)->name);
        printf("}");
    }
    printf(bevel_num_states() ? "]}\n" : "}\n");
    return 0;
}

int main(int argc, char **argv)
{
    options o;
    parse_options(argc, argv, &o);
    if (o.pins && pin_to(o.pin, o.pins) != 0)
        fail(EXIT_USAGE, "--pin: %s", strerror(errno));
    if (o.mode == START)
        return mode_start(argc, argv, &o);
    bevel_model *model;
    uint64_t before = now_ns();
    must(bevel_open(o.weights, NULL, (int)o.threads, &model), o.weights);
    uint64_t open_ns = now_ns() - before;
    set_dims(model, &o);
    int code = 0;
    switch (o.mode) {
    case RUN: code = mode_run(model, &o); break;
    case BENCH: code = mode_bench(model, &o, open_ns); break;
    case PROFILE: code = mode_profile(model, &o); break;
    case SELFTEST: code = mode_selftest(model, &o); break;
    case INFO: code = mode_info(model, &o); break;
    case FIRST: code = mode_first(model, &o); break;
    case START: break; /* before the model was opened */
    }
    bevel_close(model);
    if (fflush(stdout) != 0)
        return EXIT_DEVICE;
    return code;
}
