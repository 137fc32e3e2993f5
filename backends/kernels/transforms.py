"""The one-dimensional transforms of Winograd convolutions with three taps: F(2, 3) and F(4, 3).

In: expressions of vectors, one for each element of a segment. Out: expressions of the transformed elements, in factored form.
With d a segment of m + 2 inputs and g three weights, the m results of the correlation are A^T [(G g) * (B^T d)], where * is
elementwise (Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, 2016). It is polynomial interpolation (Toom-Cook):
for a point p among others q, the row of G is (1, p, p^2) / prod(p - q), that of B^T the coefficients of prod(x - q), and the
column of A^T (1, p, ..., p^(m - 1)); infinity comes last.

F(4, 3) interpolates at 0, 1, -1, 1/2 and -2 (Barabasz, Anderson, Soodhalter & Gregg, Error Analysis and Improving the Accuracy of
Winograd Convolution for Deep Neural Networks, 2020): the largest error is a third of that with the usual 2 and -2, for four
operations more in the 22 of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bevel.backends.tvm import Builder, Expr

TAPS = 3
# Points of every segment length m, besides infinity.
POINTS: dict[int, tuple[float, ...]] = {2: (0, 1, -1), 4: (0, 1, -1, 0.5, -2)}
# Index of the point 1 in a transformed segment: it enters every result with the factor 1.
ONE = 1
# Vector operations of the factored forms below.
INPUT_OPERATIONS = {2: 4, 4: 14}
OUTPUT_OPERATIONS = {2: 4, 4: 12}


def points(m: int) -> int:
    """Elements of a transformed segment with m results."""
    return m + TAPS - 1


def weight_matrix(m: int) -> npt.NDArray[np.float64]:
    """G, [m + 2, 3]."""
    rows = [[p**k / math.prod(p - q for q in POINTS[m] if q != p) for k in range(TAPS)] for p in POINTS[m]]
    return np.array([*rows, [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Arithmetic:
    """Vector arithmetic where None is zero, so that what lies outside the image costs nothing.

    Attributes:
        k: the kernel being written.
        lanes: of each vector.
    """

    k: Builder
    lanes: int

    def keep(self, value: Expr | None) -> Expr | None:
        """`value` computed here once: expressions that are used twice would be written twice."""
        if value is None:
            return None
        place = self.k.alloc(self.lanes, "float32")
        self.k.store(place, self.k.i32(0), value, self.lanes)
        return self.k.load(place, self.k.i32(0), self.lanes)

    def add(self, a: Expr | None, b: Expr | None, factor: float = 1) -> Expr | None:
        """Sum of `a` and `factor` times `b`."""
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
        # Coefficients of x^2 - 1 at every shift.
        square = [keep(add(d[i + 2], d[i], -1)) for i in range(m)]
        if m == 2:
            return [square[0], add(d[2], d[1]), add(d[2], d[1], -1), square[1]]
        # And of (x - 1/2) (x + 2).
        other = [keep(add(square[i], d[i + 1], 1.5)) for i in range(m)]
        return [
            add(other[2], other[0], -1),
            add(other[2], other[1]),
            add(other[2], other[1], -1),
            add(square[2], square[1], 2),
            add(square[2], square[1], -0.5),
            add(other[3], other[1], -1),
        ]

    def output(self, m: int, products: Sequence[Expr]) -> list[Expr]:
        """A^T of m + 2 products: m results."""
        add, keep = self.add, self.keep
        if m == 2:
            zero, one, minus, infinite = products
            return [add(add(zero, one), minus), add(add(one, minus, -1), infinite)]
        zero, one, minus, half, minus_two, infinite = products
        even, odd = keep(add(one, minus)), keep(add(one, minus, -1))
        return [
            add(add(zero, even), add(half, minus_two)),
            add(add(odd, half, 0.5), minus_two, -2),
            add(add(even, half, 0.25), minus_two, 4),
            add(add(add(odd, infinite), half, 0.125), minus_two, -8),
        ]
