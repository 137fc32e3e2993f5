"""GridSample: taps and weights of a position are computed once and applied to all channels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from math import prod

from bevel.backends.generic import functions
from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, cut
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Buffer, Expr
from bevel.ir.ops.grid_sample import CUBIC, FAR, TAPS, GridSampleAttrs, limits


@dataclass(frozen=True)
class _Taps:
    """Element offsets and weights of the taps along one axis, held in registers."""

    offsets: Buffer
    weights: Buffer


class _GridSample(Definition):
    def refuse(self, problem: NodeProblem) -> str | None:
        """Float32."""
        dtypes = {buf.dtype for buf in (*problem.inputs, *problem.outputs)}
        return None if dtypes == {"float32"} else f"GridSample over {', '.join(sorted(dtypes))}: expected float32"

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether channels are contiguous in operand and result."""
        x, y = problem.inputs[0], problem.outputs[0]
        return x.strides()[1] == y.strides()[1] == 1 and x.shape[1] >= SHORTEST_VECTOR

    def extent(self, problem: NodeProblem) -> int:
        """Rows of the grids of all images."""
        grid = problem.inputs[1].shape
        return grid[0] * grid[1]

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Position by position."""
        k, (x, grid), y = frame.k, problem.inputs, problem.outputs[0]
        spatial = x.shape[2:]
        gs, xs, ys = grid.strides(), x.strides(), y.strides()
        with k.serial(frame.lo, frame.hi) as row, ExitStack() as stack:
            rows = k.i32(grid.shape[1])
            image = k.floordiv(row, rows)
            places = [k.floormod(row, rows), *(stack.enter_context(k.serial(n)) for n in grid.shape[2:-1])]
            at = image * gs[0] + sum(i * s for i, s in zip(places, gs[1:-1], strict=True))
            out = image * ys[0] + sum(i * s for i, s in zip(places, ys[2:], strict=True))
            axes = [
                self._axis(frame, problem.attrs, k.load(frame.inputs[1], at + (len(spatial) - 1 - a) * gs[-1]), n, xs[2 + a])
                for a, n in enumerate(spatial)
            ]
            taps = self._joined(frame, axes, TAPS[problem.attrs.mode])
            lanes = frame.lanes if self.vectorised(problem) else 1
            for block in cut(x.shape[1], lanes):
                with k.serial(block.loops) as i:
                    channel = i * block.lanes + block.first
                    v = Lanes(k, block.lanes)
                    value: Expr = v.f32(0)
                    for tap in range(prod([TAPS[problem.attrs.mode]] * len(spatial))):
                        element = v.load(frame.inputs[0], image * xs[0] + k.load(taps.offsets, tap) + channel * xs[1])
                        value = value + element * k.splat(k.load(taps.weights, tap), v.n)
                    v.put(frame.output, out + channel * ys[1], value, frame.dtype)

    @staticmethod
    def _joined(frame: Frame, axes: Sequence[_Taps], count: int) -> _Taps:
        """Taps of all axes at once: offsets added, weights multiplied."""
        k = frame.k
        total = count ** len(axes)
        joined = _Taps(k.alloc(total, "int32"), k.alloc(total, "float32"))
        for n, choice in enumerate(product(range(count), repeat=len(axes))):
            offset: Expr = k.i32(0)
            weight: Expr = k.f32(1)
            for taps, t in zip(axes, choice, strict=True):
                offset = offset + k.load(taps.offsets, t)
                weight = weight * k.load(taps.weights, t)
            k.store(joined.offsets, n, offset)
            k.store(joined.weights, n, weight)
        return joined

    def _axis(self, frame: Frame, attrs: GridSampleAttrs, coordinate: Expr, extent: int, stride: int) -> _Taps:
        """What `_axis` of the reference computes, in float32."""
        k, v = frame.k, frame.scalar()
        held = k.alloc(3, "float32")

        def keep(slot: int, value: Expr) -> Expr:
            k.store(held, slot, value)
            return k.load(held, slot)

        whole = coordinate + v.f32(1)
        position = whole * v.f32((extent - 1) / 2) if attrs.align_corners else whole * v.f32(extent / 2) - v.f32(0.5)
        # The bound first, so that NaN becomes a number.
        position = keep(0, v.max(v.min(position, v.f32(FAR)), v.f32(-FAR)))
        if attrs.mode == "nearest":
            position = keep(0, v.cast(functions.round_to_int(v, position), "float32"))
        low, high = limits(attrs, extent)
        if attrs.padding != "zeros" and attrs.mode != "cubic":
            inner = v.clamp(position, 0, extent - 1, "float32")
            moved = inner if attrs.padding == "border" else self._reflected(frame, position, low, high)
            inside = k.all(position >= v.f32(low), position <= v.f32(high))
            position = keep(0, v.select(inside, position, moved))
        floor = keep(1, functions.floor(v, position))
        t = keep(2, position - floor)
        weights = _weights(v, attrs.mode, t)
        taps = _Taps(k.alloc(len(weights), "int32"), k.alloc(len(weights), "float32"))
        for n, weight in enumerate(weights):
            index = floor + v.f32(n - (1 if attrs.mode == "cubic" else 0))
            if attrs.padding == "reflection":
                index = v.cast(v.cast(self._reflected(frame, index, low, high), "int32"), "float32")
            nearest = v.clamp(index, 0, extent - 1, "float32")
            k.store(taps.offsets, n, v.cast(nearest, "int32") * stride)
            k.store(taps.weights, n, v.select(index == nearest, weight, v.f32(0)) if attrs.padding == "zeros" else weight)
        return taps

    @staticmethod
    def _reflected(frame: Frame, position: Expr, low: float, high: float) -> Expr:
        k, v, span = frame.k, frame.scalar(), high - low
        if span == 0:
            return v.f32(low)
        held = k.alloc(2, "float32")
        k.store(held, 0, position - v.f32(low))
        moved = k.load(held, 0)
        turns = functions.floor(v, moved / v.f32(2 * span))
        k.store(held, 1, moved - turns * v.f32(2 * span))
        rest = k.load(held, 1)
        return v.f32(low) + v.min(rest, v.f32(2 * span) - rest)


def _weights(v: Lanes, mode: str, t: Expr) -> list[Expr]:
    one, a = v.f32(1), v.f32(CUBIC)
    if mode == "nearest":
        return [one]
    if mode == "linear":
        return [one - t, t]

    def far(d: Expr) -> Expr:
        return ((a * d - v.f32(5 * CUBIC)) * d + v.f32(8 * CUBIC)) * d - v.f32(4 * CUBIC)

    def near(d: Expr) -> Expr:
        return (v.f32(CUBIC + 2) * d - v.f32(CUBIC + 3)) * d * d + one

    return [far(t + one), near(t), near(one - t), far(v.f32(2) - t)]


define("GridSample", _GridSample())
