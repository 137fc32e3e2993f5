"""What convolutions of few bits share: inputs in a form of their own in scratch, with their sums, and how weights become planes.

In: rows of codes, one to a byte. Out: in scratch, the same rows in a *form*: what an instruction set makes of every few codes, so
that it is made once and read by all kernel positions and output channels.

Weights of b bits are taken as b planes of bits. Plane p counts 2^p, the last one -2^(b-1), as in two's complement; weights of one
bit are bipolar, 2 u - 1, so that their results need the sum of the inputs under the pixel (`MicroKernel.code_offset`).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Array, ConvProblem
from bevel.backends.kernels.staging import MARGIN, Staging
from bevel.backends.memory import align
from bevel.backends.tvm import Buffer, Builder, Expr

# Rows in their own form that belong together: half of a small second cache.
BLOCK_BYTES = 128 * 1024


def unsigned_codes(weights: Array, bits: int) -> Array:
    """uint8 codes whose bits are the planes of int8 `weights`; of channels that do not exist the codes are 0."""
    return (weights > 0).astype(np.uint8) if bits == 1 else weights.astype(np.uint8) & np.uint8((1 << bits) - 1)


def signed_codes(codes: Array, bits: int) -> Array:
    """The inverse of `unsigned_codes`."""
    if bits == 1:
        return codes.astype(np.int8) * np.int8(2) - np.int8(1)
    sign = np.uint8(1 << (bits - 1))
    return ((codes ^ sign).astype(np.int16) - sign).astype(np.int8)


def plane_factors(bits: int) -> list[int]:
    """What each plane of weights counts; of bipolar ones half."""
    return [1] if bits == 1 else [*(1 << p for p in range(bits - 1)), -(1 << (bits - 1))]


@dataclass(frozen=True)
class FormStaging(Staging, abc.ABC):
    """Rows in a form, of bytes.

    Sums, where they are kept, are int32 in front of the rows, one for each staged pixel: first of its own codes, then, where a
    window begins, of all codes under the window.

    Attributes:
        sums: whether sums are kept.
    """

    sums: bool = False

    @property
    def needed(self) -> bool:
        """Always."""
        return True

    @property
    def block_bytes(self) -> int:
        """More than for codes as they are: every row is worth keeping."""
        return BLOCK_BYTES

    @property
    def first(self) -> int:
        """Element where the rows begin, behind the sums."""
        return self.at + self._sum_bytes

    @property
    def _sum_bytes(self) -> int:
        return align(4 * self.input_rows(self.problem.oh) * self.width) if self.sums else 0

    def nbytes(self, output_rows: int) -> int:
        """Scratch for the sums of all rows and the form of those that `output_rows` read."""
        return self._sum_bytes + self.input_rows(output_rows) * self.row_elements + MARGIN

    @abc.abstractmethod
    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """Write the form of `codes` codes from element `source` of x on (what follows them may be read) to `target`."""

    @abc.abstractmethod
    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """Write the form of `pixels` pixels of code `zero` to `target`."""

    @abc.abstractmethod
    def row_sums(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """The int32 sum of the codes of the pixel at element `offset` of x."""

    def copy(self, k: Builder, x: Buffer, scratch: Buffer, zero: Expr, image: Expr, row: Expr, stop: Expr) -> None:
        """See `Staging.copy`; what is written beyond the end of a part is overwritten by the next one."""
        p = self.problem
        left = min(p.pad_left, self.width)
        middle = max(0, min(p.w, self.width - left))
        right = self.width - left - middle
        border = k.cast(zero, "int32") * p.c

        def sum_border(start: Expr, pixels: int) -> None:
            with k.serial(pixels) as column:
                self._put_sum(k, scratch, start + column, border)

        with k.serial((stop - row - 1) * p.stride_h + self.input_rows(1)) as r:
            source = row * p.stride_h - p.pad_top + r
            start = r * self.row_elements + self.first
            with k.when_else(k.all(source >= 0, source < p.h)) as (inside, outside):
                with inside:
                    codes = (image * p.h + source) * (p.w * p.c)
                    if left:
                        self.form_border(k, scratch, start, zero, left)
                    self.form(k, x, codes, scratch, start + left * self.pixel_elements, middle * p.c)
                    if right:
                        self.form_border(k, scratch, start + (left + middle) * self.pixel_elements, zero, right)
                    if self.sums:
                        with k.serial(middle) as column:
                            total = self.row_sums(k, x, codes + column * p.c)
                            self._put_sum(k, scratch, r * self.width + left + column, total)
                        sum_border(r * self.width, left)
                        sum_border(r * self.width + left + middle, right)
                with outside:
                    self.form_border(k, scratch, start, zero, self.width)
                    if self.sums:
                        sum_border(r * self.width, self.width)
        if self.sums and p.kh * p.kw > 1:
            self._sum_windows(k, scratch, stop - row)

    def _sum_windows(self, k: Builder, scratch: Buffer, rows: Expr) -> None:
        """Replace the sums where windows begin: nobody reads them again, as windows further on begin further on."""
        p = self.problem
        with k.serial(rows) as r, k.serial(p.ow) as column:
            at = r * (p.stride_h * self.width) + column * p.stride_w
            total = k.i32(0)
            for kh in range(p.kh):
                for kw in range(p.kw):
                    total = total + self._sum(k, scratch, at + kh * p.dilation_h * self.width + kw * p.dilation_w)
            self._put_sum(k, scratch, at, total)

    def input_sum(self, k: Builder, source: Buffer, element: Expr) -> Expr:
        """See `Staging.input_sum`."""
        return self._sum(k, source, k.floordiv(element - self.first, k.i32(self.pixel_elements)))

    def _sum(self, k: Builder, scratch: Buffer, index: Expr) -> Expr:
        return k.bitcast(k.load(scratch, self.at + index * 4, 4), "int32")

    def _put_sum(self, k: Builder, scratch: Buffer, index: Expr, value: Expr) -> None:
        k.store(scratch, self.at + index * 4, k.bitcast(value, self.x_dtype, 4), 4)


@dataclass(frozen=True)
class CodeStaging(FormStaging):
    """Rows of codes as they are, for kernels that need their sums."""

    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """See `FormStaging.form`."""
        with k.serial(-(-codes // self.lanes)) as v:
            some = k.load(x, source + v * self.lanes, self.lanes)
            k.store(scratch, target + v * self.lanes, k.opaque(some, self.x_dtype, self.lanes), self.lanes)

    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """See `FormStaging.form_border`."""
        with k.serial(-(-pixels * self.problem.c // self.lanes)) as v:
            some = k.opaque(k.splat(zero, self.lanes), self.x_dtype, self.lanes)
            k.store(scratch, target + v * self.lanes, some, self.lanes)

    def row_sums(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """See `FormStaging.row_sums`."""
        return sum_of_codes(k, x, offset, self.problem.c)


def sum_of_codes(k: Builder, x: Buffer, offset: Expr, count: int, widest: int = 16) -> Expr:
    """The int32 sum of `count` codes from `offset` on, in vectors of at most `widest`."""
    total = k.i32(0)
    done = 0
    while done < count:
        lanes = min(widest, 1 << int(math.log2(count - done)))
        times = (count - done) // lanes
        if lanes == 1:
            total = total + k.cast(k.load(x, offset + done), "int32")
            done += 1
            continue
        sums = k.alloc(lanes, "int32")
        k.store(sums, 0, k.const(0, "int32", lanes), lanes)
        with k.serial(times) as v:
            codes = k.cast(k.load(x, offset + done + v * lanes, lanes), "int32", lanes)
            k.store(sums, 0, k.load(sums, 0, lanes) + codes, lanes)
        total = total + k.call("int32", "llvm.vector.reduce.add", k.load(sums, 0, lanes))
        done += times * lanes
    return total


def heaviest(problem: ConvProblem) -> int:
    """The largest size of a weight of `problem`."""
    return 1 << max(0, problem.weight_bits - 1)


def reductions(problem: ConvProblem) -> int:
    """Products per result."""
    return problem.kh * problem.kw * problem.c // problem.groups


def planes_of(codes: Array, bits: int) -> Sequence[Array]:
    """The bits of `codes`, plane by plane."""
    return [codes >> np.uint8(p) & np.uint8(1) for p in range(bits)]
