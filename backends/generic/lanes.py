"""Arithmetic on a fixed number of lanes.

`Lanes` is what scalar definitions are written against: the same expression builder yields a scalar (one lane) or a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Buf
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

# Shorter inner loops are not worth a vector.
SHORTEST_VECTOR = 4


@dataclass(frozen=True)
class Lanes:
    """A `Builder` and a lane count; every method returns an expression of `n` lanes."""

    k: Builder
    n: int

    def const(self, value: float, dtype: str) -> Expr:
        """`value` in every lane."""
        return self.k.const(value, dtype, self.n)

    def f32(self, value: float) -> Expr:
        """A float32 constant."""
        return self.const(value, "float32")

    def i32(self, value: int) -> Expr:
        """An int32 constant."""
        return self.const(value, "int32")

    def i64(self, value: int) -> Expr:
        """An int64 constant."""
        return self.const(value, "int64")

    def cast(self, value: Expr, dtype: str) -> Expr:
        """Numeric conversion."""
        return self.k.cast(value, dtype, self.n)

    def bitcast(self, value: Expr, dtype: str) -> Expr:
        """The same bits as another type."""
        return self.k.bitcast(value, dtype, self.n)

    def min(self, a: Expr, b: Expr) -> Expr:
        """Lanewise minimum."""
        return self.k.min(a, b)

    def max(self, a: Expr, b: Expr) -> Expr:
        """Lanewise maximum."""
        return self.k.max(a, b)

    def clamp(self, value: Expr, lo: float, hi: float, dtype: str) -> Expr:
        """`value` limited to constants [lo, hi]."""
        return self.min(self.max(value, self.const(lo, dtype)), self.const(hi, dtype))

    def select(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        """Lanewise choice."""
        return self.k.select(condition, then, otherwise)

    def load(self, buffer: Buffer, offset: Expr, stride: int = 1) -> Expr:
        """Elements from `offset` on; a stride of 0 reads one element into every lane."""
        if stride == 0:
            return self.k.splat(self.k.load(buffer, offset), self.n)
        return self.k.load(buffer, offset, self.n, stride)

    def gather(self, buffer: Buffer, index: Expr) -> Expr:
        """The elements at int32 `index`, one for each lane."""
        return self.k.load(buffer, index)

    def store(self, buffer: Buffer, offset: Expr, value: Expr) -> None:
        """Write the lanes to consecutive elements."""
        self.k.store(buffer, offset, value, self.n)

    def put(self, buffer: Buffer, offset: Expr, value: Expr, dtype: str, *, fenced: bool = True) -> None:
        """Write lanes of a result, in a form that LLVM does not turn into a call of memcpy or memset.

        It would where it can prove the result a copy or a constant; callers who know that it cannot pass `fenced=False`. The
        fence costs no instruction in vectors and a few for single bytes.
        """
        if not fenced:
            self.store(buffer, offset, value)
            return
        # TVM cannot reinterpret a literal zero; one in memory (a register, after LLVM) it can.
        held = self.k.alloc(self.n, dtype)
        self.store(held, 0, value)
        value = self.load(held, 0)
        if self.n * np.dtype(dtype).itemsize % 4 == 0:
            value = self.k.opaque(value, dtype, self.n)
        else:
            # Any byte that does not change in a loop makes a memset: with the offset above it, it changes.
            bits = 8 * np.dtype(dtype).itemsize
            place = self.k.shift_left(self.cast(offset, "uint32"), self.const(bits, "uint32"))
            value = self.cast(self.k.opaque(self.cast(self.bitcast(value, f"uint{bits}"), "uint32") | place, "uint32"), dtype)
        self.store(buffer, offset, value)


@dataclass(frozen=True)
class Blocks:
    """A run of equally wide blocks of an axis: `loops` blocks of `lanes` elements from `first` on."""

    first: int
    loops: int
    lanes: int


def cut(extent: int, widest: int) -> tuple[Blocks, ...]:
    """Cut [0, extent) into blocks of `widest` lanes, then of ever fewer, with single elements below four."""
    blocks, first, lanes = [], 0, widest
    while first < extent:
        if loops := (extent - first) // lanes:
            blocks.append(Blocks(first, loops, lanes))
            first += loops * lanes
        lanes = lanes // 2 if lanes > SHORTEST_VECTOR else 1
    return tuple(blocks)


def steps(k: Builder, count: Expr, widths: Sequence[int]) -> list[tuple[int, Expr, Expr]]:
    """Cut [0, count), whose length is known at run time, into runs of ever narrower steps.

    Args:
        k: builder.
        count: int32, not negative.
        widths: powers of two; equal neighbours count once, the last is 1.

    Returns:
        (lanes, first element, number of steps) of each run.
    """
    runs: list[tuple[int, Expr, Expr]] = []
    done: Expr = 0
    for lanes in dict.fromkeys(widths):
        loops = count - done if lanes == 1 else k.shift_right(count - done, k.i32(lanes.bit_length() - 1))
        runs.append((lanes, done, loops))
        done = done + loops * lanes
    return runs


def vector_lanes(target: Target, bufs: Sequence[Buf]) -> int:
    """Lanes of the vector loops of a kernel over `bufs`: a power of two.

    Codes are widened to int32 and narrowed again, which packs best from several registers, so kernels that touch bytes take
    twice the lanes of a 32-bit register.
    """
    lanes = 16 if target.has("avx512") else 8 if target.has("avx2") else 4
    return 2 * lanes if any(buf.dtype in ("int8", "uint8") for buf in bufs) else lanes


def store_dtype(dtype: str) -> str:
    """The type kernels read and write `dtype` as: truth values are bytes."""
    return "uint8" if dtype == "bool" else dtype


def code_bias(buf: Buf, *, signed: bool = True) -> int:
    """What storage adds to an 8-bit code: 128 where signed codes are stored as uint8, else 0."""
    return 128 if signed and buf.dtype == "uint8" else 0


def lowest_code(buf: Buf, codes: int) -> int:
    """The stored code that has entry 0 of a table of `codes` entries: bytes are stored from 0, signed codes from half of them."""
    return 0 if buf.dtype == "uint8" else -(codes // 2)
