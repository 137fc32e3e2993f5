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
    "         --bench        time blocks of calls: a JSON line for each, then one at the end\n"
    "         --profile      time every layer\n"
    "         --start N      time N starts of this program, each up to its first result\n"
    "         --selftest, --info\n"
    "options: --input [NAME=]FILE    .npy, or raw codes in any other file; repeat for each input\n"
    "         --output [NAME=]FILE   .npy, or raw codes in any other file; repeat for each output\n"
    "         --batch                files hold many inputs along a leading axis; the model runs once for each\n"
    "         --reset-state          states start from zero in each run, not from the run before\n"
    "         --float                write outputs as float32 (inputs in float32 are always converted)\n"
    "         --dim NAME=N           extent of a dimension; without it that of the input files, else its largest; repeat for each\n"
    "         --threads N            default 1\n"
    "         --blocks N             of --bench; default 20\n"
    "         --block-ms N           how long a block lasts, at least one call; default 10\n"
    "         --cold                 blocks of one call, before each of which the caches are filled with other data\n"
    "         --evict-kib N          how much data; default four times the largest cache\n"
    "         --runs N               times each layer is timed by --profile; default 100\n"
    "         --warmup-ms N          run for so long, or until times settle, up to five times as long; default 200\n"
    "         --pin CPU,CPU          stay on these CPUs\n"
    "         --sysfs DIR            where clock, heat, energy and caches are read; default /sys\n"
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

static void set_pins(options *o, const char *list)
{
    for (const char *text = list;; text++) {
        char *end;
        long cpu = strtol(text, &end, 10);
        if (end == text || (*end && *end != ',') || cpu < 0 || cpu >= MAX_CPUS || o->pins == MAX_PINS)
            fail(EXIT_USAGE, "--pin %s: expected CPU,CPU with numbers in 0..%d", list, MAX_CPUS - 1);
        o->pin[o->pins++] = (int)cpu;
        if (!*end)
            return;
        text = end;
    }
}

static void set_path(char out[PATH_BYTES], const char *value)
{
    if (snprintf(out, PATH_BYTES, "%s", value) >= PATH_BYTES)
        fail(EXIT_USAGE, "%.40s...: path too long", value);
}

void program_path(char out[PATH_BYTES], const char *argv0)
{
    ssize_t n = readlink("/proc/self/exe", out, PATH_BYTES - 1);
    if (n > 0)
        out[n] = 0;
    else
        set_path(out, argv0);
}

/* Path of `name` in the artifact this program lies in (its bin/ directory's parent). */
static void artifact_path(char out[PATH_BYTES], const char *argv0, const char *name)
{
    char self[PATH_BYTES];
    program_path(self, argv0);
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    if (snprintf(out, PATH_BYTES, "%s/../%s", slash ? self : ".", name) >= PATH_BYTES)
        fail(EXIT_USAGE, "the path of this program is too long");
}

void parse_options(int argc, char **argv, options *o)
{
    enum { INPUT = 256, OUTPUT, DIM, BATCH, FLOAT, THREADS, RUNS, BLOCKS, BLOCK_MS, WARMUP_MS, COLD, EVICT, PIN, SYSFS,
           RESET, WEIGHTS, GOLDEN, HELP, MODE };
    static const struct option known[] = {
        {"bench", 0, 0, MODE + BENCH},       {"profile", 0, 0, MODE + PROFILE},  {"selftest", 0, 0, MODE + SELFTEST},
        {"info", 0, 0, MODE + INFO},         {"input", 1, 0, INPUT},             {"output", 1, 0, OUTPUT},
        {"dim", 1, 0, DIM},                  {"reset-state", 0, 0, RESET},
        {"batch", 0, 0, BATCH},              {"float", 0, 0, FLOAT},             {"threads", 1, 0, THREADS},
        {"start", 1, 0, MODE + START},       {"first", 0, 0, MODE + FIRST},      {"runs", 1, 0, RUNS},
        {"blocks", 1, 0, BLOCKS},            {"block-ms", 1, 0, BLOCK_MS},       {"warmup-ms", 1, 0, WARMUP_MS},
        {"cold", 0, 0, COLD},                {"evict-kib", 1, 0, EVICT},         {"pin", 1, 0, PIN},
        {"sysfs", 1, 0, SYSFS},
        {"weights", 1, 0, WEIGHTS},          {"golden", 1, 0, GOLDEN},           {"help", 0, 0, HELP},
        {0, 0, 0, 0},
    };
    memset(o, 0, sizeof *o);
    o->threads = 1;
    o->runs = 100;
    o->blocks = 20;
    o->block_ms = 10;
    o->warmup_ms = 200;
    o->sysfs = "/sys";
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
        case RUNS: o->runs = number("runs", optarg, 1, 10000000); break;
        case BLOCKS: o->blocks = number("blocks", optarg, 1, 1000000000); break;
        case BLOCK_MS: o->block_ms = number("block-ms", optarg, 1, 600000); break;
        case WARMUP_MS: o->warmup_ms = number("warmup-ms", optarg, 0, 600000); break;
        case COLD: o->cold = 1; break;
        case EVICT: o->evict_kib = number("evict-kib", optarg, 1, 16 << 20); break;
        case PIN: set_pins(o, optarg); break;
        case SYSFS: o->sysfs = optarg; break;
        case RESET: o->reset_state = 1; break;
        case WEIGHTS: set_path(o->weights, optarg); break;
        case GOLDEN: set_path(o->golden, optarg); break;
        case HELP: fputs(usage, stdout); exit(0);
        case '?': fputs(usage, stderr); exit(EXIT_USAGE);
        default:
            if (o->mode != RUN && !(o->mode == START && c == MODE + FIRST))
                fail(EXIT_USAGE, "more than one mode");
            o->mode = c - MODE;
            if (o->mode == START)
                o->starts = number("start", optarg, 1, 100000);
        }
    }
    if (optind != argc)
        fail(EXIT_USAGE, "unexpected argument %s (see --help)", argv[optind]);
}
