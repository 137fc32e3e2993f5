"""Normalization: LayerNormalization, RMSNormalization, GroupNormalization, LRN and LogSoftmax.

Statistics take two passes over a row, the mean before the variance, so that nothing cancels; the third writes the result.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace

from bevel.backends.generic import functions
from bevel.backends.generic.definition import Frame, define
from bevel.backends.generic.fold import precise_sum, row_count
from bevel.backends.generic.lanes import Lanes, cut
from bevel.backends.generic.reduction import Reduction, Row, Split, rows, split
from bevel.backends.kernel import Buf, NodeProblem
from bevel.backends.tvm import Buffer, Expr
from bevel.ir.ops.normalize import lrn_reach


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
    """Per group of channels: (x - mean) * inverse; per channel: * scale + bias."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def refuse(self, problem: NodeProblem) -> str | None:
        found = {buf.dtype for buf in (*problem.inputs, *problem.outputs)} - {"float32"}
        return f"GroupNormalization over {', '.join(sorted(found))}: expected float32" if found else None

    def _virtual(self, problem: NodeProblem) -> NodeProblem:
        groups = problem.attrs.groups
        x, y = _grouped(problem.inputs[0], groups), _grouped(problem.outputs[0], groups)
        return replace(problem, inputs=(x, *problem.inputs[1:]), outputs=(y,))

    def split(self, problem: NodeProblem) -> Split:
        virtual = self._virtual(problem)
        axes = split(virtual, tuple(range(2, len(virtual.inputs[0].shape))), keepdims=True, elementwise=True)
        # Lanes that run across images would need channels that are no neighbours.
        aligned = not axes.across or axes.kept[-1].extent == problem.inputs[0].shape[1]
        return axes if aligned else replace(axes, across=False)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Three passes; the last one channel by channel, or along the channels where they are contiguous."""
        k, (x, scale, bias) = frame.k, frame.inputs
        virtual, axes = self._virtual(problem), self.split(problem)
        channels, per_group = problem.inputs[0].shape[1], virtual.inputs[0].shape[2]
        step_x, step_y = problem.inputs[0].strides()[1], problem.outputs[0].strides()[1]
        spatial = split(virtual, tuple(range(3, len(virtual.inputs[0].shape))), keepdims=True, elementwise=True)
        spatial = replace(spatial, across=False)

        def row(r: Row) -> None:
            mean, inverse = _statistics(r, x, problem.attrs.epsilon)
            # A row starts at the first element of its first channel.
            first = k.floormod(k.floordiv(r.y, k.i32(step_y)), k.i32(channels))

            def affine(u: Lanes, i: Expr, y: Expr, gain: Expr, shift: Expr) -> None:
                value = (u.load(x, i) - r.spread(u, mean)) * r.spread(u, inverse)
                u.put(frame.output, y, value * gain + shift, frame.dtype)

            if axes.across:
                r.each(lambda u, i, y: affine(u, i, y, u.load(scale, first), u.load(bias, first)))
                return
            if step_x == step_y == 1 < per_group:

                def pixel(_u: Lanes, i: Expr, y: Expr) -> None:
                    for block in cut(per_group, frame.lanes):
                        u = Lanes(k, block.lanes)
                        with k.serial(block.loops) as j:
                            at = j * block.lanes + block.first
                            affine(u, i + at, y + at, u.load(scale, first + at), u.load(bias, first + at))

                Row(frame, spatial, r.v, r.x, r.y).each(pixel)
                return
            with k.serial(per_group) as c:
                gain, shift = k.alloc(1, "float32"), k.alloc(1, "float32")
                k.store(gain, 0, k.load(scale, first + c))
                k.store(shift, 0, k.load(bias, first + c))
                plane = Row(frame, spatial, r.v, r.x + c * step_x, r.y + c * step_y)
                plane.each(lambda u, i, y: affine(u, i, y, u.load(gain, 0, 0), u.load(shift, 0, 0)))

        rows(frame, axes, frame.lanes, row)


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
            total = precise_sum(r, lambda u, x, _y: functions.exp(u, u.load(x_buffer, x) - r.spread(u, top)))
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
