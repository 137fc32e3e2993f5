"""Convolution and GEMM of weights of at most four bits with AVX2: products of bytes summed in 16 bits.

Two products of vpmaddubsw, of codes of x and weights of few bits, are far from the limits of int16, so that several of them are
added there before one vpmaddwd by ones widens the sum: two instructions for 32 products in between, where light weights of eight
bits take two and a half (`bevel.backends.x86.conv_int8_maddubs`). Exact: the number of additions follows from the bits.

Weights lie as for vpdpbusd, `[block][tap][group of 4][channel][4]`, with an even number of groups. Where several tiles of pixels
meet them they are packed in halves of bytes, the first of two groups in the low ones, and unfolded into scratch for each block of
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.low_bit import heaviest
from bevel.backends.kernels.micro import MicroKernel, RegisterTile, Taps
from bevel.backends.kernels.narrow_sums import sum_narrow
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.ir.protocols import Target

MOST_BITS = 4
INT16 = 32767
# What halves of bytes exceed weights by.
HALF = 8
# Unfolding a vector takes as long as multiplying it by two pixels' codes.
UNFOLDING_PIXELS = 32


@dataclass(frozen=True)
class Int16SumsKernel(Avx2Kernel):
    """Broadcast four codes, multiply by those of 8 channels, add in 16 bits.

    Attributes:
        additions: of two products each that fit int16.
        packed: whether weights are packed in halves of bytes.
    """

    additions: int = 1
    packed: bool = False

    kgroup = 4
    x_dtype = "uint8"
    weight_dtype = "uint8"
    copy_lanes = 32

    def padded_run(self, run: int) -> int:
        """Whole pairs of groups."""
        return -(-run // (2 * self.kgroup)) * (2 * self.kgroup)

    def tap_elements(self, run: int, nv: int) -> int:
        """See `MicroKernel.tap_elements`."""
        return super().tap_elements(run, nv) // (2 if self.packed else 1)

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """See `MicroKernel.block_start`."""
        return channel * (taps * self.padded_run(run) // (2 if self.packed else 1))

    def unfolded_bytes(self, run: int, taps: int, nv: int, visits: int) -> int:
        """See `MicroKernel.unfolded_bytes`."""
        return 2 * taps * self.tap_elements(run, nv) if self.packed else 0

    def unfold(self, k: Builder, weights: Buffer, base: Expr, scratch: Buffer, at: int, elements: int) -> None:
        """See `MicroKernel.unfold`."""
        with k.serial(elements // 32) as v:
            pair = k.load(weights, base + v * 32, 32)
            upper = k.bitcast(k.shift_right(k.bitcast(pair, "uint16", 16), k.const(4, "uint16", 16)), "uint8", 32)
            for number, half in enumerate((pair, upper)):
                code = k.bitwise_and(half, k.const(15, "uint8", 32)) - k.const(HALF, "uint8", 32)
                k.store(scratch, at + (2 * v + number) * 32, code, 32)

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See the module's docstring; halves hold weights + HALF."""
        stream = super().pack_weights(weights.view(np.uint8), blocks)
        if not self.packed:
            return stream
        pairs = ((stream + np.uint8(HALF)) & np.uint8(15)).reshape(-1, 2, 32)
        packed: Array = (pairs[:, 0] | pairs[:, 1] << np.uint8(4)).ravel()
        return packed

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        if self.packed:
            halves = packed.reshape(-1, 1, 32)
            packed = (np.concatenate([halves & np.uint8(15), halves >> np.uint8(4)], axis=1) - np.uint8(HALF)).ravel()
        return super().unpack_weights(packed, shape, blocks).view(np.int8)

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`."""
        sums = k.alloc(tile.slots * 16, "int16")
        width = self.lanes * self.kgroup
        # Unfolded, where they are packed.
        tap_elements = self.padded_run(taps.run) * tile.nv * self.lanes

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = tile.base + (row * taps.columns + column) * tap_elements + index * (tile.nv * width)
            factors = [k.load(tile.weights, at + j * width, width) for j in range(tile.nv)]
            place = tile.origin + row * taps.row_pitch + column * taps.column_pitch + index * self.kgroup
            for i, offset in enumerate(tile.offsets):
                quad = k.bitcast(k.load(tile.x, place + offset, self.kgroup), "int32")
                codes = k.bitcast(k.splat(quad, self.lanes), "uint8", width)
                for j in range(tile.nv):
                    slot = (i * tile.nv + j) * 16
                    products = k.call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", codes, factors[j])
                    k.store(sums, slot, products if first else k.load(sums, slot, 16) + products, 16)

        def widen(zero: Expr | None) -> None:
            for slot in range(tile.slots):
                at = slot * 8 + (k.i32(0) if zero is None else zero)
                wide = k.call("int32x8", "llvm.x86.avx2.pmadd.wd", k.load(sums, slot * 16, 16), k.const(1, "int16", 16))
                k.store(tile.acc, at, k.wrapping_add(k.load(tile.acc, at, 8), k.bitcast(wide, "uint32", 8), 8), 8)

        steps = -(-taps.run // self.kgroup)
        sum_narrow(k, taps, steps, self.additions, tile.unroll, step, widen)


class Int16SumsConv(ConvGenerator):
    """Convolutions of weights of few bits."""

    def kernel(self, problem: Problem) -> MicroKernel:
        """With as many additions as the bits of the problem allow."""
        assert isinstance(problem, ConvProblem)
        additions = INT16 // (2 * heaviest(problem) * ((1 << problem.x_bits) - 1))
        return Int16SumsKernel(additions, problem.batch * problem.oh * problem.ow >= UNFOLDING_PIXELS)

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: weights of few bits, and no instruction that adds products in 32 bits."""
        if target.has("avx512_vnni") or target.has("avx_vnni"):
            return f"adds products in 16 bits, {target.name} does in 32"
        reason = super().legal(problem, target)
        if reason is None and isinstance(problem, ConvProblem) and problem.weight_bits > MOST_BITS:
            return f"weights of at most {MOST_BITS} bits, these have {problem.weight_bits}"
        return reason

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        kernel = self.kernel(problem)
        assert isinstance(kernel, Int16SumsKernel)
        return super().cycles(problem, target, tile) * (1 + 1 / kernel.additions)


# Three instructions issue a cycle, two for 32 products of a vector. Measured: 40 products a cycle with codes of two bits.
CONV_LOW_BIT_MADDUBS = Int16SumsConv(
    name="x86_conv_low_bit_maddubs_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=Int16SumsKernel(),
    shapes=((6, 2), (5, 2), (10, 1), (8, 1)),
    pipeline=Pipeline(macs=1.3, loads=2, in_flight=4, unroll=1),
)
