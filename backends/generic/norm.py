"""Normalization: LayerNormalization, RMSNormalization, GroupNormalization, LRN and LogSoftmax.

Statistics take two passes over a row, the mean before the variance, so that nothing cancels; the third writes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from bevel.backends.generic import functions
from bevel.backends.generic.definition import Frame, define
from bevel.backends.generic.fold import precise_sum, row_count
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, cut
from bevel.backends.generic.reduction import WIDTH, Reduction, Row, Split, rows, split
from bevel.backends.generic.regions import axis_extent
from bevel.backends.kernel import Buf, Extent, NodeProblem
from bevel.backends.tvm import Buffer, Expr
from bevel.ir.ops.normalize import lrn_reach

# Channels that share a unit of work: two cache lines of floats.
_BLOCK = 32


def _inverse_root(r: Row, squares: Buffer, epsilon: float) -> Buffer:
    """1 / sqrt(sum of squares / count + epsilon) of a row."""
    v = r.v
    result = v.k.alloc(v.n, "float32")
    v.store(result, 0, v.f32(1) / v.k.math("sqrt", v.load(squares, 0) / row_count(r) + v.f32(epsilon)))
    return result


def _statistics(r: Row, x: Buffer, epsilon: float) -> tuple[Buffer, Buffer]:
    """Mean and 1 / sqrt(variance + epsilon) of a row of `x`."""
    v = r.v
    total = precise_sum(r, lambda u, i, _y: u.load(x, i))
    mean = v.k.alloc(v.n, "float32")
    v.store(mean, 0, v.load(total, 0) / row_count(r))

    def square(u: Lanes, i: Expr, _y: Expr) -> Expr:
        centered = u.load(x, i) - r.spread(u, mean)
        return centered * centered

    return mean, _inverse_root(r, precise_sum(r, square), epsilon)


class _RowNorm(Reduction):
    """Normalization over the last axes of row-major memory, where scale and bias lie along the row."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        axes = range(problem.attrs.axis, len(problem.inputs[0].shape))
        return split(problem, tuple(axes), keepdims=True, elementwise=True)

    def refuse(self, problem: NodeProblem) -> str | None:
        bufs = (*problem.inputs, *problem.outputs)
        if any(buf.dtype != "float32" for buf in bufs):
            return f"{problem.op} over {', '.join(sorted({buf.dtype for buf in bufs}))}: expected float32"
        if any(buf.layout not in (None, tuple(range(len(buf.shape)))) for buf in bufs):
            return f"{problem.op} of permuted memory: expected row-major operands"
        if any(buf.dims and any(buf.dims) for buf in problem.inputs[1:]):
            return f"{problem.op} over a run-time extent with a scale: expected normalized axes of fixed extents"
        return None


def _along(r: Row, u: Lanes, buffer: Buffer, x: Expr) -> Expr:
    """Elements of a scale or bias that belong to the row's elements at input offset `x`."""
    return u.load(buffer, x - r.x) if r.axes.reduced else u.load(buffer, 0, 0)


class _LayerNorm(_RowNorm):
    """(x - mean) * inverse * scale + bias, and mean and inverse where they are asked for."""

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Three passes."""
        x, *affine = frame.inputs
        statistics = frame.outputs[1:]
        count = math.prod(problem.inputs[0].shape[problem.attrs.axis :])

        def row(r: Row) -> None:
            mean, inverse = _statistics(r, x, problem.attrs.epsilon)

            def write(u: Lanes, i: Expr, y: Expr) -> None:
                value = (u.load(x, i) - r.spread(u, mean)) * r.spread(u, inverse)
                if affine:
                    value = value * _along(r, u, affine[0], i)
                if len(affine) == 2:
                    value = value + _along(r, u, affine[1], i)
                u.put(frame.output, y, value, frame.dtype)

            r.each(write)
            for buffer, result in zip(statistics, (mean, inverse), strict=False):
                # Row-major memory: row i of `count` elements starts at i * count.
                r.v.put(buffer, frame.k.floordiv(r.y, frame.k.i32(count)), r.v.load(result, 0), frame.dtype)

        rows(frame, self.split(problem), frame.lanes, row)


class _RmsNorm(_RowNorm):
    """x * inverse * scale."""

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Two passes."""
        x, *scale = frame.inputs

        def row(r: Row) -> None:
            inverse = _inverse_root(r, precise_sum(r, lambda u, i, _y: u.load(x, i) * u.load(x, i)), problem.attrs.epsilon)

            def write(u: Lanes, i: Expr, y: Expr) -> None:
                value = u.load(x, i) * r.spread(u, inverse)
                u.put(frame.output, y, value * _along(r, u, scale[0], i) if scale else value, frame.dtype)

            r.each(write)

        rows(frame, self.split(problem), frame.lanes, row)


def _grouped(buf: Buf, groups: int) -> Buf:
    """[N,C,...] seen as [N, group, channel of the group, ...], in the same memory."""
    n, channels, *spatial = buf.shape
    order = buf.layout or tuple(range(len(buf.shape)))
    layout: list[int] = []
    for axis in order:
        layout += [1, 2] if axis == 1 else [axis + 1 if axis > 1 else axis]
    dims = (*buf.dims[:2], None, *buf.dims[2:]) if buf.dims else ()
    return replace(buf, shape=(n, groups, channels // groups, *spatial), layout=tuple(layout), dims=dims)


class _GroupNorm(Reduction):
    """Per group of channels: (x - mean) * inverse; per channel: * scale + bias.

    Where channels are contiguous, a unit of work is a block of whole groups, and lanes run across its channels; their sums wait
    in scratch to be joined per group. Elsewhere it is a group.
    """

    scratch_dtype = "float32"

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def refuse(self, problem: NodeProblem) -> str | None:
        found = {buf.dtype for buf in (*problem.inputs, *problem.outputs)} - {"float32"}
        return f"GroupNormalization over {', '.join(sorted(found))}: expected float32" if found else None

    def split(self, problem: NodeProblem) -> Split:
        virtual = self._virtual(problem)
        axes = split(virtual, tuple(range(2, len(virtual.inputs[0].shape))), keepdims=True, elementwise=True)
        return replace(axes, across=False)

    def vectorised(self, problem: NodeProblem) -> bool:
        """Along contiguous channels, or along contiguous rows of a channel."""
        return self._block(problem) > 0 or super().vectorised(problem)

    def extent(self, problem: NodeProblem) -> int | Extent:
        """Blocks of channels of every image, or groups."""
        if not (block := self._block(problem)):
            return super().extent(problem)
        images, channels = problem.inputs[0].shape[:2]
        return axis_extent(images * (channels // block), problem.inputs[0].dim(0))

    def scratch_bytes(self, problem: NodeProblem) -> int:
        """Mean and gain of the channels of a block."""
        return 8 * self._block(problem)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Three passes."""
        if self._block(problem):
            self._emit_blocks(frame, problem)
        else:
            self._emit_groups(frame, problem)

    def _virtual(self, problem: NodeProblem) -> NodeProblem:
        groups = problem.attrs.groups
        x, y = _grouped(problem.inputs[0], groups), _grouped(problem.outputs[0], groups)
        return replace(problem, inputs=(x, *problem.inputs[1:]), outputs=(y,))

    def _spatial(self, problem: NodeProblem) -> Split:
        virtual = self._virtual(problem)
        return split(virtual, tuple(range(3, len(virtual.inputs[0].shape))), keepdims=True, elementwise=True)

    def _block(self, problem: NodeProblem) -> int:
        """Channels of a unit of work where they are contiguous, else 0."""
        x, y = problem.inputs[0], problem.outputs[0]
        channels, groups = x.shape[1], problem.attrs.groups
        if channels < SHORTEST_VECTOR or not x.strides()[1] == y.strides()[1] == 1:
            return 0
        sizes = [channels // groups * n for n in range(1, groups + 1) if groups % n == 0]
        return next((size for size in sizes if size >= _BLOCK), channels)

    def _emit_blocks(self, frame: Frame, problem: NodeProblem) -> None:
        k, (x, scale, bias), v = frame.k, frame.inputs, frame.scalar()
        block, scratch = self._block(problem), frame.scratch
        channels, per_group = problem.inputs[0].shape[1], problem.inputs[0].shape[1] // problem.attrs.groups
        image_x, image_y = problem.inputs[0].strides()[0], problem.outputs[0].strides()[0]
        axes = replace(self._spatial(problem), across=True, along=False)
        channel_axes = replace(axes, reduced=tuple(replace(axis, y=0) for axis in axes.reduced))
        pixels = math.prod(frame.count(axis.extent, axis.dim) for axis in axes.reduced)
        count = v.f32(pixels * per_group) if isinstance(pixels, int) else v.cast(pixels * per_group, "float32")

        def sums(unit_x: Expr, place: int, term: Callable[[Lanes, Expr, Expr], Expr]) -> None:
            """Sums over the pixels of `term(lanes, input offset, channel of the block)`, into scratch from `place` on."""
            for part in cut(block, WIDTH * frame.lanes):
                with k.serial(part.loops) as i:
                    at = i * part.lanes + part.first
                    # The row's output offset stands for the channel of the block.
                    r = Row(frame, channel_axes, Lanes(k, part.lanes), unit_x + at, at)
                    r.v.store(scratch, at + place, r.v.load(precise_sum(r, term), 0))

        def join(place: int, finish: Callable[[Expr], Expr]) -> None:
            """Replace the sums of a group's channels by what `finish` makes of their mean."""
            with k.serial(block // per_group) as group:
                total, first = k.alloc(1, "float32"), group * per_group + place
                k.store(total, 0, v.f32(0))
                with k.serial(per_group) as c:
                    k.store(total, 0, k.load(total, 0) + k.load(scratch, first + c))
                k.store(total, 0, finish(k.load(total, 0) / count))
                with k.serial(per_group) as c:
                    v.put(scratch, first + c, k.load(total, 0), "float32")

        def square(u: Lanes, offset: Expr, at: Expr) -> Expr:
            centered = u.load(x, offset) - u.load(scratch, at)
            return centered * centered

        with k.serial(frame.lo, frame.hi) as unit:
            image, first = k.floordiv(unit, k.i32(channels // block)), k.floormod(unit, k.i32(channels // block)) * block
            unit_x, unit_y = image * image_x + first, image * image_y + first
            sums(unit_x, 0, lambda u, offset, _at: u.load(x, offset))
            join(0, lambda mean: mean)
            sums(unit_x, block, square)
            join(block, lambda variance: v.f32(1) / k.math("sqrt", variance + v.f32(problem.attrs.epsilon)))

            def pixel(_u: Lanes, source: Expr, target: Expr, first: Expr = first) -> None:
                for part in cut(block, frame.lanes):
                    u = Lanes(k, part.lanes)
                    with k.serial(part.loops) as i:
                        at = i * part.lanes + part.first
                        value = (u.load(x, source + at) - u.load(scratch, at)) * u.load(scratch, at + block)
                        value = value * u.load(scale, first + at) + u.load(bias, first + at)
                        u.put(frame.output, target + at, value, frame.dtype)

            Row(frame, axes, v, unit_x, unit_y).each(pixel)

    def _emit_groups(self, frame: Frame, problem: NodeProblem) -> None:
        k, (x, scale, bias) = frame.k, frame.inputs
        channels, per_group = problem.inputs[0].shape[1], problem.inputs[0].shape[1] // problem.attrs.groups
        step_x, step_y = problem.inputs[0].strides()[1], problem.outputs[0].strides()[1]
        spatial = replace(self._spatial(problem), across=False)

        def row(r: Row) -> None:
            mean, inverse = _statistics(r, x, problem.attrs.epsilon)
            # A row starts at the first element of its first channel.
            first = k.floormod(k.floordiv(r.y, k.i32(step_y)), k.i32(channels))
            with k.serial(per_group) as c:
                gain, shift = k.alloc(1, "float32"), k.alloc(1, "float32")
                k.store(gain, 0, k.load(scale, first + c) * k.load(inverse, 0))
                k.store(shift, 0, k.load(bias, first + c))

                def write(u: Lanes, i: Expr, y: Expr) -> None:
                    value = (u.load(x, i) - r.spread(u, mean)) * u.load(gain, 0, 0) + u.load(shift, 0, 0)
                    u.put(frame.output, y, value, frame.dtype)

                Row(frame, spatial, r.v, r.x + c * step_x, r.y + c * step_y).each(write)

        rows(frame, self.split(problem), frame.lanes, row)


class _Lrn(Reduction):
    """x * (bias + alpha / size * sum of squares of neighbouring channels)^-beta."""

    def split(self, problem: NodeProblem) -> Split:
        return split(problem, (1,), keepdims=True, elementwise=True)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """One pass; along contiguous channels in vectors but at the ends, else channel by channel."""
        k, at, x_buffer = frame.k, problem.attrs, frame.inputs[0]
        channels = problem.inputs[0].shape[1]
        step_x, step_y = problem.inputs[0].strides()[1], problem.outputs[0].strides()[1]
        before, after = lrn_reach(at.size)
        axes = self.split(problem)

        def write(u: Lanes, r: Row, c: Expr, *, clipped: bool) -> None:
            total = k.alloc(u.n, "float32")
            u.store(total, 0, u.f32(0))
            for d in range(-before, after + 1):
                with ExitStack() as stack:
                    if clipped:
                        stack.enter_context(k.when(k.all(c + d >= 0, c + d < channels)))
                    neighbour = u.load(x_buffer, r.x + (c + d) * step_x)
                    u.store(total, 0, u.load(total, 0) + neighbour * neighbour)
            base = u.f32(at.bias) + u.f32(at.alpha / at.size) * u.load(total, 0)
            power = functions.exp(u, functions.log(u, base) * u.f32(-at.beta))
            u.put(frame.output, r.y + c * step_y, u.load(x_buffer, r.x + c * step_x) * power, frame.dtype)

        def row(r: Row) -> None:
            inside = max(channels - before - after, 0) if axes.along else 0
            for block in cut(inside, frame.lanes):
                with k.serial(block.loops) as i:
                    write(Lanes(k, block.lanes), r, i * block.lanes + (block.first + before), clipped=False)
            for first, last in ((0, before), (before + inside, channels)) if inside else ((0, channels),):
                with k.serial(last - first) as i:
                    write(r.v, r, i + first, clipped=True)

        rows(frame, axes, frame.lanes, row)


class _LogSoftmax(Reduction):
    """x - max - log(sum of exp(x - max))."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        return split(problem, (problem.attrs.axis,), keepdims=True, elementwise=True)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Three passes."""
        x_buffer = frame.inputs[0]

        def row(r: Row) -> None:
            top = r.fold("float32", -math.inf, lambda u, a, b: u.max(a, b), lambda u, x, _y: u.load(x_buffer, x))
            total = precise_sum(r, lambda u, x, _y: functions.exp_below(u, u.load(x_buffer, x) - r.spread(u, top)))
            r.v.store(total, 0, functions.log(r.v, r.v.load(total, 0)))

            def write(u: Lanes, x: Expr, y: Expr) -> None:
                u.put(frame.output, y, u.load(x_buffer, x) - r.spread(u, top) - r.spread(u, total), frame.dtype)

            r.each(write)

        rows(frame, self.split(problem), frame.lanes, row)


define("LayerNormalization", _LayerNorm())
define("RMSNormalization", _RmsNorm())
define("GroupNormalization", _GroupNorm())
define("LRN", _Lrn())
define("LogSoftmax", _LogSoftmax())
