/* aarch64.c: loops of the instructions bevel's kernels stand on, for 64-bit ARM. Registers are written out: a compiler that knew the
 * loops compute nothing of use would remove them. */
#if defined(__aarch64__)
#include <string.h>
#include <sys/auxv.h>

#include "probe.h"

/* In every loop: some assemblers forget it at the end of each. */
#define EXTENSIONS ".arch armv8.2-a+fp16+dotprod+i8mm\n"
#define CLOBBERS                                                                                                                   \
    "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16",    \
        "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31"
/* 24 accumulators hide four units of four cycles, the widest cores there are. */
#define EIGHT(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define SIXTEEN(M) EIGHT(M) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define ALL(M) SIXTEEN(M) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23)
#define ZERO(n) "movi v" #n ".16b, #0\n"
#define LOOP(name, body)                                                                                                           \
    static __attribute__((noinline)) void name(uint64_t iterations)                                                                \
    {                                                                                                                              \
        __asm__ volatile(EXTENSIONS ALL(ZERO) ZERO(24) ZERO(25) ZERO(30) ZERO(31) ".balign 64\n1:\n" body "subs %0, %0, #1\n b.ne 1b\n"        \
                         : "+r"(iterations)                                                                                        \
                         :                                                                                                         \
                         : CLOBBERS);                                                                                              \
    }
#define FMLA(n) "fmla v" #n ".4s, v30.4s, v31.4s\n"
#define FMLA_HALF(n) "fmla v" #n ".8h, v30.8h, v31.8h\n"
#define SDOT(n) "sdot v" #n ".4s, v30.16b, v31.16b\n"
#define SMMLA(n) "smmla v" #n ".4s, v30.16b, v31.16b\n"
#define CNT(n) "cnt v" #n ".16b, v31.16b\n"
#define TBL(n) "tbl v" #n ".16b, {v30.16b}, v31.16b\n"
#define TBL2(n) "tbl v" #n ".16b, {v24.16b, v25.16b}, v31.16b\n"
/* Eight products in flight between eight sums each, so that cores that execute in order need not wait either. */
#define PRODUCT(t) "smull v" #t ".8h, v30.8b, v31.8b\n"
#define PRODUCT2(t) "smlal2 v" #t ".8h, v30.16b, v31.16b\n"
#define SUM(n, t) "sadalp v" #n ".4s, v" #t ".8h\n"
#define TEMPORARIES(M) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23)
#define WIDEN(a, b, c, d, e, f, g, h)                                                                                              \
    TEMPORARIES(PRODUCT) TEMPORARIES(PRODUCT2) SUM(a, 16) SUM(b, 17) SUM(c, 18) SUM(d, 19) SUM(e, 20) SUM(f, 21) SUM(g, 22) SUM(h, 23)

LOOP(fmla, ALL(FMLA))
LOOP(fmla_half, ALL(FMLA_HALF))
LOOP(smull, WIDEN(0, 1, 2, 3, 4, 5, 6, 7) WIDEN(8, 9, 10, 11, 12, 13, 14, 15))
LOOP(sdot, ALL(SDOT))
LOOP(smmla, ALL(SMMLA))
LOOP(cnt, ALL(CNT))
LOOP(tbl, ALL(TBL))
LOOP(tbl2, SIXTEEN(TBL2) TEMPORARIES(TBL2))

const struct kernel arch_kernels[] = {
    {"fp32", "fmla 4s", "neon", 24 * 4, fmla},
    {"fp16", "fmla 8h", "fp16", 24 * 8, fmla_half},
    {"int8", "smull, smlal2, sadalp", "neon", 16 * 16, smull},
    {"int8", "sdot", "dotprod", 24 * 16, sdot},
    {"int8", "smmla", "i8mm", 24 * 32, smmla},
    {"popcount", "cnt 16b", "neon", 24 * 16, cnt},
    {"table", "tbl 16b, one register", "neon", 24 * 16, tbl},
    {"table", "tbl 16b, two registers", "neon", 24 * 16, tbl2},
    {0},
};

static __attribute__((noinline)) void read_q(const char *data, size_t bytes)
{
    const char *end = data + bytes;
    __asm__ volatile(".balign 64\n1:\n"
                     "ldp q0, q1, [%0]\n ldp q2, q3, [%0, #32]\n ldp q4, q5, [%0, #64]\n ldp q6, q7, [%0, #96]\n"
                     "ldp q16, q17, [%0, #128]\n ldp q18, q19, [%0, #160]\n ldp q20, q21, [%0, #192]\n ldp q22, q23, [%0, #224]\n"
                     "add %0, %0, #256\n cmp %0, %1\n b.lo 1b\n"
                     : "+r"(data)
                     : "r"(end)
                     : CLOBBERS);
}
const struct reader arch_readers[] = {{"ldp q", "neon", read_q}, {0}};

/* Bits of AT_HWCAP and AT_HWCAP2 (Linux, arch/arm64/include/uapi/asm/hwcap.h); several where a name stands for several. */
static const struct {
    const char *name;
    unsigned long first, second;
} capabilities[] = {
    {"neon", 1ul << 1, 0},         {"fp16", 1ul << 9 | 1ul << 10, 0}, {"dotprod", 1ul << 20, 0}, {"i8mm", 0, 1ul << 13},
    {"bf16", 0, 1ul << 14},        {"sve", 1ul << 22, 0},             {"sve2", 0, 1ul << 1},     {"sme", 0, 1ul << 23},
    {"atomics", 1ul << 8, 0},      {"cpuid", 1ul << 11, 0},
};
const char *const arch_features[] = {"neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "sme", "atomics", "cpuid", NULL};

int arch_has(const char *feature)
{
    unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++)
        if (!strcmp(feature, capabilities[i].name))
            return (first & capabilities[i].first) == capabilities[i].first && (second & capabilities[i].second) == capabilities[i].second;
    return 0;
}

void arch_chain(uint64_t iterations)
{
    uint64_t value = 1, other = 3;
    __asm__ volatile("1:\n.rept 256\n eor %1, %1, %2\n.endr\n subs %0, %0, #1\n b.ne 1b\n"
                     : "+r"(iterations), "+r"(value)
                     : "r"(other)
                     : "cc");
}

/* The kernel answers this trapped read where it says so (HWCAP_CPUID). */
uint64_t arch_midr(void)
{
    uint64_t midr = 0;
    if (arch_has("cpuid")) __asm__ volatile("mrs %0, midr_el1" : "=r"(midr));
    return midr;
}

uint64_t arch_counter(void)
{
    uint64_t count;
    __asm__ volatile("isb\n mrs %0, cntvct_el0" : "=r"(count));
    return count;
}

double arch_counter_hz(void)
{
    uint64_t hertz;
    __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(hertz));
    return (double)hertz;
}
#endif
