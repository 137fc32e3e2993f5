"""Convolution and GEMM of weights and inputs of few bits on NEON by counting bits (Umuroglu et al., 2017; Cowan et al., 2020).

A product of codes is a sum over pairs of bit planes, and 128 products of bits take an `and`, a `cnt` and an addition of bytes.
Rows of inputs are turned into planes once (`bevel.backends.arm.planes`). A vector holds all planes of one side, and one plane of
the other, repeated for each of them:

* Planes of x together: a vector holds those of 128 / planes codes. Repetitions of weights are made in scratch for each block of
  channels where many pixels meet them.
* Planes of x *apart*, where pixels have whole vectors of codes: repetitions are part of what rows are turned into. That loads
  less: vectors of the planes of x are pairs, and one of weights has both planes of a channel.

Weights are packed as `[block][tap][vector][channel][weight plane][byte]`.

Sums of counts stay in bytes as long as they fit; multiplying them by what their planes count joins all of them in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from bevel.backends.arm.conv_int8_mmla import CONV_INT8_MMLA
from bevel.backends.arm.conv_int8_neon import ARMV7_CONV_INT8, ARMV7_CONV_INT8_WIDE, CONV_INT8_NEON, CONV_INT8_NEON_WIDE
from bevel.backends.arm.conv_int8_sdot import CONV_INT8_SDOT
from bevel.backends.arm.neon import A32, half
from bevel.backends.arm.planes import CHUNK, WIDTH, ApartStaging, PlaneStaging, plane_count
from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.conv import Geometry
from bevel.backends.kernels.generator import IN_ORDER_CPUS, Pipeline, RivalConv
from bevel.backends.kernels.low_bit import (
    plane_factors,
    planes_of,
    reductions,
    signed_codes,
    unsigned_codes,
)
from bevel.backends.kernels.micro import HEADER, MicroKernel, RegisterTile, Taps
from bevel.backends.kernels.narrow_sums import store_zeros, sum_narrow
from bevel.backends.kernels.staging import Staging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

MOST_BITS = 4
# Of weights and inputs together, that what a bit counts fits a byte.
MOST_SUM = 9
INT16 = 32767
# Counts up to 8 whose sum fits a byte.
ADDITIONS = 31
UNFOLDED_VISITS = 4
# From so many on two steps an iteration pay; what is left of fewer would be unrolled whole, and spill.
UNROLLED_STEPS = 6
# Of a tile: a sixth vector of inputs has no register beside 24 of counts.
MOST_PIXELS = 5


@dataclass(frozen=True)
class BitsKernel(NeonInteger):
    """Count the bits of planes.

    Attributes:
        weight_bits, x_bits: of the problem.
        granule: see `PlaneStaging`.
        apart: whether planes of weights lie side by side, and those of x in vectors of their own.
        steps: vectors of a whole reduction, at most.
    """

    weight_bits: int = 2
    x_bits: int = 2
    granule: int = CHUNK
    apart: bool = False
    steps: int = 1

    x_dtype = "uint8"
    weight_dtype = "uint8"

    @property
    def planes(self) -> int:
        """Of x, in a vector."""
        return 1 if self.apart else plane_count(self.x_bits)

    @property
    def plane_bytes(self) -> int:
        """Of a plane in a vector."""
        return WIDTH // (self.weight_bits if self.apart else self.planes)

    @property
    def kgroup(self) -> int:  # type: ignore[override]
        """Codes of a vector."""
        return 8 * self.plane_bytes

    @property
    def vectors(self) -> tuple[int, int]:
        """Of x and of weights that the same codes take."""
        return (self.x_bits, 1) if self.apart else (1, self.weight_bits)

    @property
    def code_offset(self) -> int:  # type: ignore[override]
        """Bipolar weights are 2 u - 1."""
        return 1 if self.weight_bits == 1 else 0

    @property
    def _step_bound(self) -> int:
        """What one step adds to a lane of the joined sums, at most: 16 bits of the heaviest planes, or 16 codes."""
        return 16 * ((1 << self.x_bits) - 1 if self.apart else 1 << (self.x_bits - 1 + self.weight_bits - 1))

    @property
    def additions(self) -> int:
        """Vectors whose counts fit bytes and whose joined sums fit 16 bits."""
        return min(ADDITIONS, INT16 // self._step_bound)

    @property
    def deep(self) -> bool:
        """Whether sums of four lanes may not fit 16 bits, so that they are kept in 32."""
        return 4 * self.steps * self._step_bound > INT16

    @property
    def acc_dtype(self) -> str:  # type: ignore[override]
        """Of joined sums."""
        return "uint32" if self.deep else "uint16"

    @property
    def acc_lanes(self) -> int:  # type: ignore[override]
        """Joined sums of four channels."""
        return 16 if self.deep else 32

    def staging(self, problem: ConvProblem, at: int) -> Staging:
        """See `MicroKernel.staging`."""
        sums = bool(self.code_offset)
        if self.apart:
            layout = {"planes": self.x_bits, "copies": self.weight_bits}
            return ApartStaging(problem, self.x_dtype, WIDTH, at, sums=sums, neon=self.neon, **layout)
        layout = {"planes": self.planes, "granule": self.granule}
        return PlaneStaging(problem, self.x_dtype, WIDTH, at, sums=sums, neon=self.neon, **layout)

    def tap_elements(self, run: int, nv: int) -> int:
        """See `MicroKernel.tap_elements`."""
        return self.padded_run(run) // self.kgroup * (nv * self.lanes) * self.weight_bits * self.plane_bytes

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """See `MicroKernel.block_start`."""
        return channel * (taps * self.tap_elements(run, 1) // self.lanes)

    def unfolded_bytes(self, run: int, taps: int, nv: int, visits: int) -> int:
        """See `MicroKernel.unfolded_bytes`."""
        return taps * self.tap_elements(run, nv) * self.planes if self.planes > 1 and visits >= UNFOLDED_VISITS else 0

    def unfold(self, k: Builder, weights: Buffer, base: Expr, scratch: Buffer, at: int, elements: int) -> None:
        """See `MicroKernel.unfold`."""
        size = WIDTH // self.planes
        with k.serial(elements // size) as v:
            k.store(scratch, at + v * WIDTH, self._repeated(k, k.load(weights, base + v * size, size)), WIDTH)

    def _repeated(self, k: Builder, weights: Expr) -> Expr:
        """A vector with the bytes of every granule as often as there are planes."""
        if self.planes == 1:
            return weights
        width = self.granule // 8
        order = [lane // (self.planes * width) * width + lane % width for lane in range(WIDTH)]
        # A shuffle cannot widen one vector.
        return k.shuffle([weights] * self.planes, order)

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See the module's docstring."""
        channels, taps, run = weights.shape
        codes = np.zeros((channels, taps, self.padded_run(run)), np.uint8)
        codes[:, :, :run] = unsigned_codes(weights, self.weight_bits)
        planes = [np.packbits(plane, axis=-1, bitorder="little") for plane in planes_of(codes, self.weight_bits)]
        packed = np.stack(planes, axis=2).reshape(channels, taps, self.weight_bits, -1, self.plane_bytes)
        return np.concatenate([packed[start : start + size].transpose(1, 3, 0, 2, 4).ravel() for start, size in blocks])

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        _, taps, run = shape
        whole = np.zeros(shape, np.int8)
        position = 0
        for start, size in blocks:
            count = taps * self.tap_elements(run, size // self.lanes)
            block = packed[position : position + count].reshape(taps, -1, size, self.weight_bits, self.plane_bytes)
            position += count
            bits = np.unpackbits(
                block.transpose(2, 0, 3, 1, 4).reshape(size, taps, self.weight_bits, -1), axis=-1, bitorder="little"
            )
            codes = (bits << np.arange(self.weight_bits, dtype=np.uint8)[:, None]).sum(axis=2, dtype=np.uint8)[:, :, :run]
            whole[start : start + size] = signed_codes(codes, self.weight_bits)
        return whole

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Joined sums start at zero; `result` adds the bias."""
        store_zeros(k, tile.acc, self.acc_dtype, tile.slots * self.slot, self.acc_lanes // self.lanes)

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`."""
        channels = tile.nv * self.lanes
        xs, ws = self.vectors
        # Vectors of weights are whole where they were unfolded into scratch, in which x is, or never need be.
        whole = tile.weights is tile.x or self.planes == 1
        size = WIDTH if whole else self.plane_bytes
        steps = self.padded_run(taps.run) // self.kgroup
        counts = k.alloc(tile.mr * channels * xs * ws * WIDTH, "uint8")
        columns = k.alloc(tile.mr * xs * WIDTH, "uint8")
        planes = k.alloc(channels * ws * WIDTH, "uint8")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            place = tile.origin + row * taps.row_pitch + column * taps.column_pitch + index * (xs * WIDTH)
            start = tile.base + ((row * taps.columns + column) * steps + index) * (channels * ws * size)

            def load_inputs(i: int) -> None:
                for p in range(xs):
                    k.store(columns, (i * xs + p) * WIDTH, k.load(tile.x, place + tile.offsets[i] + p * WIDTH, WIDTH), WIDTH)

            def load_weights(c: int) -> None:
                for q in range(ws):
                    plane = k.load(tile.weights, start + (c * ws + q) * size, size)
                    k.store(planes, (c * ws + q) * WIDTH, plane if whole else self._repeated(k, plane), WIDTH)

            def add_counts(i: int, c: int) -> None:
                for q, p in product(range(ws), range(xs)):
                    at = ((i * channels + c) * ws + q) * xs + p
                    bits = k.load(planes, (c * ws + q) * WIDTH, WIDTH), k.load(columns, (i * xs + p) * WIDTH, WIDTH)
                    count = k.call("uint8x16", "llvm.ctpop", k.bitwise_and(*bits))
                    if not first:
                        # LLVM would add up the counts of several steps before, and keep them all in registers.
                        count = k.opaque(k.load(counts, at * WIDTH, WIDTH) + count, "uint8", WIDTH)
                    k.store(counts, at * WIDTH, count, WIDTH)

            # The side of fewer vectors stays in registers.
            pixels = range(tile.mr)
            if channels * ws <= tile.mr * xs:
                for c in range(channels):
                    load_weights(c)
                for i in pixels:
                    load_inputs(i)
                    for c in range(channels):
                        add_counts(i, c)
                return
            for i in pixels:
                load_inputs(i)
            for c in range(channels):
                load_weights(c)
                for i in pixels:
                    add_counts(i, c)

        def widen(zero: Expr | None) -> None:
            factors = self._factors(k)
            for i in range(tile.mr):
                for c in range(channels):
                    lanes = self.acc_lanes // self.lanes
                    at = (i * channels + c) * lanes + (k.i32(0) if zero is None else zero)
                    total = k.const(0, "uint16", 8) if self.deep else k.load(tile.acc, at, lanes)
                    for part, halves in enumerate(factors):
                        value = k.load(counts, ((i * channels + c) * (xs * ws) + part) * WIDTH, WIDTH)
                        for start, (negative, factor) in zip((0, 8), halves, strict=True):
                            product = self.neon.multiply_unsigned(k, half(k, value, start), factor)
                            total = total - product if negative else total + product
                    if self.deep:
                        total = self.neon.add_pairs(k, k.load(tile.acc, at, lanes), k.bitcast(total, "int16", 8))
                    k.store(tile.acc, at, total, lanes)

        sum_narrow(k, taps, steps, self.additions, tile.unroll, step, widen)

    def _factors(self, k: Builder) -> list[list[tuple[bool, Expr]]]:
        """For each vector of counts and its halves: whether they count negative, and what bits of each lane do, as uint8x8."""
        planes = plane_factors(self.weight_bits)
        if self.apart:
            sides = [planes[start // self.plane_bytes] for start in (0, 8)]
            return [[(side < 0, k.const(abs(side) << p, "uint8", 8)) for side in sides] for p in range(self.x_bits)]
        patterns = [(factor < 0, self._pattern(k, abs(factor))) for factor in planes]
        return [[(negative, half(k, pattern, start)) for start in (0, 8)] for negative, pattern in patterns]

    def _pattern(self, k: Builder, factor: int) -> Expr:
        """uint8x16: what a bit in each lane counts."""
        shift = int(math.log2(self.granule // 8))
        plane = k.bitwise_and(
            k.shift_right(k.numbers(WIDTH), k.const(shift, "int32", WIDTH)), k.const(self.planes - 1, "int32", WIDTH)
        )
        counts = k.shift_left(k.const(factor, "int32", WIDTH), plane)
        none = k.const(0, "int32", WIDTH)
        return k.cast(k.select(plane < k.const(self.x_bits, "int32", WIDTH), counts, none), "uint8", WIDTH)

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """Joined sums added up, plus the bias, which wraps: it absorbs the zero point."""
        lanes = self.acc_lanes // self.lanes
        parts = [k.load(acc, (i * nv + j) * self.slot + c * lanes, lanes) for c in range(self.lanes)]
        if self.deep:
            total = self.neon.sum_lanes(k, parts)
        else:
            low, high = (self.neon.sums_of_neighbours(k, parts[at], parts[at + 1], 16) for at in (0, 2))
            total = self.neon.widened_pairs(k, k.bitcast(self.neon.sums_of_neighbours(k, low, high, 16), "int16", 8))
        if self.weight_bits == 1:
            total = k.shift_left(total, k.const(1, "uint32", 4))
        total = k.wrapping_add(total, k.bitcast(k.load(bias, HEADER + channel, 4), "uint32", 4), 4)
        return k.bitcast(total, "int32", 4)


@dataclass(eq=False)
class BitsConv(RivalConv):
    """Convolutions of weights and inputs of few bits.

    Attributes:
        unrolled: steps an iteration where planes of x are apart.
    """

    unrolled: int = 1

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits and the channels of the problem."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, BitsKernel)
        planes = plane_count(problem.x_bits)
        granule = math.gcd(problem.c, 8 * WIDTH // planes)
        # Every tap may end with a vector that is not full.
        apart = problem.weight_bits <= 2 and problem.x_bits == 2 and problem.c % (8 * WIDTH // problem.weight_bits) == 0
        steps = reductions(problem) * (problem.weight_bits if apart else planes) // (8 * WIDTH) + problem.kh * problem.kw
        return replace(
            self.micro, weight_bits=problem.weight_bits, x_bits=problem.x_bits, granule=granule, apart=apart, steps=steps
        )

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: few bits on both sides, one group of channels, whole bytes of bits."""
        reason = super().legal(problem, target)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        bits = problem.weight_bits, problem.x_bits
        if bits[0] > MOST_BITS or bits[1] > 7 or sum(bits) > MOST_SUM:
            return f"weights of at most {MOST_BITS} bits, and {MOST_SUM} with those of x; these have {bits[0]} and {bits[1]}"
        if problem.groups > 1 or problem.c % 8:
            return f"one group of a multiple of 8 channels, the problem has {problem.groups} of {problem.c}"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """As many pixels as leave registers to counts of all planes."""
        assert isinstance(problem, ConvProblem)
        vectors = max(self._bits_kernel(problem).vectors)
        limits = self.in_order_shapes if target.cpu in IN_ORDER_CPUS else self.shapes
        shapes = list(dict.fromkeys((max(1, min(mr // vectors, MOST_PIXELS)), nv) for mr, nv in limits))
        kernel = self._bits_kernel(problem)
        g = Geometry(problem, kernel, *shapes[0])
        unroll = self.unrolled if kernel.apart and g.padded_run >= UNROLLED_STEPS * kernel.kgroup else 1
        return [{**tile, "unroll": unroll} for tile in self._ranked(problem, target, shapes)]

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        usual = {**tile, "unroll": self.pipeline.unroll}
        return super().cycles(problem, target, usual) * max(self._bits_kernel(problem).vectors)

    def _bits_kernel(self, problem: Problem) -> BitsKernel:
        kernel = self.kernel(problem)
        assert isinstance(kernel, BitsKernel)
        return kernel


# Two of and, cnt and add a cycle; of four channels that is six cycles for each weight plane.
CONV_BITS = BitsConv(
    name="arm_conv_bits",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=BitsKernel(),
    shapes=((6, 1), (5, 1), (4, 1)),
    pipeline=Pipeline(macs=1 / 6, loads=1, in_flight=1, unroll=1),
    # llvm-mca for a Cortex-A53, w2a2: 8.6 products a cycle, and 6.9 with three pixels.
    in_order_shapes=((4, 1), (2, 1)),
    rivals=(CONV_INT8_MMLA, CONV_INT8_SDOT, CONV_INT8_NEON, CONV_INT8_NEON_WIDE),
    unrolled=2,
)
# ARMv7: eight vectors of counts, five or six of planes and products in 16 registers; a Cortex-A7 needs two cycles for each
# instruction of 128 bits.
ARMV7_CONV_BITS = BitsConv(
    name="armv7_conv_bits",
    arch="armv7",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=BitsKernel(A32),
    shapes=((2, 1), (1, 1)),
    pipeline=Pipeline(macs=1 / 24, loads=1 / 2, in_flight=1, unroll=1),
    rivals=(ARMV7_CONV_INT8, ARMV7_CONV_INT8_WIDE),
)
