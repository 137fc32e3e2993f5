/* run.h: the parts of the runner: options and errors (run_options.c), files and golden vectors (run_data.c), modes (bevel_run.c and
 * one file for each that measures).
 *
 * Whatever goes wrong ends the program: no function here returns an error. */
#ifndef BEVEL_RUN_H
#define BEVEL_RUN_H

#include "bevel.h"
#include "npy.h"

#include <stdio.h>

enum { EXIT_CHECK = 1, EXIT_USAGE = 2, EXIT_ARTIFACT = 3, EXIT_DEVICE = 4 };
enum { MAX_TENSORS = 256, MAX_PINS = 256, MAX_CPUS = 1024, PATH_BYTES = 4096, GOLDEN_BYTES = PATH_BYTES + 64 };

typedef struct {
    enum { RUN, BENCH, PROFILE, SELFTEST, INFO, START, FIRST } mode; /* FIRST is one start of START */
    const char *input[MAX_TENSORS], *output[MAX_TENSORS], *dim[MAX_TENSORS];
    size_t inputs, outputs, dims;
    char weights[PATH_BYTES], golden[PATH_BYTES];
    int batch, as_float, reset_state, cold;
    long threads, runs, blocks, block_ms, warmup_ms, evict_kib, starts;
    int pin[MAX_PINS];
    size_t pins;
    const char *sysfs;
} options;

/* An open output file. */
typedef struct {
    FILE *file;
    const char *path;
    size_t index;
} sink;

/* ---- run_options.c ---- */

void parse_options(int argc, char **argv, options *o);

/* Print one line to stderr and exit with `code`. */
__attribute__((noreturn, format(printf, 2, 3))) void fail(int code, const char *format, ...);

/* Exit with the code that fits `status`, unless it is BEVEL_OK. */
void must(bevel_status status, const char *what);

void *allocate(size_t nbytes);

/* The path of this program. */
void program_path(char out[PATH_BYTES], const char *argv0);

/* ---- run_data.c ---- */

const bevel_tensor *tensor_at(const bevel_model *model, int is_input, size_t index);
size_t elements(const bevel_tensor *t);
void print_shape(FILE *out, int32_t rank, const int64_t *shape);

/* Give every dimension of --dim its extent. */
void set_dims(bevel_model *model, const options *o);

/* Open every --input (the array of a state that is not given has no data), and let dimensions that are not given take the extents of the files; *rows is the common number of rows. */
npy_array *open_inputs(bevel_model *model, const options *o, int64_t *rows);

/* Copy row `row` of the file into the arena, quantizing float32 by way of `staging`; nothing where there is no file. */
void feed(bevel_model *model, size_t index, const npy_array *a, int64_t row, float *staging);

/* Bytes of `staging` that hold any input or output as float32. */
size_t largest_staging(const bevel_model *model);

/* Open the `position`-th --output and write its header for `rows` rows. */
sink open_sink(const bevel_model *model, const options *o, size_t position, int64_t rows);

/* Append the output of the last run. */
void drain(const bevel_model *model, const sink *s, int as_float, float *staging);

/* Open golden file CASE.KIND.INDEX.npy; 0 when it does not exist. `path` is set to its name. */
int open_golden(const options *o, long test, const char *kind, size_t index, char path[GOLDEN_BYTES], npy_array *a);

/* Put golden case `test` into the inputs, dimensions as its files have them; 0 when there is no such case. */
int feed_golden(bevel_model *model, const options *o, long test);

/* Fill the inputs of a measurement: --input files, else the first golden case, else (where --dim chooses another size, and in starts,
 * which read no files) zeros. Returns which. */
const char *prepare(bevel_model *model, const options *o);

/* ---- bevel_run.c ---- */

/* Print `s` as JSON. */
void print_string(const char *s);

/* Print the extents in force as a JSON member and a comma, nothing for a model without dimensions. */
void print_dims(const bevel_model *model);

/* ---- run_bench.c, run_profile.c, run_start.c: modes, which return the exit code ---- */

/* Run once; nanoseconds, without those of the clock. */
uint64_t timed_run(bevel_model *model, uint64_t clock_ns);

/* Run until the medians of three successive blocks lie within 2 %, for at least --warmup-ms and at most five times that. *typical
 * becomes the last median, if there was time for one. Returns whether they agreed. */
int warm_up(bevel_model *model, const options *o, uint64_t clock_ns, uint64_t *typical);

int mode_bench(bevel_model *model, const options *o, uint64_t open_ns);
int mode_profile(bevel_model *model, const options *o);
int mode_start(int argc, char **argv, const options *o);
int mode_first(bevel_model *model, const options *o);

#endif
