"""NEON instructions under LLVM's names for both ARM architectures, so that one kernel serves AArch64 and ARMv7.

In: 64-bit and 128-bit vectors. Out: expressions that LLVM selects one instruction for. `A64` has 32 vector registers of 128 bits;
`A32` has 16, of which each is also two of 64 bits, and pairwise additions of these only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bevel.backends.tvm import Builder, Expr


@dataclass(frozen=True)
class Neon:
    """Integer instructions of one architecture.

    Attributes:
        arch: `Target.arch`.
        widening_multiply: int8x8 times int8x8 into int16x8 (smull, vmull.s8).
        unsigned_widening_multiply: uint8x8 times uint8x8 into uint16x8 (umull, vmull.u8).
        saturating_shift: by a signed amount per lane (sqshl, vqshl.s32).
        doubling_high_multiply: the high half of twice the product, saturated (sqdmulh, vqdmulh.s32).
        rounding_doubling_high_multiply: the same, rounded half up (sqrdmulh, vqrdmulh.s32).
        rounding_shift: by a signed amount per lane, right shifts rounded half up (srshl, vrshl.s32).
        saturating_add: sqadd, vqadd.s32.
        saturating_narrow: to signed integers of half the width (sqxtn, vqmovn).
    """

    arch: str
    widening_multiply: str
    unsigned_widening_multiply: str
    saturating_shift: str
    doubling_high_multiply: str
    rounding_doubling_high_multiply: str
    rounding_shift: str
    saturating_add: str
    saturating_narrow: str

    def multiply(self, k: Builder, a: Expr, b: Expr) -> Expr:
        """Eight products of int8, as int16."""
        return k.call("int16x8", self.widening_multiply, a, b)

    def multiply_unsigned(self, k: Builder, a: Expr, b: Expr) -> Expr:
        """Eight products of uint8, as uint16."""
        return k.call("uint16x8", self.unsigned_widening_multiply, a, b)

    def add_pairs(self, k: Builder, total: Expr, products: Expr) -> Expr:
        """uint32x4 `total` plus the four sums of neighbours in int16x8 `products`, modulo 2^32 (sadalp, vpadal.s16)."""
        if self.arch == "armv7":
            return k.call("uint32x4", "llvm.arm.neon.vpadals", total, products)
        pairs = k.call("int32x4", "llvm.aarch64.neon.saddlp", products)
        return k.wrapping_add(total, k.bitcast(pairs, "uint32", 4), 4)

    def widened_pairs(self, k: Builder, values: Expr) -> Expr:
        """uint32x4: sums of neighbours in int16x8 `values` (saddlp, vpaddl.s16)."""
        name = "llvm.arm.neon.vpaddls" if self.arch == "armv7" else "llvm.aarch64.neon.saddlp"
        return k.bitcast(k.call("int32x4", name, values), "uint32", 4)

    def sums_of_neighbours(self, k: Builder, a: Expr, b: Expr, bits: int = 32) -> Expr:
        """Sums of neighbours in `a`, then in `b`, unsigned vectors of 128 bits, modulo 2^bits (addp, vpadd)."""
        lanes = 128 // bits
        if self.arch == "armv7":
            ends = [[k.shuffle([v], range(at, at + lanes // 2)) for at in (0, lanes // 2)] for v in (a, b)]
            return k.shuffle([k.call(f"uint{bits}x{lanes // 2}", "llvm.arm.neon.vpadd", *pair) for pair in ends], range(lanes))
        return k.call(f"uint{bits}x{lanes}", "llvm.aarch64.neon.addp", a, b)

    def sum_lanes(self, k: Builder, vectors: Sequence[Expr]) -> Expr:
        """uint32x4 of the lane sums of four uint32x4."""
        low = self.sums_of_neighbours(k, vectors[0], vectors[1])
        return self.sums_of_neighbours(k, low, self.sums_of_neighbours(k, vectors[2], vectors[3]))


A64 = Neon(
    arch="aarch64",
    widening_multiply="llvm.aarch64.neon.smull",
    unsigned_widening_multiply="llvm.aarch64.neon.umull",
    saturating_shift="llvm.aarch64.neon.sqshl",
    doubling_high_multiply="llvm.aarch64.neon.sqdmulh",
    rounding_doubling_high_multiply="llvm.aarch64.neon.sqrdmulh",
    rounding_shift="llvm.aarch64.neon.srshl",
    saturating_add="llvm.aarch64.neon.sqadd",
    saturating_narrow="llvm.aarch64.neon.sqxtn",
)
A32 = Neon(
    arch="armv7",
    widening_multiply="llvm.arm.neon.vmulls",
    unsigned_widening_multiply="llvm.arm.neon.vmullu",
    saturating_shift="llvm.arm.neon.vqshifts",
    doubling_high_multiply="llvm.arm.neon.vqdmulh",
    rounding_doubling_high_multiply="llvm.arm.neon.vqrdmulh",
    rounding_shift="llvm.arm.neon.vrshifts",
    saturating_add="llvm.sadd.sat",
    saturating_narrow="llvm.arm.neon.vqmovns",
)


def half(k: Builder, vector: Expr, start: int) -> Expr:
    """Eight lanes; LLVM selects the form of the instruction that reads them where they are."""
    return k.shuffle([vector], range(start, start + 8))
