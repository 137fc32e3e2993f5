/* run_options.c: the runner's command line, and how it fails. */
#define _POSIX_C_SOURCE 200809L
#include "run.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: bevel-run [MODE] [OPTIONS]\n"
    "modes:   (none)  run the model on --input files and write --output files\n"
    "         --bench, --profile, --selftest, --info\n"
    "options: --input [NAME=]FILE    .npy, or raw codes in any other file; repeat for each input\n"
    "         --output [NAME=]FILE   .npy, or raw codes in any other file; repeat for each output\n"
    "         --batch                files hold many inputs along a leading axis; the model runs once for each\n"
    "         --reset-state          states start from zero in each run, not from the run before\n"
    "         --float                write outputs as float32 (inputs in float32 are always converted)\n"
    "         --dim NAME=N           extent of a dimension; without it that of the input files, else its largest; repeat for each\n"
    "         --threads N            default 1\n"
    "         --warmup N, --runs N   of --bench and --profile; default 10 and 100\n"
    "         --samples              --bench prints every time, in order\n"
    "         --weights FILE         default weights.bin of this artifact\n"
    "         --golden DIR           default selftest/ of this artifact\n";

void fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("bevel-run: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(code);
}

void *allocate(size_t nbytes)
{
    void *p = malloc(nbytes ? nbytes : 1);
    if (!p)
        fail(EXIT_DEVICE, "no memory for %zu bytes", nbytes);
    return p;
}

void must(bevel_status status, const char *what)
{
    if (status == BEVEL_OK)
        return;
    int code = EXIT_DEVICE;
    if (status == BEVEL_E_ARGUMENT || status == BEVEL_E_TYPE || status == BEVEL_E_DIM)
        code = EXIT_USAGE;
    if (status >= BEVEL_E_OPEN && status <= BEVEL_E_HASH)
        code = EXIT_ARTIFACT;
    fail(code, "%s: %s%s%s", what, bevel_strerror(status), status == BEVEL_E_OPEN ? ": " : "",
         status == BEVEL_E_OPEN ? strerror(errno) : "");
}

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

void parse_options(int argc, char **argv, options *o)
{
    enum { INPUT = 256, OUTPUT, DIM, BATCH, FLOAT, THREADS, WARMUP, RUNS, SAMPLES, RESET, WEIGHTS, GOLDEN, HELP, MODE };
    static const struct option known[] = {
        {"bench", 0, 0, MODE + BENCH},       {"profile", 0, 0, MODE + PROFILE},  {"selftest", 0, 0, MODE + SELFTEST},
        {"info", 0, 0, MODE + INFO},         {"input", 1, 0, INPUT},             {"output", 1, 0, OUTPUT},
        {"dim", 1, 0, DIM},                  {"reset-state", 0, 0, RESET},
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
        case OUTPUT:
        case DIM: {
            size_t *n = c == INPUT ? &o->inputs : c == OUTPUT ? &o->outputs : &o->dims;
            if (*n == MAX_TENSORS)
                fail(EXIT_USAGE, "more than %d files or dimensions", MAX_TENSORS);
            (c == INPUT ? o->input : c == OUTPUT ? o->output : o->dim)[(*n)++] = optarg;
            break;
        }
        case BATCH: o->batch = 1; break;
        case FLOAT: o->as_float = 1; break;
        case THREADS: o->threads = number("threads", optarg, 1, 256); break;
        case WARMUP: o->warmup = number("warmup", optarg, 0, 1000000); break;
        case RUNS: o->runs = number("runs", optarg, 1, 10000000); break;
        case SAMPLES: o->samples = 1; break;
        case RESET: o->reset_state = 1; break;
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
