"""Vectors that a kernel keeps in its scratch, which holds elements of another type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevel.backends.tvm import Buffer, Builder, Expr


@dataclass(frozen=True)
class Vectors:
    """Int32 vectors one after the other in scratch.

    Attributes:
        k: the kernel being written.
        scratch: its scratch.
        dtype: of `scratch`.
        start: byte of the first vector, a multiple of 64.
        lanes: of each vector.
    """

    k: Builder
    scratch: Buffer
    dtype: str
    start: int
    lanes: int

    @property
    def _step(self) -> int:
        """Elements of scratch per vector."""
        return self.lanes * 4 // np.dtype(self.dtype).itemsize

    def _at(self, index: Expr) -> Expr:
        return index * self._step + self.start // np.dtype(self.dtype).itemsize

    def put(self, index: Expr, value: Expr) -> None:
        """Write vector `index`."""
        self.k.store(self.scratch, self._at(index), self.k.bitcast(value, self.dtype, self._step), self._step)

    def get(self, index: Expr) -> Expr:
        """Read vector `index`."""
        return self.k.bitcast(self.k.load(self.scratch, self._at(index), self._step), "int32", self.lanes)


def vector_bytes(count: int, lanes: int) -> int:
    """Scratch for `count` int32 vectors."""
    return count * lanes * 4
