"""Indexed movement: elements whose place in the operand, or in the result, comes from indices.

Gather, GatherElements and GatherND read their indices from an operand; ResizeNearest and the copying modes of Pad from tables
that are known when the kernel is compiled. ScatterElements and ScatterND copy their operand and then apply updates one after
another in row-major order, which decides what duplicates mean: they are serial.

All are one loop nest, `Walk`: every buffer is walked with a stride of its own along each axis, and one of them, the target, is
displaced by stride * index for each of its indices. An index is read where the innermost axis it depends on is bound, so rows
that share it are copied as vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, cut
from bevel.backends.generic.regions import Region, View, axis_extent, whole
from bevel.backends.kernel import Array, Buf, DimRef, Extent, NodeProblem
from bevel.backends.tvm import Expr
from bevel.ir.ops.movement import pad_table
from bevel.ir.ops.resize import nearest_table

# Combines what is there with an update.
COMBINE: dict[str, Callable[[Lanes, Expr, Expr], Expr]] = {
    "none": lambda _v, _old, new: new,
    "add": lambda _v, old, new: old + new,
    "mul": lambda _v, old, new: old * new,
    "max": lambda v, old, new: v.max(old, new),
    "min": lambda v, old, new: v.min(old, new),
}
_ARITHMETIC = ("float32", "int32", "int64")


@dataclass(frozen=True)
class Index:
    """One index of the target.

    Attributes:
        view: which view of the walk reads it.
        buffer: number of the input, or of the table, that holds it.
        table: which of both.
        dtype: its type.
        extent: of the axis it counts along; what is read from an input is wrapped and clamped to it.
        stride: of that axis, in elements of the target.
        dim: run-time extent of that axis.
    """

    view: int
    buffer: int
    table: bool
    dtype: str
    extent: int
    stride: int
    dim: DimRef | None = None


@dataclass(frozen=True)
class Walk:
    """A region whose views are those of the loop nest, view `target` displaced by indices."""

    region: Region
    target: int
    indices: tuple[Index, ...]

    def simplified(self) -> Walk:
        """Without axes of length 1, neighbours merged, and with two axes at least: one for threads, one for lanes."""
        axes = [a for a, extent in enumerate(self.region.extents) if extent > 1]
        region = self.region.keep(axes).merged(0) if axes else self.region.keep([])
        while len(region.extents) < 2:
            region = region.serial()
        return Walk(region, self.target, self.indices)

    def depth(self, index: Index) -> int:
        """The innermost axis on which `index` depends, 0 where on none."""
        strides = self.region.views[index.view].strides
        return max((a for a, s in enumerate(strides) if s), default=0)

    @property
    def wide(self) -> bool:
        """Whether lanes may run along the last axis: the first two views step by one, and nothing else changes there."""
        first, second, *others = (v.strides[-1] for v in self.region.views)
        return first == second == 1 and not any(others) and self.region.extents[-1] >= SHORTEST_VECTOR


# An index, and the base and the strides along each axis of the loop nest at which it is read.
Read = tuple[Index, int, Sequence[int]]
# Does the work on some lanes, given the element offset of every view.
Leaf = Callable[[Lanes, Sequence[Expr]], None]


def walk(frame: Frame, plan: Walk, first: Expr, last: Expr, leaf: Leaf) -> None:
    """Call `leaf` for every element (or vector) of `plan`, its outermost axis within [first, last)."""
    with frame.k.serial(first, last) as i:
        _inside(frame, plan, 0, i, [v.base for v in plan.region.views], leaf)


def _inside(frame: Frame, plan: Walk, axis: int, at: Expr, offsets: Sequence[Expr], leaf: Leaf) -> None:
    """What happens at position `at` of `axis`: indices bound here are read, then the next axis is walked."""
    k, region = frame.k, plan.region
    offsets = [o + at * v.strides[axis] for o, v in zip(offsets, region.views, strict=True)]
    for index in plan.indices:
        if plan.depth(index) == axis:
            offsets[plan.target] = offsets[plan.target] + _read(frame, index, offsets[index.view]) * index.stride
    following = axis + 1
    count = frame.count(region.extents[following], region.dims[following])
    if following < len(region.extents) - 1:
        with k.serial(count) as i:
            _inside(frame, plan, following, i, offsets, leaf)
    elif plan.wide:
        _vectors(
            frame,
            count,
            lambda lanes, i: leaf(Lanes(k, lanes), [o + i * v.strides[-1] for o, v in zip(offsets, region.views, strict=True)]),
        )
    else:
        with k.serial(count) as i:
            here = [o + i * v.strides[-1] for o, v in zip(offsets, region.views, strict=True)]
            for index in plan.indices:
                if plan.depth(index) == following:
                    here[plan.target] = here[plan.target] + _read(frame, index, here[index.view]) * index.stride
            leaf(Lanes(k, 1), here)


def _vectors(frame: Frame, count: Expr, body: Callable[[int, Expr], None]) -> None:
    """`body(lanes, position)` over [0, count): whole vectors, then fewer lanes."""
    k = frame.k
    if isinstance(count, int):
        for block in cut(count, frame.lanes):
            with k.serial(block.loops) as i:
                body(block.lanes, i * block.lanes + block.first)
        return
    shift = frame.lanes.bit_length() - 1
    vectors = k.shift_right(count, k.i32(shift))
    with k.serial(vectors) as i:
        body(frame.lanes, i * frame.lanes)
    with k.serial(count - vectors * frame.lanes) as i:
        body(1, vectors * frame.lanes + i)


def _read(frame: Frame, index: Index, offset: Expr) -> Expr:
    """An index as int32 in [0, extent)."""
    k = frame.k
    if index.table:
        return k.load(frame.tables[index.buffer], offset)
    value = k.load(frame.inputs[index.buffer], offset)
    dtype = index.dtype
    # In its own type: an index beyond int32 must not come back into the extent.
    extent = k.const(index.extent, dtype)
    if index.dim is not None:
        extent = k.cast(frame.count(index.extent, index.dim), dtype)
    wrapped = k.select(value < k.const(0, dtype), value + extent, value)
    limited = k.min(k.max(wrapped, k.const(0, dtype)), extent - k.const(1, dtype))
    # Stored, so that every use reads one register.
    held = k.alloc(1, "int32")
    k.store(held, 0, k.cast(limited, "int32"))
    return k.load(held, 0)


def _strides(buf: Buf, placed: Sequence[int | None]) -> tuple[int, ...]:
    """Strides of `buf` along each axis of a loop nest; `placed` says which of its own axes each one is, None for none."""
    own = buf.strides()
    return tuple(0 if axis is None else own[axis] for axis in placed)


class _Gathers(Definition):
    """An operator whose result is walked; its first operand is the target."""

    def refuse(self, problem: NodeProblem) -> str | None:
        """Checks that elements are stored alike, and the type of indices."""
        data = {problem.inputs[0].dtype, problem.outputs[0].dtype}
        if len(data) > 1:
            return f"{problem.op} from {problem.inputs[0].dtype} to {problem.outputs[0].dtype}: expected one storage type"
        if strange := {buf.dtype for buf in problem.inputs[1:]} - {"int32", "int64"}:
            return f"{problem.op} with indices of {', '.join(sorted(strange))}: expected int32 or int64"
        return None

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Loops end at the actual extents; indices never lead outside the bound."""
        return True

    def indexed(self, problem: NodeProblem) -> tuple[Sequence[int], list[Read]]:
        """Strides of the operand along each axis of the result; and every index, with the base and strides it is read at."""
        raise NotImplementedError

    def _plan(self, problem: NodeProblem) -> Walk:
        strides, indices = self.indexed(problem)
        operands = [(0, 0, strides), *((index.buffer, base, steps) for index, base, steps in indices)]
        region = whole(problem.outputs[0], operands, lambda _v, xs: xs[0])
        return Walk(region, 1, tuple(index for index, _, _ in indices)).simplified()

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether rows are copied as vectors."""
        return self._plan(problem).wide

    def extent(self, problem: NodeProblem) -> int | Extent:
        """The outermost merged axis of the result."""
        region = self._plan(problem).region
        return axis_extent(region.extents[0], region.dims[0])

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Elements copied from where the indices point."""

        def copy(v: Lanes, offsets: Sequence[Expr]) -> None:
            value = v.load(frame.inputs[0], offsets[1])
            # The source of single elements is unknown to LLVM; a run of vectors could become a memcpy.
            v.put(frame.output, offsets[0], value, frame.dtype, fenced=v.n > 1)

        walk(frame, self._plan(problem), frame.lo, frame.hi, copy)


class _Gather(_Gathers):
    def indexed(self, problem: NodeProblem) -> tuple[Sequence[int], list[Read]]:
        (x, indices), axis = problem.inputs, problem.attrs.axis
        rank = len(indices.shape)
        behind = len(x.shape) - axis - 1
        data = _strides(x, [*range(axis), *[None] * rank, *range(axis + 1, len(x.shape))])
        steps = _strides(indices, [*[None] * axis, *range(rank), *[None] * behind])
        return data, [(Index(2, 1, False, indices.dtype, x.shape[axis], x.strides()[axis], x.dim(axis)), 0, steps)]


class _GatherElements(_Gathers):
    def indexed(self, problem: NodeProblem) -> tuple[Sequence[int], list[Read]]:
        (x, indices), axis = problem.inputs, problem.attrs.axis
        data = _strides(x, [None if a == axis else a for a in range(len(x.shape))])
        index = Index(2, 1, False, indices.dtype, x.shape[axis], x.strides()[axis], x.dim(axis))
        return data, [(index, 0, indices.strides())]


class _GatherND(_Gathers):
    def indexed(self, problem: NodeProblem) -> tuple[Sequence[int], list[Read]]:
        (x, indices), batch = problem.inputs, problem.attrs.batch_dims
        rank, depth = len(indices.shape) - 1, indices.shape[-1]
        behind = range(batch + depth, len(x.shape))
        data = _strides(x, [*range(batch), *[None] * (rank - batch), *behind])
        return data, _tuple_indices(x, indices, batch, len(behind))


def _tuple_indices(x: Buf, indices: Buf, first: int, behind: int) -> list[Read]:
    """The entries of index tuples (the last axis of input 1) into the axes of `x` from `first` on."""
    steps = (*indices.strides()[:-1], *[0] * behind)
    axes = range(first, first + indices.shape[-1])
    found = [Index(2 + i, 1, False, indices.dtype, x.shape[axis], x.strides()[axis], x.dim(axis)) for i, axis in enumerate(axes)]
    return [(index, i * indices.strides()[-1], steps) for i, index in enumerate(found)]


class _Tabled(_Gathers):
    """Source indices of some axes are known: `table(problem, axis)` of each axis in `axes(problem)`."""

    def __init__(self, axes: Callable[[NodeProblem], Sequence[int]], table: Callable[[NodeProblem, int], Array]) -> None:
        self._axes, self._table = axes, table

    def tables(self, problem: NodeProblem) -> list[Array]:
        """One of int32 for each axis."""
        return [self._table(problem, axis).astype(np.int32) for axis in self._axes(problem)]

    def indexed(self, problem: NodeProblem) -> tuple[Sequence[int], list[Read]]:
        x, axes = problem.inputs[0], self._axes(problem)
        rank = len(x.shape)
        data = _strides(x, [None if a in axes else a for a in range(rank)])
        indices: list[Read] = []
        for i, axis in enumerate(axes):
            steps = [1 if a == axis else 0 for a in range(rank)]
            indices.append((Index(2 + i, i, True, "int32", x.shape[axis], x.strides()[axis]), 0, steps))
        return data, indices


def padded_axes(problem: NodeProblem) -> tuple[int, ...]:
    """Axes that a Pad makes longer."""
    at = problem.attrs
    return tuple(a for a, both in enumerate(zip(at.before, at.after, strict=True)) if any(both))


# Pad whose border is made of the operand's elements.
PAD_COPIES = _Tabled(padded_axes, lambda p, axis: pad_table(p.attrs, axis, p.inputs[0].shape[axis]))


class _Scatters(Definition):
    """A copy of the first operand with updates applied in row-major order."""

    def refuse(self, problem: NodeProblem) -> str | None:
        """Checks that elements are stored alike, the type of indices, and that a reduction is on numbers."""
        x, indices, updates = problem.inputs
        data = {x.dtype, updates.dtype, problem.outputs[0].dtype}
        if len(data) > 1:
            return f"{problem.op} over {', '.join(sorted(data))}: expected one storage type"
        if indices.dtype not in ("int32", "int64"):
            return f"{problem.op} with indices of {indices.dtype}: expected int32 or int64"
        if problem.attrs.reduction != "none" and x.dtype not in _ARITHMETIC:
            return f"{problem.op} with reduction {problem.attrs.reduction!r} over {x.dtype}: expected {', '.join(_ARITHMETIC)}"
        return None

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Only actual updates are applied."""
        return True

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether rows are copied and updated as vectors."""
        return self._copy(problem).wide and self._update(problem).wide

    def extent(self, problem: NodeProblem) -> int:
        """Serial."""
        return 1

    @staticmethod
    def _copy(problem: NodeProblem) -> Walk:
        x, y = problem.inputs[0], problem.outputs[0]
        return Walk(whole(y, [(0, 0, x.strides())], lambda _v, xs: xs[0]), 1, ()).simplified()

    @staticmethod
    def _update(problem: NodeProblem) -> Walk:
        """Over the updates; views are the updates, the result and the indices."""
        (x, indices, updates), y = problem.inputs, problem.outputs[0]
        rank = len(updates.shape)
        if problem.op == "ScatterElements":
            axis = problem.attrs.axis
            place = _strides(y, [None if a == axis else a for a in range(rank)])
            index = Index(2, 1, False, indices.dtype, x.shape[axis], y.strides()[axis], y.dim(axis))
            found: list[Read] = [(index, 0, indices.strides())]
        else:
            depth, lead = indices.shape[-1], len(indices.shape) - 1
            place = _strides(y, [*[None] * lead, *range(depth, len(x.shape))])
            found = _tuple_indices(y, indices, 0, rank - lead)
        views = (View(2, 0, updates.strides()), View(None, 0, place), *(View(1, base, tuple(steps)) for _, base, steps in found))
        dims = updates.dims or (None,) * rank
        region = Region((0,) * rank, updates.shape, views, lambda _v, xs: xs[0], dims=dims)
        return Walk(region, 1, tuple(index for index, _, _ in found)).simplified()

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """The copy, then the updates."""
        k, y = frame.k, frame.output
        combine = COMBINE[problem.attrs.reduction]

        def copy(v: Lanes, offsets: Sequence[Expr]) -> None:
            v.put(y, offsets[0], v.load(frame.inputs[0], offsets[1]), frame.dtype)

        def update(v: Lanes, offsets: Sequence[Expr]) -> None:
            new = v.load(frame.inputs[2], offsets[0])
            v.put(y, offsets[1], combine(v, v.load(y, offsets[1]), new), frame.dtype)

        with k.when(frame.lo < frame.hi):
            for plan, leaf in ((self._copy(problem), copy), (self._update(problem), update)):
                region = plan.region
                walk(frame, plan, k.i32(0), frame.count(region.extents[0], region.dims[0]), leaf)


define("Gather", _Gather())
define("GatherElements", _GatherElements())
define("GatherND", _GatherND())
define("ScatterElements", _Scatters())
define("ScatterND", _Scatters())
define(
    "ResizeNearest",
    _Tabled(lambda p: p.attrs.axes, lambda p, axis: nearest_table(p.attrs, p.attrs.axes.index(axis), p.inputs[0].shape[axis])),
)
