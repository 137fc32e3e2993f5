"""Convolution and GEMM of weights and inputs of few bits on NEON by counting bits (Umuroglu et al., 2017; Cowan et al., 2020).

A product of codes is a sum over pairs of bit planes, and 128 products of bits take an `and`, a `cnt` and an addition of bytes.
Rows of inputs are turned into planes once (`bevel.backends.kernels.low_bit`): of every *granule* of codes, bytes of its planes
follow each other, so that a vector holds all planes of 128 / planes codes, and reduction runs stay contiguous. A weight vector
holds the bits of one weight plane, repeated for every plane of x. Sums of counts stay in bytes as long as they fit; multiplying
them by what their planes count joins all of them in 16 bits.

Weights are packed as `[block][tap][vector][channel][weight plane][byte]` without repetitions; these are made in scratch for each
block of channels where many pixels meet them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.arm.conv_int8_mmla import CONV_INT8_MMLA
from bevel.backends.arm.conv_int8_neon import CONV_INT8_NEON, CONV_INT8_NEON_WIDE
from bevel.backends.arm.conv_int8_sdot import CONV_INT8_SDOT
from bevel.backends.arm.neon import half
from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.low_bit import (
    FormStaging,
    plane_factors,
    planes_of,
    reductions,
    signed_codes,
    sum_of_codes,
    unsigned_codes,
)
from bevel.backends.kernels.micro import HEADER, MicroKernel, Taps
from bevel.backends.kernels.narrow_sums import store_zeros, sum_narrow
from bevel.backends.kernels.staging import Staging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

WIDTH = 16
CHUNK = 64
MOST_BITS = 4
# Of weights and inputs together, that what a bit counts fits a byte.
MOST_SUM = 9
INT16 = 32767
# Counts up to 8 whose sum fits a byte.
ADDITIONS = 31
UNFOLDED_VISITS = 4
# Of a tile: a sixth vector of inputs has no register beside 24 of counts.
MOST_PIXELS = 5


def plane_count(bits: int) -> int:
    """Planes that codes of `bits` are laid out as: a power of two, so that they fill vectors."""
    return 1 << (bits - 1).bit_length()


@dataclass(frozen=True)
class PlaneStaging(FormStaging):
    """Rows of bit planes.

    Attributes:
        planes: of a code, a power of two.
        granule: codes whose planes follow each other; a divisor of the channels.
    """

    planes: int = 1
    granule: int = CHUNK

    @property
    def pixel_elements(self) -> int:
        """Bytes of the planes of a pixel."""
        return self.problem.c // 8 * self.planes

    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """See `FormStaging.form`."""
        with k.serial(-(-codes // CHUNK)) as v:
            parts = [k.bitcast(k.load(x, source + v * CHUNK + i * WIDTH, WIDTH), "uint8", WIDTH) for i in range(CHUNK // WIDTH)]
            self._write(k, scratch, target + v * (CHUNK // 8 * self.planes), parts)

    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """See `FormStaging.form_border`."""
        with k.serial(-(-pixels * self.problem.c // CHUNK)) as v:
            self._write(k, scratch, target + v * (CHUNK // 8 * self.planes), [k.splat(zero, WIDTH)] * (CHUNK // WIDTH))

    def row_sums(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """See `FormStaging.row_sums`."""
        return sum_of_codes(k, x, offset, self.problem.c)

    def _write(self, k: Builder, scratch: Buffer, target: Expr, parts: Sequence[Expr]) -> None:
        """The planes of 64 codes in four vectors."""
        place = k.bitwise_and(k.numbers(WIDTH), k.const(7, "int32", WIDTH))
        bit = k.cast(k.shift_left(k.const(1, "int32", WIDTH), place), "uint8", WIDTH)
        none = k.const(0, "uint8", WIDTH)

        def add(a: Expr, b: Expr) -> Expr:
            return k.call("uint8x16", "llvm.aarch64.neon.addp", a, b)

        quarters = []
        for p in range(self.planes):
            chosen = [k.select(k.bitwise_and(v, k.const(1 << p, "uint8", WIDTH)) > none, bit, none) for v in parts]
            quarters.append(add(add(chosen[0], chosen[1]), add(chosen[2], chosen[3])))
        size = CHUNK // 8 * self.planes
        if self.planes == 1:
            k.store(scratch, target, k.shuffle([add(quarters[0], quarters[0])], range(size)), size)
            return
        pairs = [add(quarters[p], quarters[p + 1]) for p in range(0, self.planes, 2)]
        # Byte b of plane p is in vector p // 2, at 8 * (p % 2) + b.
        width = min(self.granule, CHUNK) // 8
        order = [p * 8 + first + b for first in range(0, 8, width) for p in range(self.planes) for b in range(width)]
        for at in range(0, size, WIDTH):
            value = pairs[0] if len(pairs) == 1 and order == list(range(size)) else k.shuffle(pairs, order[at : at + WIDTH])
            k.store(scratch, target + at, value, WIDTH)


@dataclass(frozen=True)
class BitsKernel(NeonInteger):
    """Count the bits of planes.

    Attributes:
        weight_bits, x_bits: of the problem.
        granule: see `PlaneStaging`.
        steps: vectors of a whole reduction, at most.
    """

    weight_bits: int = 2
    x_bits: int = 2
    granule: int = CHUNK
    steps: int = 1

    x_dtype = "uint8"
    weight_dtype = "uint8"

    @property
    def planes(self) -> int:
        """Of x."""
        return plane_count(self.x_bits)

    @property
    def kgroup(self) -> int:  # type: ignore[override]
        """Codes of a vector."""
        return 8 * WIDTH // self.planes

    @property
    def code_offset(self) -> int:  # type: ignore[override]
        """Bipolar weights are 2 u - 1."""
        return 1 if self.weight_bits == 1 else 0

    @property
    def _step_bound(self) -> int:
        """What one vector adds to a lane of the joined sums, at most: 16 bits of the heaviest planes."""
        return 16 * (1 << (self.x_bits - 1)) * (1 << (self.weight_bits - 1))

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
        return PlaneStaging(problem, self.x_dtype, WIDTH, at, sums=sums, planes=self.planes, granule=self.granule)

    def tap_elements(self, run: int, nv: int) -> int:
        """See `MicroKernel.tap_elements`."""
        return self.padded_run(run) // self.kgroup * (nv * self.lanes) * self.weight_bits * (WIDTH // self.planes)

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
        packed = np.stack(planes, axis=2).reshape(channels, taps, self.weight_bits, -1, WIDTH // self.planes)
        return np.concatenate([packed[start : start + size].transpose(1, 3, 0, 2, 4).ravel() for start, size in blocks])

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        _, taps, run = shape
        whole = np.zeros(shape, np.int8)
        position = 0
        for start, size in blocks:
            count = taps * self.tap_elements(run, size // self.lanes)
            block = packed[position : position + count].reshape(taps, -1, size, self.weight_bits, WIDTH // self.planes)
            position += count
            bits = np.unpackbits(
                block.transpose(2, 0, 3, 1, 4).reshape(size, taps, self.weight_bits, -1), axis=-1, bitorder="little"
            )
            codes = (bits << np.arange(self.weight_bits, dtype=np.uint8)[:, None]).sum(axis=2, dtype=np.uint8)[:, :, :run]
            whole[start : start + size] = signed_codes(codes, self.weight_bits)
        return whole

    def init(self, k: Builder, acc: Buffer, offsets: Sequence[int], nv: int, bias: Buffer, channel: Expr) -> None:
        """Joined sums start at zero; `result` adds the bias."""
        store_zeros(k, acc, self.acc_dtype, len(offsets) * nv * self.slot, self.acc_lanes // self.lanes)

    def reduce(
        self,
        k: Builder,
        acc: Buffer,
        x: Buffer,
        origin: Expr,
        offsets: Sequence[int],
        weights: Buffer,
        base: Expr,
        nv: int,
        taps: Taps,
        unroll: int,
        ahead: int,
    ) -> None:
        """See `MicroKernel.reduce`."""
        channels, bits = nv * self.lanes, self.weight_bits
        unfolded = weights is x
        size = WIDTH if unfolded else WIDTH // self.planes
        steps = self.padded_run(taps.run) // self.kgroup
        counts = k.alloc(len(offsets) * channels * bits * WIDTH, "uint8")
        columns = k.alloc(len(offsets) * WIDTH, "uint8")

        def slot(i: int, c: int, q: int) -> int:
            return ((i * channels + c) * bits + q) * WIDTH

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            place = origin + row * taps.row_pitch + column * taps.column_pitch + index * WIDTH
            for i, offset in enumerate(offsets):
                k.store(columns, i * WIDTH, k.load(x, place + offset, WIDTH), WIDTH)
            start = base + ((row * taps.columns + column) * steps + index) * (channels * bits * size)
            for c in range(channels):
                for q in range(bits):
                    plane = k.load(weights, start + (c * bits + q) * size, size)
                    if not unfolded:
                        plane = self._repeated(k, plane)
                    for i in range(len(offsets)):
                        both = k.bitwise_and(plane, k.load(columns, i * WIDTH, WIDTH))
                        count = k.call("uint8x16", "llvm.ctpop", both)
                        value = count if first else k.load(counts, slot(i, c, q), WIDTH) + count
                        k.store(counts, slot(i, c, q), value, WIDTH)

        def widen(zero: Expr | None) -> None:
            patterns = [self._pattern(k, abs(factor)) for factor in plane_factors(bits)]
            for i in range(len(offsets)):
                for c in range(channels):
                    lanes = self.acc_lanes // self.lanes
                    at = (i * channels + c) * lanes + (k.i32(0) if zero is None else zero)
                    total = k.const(0, "uint16", 8) if self.deep else k.load(acc, at, lanes)
                    for q, factor in enumerate(plane_factors(bits)):
                        value = k.load(counts, slot(i, c, q), WIDTH)
                        for start in (0, 8):
                            ends = half(k, value, start), half(k, patterns[q], start)
                            product = k.call("uint16x8", "llvm.aarch64.neon.umull", *ends)
                            total = total - product if factor < 0 else total + product
                    if self.deep:
                        total = self.neon.add_pairs(k, k.load(acc, at, lanes), k.bitcast(total, "int16", 8))
                    k.store(acc, at, total, lanes)

        sum_narrow(k, taps, steps, self.additions, unroll, step, widen)

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

            def add(a: Expr, b: Expr) -> Expr:
                return k.call("uint16x8", "llvm.aarch64.neon.addp", a, b)

            quarters = k.bitcast(add(add(parts[0], parts[1]), add(parts[2], parts[3])), "int16", 8)
            total = k.bitcast(k.call("int32x4", "llvm.aarch64.neon.saddlp", quarters), "uint32", 4)
        if self.weight_bits == 1:
            total = k.shift_left(total, k.const(1, "uint32", 4))
        total = k.wrapping_add(total, k.bitcast(k.load(bias, HEADER + channel, 4), "uint32", 4), 4)
        return k.bitcast(total, "int32", 4)


@dataclass(eq=False)
class BitsConv(ConvGenerator):
    """Convolutions of weights and inputs of few bits.

    Attributes:
        rivals: generators that multiply, faster where there are many pairs of planes.
    """

    rivals: tuple[ConvGenerator, ...] = ()

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits and the channels of the problem."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, BitsKernel)
        planes = plane_count(problem.x_bits)
        granule = math.gcd(problem.c, 8 * WIDTH // planes)
        # Every tap may end with a vector that is not full.
        steps = reductions(problem) * planes // (8 * WIDTH) + problem.kh * problem.kw
        return replace(self.micro, weight_bits=problem.weight_bits, x_bits=problem.x_bits, granule=granule, steps=steps)

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
        shapes = list(dict.fromkeys((max(1, min(mr // problem.weight_bits, MOST_PIXELS)), nv) for mr, nv in self.shapes))
        return self._ranked(problem, target, shapes)

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        assert isinstance(problem, ConvProblem)
        return super().cycles(problem, target, tile) * problem.weight_bits

    def pays(self, problem: Problem, target: Target) -> bool:
        """Where it is estimated to take fewer cycles than what multiplies."""
        mine = min(self.cycles(problem, target, tile) for tile in self.tiles(problem, target))
        others = [g for g in self.rivals if g.legal(problem, target) is None]
        return all(mine < min(g.cycles(problem, target, tile) for tile in g.tiles(problem, target)) for g in others)


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
    rivals=(CONV_INT8_MMLA, CONV_INT8_SDOT, CONV_INT8_NEON, CONV_INT8_NEON_WIDE),
)
