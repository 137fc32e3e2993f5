"""Weights in groups of inputs as kernels store them: codes of few bits in fields of bytes, and the 4-bit factors of their groups.

In: int8 products, as the graph has them (`bevel.ir.groups`). Out: bytes, 4 / group bits more for a weight than its code has; in a
kernel, factors as vectors. A *unit* is as many vectors of channels as codes fit a byte; each of them has a field of it.

Layout: `[block][tap][group]`, and of each group first its factors, `[unit][channel in vector]`, a record of 4 bits for every
field, then its codes, `[group of 4][unit][channel in vector][4]`. Fields hold codes plus half their range, so that all are
unsigned, but for the uppermost one where a kernel wants that signed, as the byte is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Array
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.groups import by_group, factored_rows
from bevel.ir.types import Groups, Int

FACTOR_BITS = 4
WIDTH = 4


@dataclass(frozen=True)
class GroupLayout:
    """Where codes and factors lie.

    Attributes:
        groups: of the weights.
        lanes: channels in a vector.
        top_is_signed: whether the uppermost field is.
    """

    groups: Groups
    lanes: int
    top_is_signed: bool = False

    @property
    def field_bits(self) -> int:
        """Of a code in the packed bytes; three bits take the room of four."""
        return 4 if self.groups.codes.bits == 3 else self.groups.codes.bits

    @property
    def unit(self) -> int:
        """Vectors that share bytes."""
        return 8 // self.field_bits

    @property
    def offset(self) -> int:
        """What unsigned fields exceed codes by."""
        return 1 << (self.field_bits - 1)

    def factor_bytes(self, nv: int) -> int:
        """Bytes of a group's factors."""
        return nv * self.lanes * FACTOR_BITS // 8

    def group_bytes(self, nv: int, elements: int) -> int:
        """Bytes of a group of `elements` weights of each channel."""
        return self.factor_bytes(nv) + -(-elements // WIDTH) * WIDTH * nv * self.lanes // self.unit

    def tap_bytes(self, run: int, nv: int) -> int:
        """Bytes of a reduction run."""
        whole, rest = divmod(run, self.groups.size)
        return whole * self.group_bytes(nv, self.groups.size) + (self.group_bytes(nv, rest) if rest else 0)

    def pack(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """uint8 of products [channels, taps, run]; `blocks` as for `MicroKernel.pack_weights`."""
        codes, factors = factored_rows(weights, self.groups)
        cut = by_group((codes.astype(np.int16) + self.offset).astype(np.uint8), self.groups.size)
        whole = by_group(np.ones(weights.shape[2], bool), self.groups.size).sum(axis=1)
        # Padding to whole groups of 4 is code 0, too.
        cut[..., -1, whole[-1] :] = self.offset
        parts = []
        for start, size in blocks:
            stored = cut[start : start + size].reshape(-1, self.unit, self.lanes, *cut.shape[1:])
            records = factors[start : start + size].reshape(-1, self.unit, self.lanes, *factors.shape[1:])
            for tap in range(weights.shape[1]):
                for group, elements in enumerate(whole):
                    parts.append(self._records(records[:, :, :, tap, group]))
                    parts.append(self._fields(stored[:, :, :, tap, group, : -(-elements // WIDTH) * WIDTH]))
        return np.concatenate(parts)

    def _records(self, factors: Array) -> Array:
        """Bytes of the factors [units, fields, lanes] of a group."""
        wide = factors.astype(np.uint32) << (FACTOR_BITS * np.arange(self.unit, dtype=np.uint32))[:, None]
        return np.asarray(np.bitwise_or.reduce(wide, axis=1).astype(self._record_type).view(np.uint8).ravel())

    def _fields(self, codes: Array) -> Array:
        """Bytes of the stored codes [units, fields, lanes, elements] of a group."""
        if self.top_is_signed:
            codes = codes.copy()
            codes[:, -1] ^= np.uint8(self.offset)
        shifts = self.field_bits * np.arange(self.unit, dtype=np.uint8)
        fields = np.bitwise_or.reduce(codes << shifts[:, None, None], axis=1)
        return np.asarray(fields.reshape(*fields.shape[:2], -1, WIDTH).transpose(2, 0, 1, 3).ravel())

    def unpack(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack`: int8 products of `shape`."""
        products = np.zeros(shape, np.int8)
        position = 0
        shifts = self.field_bits * np.arange(self.unit, dtype=np.uint8)
        for start, size in blocks:
            nv, units = size // self.lanes, size // self.lanes // self.unit
            for tap in range(shape[1]):
                for first in range(0, shape[2], self.groups.size):
                    elements = min(self.groups.size, shape[2] - first)
                    end = position + self.factor_bytes(nv)
                    records = packed[position:end].view(self._record_type).reshape(units, 1, self.lanes)
                    factors = records >> (FACTOR_BITS * np.arange(self.unit, dtype=self._record_type))[:, None] & 15
                    position += self.group_bytes(nv, elements)
                    fields = packed[end:position].reshape(-1, units, self.lanes, WIDTH).transpose(1, 2, 0, 3)
                    codes = fields.reshape(units, 1, self.lanes, -1) >> shifts[:, None, None] & np.uint8(
                        (1 << self.field_bits) - 1
                    )
                    if self.top_is_signed:
                        codes[:, -1] ^= np.uint8(self.offset)
                    found = (codes.astype(np.int16) - self.offset) * factors[..., None].astype(np.int16)
                    products[start : start + size, tap, first : first + elements] = found.reshape(size, -1)[:, :elements]
        return products

    @property
    def _record_type(self) -> str:
        """Of the factors of a channel of every field."""
        return f"uint{FACTOR_BITS * self.unit}"

    def load_factors(self, k: Builder, weights: Buffer, at: Expr) -> list[Expr]:
        """The factors of the unit whose records begin at byte `at`: for each field an int32 vector."""
        nbytes = self.factor_bytes(self.unit)
        records = k.bitcast(k.load(weights, at, nbytes), self._record_type, self.lanes)
        wide = k.cast(k.cast(records, "uint32", self.lanes), "int32", self.lanes)
        mask = k.const((1 << FACTOR_BITS) - 1, "int32", self.lanes)
        shifted = [k.shift_right(wide, k.const(FACTOR_BITS * f, "int32", self.lanes)) if f else wide for f in range(self.unit)]
        return [k.bitwise_and(one, mask) for one in shifted]


def layout_of(group: int, bits: int, lanes: int, *, top_is_signed: bool = False) -> GroupLayout:
    """The layout of groups of `group` weights of `bits` bits."""
    return GroupLayout(Groups(Int(bits), group), lanes, top_is_signed)
