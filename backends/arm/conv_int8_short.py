"""Dense int8 convolution on ARMv8.0 and ARMv7 where reduction runs are short: network stems of one or three input channels.

`conv_int8_neon` reduces sixteen elements in lanes and wastes what a run does not fill. Here four codes of a pixel are
broadcast (`ld1r`) and multiplied by four weights of four channels: two `smull` give sixteen products, `sadalp` adds
neighbours to two partial sums per channel, and the epilogue adds those with `addp`. Every product is widened by itself,
so weights of -128 are exact. Weights `[block][tap][K/4][channel][4]`.
"""

from __future__ import annotations

from bevel.backends.arm.neon import A32
from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernel import ConvProblem, Problem
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import HEADER, RegisterTile
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

# What a product costs, relative to `conv_int8_neon`: broadcasts compete with the additions. llvm-mca for a Cortex-A72 says
# 6.7 against 8.0 products per cycle.
RELATIVE_COST = 1.2


class BroadcastKernel(NeonInteger):
    """Four codes of a pixel by four channels, two partial sums per channel."""

    kgroup = 4
    acc_lanes = 8
    # Partial sums wrap: the bias that absorbs the zero point makes the total right modulo 2^32.
    acc_dtype = "uint32"

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts of four codes (`ld1r`)."""
        quads = [k.bitcast(k.load(x, offset + u * 4, 4), "int32") for u in range(groups)]
        return [k.bitcast(k.splat(quad, 2), "int8", 8) for quad in quads]

    def load_weights(self, k: Builder, weights: Buffer, offset: Expr) -> Expr:
        """Two halves of two channels each."""
        return [k.load(weights, offset + at, 8) for at in (0, 8)]

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Partial sums start at zero; `result` adds the bias."""
        for at in range(0, tile.slots * self.slot, 4):
            k.store(tile.acc, at, k.const(0, "uint32", 4), 4)

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Two channels per half of the weights."""
        halves = [k.shuffle([acc], range(at, at + 4)) for at in (0, 4)]
        sums = [self.neon.add_pairs(k, a, self.neon.multiply(k, x, part)) for a, part in zip(halves, w, strict=True)]
        return k.shuffle(sums, range(8))

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """The two partial sums of each channel, plus the bias."""
        at = (i * nv + j) * self.slot
        total = self.neon.sums_of_neighbours(k, k.load(acc, at, 4), k.load(acc, at + 4, 4))
        total = k.wrapping_add(total, k.bitcast(k.load(bias, HEADER + channel, 4), "uint32", 4), 4)
        return k.bitcast(total, "int32", 4)


class ShortRunConv(ConvGenerator):
    """The generator that gives way where runs fill lanes."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Also refuses runs that `conv_int8_neon` computes in less time."""
        reason = super().legal(problem, target)
        if reason is None and isinstance(problem, ConvProblem):
            run = problem.c if problem.dilation_w > 1 else problem.kw * problem.c
            if -(-run // 4) * 4 * RELATIVE_COST >= -(-run // 8) * 8:
                return f"reduction runs of {run} elements fill vectors: reduction in lanes computes them faster"
        return reason


# A Cortex-A72: sixteen products take two cycles of both pipes. At most 20 sums; two weight vectors, a pixel, products.
CONV_INT8_SHORT = ShortRunConv(
    name="arm_conv_int8_short",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=BroadcastKernel(),
    shapes=((5, 2), (4, 2)),
    pipeline=Pipeline(macs=1 / 2, loads=1, in_flight=2),
)
# ARMv7: eight sums, two weight vectors, a pixel, products in 16 registers.
ARMV7_CONV_INT8_SHORT = ShortRunConv(
    name="armv7_conv_int8_short",
    arch="armv7",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=BroadcastKernel(A32),
    shapes=((4, 1),),
    pipeline=Pipeline(macs=1 / 8, loads=1 / 2, in_flight=1),
)
