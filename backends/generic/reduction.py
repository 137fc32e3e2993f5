"""Reductions over whole axes: ReduceMean, GlobalAveragePool, Softmax and IntSoftmax, over any layout.

Axes are split into kept and reduced ones. Lanes run across the last kept axis where that is contiguous (one result per lane),
else along the last reduced axis where that is (partial results, combined at the end), else there is one lane. The parallel
axis is the outermost kept axis; where lanes run across the only kept axis, blocks of it. Run-time extents shorten loops, so that
nothing beyond them is ever reduced.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.generic import functions
from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.elementwise import finish
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, code_bias, cut, steps
from bevel.backends.generic.regions import axis_extent
from bevel.backends.kernel import DimRef, Extent, NodeProblem
from bevel.backends.tvm import Buffer, Expr

# Results of a flat kept axis that threads do not split.
GRANULE = 64
# Vectors summed at once across results: enough independent additions to hide their latency.
WIDTH = 4


@dataclass(frozen=True)
class Axis:
    """A loop: its extent and the element strides of input and output (0 where the output lacks the axis).

    `dim` is the run-time extent that bounds it, None where it is fixed.
    """

    extent: int
    x: int
    y: int
    dim: DimRef | None = None


@dataclass(frozen=True)
class Split:
    """The axes of a reduction, outermost first.

    Attributes:
        kept: of the result.
        reduced: summed over.
        across: lanes run across the last kept axis.
        along: lanes run along the last reduced axis.
    """

    kept: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    across: bool
    along: bool

    @property
    def flat(self) -> bool:
        """Whether the parallel axis is the lane axis."""
        return self.across and len(self.kept) == 1

    @property
    def extent(self) -> int | Extent:
        """Length of the parallel axis."""
        if not self.kept:
            return 1
        return axis_extent(self.kept[0].extent, self.kept[0].dim, GRANULE if self.flat else 1)


def _merge(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Outermost first by input stride, unit axes dropped, neighbours walked as one joined."""
    merged: list[Axis] = []
    for axis in sorted((a for a in axes if a.extent > 1), key=lambda a: -a.x):
        walked = bool(merged) and merged[-1].x == axis.x * axis.extent and merged[-1].y == axis.y * axis.extent
        if walked and axis.dim is None:
            merged[-1] = Axis(merged[-1].extent * axis.extent, axis.x, axis.y, merged[-1].dim)
        else:
            merged.append(axis)
    return tuple(merged)


def split(problem: NodeProblem, reduced: Sequence[int], *, keepdims: bool, elementwise: bool) -> Split:
    """The axes of `problem` when `reduced` logical axes are reduced.

    Args:
        problem: one input, one output.
        reduced: logical axes of the input.
        keepdims: the output has them, with extent 1.
        elementwise: the output has them in full (softmax).
    """
    x, y = problem.inputs[0], problem.outputs[0]
    steps = iter(y.strides())
    y_strides = [0 if a in reduced and not keepdims and not elementwise else next(steps) for a in range(len(x.shape))]
    axes = [Axis(n, sx, sy, x.dim(i)) for i, (n, sx, sy) in enumerate(zip(x.shape, x.strides(), y_strides, strict=True))]
    kept = _merge([a for i, a in enumerate(axes) if i not in reduced])
    inner = _merge([a if elementwise else replace(a, y=0) for i, a in enumerate(axes) if i in reduced])

    def contiguous(axis: Axis, y: int) -> bool:
        return axis.x == 1 and axis.y == y and axis.extent >= SHORTEST_VECTOR

    across = bool(kept) and contiguous(kept[-1], 1)
    along = not across and bool(inner) and contiguous(inner[-1], 1 if elementwise else 0)
    return Split(kept, inner, across, along)


# Combines an accumulator with another value of its type.
Combine = Callable[[Lanes, Expr, Expr], Expr]
# Maps (lanes, input offset, output offset) of an element to what is accumulated.
Element = Callable[[Lanes, Expr, Expr], Expr]


@dataclass(frozen=True)
class Row:
    """One result (or one vector of results) of a reduction, and the loops over what it reduces.

    Attributes:
        frame: kernel.
        axes: the reduction's axes.
        v: lanes of the result.
        x, y: offsets of its first element.
    """

    frame: Frame
    axes: Split
    v: Lanes
    x: Expr
    y: Expr

    @property
    def along_lanes(self) -> int:
        """Lanes of a step along the last reduced axis."""
        wide = self.frame.lanes
        return wide if self.axes.reduced[-1].extent >= wide else SHORTEST_VECTOR

    def each(self, element: Callable[[Lanes, Expr, Expr], None]) -> None:
        """Call `element(lanes, input offset, output offset)` for everything that is reduced."""
        k = self.frame.k
        with ExitStack() as stack:
            x, y = self.x, self.y
            for axis in self.axes.reduced[:-1] if self.axes.along else self.axes.reduced:
                i = stack.enter_context(k.serial(self.frame.count(axis.extent, axis.dim)))
                x, y = x + i * axis.x, y + i * axis.y
            if not self.axes.along:
                element(self.v, x, y)
                return
            last, lanes = self.axes.reduced[-1], self.along_lanes
            count = self.frame.count(last.extent, last.dim)
            vectors = count // lanes if isinstance(count, int) else k.shift_right(count, k.i32(lanes.bit_length() - 1))
            with k.serial(vectors) as i:
                element(Lanes(k, lanes), x + i * lanes, y + i * (lanes * last.y))
            done = vectors * lanes
            if not isinstance(count, int) or done < count:
                with k.serial(count - done) as i:
                    element(Lanes(k, 1), x + done + i, y + (done + i) * last.y)

    def fold(self, dtype: str, initial: float, combine: Combine, element: Element) -> Buffer:
        """Accumulate `element` over everything that is reduced.

        Returns:
            A buffer of `v.n` results.
        """
        k, v = self.frame.k, self.v
        accs = {v.n: k.alloc(v.n, dtype)}
        if self.axes.along:
            accs[self.along_lanes] = k.alloc(self.along_lanes, dtype)
        for lanes, acc in accs.items():
            k.store(acc, 0, k.const(initial, dtype, lanes), lanes)

        def step(u: Lanes, x: Expr, y: Expr) -> None:
            u.store(accs[u.n], 0, combine(u, u.load(accs[u.n], 0), element(u, x, y)))

        self.each(step)
        if self.axes.along:
            lanes = self.along_lanes
            value = k.load(accs[lanes], 0, lanes)
            while lanes > 1:
                lanes //= 2
                low, high = (k.shuffle([value], range(at, at + lanes)) for at in (0, lanes))
                value = combine(Lanes(k, lanes), low, high)
            v.store(accs[1], 0, combine(v, v.load(accs[1], 0), value))
        return accs[v.n]

    def spread(self, u: Lanes, total: Buffer) -> Expr:
        """Results of `fold` for the lanes of an element."""
        return u.load(total, 0, 1 if u.n == self.v.n else 0)


def rows(frame: Frame, axes: Split, width: int, body: Callable[[Row], None]) -> None:
    """Call `body` for every result in [lo, hi), `width` of them at once where lanes run across results."""
    k = frame.k

    def lane_axis(first: Expr, extent: Expr, x: Expr, y: Expr) -> None:
        if not isinstance(extent, int):
            for lanes, begin, loops in steps(k, extent, (width, SHORTEST_VECTOR, 1)):
                with k.serial(loops) as i:
                    at = first + begin + i * lanes
                    body(Row(frame, axes, Lanes(k, lanes), x + at, y + at))
            return
        for block in cut(extent, width):
            with k.serial(block.loops) as i:
                at = first + (i * block.lanes + block.first)
                body(Row(frame, axes, Lanes(k, block.lanes), x + at, y + at))

    if axes.flat and axes.kept[0].dim is not None:
        count = frame.count(axes.kept[0].extent, axes.kept[0].dim)
        with k.serial(frame.lo, frame.hi) as i:
            lane_axis(i * GRANULE, k.min(count - i * GRANULE, k.i32(GRANULE)), 0, 0)
        return
    if axes.flat:
        extent = axes.kept[0].extent
        granules, rest = divmod(extent, GRANULE)
        if granules:
            with k.serial(frame.lo, k.min(frame.hi, k.i32(granules))) as i:
                lane_axis(i * GRANULE, GRANULE, 0, 0)
        if rest:
            with k.when(k.all(frame.lo <= granules, frame.hi > granules)):
                lane_axis(k.i32(granules * GRANULE), rest, 0, 0)
        return
    with ExitStack() as stack:
        x: Expr = 0
        y: Expr = 0
        for depth, axis in enumerate(axes.kept[:-1] if axes.across else axes.kept):
            bounds = (frame.lo, frame.hi) if depth == 0 else (frame.count(axis.extent, axis.dim),)
            i = stack.enter_context(k.serial(*bounds))
            x, y = x + i * axis.x, y + i * axis.y
        if axes.across:
            lane_axis(k.i32(0), frame.count(axes.kept[-1].extent, axes.kept[-1].dim), x, y)
        elif axes.kept:
            body(Row(frame, axes, Lanes(k, 1), x, y))
        else:
            with k.when(frame.lo < frame.hi):
                body(Row(frame, axes, Lanes(k, 1), 0, 0))


class Reduction(Definition):
    """An operator over a `Split`."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept axes may have run-time extents; what is reduced is often counted in advance."""
        return all(axis.dim is None for axis in self.split(problem).reduced)

    @abc.abstractmethod
    def split(self, problem: NodeProblem) -> Split:
        """Kept and reduced axes."""

    def refuse(self, problem: NodeProblem) -> str | None:
        """Float operators need float32."""
        dtypes = {problem.inputs[0].dtype, problem.outputs[0].dtype}
        return None if dtypes == {"float32"} else f"{problem.op} over {', '.join(sorted(dtypes))}: expected float32"

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether lanes run across or along a contiguous axis."""
        axes = self.split(problem)
        return axes.across or axes.along

    def extent(self, problem: NodeProblem) -> int | Extent:
        """The outermost kept axis, or blocks of the only one."""
        return self.split(problem).extent


class _Mean(Reduction):
    """Mean over `axes(problem)`."""

    def __init__(self, axes: Callable[[NodeProblem], tuple[tuple[int, ...], bool]]) -> None:
        self._axes = axes

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        reduced, keepdims = self._axes(problem)
        return split(problem, reduced, keepdims=keepdims, elementwise=False)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """One pass."""
        axes = self.split(problem)
        count = math.prod(frame.count(axis.extent, axis.dim) for axis in axes.reduced)

        def row(r: Row) -> None:
            total = r.fold("float32", 0, lambda _u, a, b: a + b, lambda u, x, _y: u.load(frame.inputs[0], x))
            fixed = isinstance(count, int)
            divisor = r.v.f32(count) if fixed else r.v.k.splat(r.v.k.cast(count, "float32"), r.v.n)
            r.v.put(frame.output, r.y, finish(r.v, problem, r.v.load(total, 0) / divisor), frame.dtype)

        rows(frame, axes, WIDTH * frame.lanes, row)


class _Softmax(Reduction):
    """Maximum; exponentials into the output and their sum; products with the sum's reciprocal."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        return split(problem, (problem.attrs.axis,), keepdims=True, elementwise=True)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Three passes."""
        x_buffer, y_buffer = frame.inputs[0], frame.output

        def row(r: Row) -> None:
            top = r.fold("float32", -np.inf, lambda u, a, b: u.max(a, b), lambda u, x, _y: u.load(x_buffer, x))

            def exponential(u: Lanes, x: Expr, y: Expr) -> Expr:
                u.store(y_buffer, y, functions.exp_below(u, u.load(x_buffer, x) - r.spread(u, top)))
                return u.load(y_buffer, y)

            total = r.fold("float32", 0, lambda _u, a, b: a + b, exponential)
            r.v.store(total, 0, r.v.f32(1) / r.v.load(total, 0))

            def normalize(u: Lanes, _x: Expr, y: Expr) -> None:
                u.put(y_buffer, y, finish(u, problem, u.load(y_buffer, y) * r.spread(u, total)), frame.dtype)

            r.each(normalize)

        rows(frame, self.split(problem), frame.lanes, row)


class _IntSoftmax(_Softmax):
    """clamp(floor(256 * e / total + 1/2) - 128) with e = table[max - x]; no division instruction, which small cores lack."""

    def refuse(self, problem: NodeProblem) -> str | None:
        codes = {problem.inputs[0].dtype, problem.outputs[0].dtype}
        if codes <= {"int8", "uint8"} and problem.inputs[1].dtype == "int32":
            return None
        return f"IntSoftmax over {', '.join(sorted(codes))} with a {problem.inputs[1].dtype} table: expected codes and int32"

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Maximum; sum of exponentials; quotients."""
        (codes, table), out = frame.inputs, problem.outputs[0]
        lowest = 0 if problem.inputs[0].dtype == "uint8" else -128

        def code(u: Lanes, x: Expr) -> Expr:
            return u.cast(u.load(codes, x), "int32")

        def row(r: Row) -> None:
            top = r.fold("int32", lowest, lambda u, a, b: u.max(a, b), lambda u, x, _y: code(u, x))

            def exponential(u: Lanes, x: Expr, _y: Expr) -> Expr:
                return u.bitcast(u.gather(table, r.spread(u, top) - code(u, x)), "uint32")

            total = r.fold("uint32", 0, lambda _u, a, b: a + b, exponential)

            def quotient(u: Lanes, x: Expr, y: Expr) -> None:
                q = divide_256(u, exponential(u, x, y), r.spread(u, total))
                u.put(frame.output, y, u.cast(u.min(q, u.i32(255)) + u.i32(code_bias(out) - 128), out.dtype), frame.dtype)

            r.each(quotient)

        rows(frame, self.split(problem), frame.lanes, row)


def divide_256(u: Lanes, e: Expr, total: Expr) -> Expr:
    """floor(256 * e / total + 1/2) as int32, by long division in uint32; e <= total <= 2^31, total > 0."""
    k = u.k
    remainder, quotient = k.alloc(u.n, "uint32"), k.alloc(u.n, "int32")
    # Each step is stored, so that expressions stay small.
    equal = e >= total
    u.store(quotient, 0, u.select(equal, u.i32(1), u.i32(0)))
    u.store(remainder, 0, u.select(equal, e - total, e))
    one = u.const(1, "uint32")
    for _ in range(8):
        twice = k.shift_left(u.load(remainder, 0), one)
        fits = twice >= total
        u.store(quotient, 0, u.load(quotient, 0) * u.i32(2) + u.select(fits, u.i32(1), u.i32(0)))
        u.store(remainder, 0, u.select(fits, twice - total, twice))
    up = u.load(remainder, 0) + k.shift_right(total, one) >= total
    return u.load(quotient, 0) + u.select(up, u.i32(1), u.i32(0))


define("GlobalAveragePool", _Mean(lambda _p: ((2, 3), True)))
define("Softmax", _Softmax())
define("IntSoftmax", _IntSoftmax())
