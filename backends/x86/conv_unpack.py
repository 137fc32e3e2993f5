"""Matrix-vector products of weights of few bits, unpacked in registers: what limits them is the way of the weights to the core.

A byte holds a *field* of weight_bits for each of several vectors of channels. With vpdpbusd fields need no shift: codes are
multiplied by the whole byte and by the byte without its upper fields, one after the other removed, and each field's sum is the
difference of two sums, exactly. The uppermost field is signed, as the byte is; the others are moved up to be unsigned, which the
sum of the inputs takes back (`MicroKernel.code_offset`). vpmaddubsw adds in 16 bits, where only single fields fit: these are
masked out and added as often as fits (`bevel.backends.kernels.narrow_sums`).

Weight buffer: `[block][tap][group of 4][unit][channel in vector][4]`, a unit being the vectors that share bytes. Three bits take
the room of four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.low_bit import CodeStaging, reductions, signed_codes, unsigned_codes
from bevel.backends.kernels.micro import HEADER, MicroKernel, Taps
from bevel.backends.kernels.narrow_sums import sum_narrow
from bevel.backends.kernels.staging import Staging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.backends.x86.conv_int8_vnni import VnniKernel
from bevel.ir.protocols import Target

MOST_BITS = 4
# More pixels are bound by what they compute.
MOST_PIXELS = 4
INT16, INT32 = 32767, (1 << 31) - 1
GROUP = 4


@dataclass(frozen=True)
class FieldsKernel(MicroKernel):
    """Weights of several vectors of channels in one byte.

    Attributes:
        weight_bits, x_bits: of the problem.
    """

    weight_bits: int = 4
    x_bits: int = 8

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
            shape = (-1, self.unit, self.lanes, taps, codes.shape[2] // GROUP, GROUP)
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
            fields = packed[position : position + count].reshape(taps, -1, size // self.lanes // self.unit, self.lanes, GROUP)
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
        width = self.lanes * GROUP
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
class FieldsVnniKernel(FieldsKernel, VnniKernel):
    """Multiply by bytes with fewer and fewer fields, and take differences."""

    weight_dtype = "uint8"
    fetches_ahead = False

    @property
    def top_is_signed(self) -> bool:
        """Where there is more than a sign."""
        return self.weight_bits > 1

    def init(self, k: Builder, acc: Buffer, offsets: Sequence[int], nv: int, bias: Buffer, channel: Expr) -> None:
        """Sums start at zero; `result` adds the bias."""
        for at in range(0, len(offsets) * nv * self.lanes, self.lanes):
            k.store(acc, at, k.const(0, "int32", self.lanes), self.lanes)

    def factors(self, k: Builder, weights: Buffer, whole: Expr, f: int) -> Expr:
        """What codes are multiplied by for the sum of field `f` of packed bytes."""
        kept = k.const((1 << (self.field_bits * (f + 1))) - 1, "uint8", self.lanes * GROUP)
        return whole if f == self.unit - 1 else k.bitwise_and(whole, kept)

    def accumulate(
        self,
        k: Builder,
        acc: Buffer,
        x: Buffer,
        origin: Expr,
        offsets: Sequence[int],
        weights: Buffer,
        base: Expr,
        nv: int,
        run: int,
        unroll: int,
        ahead: int,
    ) -> None:
        """See `MicroKernel.accumulate`."""
        width = self.lanes * GROUP
        units = nv // self.unit

        def some(first: Expr, count: int) -> None:
            columns = [self.operands(k, x, origin + offset + first * GROUP, count) for offset in offsets]
            for u in range(count):
                for q in range(units):
                    whole = k.load(weights, base + ((first + u) * units + q) * width, width)
                    for f in range(self.unit):
                        factors = self.factors(k, weights, whole, f)
                        for i, column in enumerate(columns):
                            slot = (i * nv + q * self.unit + f) * self.lanes
                            value = self.mac(k, k.load(acc, slot, self.lanes), column[u], factors)
                            k.store(acc, slot, value, self.lanes)

        groups = -(-run // GROUP)
        done = groups // unroll * unroll if groups >= 2 * unroll else 0
        if done:
            with k.serial(done // unroll) as turn:
                some(turn * unroll, unroll)
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
class FieldsMaddubsKernel(FieldsKernel, Avx2Kernel):
    """Mask fields out, multiply, add in 16 bits."""

    kgroup = GROUP
    x_dtype = "uint8"
    weight_dtype = "uint8"
    copy_lanes = 32

    @property
    def additions(self) -> int:
        """Of two products each that fit int16."""
        return INT16 // (2 * ((1 << self.field_bits) - 1) * ((1 << self.x_bits) - 1))

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
        width = self.lanes * GROUP
        slots = len(offsets) * nv
        sums = k.alloc(slots * 16, "int16")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = base + (row * taps.columns + column) * taps.size + index * (nv // self.unit * width)
            place = origin + row * taps.row_pitch + column * taps.column_pitch + index * GROUP
            quads = [k.bitcast(k.load(x, place + offset, GROUP), "int32") for offset in offsets]
            codes = [k.bitcast(k.splat(quad, self.lanes), "uint8", width) for quad in quads]
            for q in range(nv // self.unit):
                whole = k.load(weights, at + q * width, width)
                for f in range(self.unit):
                    factors = self.field(k, whole, f)
                    for i, column_codes in enumerate(codes):
                        slot = (i * nv + q * self.unit + f) * 16
                        products = k.call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", column_codes, factors)
                        k.store(sums, slot, products if first else k.load(sums, slot, 16) + products, 16)

        def widen(zero: Expr | None) -> None:
            # Bipolar weights are 2 u - 1.
            factor = k.const(2 if self.weight_bits == 1 else 1, "int16", 16)
            for slot in range(slots):
                at = slot * 8 + (k.i32(0) if zero is None else zero)
                wide = k.call("int32x8", "llvm.x86.avx2.pmadd.wd", k.load(sums, slot * 16, 16), factor)
                k.store(acc, at, k.wrapping_add(k.load(acc, at, 8), k.bitcast(wide, "uint32", 8), 8), 8)

        sum_narrow(k, taps, -(-taps.run // GROUP), self.additions, unroll, step, widen)


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


# A vector of four bits takes half an and, one of two bits three quarters of one, beside a multiplication for each field.
CONV_UNPACK_VNNI = FieldsConv(
    name="x86_conv_unpack_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=FieldsVnniKernel(),
    shapes=((1, 8), (2, 8), (3, 8), (4, 4), (1, 16)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10, unroll=2, convert=0.4, fetch=0.01),
)
CONV_UNPACK_AVX2 = FieldsConv(
    name="x86_conv_unpack_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=FieldsMaddubsKernel(),
    shapes=((1, 8), (2, 4), (1, 4)),
    pipeline=Pipeline(macs=1.3, loads=2, in_flight=4, unroll=1, convert=0.6),
)
