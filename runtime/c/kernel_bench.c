/* kernel_bench.c: times kernels in turn.
 * kernel-bench DATA [--blocks N] [--block-ms N] [--warmup-ms N] [--pin CPU] [--walk KIB]
 *
 * Kernels are called one after the other, as a model calls its layers: operands are in the caches, constants where the rest of a model
 * has pushed them. A pass calls one kernel of each problem and then walks through as much memory as the model's other constants take; a
 * round is as many passes as there are kernels of a problem; a block is some rounds. The time of a kernel in a block is the mean of the
 * middle half of its calls, in picoseconds. JSON lines: {"kernels": n, ...} with a digest of each kernel's output, then
 * {"block": i, ...} with the canary before it and what the system did meanwhile, then {"end": 1}. A kernel that takes several times as
 * long as the fastest of its problem in the warm-up is called no more: its time in blocks is null. */
#define _POSIX_C_SOURCE 200809L
#include "kernel_bench.h"
#include "isa.h"
#include "measure.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_USAGE = 2, EXIT_DEVICE = 4 };
/* Rounds of a block; a warm-up has at least WARM_ROUNDS. Times beyond HOPELESS times the best are not worth repeating. */
enum { LEAST_ROUNDS = 5, MOST_ROUNDS = 64, WARM_ROUNDS = 3, HOPELESS = 3 };
enum { PAGE = 4096 };

static uint64_t *calls; /* of each kernel, MOST_ROUNDS times */
static char *others;    /* what is walked through between passes */
static size_t other_bytes;

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(code);
}

static void *allocate(uint64_t nbytes)
{
    /* Vector loads may reach 64 bytes past the end. */
    void *memory = aligned_alloc(PAGE, (size_t)((nbytes + 64 + PAGE - 1) / PAGE * PAGE));
    if (!memory)
        fail(EXIT_DEVICE, "kernel-bench: no memory for %llu bytes", (unsigned long long)nbytes);
    memset(memory, 0, (size_t)((nbytes + 64 + PAGE - 1) / PAGE * PAGE));
    return memory;
}

static char *read_data(const char *path, uint64_t nbytes)
{
    char *data = allocate(nbytes);
    FILE *file = fopen(path, "rb");
    if (!file || fread(data, 1, (size_t)nbytes, file) != nbytes)
        fail(EXIT_DEVICE, "kernel-bench: %s: cannot read %llu bytes", path, (unsigned long long)nbytes);
    fclose(file);
    return data;
}

static uint64_t random_bits(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Floats are of either sign, between 1/2 and 2: no zeros, no subnormals, no overflow in sums. */
static void fill(char *at, const bench_operand *o, uint64_t *state)
{
    for (uint64_t i = 0; i < o->nbytes; i += 8) {
        uint64_t bits = random_bits(state);
        if (o->elements == BENCH_FLOAT32)
            bits = (bits & 0x80ffffff80ffffffu) | 0x3f0000003f000000u;
        else if (o->elements == BENCH_FLOAT16)
            bits = (bits & 0x87ff87ff87ff87ffu) | 0x3800380038003800u;
        else
            bits &= 0x0101010101010101u * ((1u << o->bits) - 1);
        memcpy(at + i, &bits, o->nbytes - i < 8 ? (size_t)(o->nbytes - i) : 8);
    }
}

static uint64_t digest(const char *data, uint64_t nbytes)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (uint64_t i = 0; i < nbytes; i++)
        hash = (hash ^ (unsigned char)data[i]) * 1099511628211u;
    return hash;
}

static uint64_t without(uint64_t ns, uint64_t cost)
{
    return ns > cost ? ns - cost : 0;
}

static uint64_t timed_call(size_t index, const bench_memory *memory, uint64_t clock_ns)
{
    uint64_t before = now_ns();
    int32_t status = bench_the_table.kernel[index].call(memory);
    uint64_t ns = without(now_ns() - before, clock_ns);
    if (status != 0)
        fail(EXIT_DEVICE, "kernel-bench: kernel %zu returned %d", index, (int)status);
    return ns;
}

static void walk(const char *memory, uint64_t nbytes)
{
    unsigned sum = 0;
    for (uint64_t i = 0; i < nbytes; i += 64)
        sum += (unsigned char)memory[i];
    __asm__ volatile("" : : "r"(sum));
}

/* Between passes: the rest of the model runs, and leaves the operands of the next kernel in the caches. */
static void pass_over(const bench_memory *memory)
{
    if (other_bytes) {
        walk(others, other_bytes);
        walk(memory->operands, bench_the_table.operand_bytes);
    }
}

static int begins_pass(size_t index)
{
    const bench_kernel *kernel = bench_the_table.kernel;
    return index == 0 || kernel[index].problem <= kernel[index - 1].problem;
}

static uint64_t middle_ps(uint64_t *values, size_t count)
{
    median_of(values, count); /* sorts */
    size_t first = count / 4, last = count - first;
    uint64_t sum = 0;
    for (size_t i = first; i < last; i++)
        sum += values[i];
    return sum * 1000u / (last - first);
}

static long number(const char *text, const char *option)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < 0)
        fail(EXIT_USAGE, "kernel-bench: %s %s: expected a number", option, text);
    return value;
}

static void end_line(void)
{
    puts("}");
    if (fflush(stdout) != 0)
        fail(EXIT_DEVICE, "kernel-bench: output: %s", strerror(errno));
}

/* Call every kernel once and print what it computed; then rounds until the caches and the clock have settled. *least becomes the
 * fastest call of each kernel. Returns the nanoseconds of a round of the kernels worth timing, which are marked in `alive`. */
static uint64_t warm_up(const bench_memory *memory, uint64_t clock_ns, uint64_t warmup_ns, uint64_t *least, char *alive)
{
    const bench_table *t = &bench_the_table;
    uint64_t *best = allocate(t->problems * sizeof *best), total = 0;
    printf("{\"kernels\": %zu, \"clock_ns\": %llu, \"digests\": [", t->kernels, (unsigned long long)clock_ns);
    for (size_t i = 0; i < t->kernels; i++) {
        memset(memory->output, 0xa5, (size_t)t->output_bytes);
        timed_call(i, memory, clock_ns);
        printf("%s\"%016llx\"", i ? ", " : "", (unsigned long long)digest(memory->output, t->kernel[i].output_bytes));
        least[i] = UINT64_MAX;
        alive[i] = 1;
    }
    uint64_t begin = now_ns();
    for (int round = 0; round < WARM_ROUNDS || now_ns() - begin < warmup_ns; round++) {
        for (size_t i = 0; i < t->kernels; i++) {
            uint64_t *fastest = &best[t->kernel[i].problem];
            if (begins_pass(i))
                pass_over(memory);
            if (!alive[i])
                continue;
            uint64_t ns = timed_call(i, memory, clock_ns);
            least[i] = ns < least[i] ? ns : least[i];
            *fastest = *fastest == 0 || ns < *fastest ? ns : *fastest;
            alive[i] = least[i] / HOPELESS <= *fastest;
        }
    }
    printf("], \"least_ns\": [");
    for (size_t i = 0; i < t->kernels; i++) {
        alive[i] = least[i] / HOPELESS <= best[t->kernel[i].problem];
        total += alive[i] ? least[i] : 0;
        printf("%s%llu", i ? ", " : "", (unsigned long long)least[i]);
    }
    printf("]");
    end_line();
    free(best);
    return total;
}

static void block(long index, size_t rounds, const bench_memory *memory, uint64_t clock_ns, const char *alive)
{
    const bench_table *t = &bench_the_table;
    uint64_t canary = canary_ns(), cpu = process_ns(), begin = now_ns();
    int64_t switches = involuntary_switches();
    for (size_t round = 0; round < rounds; round++)
        for (size_t i = 0; i < t->kernels; i++) {
            if (begins_pass(i))
                pass_over(memory);
            if (alive[i])
                calls[i * MOST_ROUNDS + round] = timed_call(i, memory, clock_ns);
        }
    uint64_t wall = now_ns() - begin;
    cpu = process_ns() - cpu;
    switches = involuntary_switches() - switches;
    printf("{\"block\": %ld, \"rounds\": %zu, \"canary_ns\": %llu, \"wall_ns\": %llu, \"cpu_ns\": %llu, \"switches\": %lld, \"ps\": [", index,
           rounds, (unsigned long long)canary, (unsigned long long)wall, (unsigned long long)cpu, (long long)switches);
    for (size_t i = 0; i < t->kernels; i++) {
        printf("%s", i ? ", " : "");
        if (alive[i])
            printf("%llu", (unsigned long long)middle_ps(&calls[i * MOST_ROUNDS], rounds));
        else
            printf("null");
    }
    printf("]");
    end_line();
}

int main(int argc, char **argv)
{
    const bench_table *t = &bench_the_table;
    long blocks = 9, block_ms = 20, warmup_ms = 50, cpu = -1;
    if (argc < 2 || argc % 2)
        fail(EXIT_USAGE, "usage: kernel-bench DATA [--blocks N] [--block-ms N] [--warmup-ms N] [--pin CPU] [--walk KIB]");
    for (int i = 2; i < argc; i += 2) {
        long value = number(argv[i + 1], argv[i]);
        if (strcmp(argv[i], "--blocks") == 0)
            blocks = value;
        else if (strcmp(argv[i], "--block-ms") == 0)
            block_ms = value;
        else if (strcmp(argv[i], "--warmup-ms") == 0)
            warmup_ms = value;
        else if (strcmp(argv[i], "--pin") == 0)
            cpu = value;
        else if (strcmp(argv[i], "--walk") == 0)
            other_bytes = (size_t)value * 1024;
        else
            fail(EXIT_USAGE, "kernel-bench: unknown option %s", argv[i]);
    }
    if (bevel_isa_check(t->isa) != BEVEL_OK)
        fail(EXIT_DEVICE, "kernel-bench: this CPU, or its kernel, lacks instructions that the kernels need");
    int pin = (int)cpu;
    if (cpu >= 0 && pin_to(&pin, 1) != 0)
        fail(EXIT_DEVICE, "kernel-bench: --pin %ld: %s", cpu, strerror(errno));
    uint64_t state = 88172645463325252u;
    bench_memory memory = {allocate(t->operand_bytes), read_data(argv[1], t->constant_bytes), allocate(t->output_bytes),
                           allocate(t->scratch_bytes)};
    for (size_t i = 0; i < t->operands; i++)
        fill(memory.operands + t->operand[i].offset, &t->operand[i], &state);
    others = allocate(other_bytes);
    calls = allocate(t->kernels * MOST_ROUNDS * sizeof *calls);
    uint64_t *least = allocate(t->kernels * sizeof *least), clock_ns = clock_cost_ps(now_ns) / 1000;
    char *alive = allocate(t->kernels);
    uint64_t round_ns = warm_up(&memory, clock_ns, (uint64_t)warmup_ms * 1000000u, least, alive);
    size_t rounds = (size_t)((uint64_t)block_ms * 1000000u / (round_ns ? round_ns : 1));
    rounds = rounds < LEAST_ROUNDS ? LEAST_ROUNDS : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    for (long i = 0; i < blocks; i++)
        block(i, rounds, &memory, clock_ns, alive);
    printf("{\"end\": 1");
    end_line();
    return 0;
}
