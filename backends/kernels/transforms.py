"""The one-dimensional transforms of Winograd convolutions with three taps: F(2, 3) and F(4, 3).

In: expressions of vectors, one for each element of a segment. Out: expressions of the transformed elements, in factored form.
With d a segment of m + 2 inputs and g three weights, the m results of the correlation are A^T [(G g) * (B^T d)], where * is
elementwise (Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, 2016). Points of interpolation are 0, 1, -1 and
infinity, and for F(4, 3) also 2 and -2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bevel.backends.tvm import Buffer, Builder, Expr

TAPS = 3
# Index of the point 1 in a transformed segment: it enters every result with the factor 1.
ONE = 1
# G of every segment length m.
WEIGHTS: dict[int, npt.NDArray[np.float64]] = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}
# Vector operations of the factored forms below.
INPUT_OPERATIONS = {2: 4, 4: 12}
OUTPUT_OPERATIONS = {2: 4, 4: 10}


def points(m: int) -> int:
    """Elements of a transformed segment with m results."""
    return m + TAPS - 1


@dataclass
class Arithmetic:
    """Vector arithmetic where None is zero, so that what lies outside the image costs nothing.

    Attributes:
        k: the kernel being written.
        lanes: of each vector.
    """

    k: Builder
    lanes: int
    _kept: list[Buffer] = field(default_factory=list)

    def keep(self, value: Expr | None) -> Expr | None:
        """`value` computed here once: expressions that are used twice would be written twice."""
        if value is None:
            return None
        place = self.k.alloc(self.lanes, "float32")
        self.k.store(place, self.k.i32(0), value, self.lanes)
        return self.k.load(place, self.k.i32(0), self.lanes)

    def add(self, a: Expr | None, b: Expr | None, factor: float = 1) -> Expr | None:
        """A + factor * b."""
        if b is None:
            return a
        if a is None:
            return b if factor == 1 else b * self.k.const(factor, "float32", self.lanes)
        if factor == 1:
            return a + b
        if factor == -1:
            return a - b
        return self.k.fma(b, self.k.const(factor, "float32", self.lanes), a, self.lanes)

    def input(self, m: int, d: Sequence[Expr | None]) -> list[Expr | None]:
        """B^T d of m + 2 elements."""
        add, keep = self.add, self.keep
        if m == 2:
            return [add(d[0], d[2], -1), add(d[1], d[2]), add(d[2], d[1], -1), add(d[1], d[3], -1)]
        even, odd = keep(add(d[4], d[2], -4)), keep(add(d[3], d[1], -4))
        far_even, far_odd = keep(add(d[4], d[2], -1)), keep(add(d[3], d[1], -1))
        return [
            add(add(d[4], d[2], -5), d[0], 4),
            add(even, odd),
            add(even, odd, -1),
            add(far_even, far_odd, 2),
            add(far_even, far_odd, -2),
            add(add(d[5], d[3], -5), d[1], 4),
        ]

    def output(self, m: int, products: Sequence[Expr]) -> list[Expr]:
        """A^T of m + 2 products: m results."""
        add, keep = self.add, self.keep
        if m == 2:
            zero, one, minus, infinite = products
            return [add(add(zero, one), minus), add(add(one, minus, -1), infinite, -1)]
        zero, one, minus, two, minus_two, infinite = products
        even, odd = keep(add(one, minus)), keep(add(one, minus, -1))
        far_even, far_odd = keep(add(two, minus_two)), keep(add(two, minus_two, -1))
        return [
            add(add(zero, even), far_even),
            add(odd, far_odd, 2),
            add(even, far_even, 4),
            add(add(odd, infinite), far_odd, 8),
        ]
