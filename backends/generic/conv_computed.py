"""Convolutions whose weights the model computes, and transposed ones with any weights, over any layout.

Loop nest: output rows of all images (the parallel axis), pixels, output channels, taps that meet the image, input channels of
the group. Constant weights never come here: they make `ConvProblem`s (transposed convolutions by pass `subpixel`).
"""

from __future__ import annotations

import abc

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.elementwise import finish
from bevel.backends.generic.window import valid_taps
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Expr


class _Computed(Definition):
    """Shared loops; subclasses say which taps meet an output row or column, and how weights are indexed."""

    def refuse(self, problem: NodeProblem) -> str | None:
        dtypes = {buf.dtype for buf in (*problem.inputs, *problem.outputs)}
        return None if dtypes == {"float32"} else f"{problem.op} over {', '.join(sorted(dtypes))}: expected float32"

    def vectorised(self, problem: NodeProblem) -> bool:
        """Never: neither axis of computed weights is contiguous in general."""
        return False

    def extent(self, problem: NodeProblem) -> int:
        """Output rows of all images."""
        shape = problem.outputs[0].shape
        return shape[0] * shape[2]

    @abc.abstractmethod
    def weight_axes(self, problem: NodeProblem) -> tuple[int, int, int, int]:
        """Strides of the weights along input channel, output channel (both within a group), and from group to group of either."""

    @abc.abstractmethod
    def taps(self, frame: Frame, problem: NodeProblem, axis: int, place: Expr) -> tuple[Expr, Expr]:
        """The taps [from, to) worth visiting for output coordinate `place` along `axis` (0 rows, 1 columns)."""

    @abc.abstractmethod
    def source(self, frame: Frame, problem: NodeProblem, axis: int, place: Expr, tap: Expr) -> tuple[Expr, Expr | None]:
        """Input coordinate that `tap` of output `place` reads, and the condition under which it exists (None: always)."""

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """See the module's docstring."""
        k, at, (x, w), y = frame.k, problem.attrs, problem.inputs[:2], problem.outputs[0]
        xs, ws, ys = x.strides(), w.strides(), y.strides()
        inner, outer, inner_group, outer_group = self.weight_axes(problem)
        per_in, per_out = x.shape[1] // at.groups, y.shape[1] // at.groups
        v = frame.scalar()
        acc = k.alloc(1, "float32")
        height = y.shape[2]
        with k.serial(frame.lo, frame.hi) as row, k.serial(y.shape[3]) as ox:
            image, oy = k.floordiv(row, k.i32(height)), k.floormod(row, k.i32(height))
            rows, columns = self.taps(frame, problem, 0, oy), self.taps(frame, problem, 1, ox)
            with k.serial(at.groups) as g, k.serial(per_out) as c:
                channel = g * per_out + c
                start = v.load(frame.inputs[2], channel * problem.inputs[2].strides()[0]) if len(problem.inputs) > 2 else v.f32(0)
                v.store(acc, 0, start)
                with k.serial(*rows) as ky, k.serial(*columns) as kx:
                    (iy, first), (ix, second) = self.source(frame, problem, 0, oy, ky), self.source(frame, problem, 1, ox, kx)
                    weight = ky * ws[2] + kx * ws[3] + c * outer + g * (inner_group + outer_group)
                    base = image * xs[0] + g * (per_in * xs[1]) + iy * xs[2] + ix * xs[3]

                    def reduce(base: Expr, weight: Expr) -> None:
                        with k.serial(per_in) as i:
                            product = v.load(frame.inputs[0], base + i * xs[1]) * v.load(frame.inputs[1], weight + i * inner)
                            v.store(acc, 0, v.load(acc, 0) + product)

                    if first is None or second is None:
                        reduce(base, weight)
                    else:
                        with k.when(k.all(first, second)):
                            reduce(base, weight)
                target = image * ys[0] + channel * ys[1] + oy * ys[2] + ox * ys[3]
                v.put(frame.output, target, finish(v, problem, v.load(acc, 0)), frame.dtype)


class _Conv(_Computed):
    def weight_axes(self, problem: NodeProblem) -> tuple[int, int, int, int]:
        """Weights are [O, C / groups, KH, KW]."""
        strides = problem.inputs[1].strides()
        return strides[1], strides[0], 0, problem.outputs[0].shape[1] // problem.attrs.groups * strides[0]

    def taps(self, frame: Frame, problem: NodeProblem, axis: int, place: Expr) -> tuple[Expr, Expr]:
        """Those inside the image."""
        at = problem.attrs
        first = place * at.strides[axis] - at.pads[axis]
        extent = problem.inputs[0].shape[2 + axis]
        return valid_taps(frame.k, first, at.kernel[axis], at.dilations[axis], extent, inside=False)

    def source(self, frame: Frame, problem: NodeProblem, axis: int, place: Expr, tap: Expr) -> tuple[Expr, Expr | None]:
        """Every tap that `taps` leaves exists."""
        at = problem.attrs
        return place * at.strides[axis] - at.pads[axis] + tap * at.dilations[axis], None


class _ConvTranspose(_Computed):
    def weight_axes(self, problem: NodeProblem) -> tuple[int, int, int, int]:
        """Weights are [C, O / groups, KH, KW]."""
        strides = problem.inputs[1].strides()
        return strides[0], strides[1], problem.inputs[0].shape[1] // problem.attrs.groups * strides[0], 0

    def taps(self, frame: Frame, problem: NodeProblem, axis: int, place: Expr) -> tuple[Expr, Expr]:
        """All: strides decide which exist."""
        return frame.k.i32(0), frame.k.i32(problem.attrs.kernel[axis])

    def source(self, frame: Frame, problem: NodeProblem, axis: int, place: Expr, tap: Expr) -> tuple[Expr, Expr | None]:
        """The input element that the window of this tap was spread from, where its place is a multiple of the stride."""
        k, at = frame.k, problem.attrs
        distance = place + at.pads[axis] - tap * at.dilations[axis]
        stride = k.i32(at.strides[axis])
        index = k.floordiv(distance, stride)
        exists = k.all(index >= 0, index < problem.inputs[0].shape[2 + axis], index * at.strides[axis] == distance)
        return index, exists


define("Conv", _Conv())
define("ConvTranspose", _ConvTranspose())
