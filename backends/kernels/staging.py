"""Copying padded input rows into scratch, so that inner loops address every tap without a test.

In: an NHWC input and a range of output rows. Out: in scratch, the input rows those need, only the columns some output reads, with
borders filled and elements converted where the inner loop wants another type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import ConvProblem
from bevel.backends.tvm import Buffer, Builder, Expr

# Bytes of padded input rows kept in scratch at a time: half of the smallest L1 caches. Depthwise kernels lose a third above it.
BLOCK_BYTES = 16 * 1024
# Vector copies may write this much behind the last row, and integer kernels may read as much.
MARGIN = 128


@dataclass(frozen=True)
class Staging:
    """How the input rows of `problem` lie in scratch.

    Attributes:
        problem: convolution whose input is staged.
        x_dtype: element in scratch.
        lanes: elements per vector of the copy.
        at: byte in scratch where the rows begin, a multiple of 64.
    """

    problem: ConvProblem
    x_dtype: str
    lanes: int
    at: int = 0

    @property
    def needed(self) -> bool:
        """Whether the inner loop cannot read the input where it lies."""
        return self.problem.padded or self.x_dtype != self.problem.dtype

    @property
    def width(self) -> int:
        """Pixels per row: exactly those that some output reads."""
        p = self.problem
        return (p.ow - 1) * p.stride_w + p.dilation_w * (p.kw - 1) + 1

    @property
    def pixel_elements(self) -> int:
        """Elements between pixels, as the inner loop sees them."""
        return self.problem.c

    @property
    def row_elements(self) -> int:
        """Elements between rows, as the inner loop sees them: in scratch if `needed`, else in the input."""
        return (self.width if self.needed else self.problem.w) * self.pixel_elements

    @property
    def first(self) -> int:
        """Element of the inner loop's source where the rows begin."""
        return self.at // np.dtype(self.x_dtype).itemsize if self.needed else 0

    def input_rows(self, output_rows: int) -> int:
        """Input rows that consecutive output rows read."""
        p = self.problem
        return (output_rows - 1) * p.stride_h + p.dilation_h * (p.kh - 1) + 1

    @property
    def block_bytes(self) -> int:
        """Scratch that a block of rows should take."""
        return BLOCK_BYTES

    def nbytes(self, output_rows: int) -> int:
        """Scratch for the input of consecutive output rows."""
        return self.input_rows(output_rows) * self.row_elements * np.dtype(self.x_dtype).itemsize + MARGIN

    def copy(self, k: Builder, x: Buffer, scratch: Buffer, zero: Expr, image: Expr, row: Expr, stop: Expr) -> None:
        """Stage what output rows [row, stop) of one image read; `zero` fills the borders.

        Whole vectors are written: what spills over the end of a part is overwritten by the next part, and MARGIN lies behind the
        last row. So the order left border, pixels, right border, next row matters.
        """
        p, lanes = self.problem, self.lanes
        left = min(p.pad_left, self.width)
        middle = max(0, min(p.w, self.width - left))
        right = self.width - left - middle

        def fill(start: Expr, pixels: int) -> None:
            if pixels:
                with k.serial(math.ceil(pixels * p.c / lanes)) as v:
                    k.store(scratch, start + v * lanes, k.opaque(k.splat(zero, lanes), self.x_dtype, lanes), lanes)

        with k.serial((stop - row - 1) * p.stride_h + self.input_rows(1)) as r:
            source = row * p.stride_h - p.pad_top + r
            start = r * self.row_elements + self.first
            with k.when_else(k.all(source >= 0, source < p.h)) as (inside, outside):
                with inside:
                    fill(start, left)
                    with k.serial(math.ceil(middle * p.c / lanes)) as v:
                        value = k.load(x, (image * p.h + source) * (p.w * p.c) + v * lanes, lanes)
                        if self.x_dtype != p.dtype:
                            value = k.cast(value, self.x_dtype, lanes)
                        else:
                            value = k.opaque(value, self.x_dtype, lanes)
                        k.store(scratch, start + left * p.c + v * lanes, value, lanes)
                    fill(start + (left + middle) * p.c, right)
                with outside:
                    fill(start, self.width)

    def input_sum(self, k: Builder, source: Buffer, element: Expr) -> Expr:
        """The int32 sum of all inputs of the output pixel whose window begins at `element` of `source`, the staged rows."""
        raise NotImplementedError(f"{type(self).__name__} keeps no sums")
