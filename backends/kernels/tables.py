"""Convolution and GEMM of weights of few bits by table lookup, without a multiplication (T-MAC; Wei et al., 2024).

Of every four codes of x a table of 16 bytes holds all sums of some of them; four bits of a weight plane select one. A vector of
indices looks up four products of every byte's channel and plane at once, and sums are added in bytes until they could overflow;
then the planes of a channel are joined, with their signs, in 16 bits. Tables are made once for each input pixel and read by all
kernel positions and output channels (`bevel.backends.kernels.low_bit`). Instruction sets say how tables are made, looked up,
and how planes are joined.

Codes of more than four bits have sums beyond a byte: these are split into two tables, of low and high bits. With one plane their
sums are joined at the end, where they fit 16 bits.

Indices are packed two to a byte, `[block][tap][group of 4][pair of vectors][byte]`, the first vector in the low halves; three
planes are laid out as four. Where many pixels meet them, indices are unfolded into scratch for each block of channels.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.conv import Geometry
from bevel.backends.kernels.generator import RivalConv
from bevel.backends.kernels.low_bit import (
    FormStaging,
    planes_of,
    reductions,
    signed_codes,
    sum_of_codes,
    unsigned_codes,
)
from bevel.backends.kernels.micro import HEADER, MicroKernel, RegisterTile, Taps
from bevel.backends.kernels.narrow_sums import store_zeros, sum_narrow
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

GROUP = 4
TABLE = 16
MOST_BITS = 4
INT16, UINT16 = 32767, 65535
# One table holds the sums of four codes of up to this many bits; of others the first of two tables holds half the bits.
ONE_TABLE_BITS = 4
# Tiles of pixels from which unfolding indices costs less than it saves.
UNFOLDED_VISITS = 4
# Instructions that join the sums of a vector of indices, beside the two of a lookup, in halves.
JOINING = 1.5
# Cycles that 32 bytes of tables take.
MAKING = 3.0


@dataclass(frozen=True)
class TableStaging(FormStaging, abc.ABC):
    """Rows of tables.

    Attributes:
        low_bits: of sums that the first of two tables holds; 0 for one table.
    """

    low_bits: int = 0

    @property
    def pixel_elements(self) -> int:
        """Bytes of the tables of a pixel."""
        return self.problem.c // GROUP * self.table_bytes

    @property
    def table_bytes(self) -> int:
        """Of four codes."""
        return 2 * TABLE if self.low_bits else TABLE

    def row_sums(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """See `FormStaging.row_sums`."""
        return sum_of_codes(k, x, offset, self.problem.c)


@dataclass(frozen=True)
class TableKernel(MicroKernel, abc.ABC):
    """Look up, add in bytes, join planes in 16 bits. Subclasses add the epilogue of their instruction set.

    Attributes:
        weight_bits, x_bits: of the problem.
        reductions: products per result.
    """

    weight_bits: int = 2
    x_bits: int = 2
    reductions: int = 0

    kgroup = GROUP
    x_dtype = "uint8"
    weight_dtype = "uint8"
    fetches_ahead = False
    # Bytes of a vector of indices, and the instruction that looks them up.
    bytes: ClassVar[int]
    lookup: ClassVar[str]

    @property
    def acc_dtype(self) -> str:  # type: ignore[override]
        """Of joined sums."""
        return "uint16" if self.apart else "int32" if self.wide else "int16"

    @property
    def acc_lanes(self) -> int:  # type: ignore[override]
        """Of both tables, where their sums stay apart."""
        return self.tables * self.lanes if self.apart else self.lanes

    @property
    def wide(self) -> bool:
        """Whether joined sums have 32 bits: those of four planes do in any case."""
        largest = self.reductions * (1 << (self.weight_bits - 1)) * ((1 << self.x_bits) - 1)
        return largest > INT16 or self.planes == 4

    @property
    def apart(self) -> bool:
        """Whether sums of two tables stay apart until the end, in 16 bits, which joined would need 32."""
        fits = self.reductions // GROUP * self._largest_entry <= UINT16
        return self.planes == 1 and self.tables == 2 and self.wide and fits

    @property
    def _largest_entry(self) -> int:
        """Of a table."""
        largest = GROUP * ((1 << self.x_bits) - 1)
        return max((1 << self.low_bits) - 1, largest >> self.low_bits) if self.low_bits else largest

    @property
    def planes(self) -> int:
        """Bytes of indices of a channel."""
        return {1: 1, 2: 2, 3: 4, 4: 4}[self.weight_bits]

    @property
    def unit(self) -> int:  # type: ignore[override]
        """Result vectors of two vectors of indices."""
        return 2 * self.bytes // self.planes // self.lanes

    @property
    def code_offset(self) -> int:  # type: ignore[override]
        """Bipolar weights are 2 u - 1."""
        return 1 if self.weight_bits == 1 else 0

    @property
    def low_bits(self) -> int:
        """See `TableStaging`."""
        return 0 if self.x_bits <= ONE_TABLE_BITS else -(-(self.x_bits + 2) // 2)

    @property
    def tables(self) -> int:
        """Of four codes."""
        return 2 if self.low_bits else 1

    @property
    def additions(self) -> int:
        """Lookups whose sum fits a byte."""
        return 255 // self._largest_entry

    def tap_elements(self, run: int, nv: int) -> int:
        """See `MicroKernel.tap_elements`."""
        return run // GROUP * (nv * self.lanes) * self.planes // 2

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """See `MicroKernel.block_start`."""
        return channel // (self.unit * self.lanes) * (taps * self.tap_elements(run, self.unit))

    def unfolded_bytes(self, run: int, taps: int, nv: int, visits: int) -> int:
        """See `MicroKernel.unfolded_bytes`."""
        return 2 * taps * self.tap_elements(run, nv) if visits >= UNFOLDED_VISITS else 0

    def unfold(self, k: Builder, weights: Buffer, base: Expr, scratch: Buffer, at: int, elements: int) -> None:
        """See `MicroKernel.unfold`."""
        with k.serial(elements // self.bytes) as v:
            for half, indices in enumerate(self._indices(k, weights, base + v * self.bytes)):
                k.store(scratch, at + (2 * v + half) * self.bytes, indices, self.bytes)

    def _indices(self, k: Builder, weights: Buffer, offset: Expr) -> list[Expr]:
        """Two vectors of indices from where they are packed."""
        pair = k.load(weights, offset, self.bytes)
        upper = k.bitcast(
            k.shift_right(k.bitcast(pair, "uint16", self.bytes // 2), k.const(4, "uint16", self.bytes // 2)), "uint8", self.bytes
        )
        return [k.bitwise_and(v, k.const(TABLE - 1, "uint8", self.bytes)) for v in (pair, upper)]

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See the module's docstring."""
        channels, taps, run = weights.shape
        codes = unsigned_codes(weights, self.weight_bits).reshape(channels, taps, run // GROUP, GROUP)
        bits = [
            (plane << np.arange(GROUP, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8) for plane in planes_of(codes, self.planes)
        ]
        indices = np.stack(bits, axis=-1)
        parts = []
        for start, size in blocks:
            block = indices[start : start + size].transpose(1, 2, 0, 3).reshape(taps, run // GROUP, -1, self.bytes)
            block = self.arranged(block)
            parts.append((block[:, :, ::2] | block[:, :, 1::2] << np.uint8(4)).ravel())
        return np.concatenate(parts)

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        _, taps, run = shape
        whole = np.zeros(shape, np.int8)
        position = 0
        for start, size in blocks:
            count = taps * self.tap_elements(run, size // self.lanes)
            pairs = packed[position : position + count].reshape(taps, run // GROUP, -1, 1, self.bytes)
            position += count
            block = np.concatenate([pairs & np.uint8(TABLE - 1), pairs >> np.uint8(4)], axis=3)
            indices = self.restored(block.reshape(taps, run // GROUP, -1, self.bytes)).reshape(
                taps, run // GROUP, size, self.planes
            )
            bits = indices[..., None] >> np.arange(GROUP, dtype=np.uint8) & np.uint8(1)
            codes = (bits << np.arange(self.planes, dtype=np.uint8)[:, None]).sum(axis=3, dtype=np.uint8)
            codes = codes.transpose(2, 0, 1, 3).reshape(size, taps, run) & np.uint8((1 << self.weight_bits) - 1)
            whole[start : start + size] = signed_codes(codes, self.weight_bits)
        return whole

    @abc.abstractmethod
    def arranged(self, indices: Array) -> Array:
        """Bytes of vectors [..., bytes], with the planes of each channel one after the other, in the order of `join_planes`."""

    @abc.abstractmethod
    def restored(self, indices: Array) -> Array:
        """The inverse of `arranged`."""

    @abc.abstractmethod
    def join_planes(self, k: Builder, acc: Buffer, slot: Expr, parts: Sequence[Expr]) -> None:
        """Add the sums in bytes of a vector of indices, of each table, to those of its channels, which begin at `slot`.

        Where sums stay apart, those of the first table for all these channels lie before those of the second.
        """

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Joined sums start at zero; `result` adds the bias."""
        store_zeros(k, tile.acc, self.acc_dtype, tile.slots * self.slot, 2 * self.lanes)

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`."""
        width, tables = self.bytes, self.tables
        vectors = tile.nv * self.lanes * self.planes // width
        # Unfolded indices are in scratch, as the tables are.
        unfolded = tile.weights is tile.x
        step_elements = vectors * width if unfolded else vectors * width // 2
        tap_elements = taps.run // GROUP * step_elements
        sums = k.alloc(tile.mr * vectors * tables * width, "uint8")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = tile.base + (row * taps.columns + column) * tap_elements + index * step_elements
            if unfolded:
                indices = [k.load(tile.weights, at + v * width, width) for v in range(vectors)]
            else:
                indices = [vector for v in range(vectors // 2) for vector in self._indices(k, tile.weights, at + v * width)]
            place = tile.origin + row * taps.row_pitch + column * taps.column_pitch + index * (TABLE * tables)
            for i, offset in enumerate(tile.offsets):
                for t in range(tables):
                    entries = k.load(tile.x, place + offset + t * TABLE, TABLE)
                    table = k.shuffle([entries] * (width // TABLE), list(range(TABLE)) * (width // TABLE))
                    for v in range(vectors):
                        slot = ((i * vectors + v) * tables + t) * width
                        found = k.call(f"uint8x{width}", self.lookup, table, indices[v])
                        k.store(sums, slot, found if first else k.load(sums, slot, width) + found, width)

        def widen(zero: Expr | None) -> None:
            for i in range(tile.mr):
                for v in range(vectors):
                    at = (i * vectors + v) * tables
                    parts = [k.load(sums, (at + t) * width, width) for t in range(tables)]
                    slot = i * tile.nv * self.slot + v * (width // self.planes * self.slot // self.lanes)
                    self.join_planes(k, tile.acc, slot + (k.i32(0) if zero is None else zero), parts)

        sum_narrow(k, taps, taps.run // GROUP, self.additions, tile.unroll, step, widen)

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """Joined sums plus the bias, which wraps: it absorbs the zero point."""
        if self.apart:
            vector, within = divmod(j * self.lanes, self.bytes)
            at = i * nv * self.slot + vector * self.bytes * self.tables + within
            sums = [k.cast(k.load(acc, at + t * self.bytes, self.lanes), "int32", self.lanes) for t in range(self.tables)]
            value = sums[0] + k.shift_left(sums[1], k.const(self.low_bits, "int32", self.lanes))
        else:
            value = k.load(acc, (i * nv + j) * self.lanes, self.lanes)
            value = value if self.wide else k.cast(value, "int32", self.lanes)
        if self.weight_bits == 1:
            value = k.shift_left(value, k.const(1, "int32", self.lanes))
        first = k.bitcast(k.load(bias, HEADER + channel, self.lanes), "uint32", self.lanes)
        return k.bitcast(k.wrapping_add(first, k.bitcast(value, "uint32", self.lanes), self.lanes), "int32", self.lanes)


@dataclass(eq=False)
class TableConv(RivalConv):
    """Convolutions of weights of few bits.

    Attributes:
        pixels: of tiles that never spill, with one table for four codes.
    """

    pixels: tuple[int, ...] = ()

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits of the problem."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, TableKernel)
        return replace(self.micro, weight_bits=problem.weight_bits, x_bits=problem.x_bits, reductions=reductions(problem))

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: weights of few bits, one group of channels, whole tables of a pixel."""
        reason = super().legal(problem, target)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.weight_bits > MOST_BITS:
            return f"weights of at most {MOST_BITS} bits, these have {problem.weight_bits}"
        if problem.groups > 1 or problem.c % GROUP:
            return f"one group of a multiple of {GROUP} channels, the problem has {problem.groups} of {problem.c}"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Two vectors of indices by as many pixels as have registers, or fewer."""
        kernel = self._table_kernel(problem)
        return self._ranked(problem, target, [(mr // kernel.tables, kernel.unit) for mr in self.pixels])

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        kernel = self._table_kernel(problem)
        # A lookup and an addition for a vector of indices, which is more or less than one of results.
        share = kernel.planes * kernel.tables * (1 + JOINING / kernel.additions)
        assert isinstance(problem, ConvProblem)
        g = Geometry(problem, kernel, tile["mr"], tile["nv"])
        made = g.shape.batch * g.staging.input_rows(g.shape.oh) * g.staging.row_elements
        return super().cycles(problem, target, tile) * share + made / 32 * MAKING

    def _table_kernel(self, problem: Problem) -> TableKernel:
        kernel = self.kernel(problem)
        assert isinstance(kernel, TableKernel)
        return kernel
