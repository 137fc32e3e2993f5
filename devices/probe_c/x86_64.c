/* x86_64.c: loops of the instructions bevel's kernels stand on, for x86-64. Registers are written out: a compiler that knew the loops
 * compute nothing of use would remove them. Registers beyond xmm15 need no clobber, the baseline compiler does not know them. */
#if defined(__x86_64__)
#define _GNU_SOURCE
#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "probe.h"

#define CLOBBERS                                                                                                                   \
    "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",      \
        "xmm13", "xmm14", "xmm15"
/* Twelve accumulators hide what the deepest of these units has in flight: two a cycle with five cycles of latency. */
#define TWELVE(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define SIXTEEN(M) TWELVE(M) M(12) M(13) M(14) M(15)
#define LOOP(name, before, body, after)                                                                                            \
    static __attribute__((noinline)) void name(uint64_t iterations)                                                                \
    {                                                                                                                              \
        __asm__ volatile(before ".balign 64\n1:\n" body body "dec %0\n jnz 1b\n" after : "+r"(iterations) : : CLOBBERS);            \
    }
#define ZERO_XMM(n) "xorps %%xmm" #n ", %%xmm" #n "\n"
#define MULPS(n) "movaps %%xmm15, %%xmm12\n mulps %%xmm14, %%xmm12\n addps %%xmm12, %%xmm" #n "\n"
#define FMA_YMM(n) "vfmadd231ps %%ymm15, %%ymm14, %%ymm" #n "\n"
#define FMA_ZMM(n) "vfmadd231ps %%zmm15, %%zmm14, %%zmm" #n "\n"
#define PMADDWD(n) "movdqa %%xmm15, %%xmm12\n pmaddwd %%xmm14, %%xmm12\n paddd %%xmm12, %%xmm" #n "\n"
#define MADD_YMM(n) "vpmaddwd %%ymm15, %%ymm14, %%ymm12\n vpaddd %%ymm12, %%ymm" #n ", %%ymm" #n "\n"
#define MADD_ZMM(n) "vpmaddwd %%zmm15, %%zmm14, %%zmm12\n vpaddd %%zmm12, %%zmm" #n ", %%zmm" #n "\n"
#define DPBUSD_YMM(n) "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm" #n "\n"
#define DPBUSD(n) "vpdpbusd %%zmm15, %%zmm14, %%zmm" #n "\n"
#define POPCNTQ(n) "vpopcntq %%zmm15, %%zmm" #n "\n"
#define PSHUFB(n) "pshufb %%xmm15, %%xmm" #n "\n"
#define SHUFB_YMM(n) "vpshufb %%ymm15, %%ymm14, %%ymm" #n "\n"
#define SHUFB_ZMM(n) "vpshufb %%zmm15, %%zmm14, %%zmm" #n "\n"
#define PERMB(n) "vpermb %%zmm15, %%zmm14, %%zmm" #n "\n"

LOOP(mulps, SIXTEEN(ZERO_XMM), TWELVE(MULPS), "")
LOOP(fma_ymm, "vzeroall\n", TWELVE(FMA_YMM), "vzeroupper\n")
LOOP(fma_zmm, "vzeroall\n", TWELVE(FMA_ZMM), "vzeroupper\n")
LOOP(pmaddwd, SIXTEEN(ZERO_XMM), TWELVE(PMADDWD), "")
LOOP(madd_ymm, "vzeroall\n", TWELVE(MADD_YMM), "vzeroupper\n")
LOOP(madd_zmm, "vzeroall\n", TWELVE(MADD_ZMM), "vzeroupper\n")
LOOP(dpbusd_ymm, "vzeroall\n", TWELVE(DPBUSD_YMM), "vzeroupper\n")
LOOP(dpbusd, "vzeroall\n", TWELVE(DPBUSD), "vzeroupper\n")
LOOP(popcntq, "vzeroall\n", TWELVE(POPCNTQ), "vzeroupper\n")
LOOP(pshufb, SIXTEEN(ZERO_XMM), TWELVE(PSHUFB), "")
LOOP(shufb_ymm, "vzeroall\n", TWELVE(SHUFB_YMM), "vzeroupper\n")
LOOP(shufb_zmm, "vzeroall\n", TWELVE(SHUFB_ZMM), "vzeroupper\n")
LOOP(permb, "vzeroall\n", TWELVE(PERMB), "vzeroupper\n")

static __attribute__((noinline)) void popcnt(uint64_t iterations)
{
    uint64_t word = 0x0123456789abcdef;
#define COUNT "popcnt %1, %%r8\n popcnt %1, %%r9\n popcnt %1, %%r10\n popcnt %1, %%r11\n popcnt %1, %%rsi\n popcnt %1, %%rdi\n"
    __asm__ volatile(".balign 64\n1:\n" COUNT COUNT "dec %0\n jnz 1b\n"
                     : "+r"(iterations)
                     : "r"(word)
                     : "cc", "r8", "r9", "r10", "r11", "rsi", "rdi");
}

/* Six accumulating tiles: a product takes 16 cycles in the unit and 52 to be read again. */
static __attribute__((noinline)) void tdpbusd(uint64_t iterations)
{
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
#define EIGHT(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define SIX(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define TILEZERO(n) "tilezero %%tmm" #n "\n"
#define TDPBUSD(n) "tdpbusd %%tmm7, %%tmm6, %%tmm" #n "\n"
    __asm__ volatile("ldtilecfg %1\n" EIGHT(TILEZERO) ".balign 64\n1:\n" SIX(TDPBUSD) "dec %0\n jnz 1b\n tilerelease\n"
                     : "+r"(iterations)
                     : "m"(shape)
                     : "cc", "memory");
}

/* Multiply-accumulates of a pmaddwd are counted by 16-bit lanes: bevel widens 8-bit codes when it packs them. */
const struct kernel arch_kernels[] = {
    {"fp32", "mulps, addps xmm", "sse2", 2 * 12 * 4, mulps},
    {"fp32", "vfmadd231ps ymm", "avx2 fma", 2 * 12 * 8, fma_ymm},
    {"fp32", "vfmadd231ps zmm", "avx512", 2 * 12 * 16, fma_zmm},
    {"int8", "pmaddwd, paddd xmm", "sse2", 2 * 12 * 8, pmaddwd},
    {"int8", "vpmaddwd, vpaddd ymm", "avx2", 2 * 12 * 16, madd_ymm},
    {"int8", "vpmaddwd, vpaddd zmm", "avx512", 2 * 12 * 32, madd_zmm},
    {"int8", "vpdpbusd ymm", "avx_vnni", 2 * 12 * 32, dpbusd_ymm},
    {"int8", "vpdpbusd zmm", "avx512_vnni", 2 * 12 * 64, dpbusd},
    {"int8", "tdpbusd", "amx_int8", 6 * 16 * 16 * 64, tdpbusd},
    {"popcount", "popcnt r64", "popcnt", 2 * 6 * 8, popcnt},
    {"popcount", "vpopcntq zmm", "avx512_vpopcntdq", 2 * 12 * 64, popcntq},
    {"table", "pshufb xmm", "ssse3", 2 * 12 * 16, pshufb},
    {"table", "vpshufb ymm", "avx2", 2 * 12 * 32, shufb_ymm},
    {"table", "vpshufb zmm", "avx512", 2 * 12 * 64, shufb_zmm},
    {"table", "vpermb zmm", "avx512_vbmi", 2 * 12 * 64, permb},
    {0},
};

#define READER(name, instruction, width, register)                                                                                 \
    static __attribute__((noinline)) void name(const char *data, size_t bytes)                                                     \
    {                                                                                                                              \
        const char *end = data + bytes;                                                                                            \
        __asm__ volatile(".balign 64\n1:\n"                                                                                        \
                         instruction " 0*" #width "(%0), %%" #register "0\n" instruction " 1*" #width "(%0), %%" #register "1\n"     \
                         instruction " 2*" #width "(%0), %%" #register "2\n" instruction " 3*" #width "(%0), %%" #register "3\n"     \
                         instruction " 4*" #width "(%0), %%" #register "4\n" instruction " 5*" #width "(%0), %%" #register "5\n"     \
                         instruction " 6*" #width "(%0), %%" #register "6\n" instruction " 7*" #width "(%0), %%" #register "7\n"     \
                         "add $8*" #width ", %0\n cmp %1, %0\n jb 1b\n"                                                            \
                         : "+r"(data)                                                                                              \
                         : "r"(end)                                                                                                \
                         : CLOBBERS);                                                                                              \
    }
READER(read_xmm, "movaps", 16, xmm)
READER(read_ymm, "vmovaps", 32, ymm)
READER(read_zmm, "vmovaps", 64, zmm)
const struct reader arch_readers[] = {
    {"movaps xmm", "sse2", read_xmm},
    {"vmovaps ymm", "avx2", read_ymm},
    {"vmovaps zmm", "avx512", read_zmm},
    {0},
};

const char *const arch_features[] = {"sse2",        "avx2",  "fma",    "avx512",      "avx512_vnni",      "amx_int8",         "avx_vnni",
                                     "ssse3",       "popcnt", "avx512_vbmi", "avx512_vpopcntdq", NULL};

/* State components the system saves: bits 1 and 2 vectors, 5 to 7 AVX-512, 17 and 18 AMX. */
static uint64_t saved_state(unsigned leaf1_ecx)
{
    uint32_t low, high;
    if (!(leaf1_ecx & bit_OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux grants tiles to a process that asks for them (arch_prctl, ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA). */
static int tiles_granted(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

int arch_has(const char *feature)
{
    unsigned a, b, c, d, ecx1, edx1, max7 = 0, ebx7 = 0, ecx7 = 0, edx7 = 0;
    if (!__get_cpuid(1, &a, &b, &ecx1, &edx1)) return 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) max7 = a, ebx7 = b, ecx7 = c, edx7 = d;
    uint64_t state = saved_state(ecx1);
    int avx = (state & 0x6) == 0x6, avx512 = (state & 0xe6) == 0xe6, tiles = (state >> 17 & 3) == 3;
    /* F, DQ, CD, BW, VL: what bevel calls AVX-512. */
    unsigned foundation = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    avx512 = avx512 && (ebx7 & foundation) == foundation;
    if (!strcmp(feature, "sse2")) return edx1 >> 26 & 1;
    if (!strcmp(feature, "ssse3")) return ecx1 >> 9 & 1;
    if (!strcmp(feature, "popcnt")) return ecx1 >> 23 & 1;
    if (!strcmp(feature, "fma")) return avx && (ecx1 >> 12 & 1);
    if (!strcmp(feature, "avx2")) return avx && (ebx7 >> 5 & 1);
    if (!strcmp(feature, "avx_vnni")) return avx && max7 >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    if (!strcmp(feature, "avx512")) return avx512;
    if (!strcmp(feature, "avx512_vnni")) return avx512 && (ecx7 >> 11 & 1);
    if (!strcmp(feature, "avx512_vbmi")) return avx512 && (ecx7 >> 1 & 1);
    if (!strcmp(feature, "avx512_vpopcntdq")) return avx512 && (ecx7 >> 14 & 1);
    if (!strcmp(feature, "amx_int8")) return tiles && (edx7 >> 24 & 1) && (edx7 >> 25 & 1) && tiles_granted();
    return 0;
}

void arch_chain(uint64_t iterations)
{
    uint64_t value = 1, other = 3;
    __asm__ volatile("1:\n.rept 256\n xor %2, %1\n.endr\n dec %0\n jnz 1b\n" : "+r"(iterations), "+r"(value) : "r"(other) : "cc");
}

uint64_t arch_midr(void) { return 0; }

uint64_t arch_counter(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

double arch_counter_hz(void) { return 0; }
#endif
