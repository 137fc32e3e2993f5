"""Pooling: MaxPool (with and without positions), AveragePool, IntAveragePool over any layout of [N, C, H, W].

Loop nest: output rows of all images (the parallel axis), pixels, blocks of channels held in registers, the taps of the window
that lie inside the image. Channels are vectors where they are contiguous on both sides.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.elementwise import finish
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, code_bias, cut
from bevel.backends.generic.regions import axis_extent
from bevel.backends.kernel import Extent, NodeProblem
from bevel.backends.tvm import Builder, Expr


def valid_taps(k: Builder, first: Expr, taps: int, dilation: int, extent: int, *, inside: bool) -> tuple[Expr, Expr]:
    """The taps [from, to) of a window whose tap 0 is at coordinate `first` that lie in [0, extent).

    Args:
        k: kernel.
        first: coordinate of tap 0.
        taps: number of taps.
        dilation: distance between taps.
        extent: of the image along this axis.
        inside: the window never leaves the image.
    """
    if inside:
        return 0, taps
    skipped = k.floordiv(dilation - 1 - first, k.i32(dilation))
    reach = k.floordiv(extent - first + (dilation - 1), k.i32(dilation))
    return k.max(skipped, k.i32(0)), k.min(reach, k.i32(taps))


def _images_only(problem: NodeProblem) -> bool:
    """Whether no axis but that of the images has a run-time extent."""
    return all(buf.dim(axis) is None for buf in (*problem.inputs, *problem.outputs) for axis in range(1, len(buf.shape)))


class _Pool(Definition):
    """A reduction over windows.

    Attributes:
        width: vectors of channels taken at once: enough independent additions to hide their latency.
    """

    width = 4

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether channels are contiguous on both sides."""
        x, y = problem.inputs[0], problem.outputs[0]
        return x.strides()[1] == y.strides()[1] == 1 and x.shape[1] >= SHORTEST_VECTOR

    def takes_dims(self, problem: NodeProblem) -> bool:
        """The number of images may be a run-time extent."""
        return _images_only(problem)

    def extent(self, problem: NodeProblem) -> int | Extent:
        """Output rows of all images."""
        y = problem.outputs[0]
        return axis_extent(y.shape[0] * y.shape[2], y.dim(0))

    @abc.abstractmethod
    def accumulator(self, problem: NodeProblem) -> tuple[str, float]:
        """Type and initial value of an accumulator."""

    @abc.abstractmethod
    def combine(self, v: Lanes, problem: NodeProblem, acc: Expr, x: Expr) -> Expr:
        """The accumulator after stored element `x`."""

    @abc.abstractmethod
    def result(self, v: Lanes, problem: NodeProblem, acc: Expr, taps: Expr) -> Expr:
        """The stored result of a window with `taps` (int32 scalar, or an int if constant) elements inside the image."""

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """See the module's docstring."""
        k, x, y, at = frame.k, problem.inputs[0], problem.outputs[0], problem.attrs
        (xn, _, xh, xw), (yn, _, yh, yw) = x.strides(), y.strides()
        height, width = y.shape[2:]
        inside = [_fits(at, axis, x.shape[2 + axis], y.shape[2 + axis]) for axis in (0, 1)]
        with k.serial(frame.lo, frame.hi) as row, k.serial(width) as ox:
            image, oy = (0, row) if y.shape[0] == 1 else (k.floordiv(row, k.i32(height)), k.floormod(row, k.i32(height)))
            top, left = oy * at.strides[0] - at.pads[0], ox * at.strides[1] - at.pads[1]
            rows = valid_taps(k, top, at.kernel[0], at.dilations[0], x.shape[2], inside=inside[0])
            columns = valid_taps(k, left, at.kernel[1], at.dilations[1], x.shape[3], inside=inside[1])
            taps = k.max(rows[1] - rows[0], k.i32(0)) * k.max(columns[1] - columns[0], k.i32(0))
            if all(inside):
                taps = at.kernel[0] * at.kernel[1]

            def offset(ky: Expr, kx: Expr) -> Expr:
                return image * xn + (top + ky * at.dilations[0]) * xh + (left + kx * at.dilations[1]) * xw

            target = image * yn + oy * yh + ox * yw
            vector = self.vectorised(problem)
            for block in cut(x.shape[1], self.width * frame.lanes if vector else 1):
                with k.serial(block.loops) as i:
                    channel = i * block.lanes + block.first
                    self._block(frame, problem, Lanes(k, block.lanes), channel, rows, columns, offset, target, taps)

    def _block(
        self,
        frame: Frame,
        problem: NodeProblem,
        v: Lanes,
        channel: Expr,
        rows: tuple[Expr, Expr],
        columns: tuple[Expr, Expr],
        offset: Callable[[Expr, Expr], Expr],
        target: Expr,
        taps: Expr,
    ) -> None:
        """`v.n` channels of one window."""
        k = frame.k
        x_stride, y_stride = problem.inputs[0].strides()[1], problem.outputs[0].strides()[1]
        dtype, initial = self.accumulator(problem)
        acc = k.alloc(v.n, dtype)
        v.store(acc, 0, v.const(initial, dtype))
        with k.serial(*rows) as ky, k.serial(*columns) as kx:
            element = v.load(frame.inputs[0], offset(ky, kx) + channel * x_stride)
            v.store(acc, 0, self.combine(v, problem, v.load(acc, 0), element))
        v.put(frame.output, target + channel * y_stride, self.result(v, problem, v.load(acc, 0), taps), frame.dtype)


def _fits(at: Any, axis: int, extent: int, out: int) -> bool:
    """Whether no window reaches beyond the image along `axis`."""
    last = (out - 1) * at.strides[axis] - at.pads[axis] + (at.kernel[axis] - 1) * at.dilations[axis]
    return bool(at.pads[axis] == 0 and last < extent)


class _MaxPool(_Pool):
    """The border never wins: it holds the lowest element of the storage type."""

    def refuse(self, problem: NodeProblem) -> str | None:
        x, y = problem.inputs[0], problem.outputs[0]
        known = ("float32", "int8", "uint8", "int32")
        return None if x.dtype == y.dtype and x.dtype in known else f"MaxPool from {x.dtype} to {y.dtype}"

    def accumulator(self, problem: NodeProblem) -> tuple[str, float]:
        dtype = problem.outputs[0].dtype
        return dtype, -np.inf if dtype == "float32" else int(np.iinfo(dtype).min)

    def combine(self, v: Lanes, problem: NodeProblem, acc: Expr, x: Expr) -> Expr:
        return v.max(acc, x)

    def result(self, v: Lanes, problem: NodeProblem, acc: Expr, taps: Expr) -> Expr:
        return finish(v, problem, acc)


class _AveragePool(_Pool):
    def refuse(self, problem: NodeProblem) -> str | None:
        x, y = problem.inputs[0], problem.outputs[0]
        return None if x.dtype == y.dtype == "float32" else f"AveragePool from {x.dtype} to {y.dtype}: expected float32"

    def accumulator(self, problem: NodeProblem) -> tuple[str, float]:
        return "float32", 0

    def combine(self, v: Lanes, problem: NodeProblem, acc: Expr, x: Expr) -> Expr:
        return acc + x

    def result(self, v: Lanes, problem: NodeProblem, acc: Expr, taps: Expr) -> Expr:
        at = problem.attrs
        count = at.kernel[0] * at.kernel[1] if at.count_include_pad else taps
        if isinstance(count, int):
            return finish(v, problem, acc / v.f32(count))
        return finish(v, problem, acc / v.k.splat(v.k.cast(count, "float32"), v.n))


class _IntAveragePool(_Pool):
    # A vector of codes is several of accumulators, and requantization is long.
    width = 1

    def refuse(self, problem: NodeProblem) -> str | None:
        found = {buf.dtype for buf in (*problem.inputs, *problem.outputs)} - {"int8", "uint8"}
        return f"IntAveragePool over {', '.join(sorted(found))}: expected codes" if found else None

    def accumulator(self, problem: NodeProblem) -> tuple[str, float]:
        return "int32", 0

    def combine(self, v: Lanes, problem: NodeProblem, acc: Expr, x: Expr) -> Expr:
        return acc + v.cast(x, "int32")

    def result(self, v: Lanes, problem: NodeProblem, acc: Expr, taps: Expr) -> Expr:
        k, x, y, at = v.k, problem.inputs[0], problem.outputs[0], problem.attrs
        bias = code_bias(y, signed=at.out.storage.signed)
        m, n = (_by_count(v, at.counts, values, taps) for values in (at.m, at.n))
        zero = k.splat(taps * x.zero_point, v.n) if not isinstance(taps, int) else v.i32(taps * x.zero_point)
        lo, hi = v.i64(at.lo + bias), v.i64(at.hi + bias)
        # Ties are frequent in means, so they go to even: add 2^(n-1) - 1, and 1 more where the floor is odd.
        product, one = v.cast(acc - zero, "int64") * m, v.i64(1)
        floor = k.shift_right(product, n)
        odd = floor - k.shift_left(k.shift_right(floor, one), one)
        code = k.shift_right(product + k.shift_left(one, n - one) - one + odd, n) + v.i64(y.zero_point)
        return v.cast(v.min(v.max(code, lo), hi), y.dtype)


def _by_count(v: Lanes, counts: Sequence[int], values: Sequence[int], taps: Expr) -> Expr:
    """int64: the entry for a window of `taps` elements; the only entry where there is one."""
    if len(values) == 1:
        return v.i64(values[0])
    if isinstance(taps, int):
        return v.i64(values[counts.index(taps)])
    chosen = v.k.const(values[0], "int64")
    for count, value in zip(counts[1:], values[1:], strict=True):
        chosen = v.k.select(taps >= v.k.i32(count), v.k.const(value, "int64"), chosen)
    return v.k.splat(chosen, v.n)


class _MaxPoolIndices(Definition):
    """Maxima with their positions, one window at a time: the comparison must keep the first of equals."""

    def vectorised(self, problem: NodeProblem) -> bool:
        """Never."""
        return False

    def takes_dims(self, problem: NodeProblem) -> bool:
        """The number of images may be a run-time extent."""
        return _images_only(problem)

    def extent(self, problem: NodeProblem) -> int | Extent:
        """Output rows of all images."""
        y = problem.outputs[0]
        return axis_extent(y.shape[0] * y.shape[2], y.dim(0))

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Loops over output rows, pixels and channels; a window starts at its first element inside the image."""
        k, x, at = frame.k, problem.inputs[0], problem.attrs
        _, channels, height, width = x.shape
        _, _, oh, ow = problem.outputs[0].shape
        xs, (ys, js) = x.strides(), (out.strides() for out in problem.outputs)
        v = frame.scalar()
        best, place = k.alloc(1, "float32"), k.alloc(1, "int32")
        with k.serial(frame.lo, frame.hi) as row, k.serial(ow) as ox, k.serial(channels) as c:
            image, oy = k.floordiv(row, k.i32(oh)), k.floormod(row, k.i32(oh))
            top, left = oy * at.strides[0] - at.pads[0], ox * at.strides[1] - at.pads[1]
            rows = valid_taps(k, top, at.kernel[0], at.dilations[0], height, inside=False)
            columns = valid_taps(k, left, at.kernel[1], at.dilations[1], width, inside=False)

            def walk(ky: Expr, kx: Expr) -> tuple[Expr, Expr]:
                """The element of a tap and its place in the plane."""
                y, z = top + ky * at.dilations[0], left + kx * at.dilations[1]
                element = v.load(frame.inputs[0], image * xs[0] + c * xs[1] + y * xs[2] + z * xs[3])
                return element, z * height + y if at.column_major else y * width + z

            first = walk(rows[0], columns[0])
            v.store(best, 0, first[0])
            v.store(place, 0, first[1])
            with k.serial(*rows) as ky, k.serial(*columns) as kx:
                element, index = walk(ky, kx)
                with k.when(element > v.load(best, 0)):
                    v.store(best, 0, element)
                    v.store(place, 0, index)
            targets = [image * s[0] + c * s[1] + oy * s[2] + ox * s[3] for s in (ys, js)]
            v.put(frame.outputs[0], targets[0], v.load(best, 0), frame.dtypes[0])
            flat = v.cast(image * channels + c, "int64") * v.i64(height * width) + v.cast(v.load(place, 0), "int64")
            v.put(frame.outputs[1], targets[1], flat, frame.dtypes[1])


define("MaxPool", _MaxPool())
define("MaxPoolIndices", _MaxPoolIndices())
define("AveragePool", _AveragePool())
define("IntAveragePool", _IntAveragePool())
