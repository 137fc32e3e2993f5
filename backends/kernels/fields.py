"""Weights of few bits in *fields* of bytes, for kernels of few pixels that unpack them in registers, on all instruction sets.

What limits such products is the way of the weights to the core. A byte holds a field of weight_bits for each of several vectors
of channels, or that of an index into a table of integers (`bevel.ir.types.Codebook`). Three bits take the room of four.

Instructions that add four products in 32 bits (vpdpbusd, sdot) need no shift: codes are multiplied by the whole byte and by the
byte without its upper fields, one after the other removed, and each field's sum is the difference of two sums, exactly. The
uppermost field is signed, as the byte is; the others are moved up to be unsigned, which the sum of the inputs takes back
(`MicroKernel.code_offset`). Where sums of 16 bits take single fields only, these are masked out.

Weight buffer: `[block][tap][K-group][unit][channel in vector][element of the K-group]`, a unit being the vectors that share
bytes; before it, where fields are indices, the table, in as many bytes as a cache line has. It is data, so layers of equal shape
share code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.generator import ConvGenerator
from bevel.backends.kernels.low_bit import CodeStaging, reductions, signed_codes, unsigned_codes
from bevel.backends.kernels.micro import HEADER, LINE_BYTES, MicroKernel, RegisterTile
from bevel.backends.kernels.staging import Staging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

MOST_BITS = 4
# More pixels are bound by what they compute.
MOST_PIXELS = 4
INT32 = (1 << 31) - 1
TABLE = 16


@dataclass(frozen=True)
class FieldsKernel(MicroKernel):
    """Weights of several vectors of channels in one byte.

    Attributes:
        weight_bits, x_bits: of the problem.
    """

    weight_bits: int = 4
    x_bits: int = 8

    weight_dtype = "uint8"
    fetches_ahead = False

    @property
    def width(self) -> int:
        """Bytes of a vector of fields."""
        return self.lanes * self.kgroup

    @property
    def field_bits(self) -> int:
        """Of a weight in the packed bytes."""
        return 4 if self.weight_bits == 3 else self.weight_bits

    @property
    def unit(self) -> int:  # type: ignore[override]
        """Vectors that share bytes."""
        return 8 // self.field_bits

    @property
    def code_offset(self) -> int:  # type: ignore[override]
        """Stored codes are the weights and half their range; bipolar ones are 2 u - 1."""
        return 1 << (self.field_bits - 1)

    @property
    def top_is_signed(self) -> bool:
        """Whether the uppermost field holds weights as they are, in two's complement."""
        return False

    def staging(self, problem: ConvProblem, at: int) -> Staging:
        """See `MicroKernel.staging`."""
        return CodeStaging(problem, self.x_dtype, self.copy_lanes, at, sums=True)

    def tap_elements(self, run: int, nv: int) -> int:
        """See `MicroKernel.tap_elements`."""
        return self.padded_run(run) * nv * self.lanes // self.unit

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """See `MicroKernel.block_start`."""
        return channel // (self.unit * self.lanes) * (taps * self.tap_elements(run, self.unit))

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See the module's docstring."""
        channels, taps, run = weights.shape
        codes = np.zeros((channels, taps, self.padded_run(run)), np.uint8)
        codes[:, :, :run] = self._stored(weights)
        # What fills up groups is 0 in every field: it meets whatever lies behind the inputs.
        signs = np.zeros_like(codes)
        signs[:, :, :run] = self.code_offset if self.top_is_signed else 0
        parts = []
        for start, size in blocks:
            shape = (-1, self.unit, self.lanes, taps, codes.shape[2] // self.kgroup, self.kgroup)
            block = codes[start : start + size].reshape(shape).copy()
            block[:, -1] ^= signs[start : start + size].reshape(shape)[:, -1]
            shifts = self.field_bits * np.arange(self.unit, dtype=np.uint8)
            fields = np.bitwise_or.reduce(block << shifts[:, None, None, None, None], axis=1)
            parts.append(fields.transpose(2, 3, 0, 1, 4).ravel())
        return np.concatenate(parts)

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        _, taps, run = shape
        whole = np.zeros(shape, np.int8)
        position = 0
        shifts = self.field_bits * np.arange(self.unit, dtype=np.uint8)
        for start, size in blocks:
            count = taps * self.tap_elements(run, size // self.lanes)
            units = size // self.lanes // self.unit
            fields = packed[position : position + count].reshape(taps, -1, units, self.lanes, self.kgroup)
            position += count
            mask = np.uint8((1 << self.field_bits) - 1)
            codes = fields[:, :, :, None] >> shifts[:, None, None] & mask
            if self.top_is_signed:
                codes[:, :, :, -1] ^= np.uint8(self.code_offset)
            codes = codes.transpose(2, 3, 4, 0, 1, 5).reshape(size, taps, -1)[:, :, :run]
            whole[start : start + size] = self._restored(codes)
        return whole

    def field(self, k: Builder, whole: Expr, f: int) -> Expr:
        """Unsigned codes of field `f` of packed bytes."""
        width = self.width
        if f:
            words = k.bitcast(whole, "uint16", width // 2)
            whole = k.bitcast(k.shift_right(words, k.const(f * self.field_bits, "uint16", width // 2)), "uint8", width)
        return k.bitwise_and(whole, k.const((1 << self.field_bits) - 1, "uint8", width))

    def _stored(self, weights: Array) -> Array:
        """Unsigned codes of `weights`."""
        if self.weight_bits == 1:
            return unsigned_codes(weights, 1)
        return (weights.astype(np.int16) + self.code_offset).astype(np.uint8)

    def _restored(self, codes: Array) -> Array:
        if self.weight_bits == 1:
            return signed_codes(codes, 1)
        return (codes.astype(np.int16) - self.code_offset).astype(np.int8)


@dataclass(frozen=True)
class FieldsDotKernel(FieldsKernel):
    """Multiply by bytes with fewer and fewer fields, and take differences."""

    fetches_ahead = False

    @property
    def top_is_signed(self) -> bool:
        """Where there is more than a sign."""
        return self.weight_bits > 1

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Sums start at zero; `result` adds the bias."""
        for at in range(0, tile.slots * self.lanes, self.lanes):
            k.store(tile.acc, at, k.const(0, "int32", self.lanes), self.lanes)

    def factors(self, k: Builder, weights: Buffer, whole: Expr, f: int) -> Expr:
        """What codes are multiplied by for the sum of field `f` of packed bytes."""
        kept = k.const((1 << (self.field_bits * (f + 1))) - 1, "uint8", self.width)
        return whole if f == self.unit - 1 else k.bitwise_and(whole, kept)

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`."""
        width = self.width
        units = tile.nv // self.unit

        def some(first: Expr, count: int) -> None:
            columns = [self.operands(k, tile.x, tile.origin + offset + first * self.kgroup, count) for offset in tile.offsets]
            for u in range(count):
                for q in range(units):
                    whole = k.load(tile.weights, tile.base + ((first + u) * units + q) * width, width)
                    for f in range(self.unit):
                        factors = self.factors(k, tile.weights, whole, f)
                        for i, column in enumerate(columns):
                            slot = (i * tile.nv + q * self.unit + f) * self.lanes
                            value = self.mac(k, k.load(tile.acc, slot, self.lanes), column[u], factors)
                            k.store(tile.acc, slot, value, self.lanes)

        groups = -(-run // self.kgroup)
        done = groups // tile.unroll * tile.unroll if groups >= 2 * tile.unroll else 0
        if done:
            with k.serial(done // tile.unroll) as turn:
                some(turn * tile.unroll, tile.unroll)
        if groups > done:
            some(k.i32(done), groups - done)

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """The sum of one field, plus the bias, which wraps: it absorbs the zero point."""
        field = j % self.unit
        value = k.load(acc, (i * nv + j) * self.lanes, self.lanes)
        if field:
            value = value - k.load(acc, (i * nv + j - 1) * self.lanes, self.lanes)
            value = k.shift_right(value, k.const(self.field_bits * field, "int32", self.lanes))
        if self.weight_bits == 1:
            # The sign of a byte counts -1.
            value = value * k.const(-2 if field == self.unit - 1 else 2, "int32", self.lanes)
        first = k.bitcast(k.load(bias, HEADER + channel, self.lanes), "uint32", self.lanes)
        return k.bitcast(k.wrapping_add(first, k.bitcast(value, "uint32", self.lanes), self.lanes), "int32", self.lanes)

    def without_offset(self, k: Builder, sums: Expr, inputs: Expr, j: int) -> Expr:
        """See `MicroKernel.without_offset`."""
        if self.top_is_signed and j % self.unit == self.unit - 1:
            return sums
        return super().without_offset(k, sums, inputs, j)


@dataclass(frozen=True)
class LookupKernel(FieldsKernel):
    """Weights of `weight_bits` that are indices."""

    code_offset = 0

    def staging(self, problem: ConvProblem, at: int) -> Staging:
        """See `MicroKernel.staging`: nobody needs the sums of codes."""
        return MicroKernel.staging(self, problem, at)

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """See `MicroKernel.block_start`."""
        return super().block_start(channel, taps, run) + LINE_BYTES

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See the module's docstring."""
        values = np.unique(weights)
        if values.size > 1 << self.weight_bits:
            # Of the channels that only fill vectors: whatever weights they get, nobody reads what they compute.
            values = values[values != 0]
        table = np.zeros(1 << self.weight_bits, np.int8)
        table[: values.size] = values[: table.size]
        indices = np.minimum(np.searchsorted(values, weights), table.size - 1)
        header = np.zeros(LINE_BYTES, np.uint8)
        header[: table.size] = table.view(np.uint8)
        return np.concatenate([header, super().pack_weights(indices, blocks)])

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        table = packed[:TABLE].view(np.int8)
        restored: Array = table[super().unpack_weights(packed[LINE_BYTES:], shape, blocks)]
        return restored

    def _stored(self, weights: Array) -> Array:
        return weights.astype(np.uint8)

    def _restored(self, codes: Array) -> Array:
        return codes.astype(np.int8)

    def table(self, k: Builder, weights: Buffer) -> Expr:
        """The table in every 128 bits of a vector."""
        parts = self.width // TABLE
        return k.shuffle([k.load(weights, 0, TABLE)] * parts, list(range(TABLE)) * parts)


@dataclass(frozen=True)
class LookupDotKernel(LookupKernel, FieldsDotKernel):
    """Multiply by weights from the table."""

    top_is_signed = False

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """The sum plus the bias, which wraps: it absorbs the zero point."""
        value = k.bitcast(k.load(acc, (i * nv + j) * self.lanes, self.lanes), "uint32", self.lanes)
        first = k.bitcast(k.load(bias, HEADER + channel, self.lanes), "uint32", self.lanes)
        return k.bitcast(k.wrapping_add(first, value, self.lanes), "int32", self.lanes)


@dataclass(eq=False)
class FieldsConv(ConvGenerator):
    """Convolutions and GEMMs of few pixels."""

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits of the problem."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, FieldsKernel)
        return replace(self.micro, weight_bits=problem.weight_bits, x_bits=problem.x_bits)

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: weights of few bits, one group of channels, sums that fit."""
        reason = super().legal(problem, target)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.weight_bits > MOST_BITS:
            return f"weights of at most {MOST_BITS} bits, these have {problem.weight_bits}"
        if problem.groups > 1:
            return f"one group of channels, the problem has {problem.groups}"
        if reductions(problem) * 255 * 128 > INT32:
            return f"sums of {reductions(problem)} products with whole bytes outgrow 32 bits"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Tiles whose blocks are whole units."""
        unit = self.kernel(problem).unit
        return self._ranked(problem, target, [(mr, nv) for mr, nv in self.shapes if nv % unit == 0])

    def pays(self, problem: Problem, target: Target) -> bool:
        """Where few pixels meet the weights."""
        assert isinstance(problem, ConvProblem)
        return problem.batch * problem.oh * problem.ow <= MOST_PIXELS


@dataclass(eq=False)
class LookupConv(FieldsConv):
    """Convolutions and GEMMs of few pixels whose weights take few values."""

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits of indices."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, LookupKernel)
        return replace(self.micro, weight_bits=problem.index_bits or self.micro.weight_bits, x_bits=problem.x_bits)

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: a table of at most 16 weights, one group of channels, whole groups of inputs."""
        reason = ConvGenerator.legal(self, problem, target)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if not problem.index_bits:
            return "weights from a table of at most 16 values, of these no table is known"
        if problem.groups > 1 or problem.c % self.micro.kgroup:
            return f"one group of a multiple of {self.micro.kgroup} channels, the problem has {problem.groups} of {problem.c}"
        return None
