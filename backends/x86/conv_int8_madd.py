"""int8 dense convolution and GEMM without a dot product of bytes: pmaddwd on 16-bit codes, exact for all 8-bit weights.

Input rows are widened to int16 once, into scratch (where padded rows go anyway), so the inner loop is a broadcast of two codes
and pmaddwd. The shorter road, pmaddubsw, saturates its 16-bit sums and is not exact. AVX2 has vectors of 8 channels, SSE2, the
baseline of x86-64, of 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.kernel import Array, ConvProblem, Problem
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import MicroKernel
from bevel.backends.kernels.parameters import Fields
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86 import requantize, requantize_sse2
from bevel.ir.protocols import Target

# Weights widened as they are loaded were measured 1.9 times as fast for one pixel, 1.05 times for 16, and 0.9 times for 49.
MOST_PIXELS = 16
_MADD = {8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}


def madd(k: Builder, acc: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
    """uint32 `acc` plus two products per lane of int16 `x` and `w`; the sum wraps, which the biased input codes need."""
    products = k.call(f"int32x{lanes}", _MADD[lanes], x, w)
    return k.wrapping_add(acc, k.bitcast(products, "uint32", lanes), lanes)


class MaddKernel(MicroKernel):
    """Broadcast two 16-bit codes, multiply by two codes of `lanes` channels."""

    kgroup = 2
    acc_dtype = "uint32"
    x_dtype = "int16"
    weight_dtype = "int16"
    copy_lanes = 16

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts of two consecutive codes."""
        pairs = [k.bitcast(k.load(x, offset + u * 2, 2), "int32") for u in range(groups)]
        return [k.bitcast(k.splat(pair, self.lanes), "int16", self.lanes * 2) for pair in pairs]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Two products per lane."""
        return madd(k, acc, x, w, self.lanes)


class Avx2Kernel(MaddKernel):
    """Vectors of 8 channels."""

    lanes = 8
    fields = requantize.FIELDS
    short_requantize = True

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr) -> list[Expr]:
        """See `bevel.backends.x86.requantize`."""
        return requantize.expand(k, multiplier, shift, zero_point, 8, lifted=True)

    def requantize(self, k: Builder, sums: Expr, field: Fields) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize(k, sums, field, 8, lifted=True)

    def pack_short(self, factors: Array) -> Array:
        """See `bevel.backends.x86.requantize`."""
        return requantize.pack_short(factors)

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize_short(k, sums, params, channel, bias, 8)

    def store_codes(
        self, k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, limits: Sequence[Expr]
    ) -> None:
        """See `bevel.backends.x86.requantize`."""
        requantize.store_avx2(k, y, offset, values, valid, limits)


class Avx2BytesKernel(Avx2Kernel):
    """The same with weights stored as bytes and widened as they are loaded: half the memory, half an instruction more."""

    weight_dtype = "int8"

    def load_weights(self, k: Builder, weights: Buffer, offset: Expr) -> Expr:
        """Two weights of 8 channels, as int16."""
        return k.cast(k.load(weights, offset, 16), "int16", 16)


class Sse2Kernel(MaddKernel):
    """Vectors of 4 channels."""

    lanes = 4
    fields = requantize_sse2.FIELDS

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr) -> list[Expr]:
        """See `bevel.backends.x86.requantize_sse2`."""
        return requantize_sse2.expand(k, multiplier, shift, zero_point)

    def requantize(self, k: Builder, sums: Expr, field: Fields) -> Expr:
        """See `bevel.backends.x86.requantize_sse2`."""
        return requantize_sse2.requantize(k, sums, field)

    def store_codes(
        self, k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, limits: Sequence[Expr]
    ) -> None:
        """See `bevel.backends.x86.requantize_sse2`."""
        requantize_sse2.store(k, y, offset, values, valid, limits)


class BytesConv(ConvGenerator):
    """Convolutions of few pixels, whose weights are used too few times to make up for loading them."""

    def pays(self, problem: Problem, target: Target) -> bool:
        """Up to MOST_PIXELS pixels."""
        assert isinstance(problem, ConvProblem)
        return problem.batch * problem.oh * problem.ow <= MOST_PIXELS


# Two vpmaddwd per cycle; only the addition (latency one) chains, so few accumulators suffice.
CONV_INT8_AVX2 = ConvGenerator(
    name="x86_conv_int8_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=Avx2Kernel(),
    shapes=((4, 2), (5, 2), (8, 1)),
    # More than two K-groups per iteration make LLVM keep products of several groups alive, and spill.
    pipeline=Pipeline(macs=1.5, loads=2, in_flight=4, unroll=2),
)
CONV_INT8_AVX2_BYTES = BytesConv(
    name="x86_conv_int8_bytes_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=Avx2BytesKernel(),
    shapes=((1, 8), (2, 4), (4, 2)),
    pipeline=Pipeline(macs=1.5, loads=2, in_flight=4, unroll=2, convert=1 / 3),
)
CONV_INT8_SSE2 = ConvGenerator(
    name="x86_conv_int8_sse2",
    arch="x86_64",
    features=("sse2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=Sse2Kernel(),
    # A product needs a register of its own (two-operand instructions), a broadcast a shuffle: many vectors, few pixels.
    shapes=((2, 4), (2, 5), (3, 3), (4, 2)),
    # A second K-group per iteration spills, and was not faster.
    pipeline=Pipeline(macs=1.5, loads=2, in_flight=4, unroll=1),
)
