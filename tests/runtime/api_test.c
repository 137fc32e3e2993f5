/* api_test.c: the C API against the tiny model of conftest.py. Linked with --wrap for every allocator, so that it can count. */
#include "model.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int allocations;
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
int __real_posix_memalign(void **p, size_t a, size_t n);
void *__wrap_malloc(size_t n) { allocations++; return __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t m) { allocations++; return __real_calloc(n, m); }
int __wrap_posix_memalign(void **p, size_t a, size_t n) { allocations++; return __real_posix_memalign(p, a, n); }

static int threads_left = 1000; /* how many more threads this system gives */
int __real_pthread_create(pthread_t *id, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    return threads_left-- > 0 ? __real_pthread_create(id, attributes, start, argument) : EAGAIN;
}

#define CHECK(condition) do { if (!(condition)) { printf("line %d: %s\n", __LINE__, #condition); exit(1); } } while (0)

static _Alignas(64) unsigned char arena[2][1 << 16];
static _Alignas(64) unsigned char image[1 << 20];

static void fill(bevel_model *m, int seed)
{
    unsigned char *x = bevel_input(m, 0)->data;
    for (size_t i = 0; i < bevel_input(m, 0)->nbytes; i++)
        x[i] = (unsigned char)(i * 31 + (size_t)seed * 7);
}

static uint64_t ticks;
static uint64_t tick(void) { return ++ticks; }

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    const char *path = argv[1];
    bevel_model *a, *b;
    CHECK(bevel_abi_version() == BEVEL_ABI_VERSION);
    CHECK(strcmp(bevel_model_name(), "tiny") == 0 && strlen(bevel_graph_hash()) == 64);
    CHECK(bevel_arena_bytes(0) == 0 && bevel_arena_bytes(257) == 0 && bevel_arena_bytes(-1) == 0);
    CHECK(bevel_arena_bytes(4) > bevel_arena_bytes(1) && bevel_arena_bytes(4) < sizeof arena[0]);

    /* Bad arguments are refused. */
    CHECK(bevel_open(NULL, NULL, 1, &a) == BEVEL_E_ARGUMENT);
    CHECK(bevel_open(path, NULL, 1, NULL) == BEVEL_E_ARGUMENT);
    CHECK(bevel_open(path, NULL, 0, &a) == BEVEL_E_ARGUMENT);
    CHECK(bevel_open(path, arena[0] + 8, 1, &a) == BEVEL_E_ARGUMENT);
    CHECK(bevel_open("/nonexistent", NULL, 1, &a) == BEVEL_E_OPEN && a == NULL);
    CHECK(bevel_open("/", NULL, 1, &a) == BEVEL_E_OPEN);
    CHECK(bevel_run(NULL) == BEVEL_E_ARGUMENT && bevel_verify(NULL) == BEVEL_E_ARGUMENT);
    CHECK(bevel_input(NULL, 0) == NULL);
    bevel_close(NULL);

    /* Two instances in caller's memory, without one allocation. */
    allocations = 0;
    CHECK(bevel_open(path, arena[0], 1, &a) == BEVEL_OK);
    CHECK(bevel_open(path, arena[1], 1, &b) == BEVEL_OK);
    CHECK(bevel_input(a, 1) == NULL && bevel_output(a, 2) == NULL && bevel_step_at(3) == NULL && bevel_step_at(2) != NULL);
    CHECK(bevel_input(a, 0)->data == arena[0] && bevel_input(b, 0)->data == arena[1]);
    const bevel_tensor *in = bevel_input(a, 0), *out = bevel_output(a, 0);
    CHECK(strcmp(in->name, "x") == 0 && in->rank == 3 && in->shape[1] == 64 && in->nbytes == 1024 && in->dtype == BEVEL_UINT8);
    CHECK(in->zero_point == 128 && in->scale == 0.1f);
    fill(a, 1);
    fill(b, 2);
    CHECK(bevel_run(a) == BEVEL_OK && bevel_run(b) == BEVEL_OK);
    CHECK(memcmp(out->data, bevel_output(b, 0)->data, out->nbytes) != 0);
    CHECK(allocations == 0);

    /* Inner checks of the other calls. */
    uint64_t ns[4];
    float values[1024];
    CHECK(bevel_profile(a, 0, 4, NULL, ns) == BEVEL_E_ARGUMENT && bevel_profile(a, 0, 3, NULL, NULL) == BEVEL_E_ARGUMENT);
    CHECK(bevel_profile(a, 4, 0, NULL, ns) == BEVEL_E_ARGUMENT && bevel_profile(a, 2, (size_t)-1, NULL, ns) == BEVEL_E_ARGUMENT);
    CHECK(bevel_profile(a, 0, 3, NULL, ns) == BEVEL_OK);
    CHECK(ns[0] && ns[0] <= ns[1] && ns[1] <= ns[2] && ns[2] <= ns[3]);
    ticks = 0;
    memset(ns, 0, sizeof ns);
    CHECK(bevel_profile(a, 1, 1, tick, ns) == BEVEL_OK && ticks == 2 && ns[0] == 1 && ns[1] == 2 && ns[2] == 0);
    CHECK(bevel_profile(a, 0, 3, tick, ns) == BEVEL_OK && ticks == 6 && ns[0] == 3 && ns[3] == 6);
    CHECK(bevel_run(a) == BEVEL_OK && ticks == 6);
    CHECK(bevel_set_input_f32(a, 0, values, 1023) == BEVEL_E_ARGUMENT && bevel_set_input_f32(a, 1, values, 1) == BEVEL_E_ARGUMENT);
    CHECK(bevel_get_output_f32(a, 0, NULL, 512) == BEVEL_E_ARGUMENT && bevel_get_output_f32(a, 0, values, 512) == BEVEL_OK);
    CHECK(bevel_verify(a) == BEVEL_OK);

    /* Threads and weights in memory give the same bytes as one thread and a file. */
    unsigned char expected[512];
    fill(b, 3);
    CHECK(bevel_run(b) == BEVEL_OK);
    memcpy(expected, bevel_output(b, 0)->data, sizeof expected);
    bevel_close(a);
    FILE *file = fopen(path, "rb");
    CHECK(file);
    size_t nbytes = fread(image, 1, sizeof image, file);
    fclose(file);
    CHECK(bevel_open_memory(image + 1, nbytes, NULL, 1, &a) == BEVEL_E_ARGUMENT);
    CHECK(bevel_open_memory(image, nbytes - 1, NULL, 1, &a) == BEVEL_E_LENGTH);
    CHECK(bevel_open_memory(image, 100, NULL, 1, &a) == BEVEL_E_LENGTH);
    CHECK(bevel_open_memory(image, 4, NULL, 1, &a) == BEVEL_E_WEIGHTS);
    for (int threads = 1; threads <= 5; threads += 2) {
        allocations = 0;
        CHECK(bevel_open_memory(image, nbytes, NULL, threads, &a) == BEVEL_OK);
        CHECK(allocations > 0); /* the counter counts */
        allocations = 0;
        for (int i = 0; i < 200; i++) {
            fill(a, 3);
            /* Everything but the input is wiped, so that no result of an earlier run can pass for this one's. */
            memset((char *)bevel_input(a, 0)->data + 1024, 0xa5, 2688 - 1024);
            CHECK(bevel_run(a) == BEVEL_OK);
            CHECK(memcmp(bevel_output(a, 0)->data, expected, sizeof expected) == 0);
        }
        CHECK(allocations == 0);
        bevel_close(a);
    }

    /* A system that runs out of threads at any point: an error, and those already started are stopped. */
    for (int available = 0; available < 4; available++) {
        for (int repeat = 0; repeat < 20; repeat++) {
            threads_left = available;
            CHECK(bevel_open_memory(image, nbytes, NULL, 5, &a) == BEVEL_E_THREAD && a == NULL);
        }
    }
    threads_left = 1000;

    /* Every damaged header is told apart. */
    static const struct { int byte; bevel_status status; } damage[] = {
        {0, BEVEL_E_WEIGHTS}, {8, BEVEL_E_VERSION}, {12, BEVEL_E_VERSION}, {16, BEVEL_E_LENGTH}, {32, BEVEL_E_MISMATCH}, {64, BEVEL_E_MISMATCH}};
    for (size_t i = 0; i < sizeof damage / sizeof damage[0]; i++) {
        image[damage[i].byte] ^= 1;
        CHECK(bevel_open_memory(image, nbytes, NULL, 1, &a) == damage[i].status && a == NULL);
        image[damage[i].byte] ^= 1;
    }
    image[nbytes - 70] ^= 1;
    CHECK(bevel_open_memory(image, nbytes, NULL, 1, &a) == BEVEL_OK && bevel_verify(a) == BEVEL_E_HASH);
    bevel_close(a);
    bevel_close(b);
    for (int status = 0; status <= BEVEL_E_TYPE; status++)
        CHECK(strcmp(bevel_strerror((bevel_status)status), "unknown status") != 0);
    CHECK(strcmp(bevel_strerror((bevel_status)99), "unknown status") == 0);
    puts("ok");
    return 0;
}
