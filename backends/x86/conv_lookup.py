"""Matrix-vector products of weights that are indices of a table of integers (`bevel.ir.types.Codebook`), looked up in registers.

Indices of two to four bits lie as in `bevel.backends.x86.conv_unpack`, a *field* for each of several vectors of channels in a
byte; vpshufb turns those of one field into weights of eight bits. Weight buffer: the table, in as many bytes as a cache line has,
then the fields. The table is data, so layers of equal shape share the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import HEADER, LINE_BYTES, MicroKernel, Taps
from bevel.backends.kernels.narrow_sums import sum_narrow
from bevel.backends.kernels.staging import Staging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.backends.x86.conv_unpack import GROUP, FieldsConv, FieldsKernel, FieldsVnniKernel
from bevel.ir.protocols import Target

TABLE = 16
HALF_BITS = 4
# Of two products of any weights of 8 bits and halves of codes, that fit 16 bits.
ADDITIONS = 32767 // (2 * 128 * ((1 << HALF_BITS) - 1))


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
        parts = self.lanes * GROUP // TABLE
        return k.shuffle([k.load(weights, 0, TABLE)] * parts, list(range(TABLE)) * parts)


@dataclass(frozen=True)
class LookupVnniKernel(LookupKernel, FieldsVnniKernel):
    """Multiply by vpdpbusd."""

    top_is_signed = False

    def factors(self, k: Builder, weights: Buffer, whole: Expr, f: int) -> Expr:
        """See `FieldsVnniKernel.factors`."""
        return k.call("int8x64", "llvm.x86.avx512.pshuf.b.512", self.table(k, weights), self.field(k, whole, f))

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """The sum plus the bias, which wraps: it absorbs the zero point."""
        value = k.bitcast(k.load(acc, (i * nv + j) * self.lanes, self.lanes), "uint32", self.lanes)
        first = k.bitcast(k.load(bias, HEADER + channel, self.lanes), "uint32", self.lanes)
        return k.bitcast(k.wrapping_add(first, value, self.lanes), "int32", self.lanes)


@dataclass(frozen=True)
class LookupAvx2Kernel(LookupKernel, Avx2Kernel):
    """Multiply halves of codes, of four bits each, by vpmaddubsw: then 16 bits add several products, whatever the weights."""

    kgroup = GROUP
    x_dtype = "uint8"
    weight_dtype = "uint8"
    copy_lanes = 32

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
        width, words = self.lanes * GROUP, self.lanes * 2
        halves = 1 if self.x_bits <= HALF_BITS else 2
        tiles = len(offsets) * nv
        sums = k.alloc(tiles * halves * words, "int16")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = base + (row * taps.columns + column) * taps.size + index * (nv // self.unit * width)
            place = origin + row * taps.row_pitch + column * taps.column_pitch + index * GROUP
            codes = [self._halves(k, k.load(x, place + offset, GROUP), halves) for offset in offsets]
            for q in range(nv // self.unit):
                whole = k.load(weights, at + q * width, width)
                for f in range(self.unit):
                    factors = k.call("int8x32", "llvm.x86.avx2.pshuf.b", self.table(k, weights), self.field(k, whole, f))
                    for i, of_pixel in enumerate(codes):
                        for number, half in enumerate(of_pixel):
                            slot = ((i * nv + q * self.unit + f) * halves + number) * words
                            products = k.call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", half, factors)
                            k.store(sums, slot, products if first else k.load(sums, slot, words) + products, words)

        def widen(zero: Expr | None) -> None:
            for tile in range(tiles):
                at = tile * self.lanes + (k.i32(0) if zero is None else zero)
                total = k.load(acc, at, self.lanes)
                for number in range(halves):
                    some = k.load(sums, (tile * halves + number) * words, words)
                    total = self.mac(k, total, some, k.const(1 << (HALF_BITS * number), "int16", words))
                k.store(acc, at, total, self.lanes)

        sum_narrow(k, taps, taps.run // GROUP, ADDITIONS, unroll, step, widen)

    def _halves(self, k: Builder, quad: Expr, count: int) -> list[Expr]:
        """Broadcasts of the low and the high half of four codes, or of codes that are a half."""
        width = self.lanes * GROUP
        codes = k.bitcast(k.splat(k.bitcast(quad, "int32"), self.lanes), "uint8", width)
        if count == 1:
            return [codes]
        upper = k.shift_right(k.bitcast(codes, "uint16", width // 2), k.const(HALF_BITS, "uint16", width // 2))
        mask = k.const((1 << HALF_BITS) - 1, "uint8", width)
        return [k.bitwise_and(codes, mask), k.bitwise_and(k.bitcast(upper, "uint8", width), mask)]


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
        if problem.groups > 1 or problem.c % GROUP:
            return f"one group of a multiple of {GROUP} channels, the problem has {problem.groups} of {problem.c}"
        return None


CONV_LOOKUP_VNNI = LookupConv(
    name="x86_conv_lookup_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=LookupVnniKernel(),
    shapes=((1, 8), (2, 8), (4, 4)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10, unroll=2, convert=1, fetch=0.01),
)
CONV_LOOKUP_AVX2 = LookupConv(
    name="x86_conv_lookup_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=LookupAvx2Kernel(),
    # Two pixels by two vectors spill.
    shapes=((1, 4),),
    pipeline=Pipeline(macs=0.7, loads=2, in_flight=4, unroll=1, convert=0.8),
)
