"""Interpolation: Resize in float32 and IntResize on codes, along any axes at once.

Offsets and weights of every tap are tables. Lanes run along the innermost axis where that is not resized: across channels in
NHWC, where the tables' entries are constant for a whole pixel. The sum of a result's taps stays in registers: one rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.index import Walk, walk
from bevel.backends.generic.lanes import Lanes
from bevel.backends.generic.regions import axis_extent, whole
from bevel.backends.kernel import Array, Extent, NodeProblem
from bevel.backends.tvm import Expr
from bevel.ir.ops.resize import fixed_point_tables, weight_tables

# Taps of one result that are written out; more of them become loops (antialiased reductions).
_UNROLLED = 16


class _Resize(Definition):
    """Two tables for each resized axis: element offsets and weights of the taps of every result index."""

    def __init__(self, accumulator: str) -> None:
        self._accumulator = accumulator

    def refuse(self, problem: NodeProblem) -> str | None:
        """Float32, or codes stored alike."""
        dtypes = {problem.inputs[0].dtype, problem.outputs[0].dtype}
        allowed = ("float32",) if self._accumulator == "float32" else ("int8", "uint8")
        if len(dtypes) == 1 and dtypes <= set(allowed):
            return None
        return f"{problem.op} over {', '.join(sorted(dtypes))}: expected one of {', '.join(allowed)}"

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Axes that are not resized may end early."""
        return True

    def _taps(self, problem: NodeProblem) -> list[tuple[Array, Array]]:
        shape = problem.inputs[0].shape
        return weight_tables(problem.attrs, shape) if self._accumulator == "float32" else fixed_point_tables(problem.attrs, shape)

    def tables(self, problem: NodeProblem) -> list[Array]:
        """Offsets and weights of each axis, [size, taps]."""
        strides = problem.inputs[0].strides()
        found: list[Array] = []
        for axis, (index, weights) in zip(problem.attrs.axes, self._taps(problem), strict=True):
            found += [(index * strides[axis]).astype(np.int32), weights.astype(self._accumulator)]
        return found

    def _plan(self, problem: NodeProblem) -> Walk:
        """Views are the result, the operand at the origin of the resized axes, and the row of each axis in its tables."""
        x, y, axes = problem.inputs[0], problem.outputs[0], problem.attrs.axes
        views: list[tuple[int, int, Sequence[int]]] = [(0, 0, [0 if a in axes else s for a, s in enumerate(x.strides())])]
        for axis, (index, _) in zip(axes, self._taps(problem), strict=True):
            views.append((0, 0, [index.shape[1] if a == axis else 0 for a in range(len(y.shape))]))
        return Walk(whole(y, views, lambda _v, xs: xs[0]), 1, ()).simplified()

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether the innermost axis is contiguous and not resized."""
        return self._plan(problem).wide

    def extent(self, problem: NodeProblem) -> int | Extent:
        """The outermost merged axis of the result."""
        region = self._plan(problem).region
        return axis_extent(region.extents[0], region.dims[0])

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """The weighted sum of every result's taps."""
        k, counts = frame.k, [index.shape[1] for index, _ in self._taps(problem)]
        dtype, total = self._accumulator, 0 if self._accumulator == "float32" else problem.attrs.bits * len(counts)
        limits = None if total == 0 else np.iinfo(problem.outputs[0].dtype)

        def element(v: Lanes, offset: Expr) -> Expr:
            value = v.load(frame.inputs[0], offset)
            return value if dtype == "float32" else v.cast(value, dtype)

        def unrolled(v: Lanes, axis: int, offset: Expr, factor: Expr, rows: Sequence[Expr]) -> Expr:
            # One product of weights for a whole vector leaves one multiplication for each tap.
            if axis == len(counts):
                return element(v, offset) * k.splat(factor, v.n)
            value: Expr = None
            for tap in range(counts[axis]):
                at = rows[axis] + tap
                weight = k.load(frame.tables[2 * axis + 1], at)
                product = weight if factor is None else factor * weight
                term = unrolled(v, axis + 1, offset + k.load(frame.tables[2 * axis], at), product, rows)
                value = term if value is None else value + term
            return value

        def looped(v: Lanes, axis: int, offset: Expr, factor: Expr, rows: Sequence[Expr], acc: Expr) -> None:
            if axis == len(counts):
                v.store(acc, 0, v.load(acc, 0) + element(v, offset) * k.splat(factor, v.n))
                return
            with k.serial(counts[axis]) as tap:
                at = rows[axis] + tap
                weight = k.load(frame.tables[2 * axis + 1], at)
                product = weight if factor is None else factor * weight
                looped(v, axis + 1, offset + k.load(frame.tables[2 * axis], at), product, rows, acc)

        def leaf(v: Lanes, offsets: Sequence[Expr]) -> None:
            out, origin, *rows = offsets
            if math.prod(counts) <= _UNROLLED:
                value = unrolled(v, 0, origin, None, rows)
            else:
                acc = k.alloc(v.n, dtype)
                v.store(acc, 0, v.const(0, dtype))
                looped(v, 0, origin, None, rows, acc)
                value = v.load(acc, 0)
            if limits is not None:
                value = k.shift_right(value + v.i32(1 << (total - 1)), v.i32(total))
                value = v.cast(v.clamp(value, int(limits.min), int(limits.max), "int32"), frame.dtype)
            v.put(frame.output, out, value, frame.dtype)

        walk(frame, self._plan(problem), frame.lo, frame.hi, leaf)


define("Resize", _Resize("float32"))
define("IntResize", _Resize("int32"))
