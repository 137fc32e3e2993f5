/* bevel_run.c: the program bin/bevel-run. Runs, times, profiles and self-tests the model it is linked with; prints one JSON object.
 *
 * Exit codes: 0 ok, 1 a check failed, 2 usage or bad input data, 3 damaged or foreign artifact, 4 this device cannot run it. */
#define _POSIX_C_SOURCE 200809L
#include "bevel.h"
#include "npy.h"
#include "run_float.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_CHECK = 1, EXIT_USAGE = 2, EXIT_ARTIFACT = 3, EXIT_DEVICE = 4 };
enum { MAX_TENSORS = 256, PATH_BYTES = 4096 };

static const char usage[] =
    "usage: bevel-run [MODE] [OPTIONS]\n"
    "modes:   (none)  run the model on --input files and write --output files\n"
    "         --bench, --profile, --selftest, --info\n"
    "options: --input [NAME=]FILE    .npy, or raw codes in any other file; repeat for each input\n"
    "         --output [NAME=]FILE   .npy, or raw codes in any other file; repeat for each output\n"
    "         --batch                files hold many inputs along a leading axis; the model runs once for each\n"
    "         --float                write outputs as float32 (inputs in float32 are always converted)\n"
    "         --threads N            default 1\n"
    "         --warmup N, --runs N   of --bench and --profile; default 10 and 100\n"
    "         --samples              --bench prints every time, in order\n"
    "         --weights FILE         default weights.bin of this artifact\n"
    "         --golden DIR           default selftest/ of this artifact\n";

typedef struct {
    enum { RUN, BENCH, PROFILE, SELFTEST, INFO } mode;
    const char *input[MAX_TENSORS], *output[MAX_TENSORS];
    size_t inputs, outputs;
    char weights[PATH_BYTES], golden[PATH_BYTES];
    int batch, as_float, samples;
    long threads, warmup, runs;
} options;

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("bevel-run: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(code);
}

static void *allocate(size_t nbytes)
{
    void *p = malloc(nbytes ? nbytes : 1);
    if (!p)
        fail(EXIT_DEVICE, "no memory for %zu bytes", nbytes);
    return p;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void print_string(const char *s)
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

/* ---- options ---- */

static long number(const char *option, const char *text, long lo, long hi)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || *end || end == text || value < lo || value > hi)
        fail(EXIT_USAGE, "--%s %s: expected a number in %ld..%ld", option, text, lo, hi);
    return value;
}

/* Path of `name` in the artifact this program lies in (its bin/ directory's parent). */
static void artifact_path(char out[PATH_BYTES], const char *argv0, const char *name)
{
    char self[PATH_BYTES];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0)
        self[n] = 0;
    else
        snprintf(self, sizeof self, "%s", argv0);
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    if (snprintf(out, PATH_BYTES, "%s/../%s", slash ? self : ".", name) >= PATH_BYTES)
        fail(EXIT_USAGE, "the path of this program is too long");
}

static void set_path(char out[PATH_BYTES], const char *value)
{
    if (snprintf(out, PATH_BYTES, "%s", value) >= PATH_BYTES)
        fail(EXIT_USAGE, "%.40s...: path too long", value);
}

static void parse_options(int argc, char **argv, options *o)
{
    enum { INPUT = 256, OUTPUT, BATCH, FLOAT, THREADS, WARMUP, RUNS, SAMPLES, WEIGHTS, GOLDEN, HELP, MODE };
    static const struct option known[] = {
        {"bench", 0, 0, MODE + BENCH},       {"profile", 0, 0, MODE + PROFILE},  {"selftest", 0, 0, MODE + SELFTEST},
        {"info", 0, 0, MODE + INFO},         {"input", 1, 0, INPUT},             {"output", 1, 0, OUTPUT},
        {"batch", 0, 0, BATCH},              {"float", 0, 0, FLOAT},             {"threads", 1, 0, THREADS},
        {"warmup", 1, 0, WARMUP},            {"runs", 1, 0, RUNS},               {"samples", 0, 0, SAMPLES},
        {"weights", 1, 0, WEIGHTS},          {"golden", 1, 0, GOLDEN},           {"help", 0, 0, HELP},
        {0, 0, 0, 0},
    };
    memset(o, 0, sizeof *o);
    o->threads = 1;
    o->warmup = 10;
    o->runs = 100;
    artifact_path(o->weights, argv[0], "weights.bin");
    artifact_path(o->golden, argv[0], "selftest");
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case INPUT:
        case OUTPUT: {
            size_t *n = c == INPUT ? &o->inputs : &o->outputs;
            if (*n == MAX_TENSORS)
                fail(EXIT_USAGE, "more than %d files", MAX_TENSORS);
            (c == INPUT ? o->input : o->output)[(*n)++] = optarg;
            break;
        }
        case BATCH: o->batch = 1; break;
        case FLOAT: o->as_float = 1; break;
        case THREADS: o->threads = number("threads", optarg, 1, 256); break;
        case WARMUP: o->warmup = number("warmup", optarg, 0, 1000000); break;
        case RUNS: o->runs = number("runs", optarg, 1, 10000000); break;
        case SAMPLES: o->samples = 1; break;
        case WEIGHTS: set_path(o->weights, optarg); break;
        case GOLDEN: set_path(o->golden, optarg); break;
        case HELP: fputs(usage, stdout); exit(0);
        case '?': fputs(usage, stderr); exit(EXIT_USAGE);
        default:
            if (o->mode != RUN)
                fail(EXIT_USAGE, "more than one mode");
            o->mode = c - MODE;
        }
    }
    if (optind != argc)
        fail(EXIT_USAGE, "unexpected argument %s (see --help)", argv[optind]);
}

/* ---- tensors and files ---- */

static const bevel_tensor *tensor_at(const bevel_model *model, int is_input, size_t index)
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

static size_t elements(const bevel_tensor *t)
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

static void print_shape(FILE *out, int32_t rank, const int64_t *shape)
{
    for (int32_t i = 0; i < rank; i++)
        fprintf(out, "%s%lld", i ? "," : "", (long long)shape[i]);
}

/* Open one input file and check it against its tensor. Returns the number of rows. */
static int64_t open_input(const char *path, const bevel_tensor *t, int batch, npy_array *a)
{
    const char *wrong = npy_open(path, a);
    if (wrong)
        fail(EXIT_USAGE, "%s: %s", path, wrong);
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

/* Copy row `row` of the file into the arena, quantizing float32. */
static void feed(bevel_model *model, size_t index, const npy_array *a, int64_t row, float *staging)
{
    const bevel_tensor *t = bevel_input(model, index);
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

static size_t largest_staging(const bevel_model *model)
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

/* ---- modes ---- */

static void must(bevel_status status, const char *what)
{
    if (status == BEVEL_OK)
        return;
    int code = EXIT_DEVICE;
    if (status == BEVEL_E_ARGUMENT || status == BEVEL_E_TYPE)
        code = EXIT_USAGE;
    if (status >= BEVEL_E_OPEN && status <= BEVEL_E_HASH)
        code = EXIT_ARTIFACT;
    fail(code, "%s: %s%s%s", what, bevel_strerror(status), status == BEVEL_E_OPEN ? ": " : "",
         status == BEVEL_E_OPEN ? strerror(errno) : "");
}

typedef struct {
    FILE *file;
    const char *path;
    size_t index;
} sink;

static sink open_sink(const bevel_model *model, const options *o, size_t position, int64_t rows)
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

static void drain(const bevel_model *model, const sink *s, int as_float, float *staging)
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

/* Open every --input; *rows is the common number of rows. */
static npy_array *open_inputs(const bevel_model *model, const options *o, int64_t *rows)
{
    size_t count = bevel_num_inputs();
    npy_array *arrays = allocate(count * sizeof *arrays);
    char *given = allocate(count);
    memset(given, 0, count);
    *rows = 1;
    for (size_t i = 0; i < o->inputs; i++) {
        const char *path;
        size_t index = resolve(model, 1, o->input[i], i, &path);
        if (given[index])
            fail(EXIT_USAGE, "input '%s' is given twice", bevel_input(model, index)->name);
        int64_t n = open_input(path, bevel_input(model, index), o->batch, &arrays[index]);
        if (i > 0 && n != *rows)
            fail(EXIT_USAGE, "%s: %lld rows, the inputs before it have %lld", path, (long long)n, (long long)*rows);
        *rows = n;
        given[index] = 1;
    }
    for (size_t i = 0; i < count; i++)
        if (!given[i])
            fail(EXIT_USAGE, "input '%s' is missing: give --input %s=FILE", bevel_input(model, i)->name, bevel_input(model, i)->name);
    free(given);
    return arrays;
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
    printf("{\"runs\": %lld, \"total_ns\": %llu, \"threads\": %ld}\n", (long long)rows, (unsigned long long)total, o->threads);
    return 0;
}

/* Open golden file CASE.KIND.INDEX.npy; 0 when it does not exist. */
static int open_golden(const options *o, long test, const char *kind, size_t index, char path[PATH_BYTES + 64], npy_array *a)
{
    snprintf(path, PATH_BYTES + 64, "%s/%ld.%s.%zu.npy", o->golden, test, kind, index);
    if (access(path, F_OK) != 0)
        return 0;
    const char *wrong = npy_open(path, a);
    if (wrong)
        fail(EXIT_ARTIFACT, "%s: %s", path, wrong);
    return 1;
}

/* Put golden case `test` into the inputs; 0 when there is no such case. */
static int feed_golden(bevel_model *model, const options *o, long test)
{
    char path[PATH_BYTES + 64];
    npy_array a;
    if (!open_golden(o, test, "out", 0, path, &a))
        return 0;
    npy_close(&a);
    for (size_t i = 0; i < bevel_num_inputs(); i++) {
        const bevel_tensor *t = bevel_input(model, i);
        if (!open_golden(o, test, "in", i, path, &a))
            fail(EXIT_ARTIFACT, "%s: missing", path);
        if (a.dtype != t->dtype || a.nbytes != t->nbytes)
            fail(EXIT_ARTIFACT, "%s: %zu bytes of %s, input '%s' has %zu bytes of %s", path, a.nbytes, npy_dtype_name(a.dtype), t->name,
                 t->nbytes, npy_dtype_name(t->dtype));
        memcpy(t->data, a.data, a.nbytes);
        npy_close(&a);
    }
    return 1;
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
            char path[PATH_BYTES + 64];
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

/* Inputs of a timed run: --input files, else the first golden case, else zeros. Returns which. */
static const char *prepare(bevel_model *model, const options *o)
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
    if (feed_golden(model, o, 0))
        return "selftest";
    for (size_t i = 0; i < bevel_num_inputs(); i++)
        memset(bevel_input(model, i)->data, 0, bevel_input(model, i)->nbytes);
    return "zeros";
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int mode_bench(bevel_model *model, const options *o, uint64_t open_ns)
{
    const char *source = prepare(model, o);
    size_t n = (size_t)o->runs;
    uint64_t *ns = allocate(n * sizeof *ns);
    uint64_t before = now_ns(), first = 0;
    for (long i = 0; i < o->warmup; i++) {
        must(bevel_run(model), "warm-up");
        if (i == 0)
            first = now_ns() - before;
    }
    for (size_t i = 0; i < n; i++) {
        before = now_ns();
        must(bevel_run(model), "run");
        ns[i] = now_ns() - before;
    }
    printf("{\"threads\": %ld, \"warmup\": %ld, \"runs\": %zu, \"input\": \"%s\", \"open_ns\": %llu, \"first_run_ns\": %llu, ", o->threads,
           o->warmup, n, source, (unsigned long long)open_ns, (unsigned long long)(o->warmup ? first : ns[0]));
    if (o->samples) {
        printf("\"samples_ns\": [");
        for (size_t i = 0; i < n; i++)
            printf("%s%llu", i ? ", " : "", (unsigned long long)ns[i]);
        printf("], ");
    }
    qsort(ns, n, sizeof *ns, by_value);
    printf("\"ns\": {\"min\": %llu, \"p10\": %llu, \"median\": %llu, \"p90\": %llu, \"max\": %llu}}\n", (unsigned long long)ns[0],
           (unsigned long long)ns[n / 10], (unsigned long long)ns[n / 2], (unsigned long long)ns[n * 9 / 10],
           (unsigned long long)ns[n - 1]);
    return 0;
}

static int mode_profile(bevel_model *model, const options *o)
{
    const char *source = prepare(model, o);
    size_t steps = bevel_num_steps(), n = (size_t)o->runs;
    if (n > SIZE_MAX / sizeof(uint64_t) / (steps + 1))
        fail(EXIT_USAGE, "--runs is too large");
    uint64_t *ns = allocate(steps * sizeof *ns), *samples = allocate(steps * n * sizeof *samples);
    for (long i = 0; i < o->warmup; i++)
        must(bevel_run(model), "warm-up");
    for (size_t r = 0; r < n; r++) {
        must(bevel_profile(model, ns, steps), "profile");
        for (size_t s = 0; s < steps; s++)
            samples[s * n + r] = ns[s];
    }
    uint64_t total = 0;
    printf("{\"threads\": %ld, \"runs\": %zu, \"input\": \"%s\", \"layers\": [", o->threads, n, source);
    for (size_t s = 0; s < steps; s++) {
        const bevel_step *step = bevel_step_at(s);
        uint64_t *mine = samples + s * n;
        qsort(mine, n, sizeof *mine, by_value);
        printf("%s{\"name\": ", s ? ", " : "");
        print_string(step->layer);
        printf(", \"op\": ");
        print_string(step->op);
        printf(", \"kernel\": ");
        print_string(step->kernel);
        printf(", \"bits\": ");
        print_string(step->bits);
        printf(", \"macs\": %llu, \"bytes\": %llu, \"ns\": {\"min\": %llu, \"median\": %llu}}", (unsigned long long)step->macs,
               (unsigned long long)step->bytes, (unsigned long long)mine[0], (unsigned long long)mine[n / 2]);
        total += mine[n / 2];
    }
    printf("], \"total_ns\": %llu}\n", (unsigned long long)total);
    return 0;
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
    printf("]}\n");
    return 0;
}

int main(int argc, char **argv)
{
    options o;
    parse_options(argc, argv, &o);
    bevel_model *model;
    uint64_t before = now_ns();
    must(bevel_open(o.weights, NULL, (int)o.threads, &model), o.weights);
    uint64_t open_ns = now_ns() - before;
    int code = 0;
    switch (o.mode) {
    case RUN: code = mode_run(model, &o); break;
    case BENCH: code = mode_bench(model, &o, open_ns); break;
    case PROFILE: code = mode_profile(model, &o); break;
    case SELFTEST: code = mode_selftest(model, &o); break;
    case INFO: code = mode_info(model, &o); break;
    }
    bevel_close(model);
    if (fflush(stdout) != 0)
        return EXIT_DEVICE;
    return code;
}
