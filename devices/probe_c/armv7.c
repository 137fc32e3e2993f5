/* armv7.c: loops of the instructions bevel's kernels stand on, for 32-bit ARM with NEON. Registers are written out: a compiler that knew
 * the loops compute nothing of use would remove them. Registers beyond d15 need no clobber, these functions hold nothing else. */
#if defined(__arm__)
#include <string.h>
#include <sys/auxv.h>

#include "probe.h"

/* In every loop: some assemblers forget it at the end of each. */
#define EXTENSIONS ".syntax unified\n.fpu neon-vfpv4\n"

#define CLOBBERS                                                                                                                   \
    "cc", "memory", "d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9", "d10", "d11", "d12", "d13", "d14", "d15"
#define SIX(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define TWELVE(M) SIX(M) M(6) M(7) M(8) M(9) M(10) M(11)
#define ZERO(n) "vmov.i32 q" #n ", #0\n"
#define LOOP(name, body)                                                                                                           \
    static __attribute__((noinline)) void name(uint64_t iterations)                                                                \
    {                                                                                                                              \
        uint32_t count = (uint32_t)iterations;                                                                                     \
        __asm__ volatile(EXTENSIONS TWELVE(ZERO) ZERO(14) ZERO(15) "1:\n" body "subs %0, %0, #1\n bne 1b\n" : "+r"(count) : : CLOBBERS);       \
    }
#define VMLA(n) "vmla.f32 q" #n ", q14, q15\n"
#define VCNT(n) "vcnt.8 q" #n ", q15\n"
#define VTBL(n) "vtbl.8 d" #n ", {d28}, d30\n"
#define PRODUCT(t) "vmull.s8 q" #t ", d28, d30\n"
#define PRODUCT2(t) "vmlal.s8 q" #t ", d29, d31\n"
#define SUM(n, t) "vpadal.s16 q" #n ", q" #t "\n"
#define TEMPORARIES(M) M(6) M(7) M(8) M(9) M(10) M(11)

LOOP(vmla, TWELVE(VMLA))
LOOP(vmull, TEMPORARIES(PRODUCT) TEMPORARIES(PRODUCT2) SUM(0, 6) SUM(1, 7) SUM(2, 8) SUM(3, 9) SUM(4, 10) SUM(5, 11))
LOOP(vcnt, TWELVE(VCNT))
LOOP(vtbl, TWELVE(VTBL))

const struct kernel arch_kernels[] = {
    {"fp32", "vmla.f32 q", "neon", 12 * 4, vmla},
    {"int8", "vmull.s8, vmlal.s8, vpadal.s16", "neon", 6 * 16, vmull},
    {"popcount", "vcnt.8 q", "neon", 12 * 16, vcnt},
    {"table", "vtbl.8 d, one register", "neon", 12 * 8, vtbl},
    {0},
};

static __attribute__((noinline)) void read_d(const char *data, size_t bytes)
{
    const char *end = data + bytes;
    __asm__ volatile(EXTENSIONS "1:\n vldmia %0!, {d0-d7}\n vldmia %0!, {d0-d7}\n vldmia %0!, {d0-d7}\n vldmia %0!, {d0-d7}\n"
                     "cmp %0, %1\n blo 1b\n"
                     : "+r"(data)
                     : "r"(end)
                     : CLOBBERS);
}
const struct reader arch_readers[] = {{"vldmia d", "neon", read_d}, {0}};

/* Bits of AT_HWCAP (Linux, arch/arm/include/uapi/asm/hwcap.h). */
static const struct {
    const char *name;
    unsigned long bits;
} capabilities[] = {{"neon", 1ul << 12}, {"vfpv4", 1ul << 16}, {"idiv", 1ul << 17 | 1ul << 18}};
const char *const arch_features[] = {"neon", "vfpv4", "idiv", NULL};

int arch_has(const char *feature)
{
    unsigned long have = getauxval(AT_HWCAP);
    for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++)
        if (!strcmp(feature, capabilities[i].name)) return (have & capabilities[i].bits) == capabilities[i].bits;
    return 0;
}

void arch_chain(uint64_t iterations)
{
    uint32_t count = (uint32_t)iterations, value = 1, other = 3;
    __asm__ volatile(".syntax unified\n1:\n.rept 256\n eor %1, %1, %2\n.endr\n subs %0, %0, #1\n bne 1b\n" : "+r"(count), "+r"(value) : "r"(other) : "cc");
}

/* Linux gives 32-bit programs neither the ID register nor, on many boards, the counter. */
uint64_t arch_midr(void) { return 0; }
uint64_t arch_counter(void) { return 0; }
double arch_counter_hz(void) { return 0; }
#endif
