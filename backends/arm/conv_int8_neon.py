"""Dense int8 convolution with widening multiplies: ARMv8.0 cores without dot product (Cortex-A53, A57, A72, A73) and ARMv7.

The reduction runs in lanes: sixteen codes of a pixel times sixteen weights of a channel are two products per int16 lane
(`smull`, `smlal2`), which `sadalp` adds in pairs to four int32 partial sums; the epilogue adds those up with `addp`. Two
products fit int16 only if no weight is -128: |x| * |w| * 2 <= 128 * 127 * 2 = 32512. The wide variant adds up each
product by itself (`smull`, `sadalp`, `smull2`, `sadalp`): as fast on cores that run multiplies and additions side by
side, slower on others. Weights `[block][tap][K/16][channel][16]`.
"""

from __future__ import annotations

from dataclasses import dataclass

from bevel.backends.arm.neon import A32, half
from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernel import ConvProblem, Problem
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import HEADER, RegisterTile
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target


@dataclass(frozen=True)
class WideningKernel(NeonInteger):
    """Reduction in lanes, four partial sums per channel.

    Attributes:
        wide: weights may be -128.
    """

    wide: bool = False

    kgroup = 16
    acc_lanes = 16
    # Partial sums wrap: the bias that absorbs the zero point makes the total right modulo 2^32.
    acc_dtype = "uint32"

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Partial sums start at zero; `result` adds the bias."""
        for at in range(0, tile.slots * self.slot, 4):
            k.store(tile.acc, at, k.const(0, "uint32", 4), 4)

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`; a last group of at most 8 elements takes one multiply instead of two."""
        channels = tile.nv * self.lanes

        def group(index: Expr, lanes: int) -> None:
            # Held in an array so that every pixel is loaded once, before the first weight.
            columns = k.alloc(tile.mr * lanes, "int8")
            for i, offset in enumerate(tile.offsets):
                k.store(columns, i * lanes, k.load(tile.x, tile.origin + offset + index * self.kgroup, lanes), lanes)
            for c in range(channels):
                w = k.load(tile.weights, tile.base + (index * channels + c) * self.kgroup, lanes)
                for i in range(tile.mr):
                    at = (i * channels + c) * 4
                    total = k.load(tile.acc, at, 4)
                    for products in self.products(k, k.load(columns, i * lanes, lanes), w, lanes):
                        total = self.neon.add_pairs(k, total, products)
                    k.store(tile.acc, at, total, 4)

        whole, rest = divmod(run, self.kgroup)
        if rest > 8:
            whole, rest = whole + 1, 0
        if whole:
            with k.serial(whole) as index:
                group(index, 16)
        if rest:
            group(k.i32(whole), 8)

    def products(self, k: Builder, x: Expr, w: Expr, lanes: int) -> list[Expr]:
        """int16x8 vectors whose sum is x * w: products of the two halves, added up where that fits."""
        parts = [self.neon.multiply(k, half(k, x, start), half(k, w, start)) for start in range(0, lanes, 8)]
        return parts if self.wide or lanes == 8 else [parts[0] + parts[1]]

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """Partial sums added up pairwise, plus the bias."""
        at = (i * nv + j) * self.slot
        sums = self.neon.sum_lanes(k, [k.load(acc, at + c * 4, 4) for c in range(4)])
        total = k.wrapping_add(sums, k.bitcast(k.load(bias, HEADER + channel, 4), "uint32", 4), 4)
        return k.bitcast(total, "int32", 4)


def pairing_overflow(problem: Problem) -> str | None:
    """Why two products of `problem` may not fit int16, None when they do."""
    if isinstance(problem, ConvProblem) and problem.wide_weights:
        return "a weight of -128 overflows the int16 sum of two products"
    return None


class PairingConv(ConvGenerator):
    """The generator whose pairs of products must fit int16."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Also refuses weights of -128."""
        return super().legal(problem, target) or pairing_overflow(problem)


# A Cortex-A72: sixteen products of four channels take four multiply pairs of two cycles. 16 or 20 accumulators, an input vector
# per pixel, a weight and a product.
_SHAPES = ((4, 1), (5, 1), (2, 2), (1, 4))
CONV_INT8_NEON = PairingConv(
    name="arm_conv_int8_neon",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningKernel(wide=False),
    shapes=_SHAPES,
    pipeline=Pipeline(macs=1 / 8, loads=1, in_flight=1, unroll=1),
    # llvm-mca for a Cortex-A53: 3.6 products per cycle, and 2.0 to 2.9 with the tiles above.
    in_order_shapes=((2, 1),),
)
CONV_INT8_NEON_WIDE = ConvGenerator(
    name="arm_conv_int8_neon_wide",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningKernel(wide=True),
    shapes=_SHAPES,
    pipeline=Pipeline(macs=1 / 9, loads=1, in_flight=1, unroll=1),
    in_order_shapes=((4, 1), (2, 1)),
)
# ARMv7 has half the registers: eight accumulators, two pixels, a weight and a product. A Cortex-A7 needs two cycles for each
# instruction of 128 bits.
_SHAPES_ARMV7 = ((2, 1), (1, 2), (1, 1))
ARMV7_CONV_INT8 = PairingConv(
    name="armv7_conv_int8",
    arch="armv7",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningKernel(A32),
    shapes=_SHAPES_ARMV7,
    pipeline=Pipeline(macs=1 / 24, loads=1 / 2, in_flight=1, unroll=1),
)
ARMV7_CONV_INT8_WIDE = ConvGenerator(
    name="armv7_conv_int8_wide",
    arch="armv7",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningKernel(A32, wide=True),
    shapes=_SHAPES_ARMV7,
    pipeline=Pipeline(macs=1 / 32, loads=1 / 2, in_flight=1, unroll=1),
)
