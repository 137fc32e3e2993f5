/* launch.c: what a kernel call costs beside its work. The steps of a model are different functions with loop nests of their own, and
 * between two calls of one so much else runs that its code and its branches are forgotten. So code that fills the first-level cache and
 * the branch predictor's tables with chance runs before 64 different small functions, and its own time is subtracted. */
#include "probe.h"

enum { COPIES = 64, DATA = 4096, REPETITIONS = 15 };
static const double REPETITION_NS = 2e6;
static int8_t data[DATA];

/* One step of a linear congruential generator and a branch on its top bit, which no predictor knows; 16 bytes of code each, so that all
 * fill 64 KiB. */
#if defined(__x86_64__)
#define BRANCH "lea (%0,%0,4), %0\n add %1, %0\n js 1f\n"
#elif defined(__aarch64__)
#define BRANCH "add %0, %0, %0, lsl #2\n add %0, %0, %1\n tbnz %0, #63, 1f\n"
#else
#define BRANCH "add %0, %0, %0, lsl #2\n adds %0, %0, %1\n bmi 1f\n"
#endif
/* Takes and gives the generator's state: a constant or variable of its own would lie out of reach of 32-bit ARM's loads. */
static __attribute__((noinline)) uintptr_t forget(uintptr_t state, uintptr_t odd)
{
    __asm__ volatile(".balign 16\n.rept 4096\n" BRANCH ".balign 16\n1:\n.endr\n" : "+r"(state) : "r"(odd) : "cc", "memory");
    return state;
}

/* The constant makes copies differ, so that the compiler cannot fold them. */
#define COPY(name, constant)                                                                                                       \
    static __attribute__((noinline)) int32_t kernel_##name(const int8_t *in, const int8_t *weights, int8_t *out, int32_t low,       \
                                                           int32_t high)                                                           \
    {                                                                                                                              \
        int32_t sum = constant;                                                                                                    \
        for (int32_t row = low; row < high; row++) {                                                                               \
            for (int32_t column = 0; column < (in[row] & 3) + 1; column++)                                                         \
                for (int32_t k = 0; k < (weights[column] & 1) + 1; k++) sum += in[row + k] * weights[column + k + constant];        \
            out[row] = (int8_t)(sum >> (constant % 7));                                                                            \
        }                                                                                                                          \
        return 0;                                                                                                                  \
    }
#define ROW(M, h)                                                                                                                  \
    M(h##0, 0x##h##0) M(h##1, 0x##h##1) M(h##2, 0x##h##2) M(h##3, 0x##h##3) M(h##4, 0x##h##4) M(h##5, 0x##h##5)                     \
    M(h##6, 0x##h##6) M(h##7, 0x##h##7) M(h##8, 0x##h##8) M(h##9, 0x##h##9) M(h##a, 0x##h##a) M(h##b, 0x##h##b)                     \
    M(h##c, 0x##h##c) M(h##d, 0x##h##d) M(h##e, 0x##h##e) M(h##f, 0x##h##f)
#define ALL(M) ROW(M, 0) ROW(M, 1) ROW(M, 2) ROW(M, 3)
ALL(COPY)

typedef int32_t kernel_fn(const int8_t *, const int8_t *, int8_t *, int32_t, int32_t);
#define ENTRY(name, constant) kernel_##name,
static kernel_fn *const kernels[COPIES] = {ALL(ENTRY)};

static void run(uint64_t rounds, const void *context)
{
    static uintptr_t state = 1;
    for (uint64_t round = 0; round < rounds; round++) {
        state = forget(state, 0x7f4a7c15);
        for (int i = 0; context && i < COPIES; i++) kernels[i](data + i, data + 1024, data + 2048 + i, 0, 2);
    }
}

struct figure measure_launch(void)
{
    struct figure with = measure(run, kernels, REPETITIONS, REPETITION_NS), without = measure(run, NULL, REPETITIONS, REPETITION_NS);
    with.ns = (with.ns - without.ns) / COPIES;
    return with;
}
