/* isa.c: feature detection by cpuid (x86) or the auxiliary vector (ARM). */
#define _GNU_SOURCE
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
enum { XCR0_AVX = 0x6, XCR0_AVX512 = 0xe6, XCR0_AMX = 0x60000 };

static uint32_t detect(void)
{
    uint32_t a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    uint32_t fma = c & bit_FMA, xcr0, high;
    /* The CPU may have registers that the operating system does not save. */
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if ((xcr0 & XCR0_AVX) != XCR0_AVX)
        return 0;
    if (fma)
        found |= BEVEL_ISA_FMA;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return found;
    if (b & 1u << 5)
        found |= BEVEL_ISA_AVX2;
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31; /* F, DQ, CD, BW, VL */
    if ((xcr0 & XCR0_AVX512) == XCR0_AVX512 && (b & avx512) == avx512) {
        found |= BEVEL_ISA_AVX512;
        if (c & 1u << 11)
            found |= BEVEL_ISA_AVX512_VNNI;
        if (c & 1u << 14)
            found |= BEVEL_ISA_AVX512_VPOPCNTDQ;
    }
    if ((xcr0 & XCR0_AMX) == XCR0_AMX && (d & 1u << 24) && (d & 1u << 25))
        found |= BEVEL_ISA_AMX_INT8;
    /* Leaf 7 counts its further parts in eax. */
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4))
        found |= BEVEL_ISA_AVX_VNNI;
    return found;
}

static int permit(uint32_t required)
{
    return !(required & BEVEL_ISA_AMX_INT8) || syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

static uint32_t detect(void)
{
    unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    uint32_t found = 0;
    /* Bit numbers are the kernel's ABI (asm/hwcap.h), spelled out because old C libraries do not name them all. */
    if (caps & 1ul << 1)
        found |= BEVEL_ISA_NEON;
    if (caps & 1ul << 9 && caps & 1ul << 10)
        found |= BEVEL_ISA_FP16;
    if (caps & 1ul << 20)
        found |= BEVEL_ISA_DOTPROD;
    if (caps2 & 1ul << 13)
        found |= BEVEL_ISA_I8MM;
    return found;
}

static int permit(uint32_t required)
{
    (void)required;
    return 1;
}

#elif defined(__arm__)
#include <sys/auxv.h>

static uint32_t detect(void)
{
    unsigned long caps = getauxval(AT_HWCAP);
    uint32_t found = 0;
    if (caps & 1ul << 12)
        found |= BEVEL_ISA_NEON;
    if (caps & 1ul << 16)
        found |= BEVEL_ISA_VFPV4;
    return found;
}

static int permit(uint32_t required)
{
    (void)required;
    return 1;
}
#else
#error "no feature detection for this architecture"
#endif

bevel_status bevel_isa_check(uint32_t required)
{
    if (required == 0)
        return BEVEL_OK;
    return (detect() & required) == required && permit(required) ? BEVEL_OK : BEVEL_E_ISA;
}
