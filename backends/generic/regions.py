"""Operators whose result elements come from operand elements at affine places: elementwise ops and data movement.

Such an operator is a list of regions. A region is a box of the result and, for every operand, a base and a stride along each
axis of the box: a broadcast has stride 0, a permuted layout permutes strides, a slice offsets the base. Axes that all
operands walk as one are merged, so tensors of equal shape and layout become one flat vector loop.

An axis with a run-time extent is whole in every box that has it: strides are those of the bound, only its loop is shorter. It
merges with the axes inside it, never with one outside.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bevel.backends.generic.definition import Definition, Frame
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, cut
from bevel.backends.kernel import Buf, DimRef, Extent, NodeProblem
from bevel.backends.tvm import Expr

# A region's computation: operand elements (a table's buffer) in, result element out, on however many lanes.
Body = Callable[[Lanes, Sequence[Expr]], Expr]

# Elements of a flat loop that threads do not split: one cache line of bytes.
GRANULE = 64
# Elements looked up at once. Putting more together costs more than it saves: 16 ran at 0.55 of the speed of 4 on AVX-512.
_LOOKUP_LANES = SHORTEST_VECTOR


@dataclass(frozen=True)
class View:
    """Affine walk over a buffer.

    Attributes:
        operand: index of the problem's input; None for the output.
        base: element offset of the box's first corner.
        strides: element stride along each axis of the box.
        table: the body gets the buffer itself and looks elements up.
    """

    operand: int | None
    base: int
    strides: tuple[int, ...]
    table: bool = False


@dataclass(frozen=True)
class Region:
    """A box of the result.

    Attributes:
        at: corner of the box in the output, axes in the output's memory order.
        extents: of the box.
        views: the output's walk, then those of the operands in the order `body` takes them.
        body: what is computed.
        transposes: elements are moved from a stride of their own, so that no loop of them is a memcpy or a memset.
        dims: the run-time extent that bounds each axis, None where it is fixed.
    """

    at: tuple[int, ...]
    extents: tuple[int, ...]
    views: tuple[View, ...]
    body: Body
    transposes: bool = False
    dims: tuple[DimRef | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.dims:
            object.__setattr__(self, "dims", (None,) * len(self.extents))

    def keep(self, axes: Sequence[int]) -> Region:
        """The region without axes that are not listed; those must be of length 1."""
        views = tuple(replace(v, strides=tuple(v.strides[a] for a in axes)) for v in self.views)
        at, extents = (tuple(of[a] for a in axes) for of in (self.at, self.extents))
        return Region(at, extents, views, self.body, dims=tuple(self.dims[a] for a in axes))

    def serial(self) -> Region:
        """The region behind a parallel axis of length 1."""
        views = tuple(replace(v, strides=(0, *v.strides)) for v in self.views)
        return Region((0, *self.at), (1, *self.extents), views, self.body, dims=(None, *self.dims))

    def merged(self, first: int) -> Region:
        """Neighbouring axes from `first` on joined where every view walks them as one."""
        at, extents, dims = list(self.at[:first]), list(self.extents[:first]), list(self.dims[:first])
        strides = [list(v.strides[:first]) for v in self.views]
        for axis in range(first, len(self.extents)):
            steps = [v.strides[axis] for v in self.views]
            extent = self.extents[axis]
            walked = (
                all(s[-1] == step * extent for s, step in zip(strides, steps, strict=True)) if len(extents) > first else False
            )
            if walked and self.dims[axis] is None:
                extents[-1] *= extent
                for s, step in zip(strides, steps, strict=True):
                    s[-1] = step
            else:
                at.append(self.at[axis])
                extents.append(extent)
                dims.append(self.dims[axis])
                for s, step in zip(strides, steps, strict=True):
                    s.append(step)
        views = tuple(replace(v, strides=tuple(s)) for v, s in zip(self.views, strides, strict=True))
        return Region(tuple(at), tuple(extents), views, self.body, dims=tuple(dims))


def physical(values: Sequence[int], buf: Buf) -> tuple[int, ...]:
    """One value per logical axis, reordered to the memory order of `buf`."""
    return tuple(values[a] for a in buf.layout or range(len(buf.shape)))


def box(
    out: Buf, at: Sequence[int], extents: Sequence[int], operands: Sequence[tuple[int, int, Sequence[int]]], body: Body
) -> Region:
    """A region given by logical axes.

    Args:
        out: the output.
        at: first corner of the box in the output.
        extents: of the box.
        operands: (input index, base, stride along each logical axis of the output).
        body: what is computed.
    """
    strides = out.strides()
    base = sum(i * s for i, s in zip(at, strides, strict=True))
    views = [View(index, offset, physical(steps, out)) for index, offset, steps in operands]
    order = out.layout or range(len(out.shape))
    dims = tuple(out.dim(axis) for axis in order)
    for axis in order:
        if out.dim(axis) is not None and extents[axis] not in (0, out.shape[axis]):
            raise ValueError(f"a box of {extents[axis]} along axis {axis}, whose extent is known at run time only")
    return Region(physical(at, out), physical(extents, out), (View(None, base, physical(strides, out)), *views), body, dims=dims)


def whole(out: Buf, operands: Sequence[tuple[int, int, Sequence[int]]], body: Body, *, table: int | None = None) -> Region:
    """The region that is the whole output; the body gets input `table`, if any, as its last operand."""
    region = box(out, [0] * len(out.shape), out.shape, operands, body)
    if table is None:
        return region
    return replace(region, views=(*region.views, View(table, 0, (0,) * len(out.shape), table=True)))


def _simplify(regions: Sequence[Region], out: Buf) -> list[Region]:
    """Without axes of length 1, and with axes merged: all of them for a single region, else those behind the parallel one."""
    shape = regions[0].extents if len(regions) == 1 else out.physical_shape
    axes = [a for a, extent in enumerate(shape) if extent > 1]
    if not axes:
        return [Region((0,), (1,), tuple(replace(v, strides=(1,)) for v in r.views), r.body) for r in regions]
    kept = [r.keep(axes) for r in regions]
    if len(kept) == 1:
        return [kept[0].merged(0)]
    return [r.merged(1) if len(axes) > 1 else r.serial() for r in kept]


class Regional(Definition):
    """An operator given by its regions.

    Attributes:
        moves: results are elements of the operand as they are stored.
    """

    moves = False

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Whether the loops of every region end at the actual extents."""
        names = {ref.name for ref in problem.outputs[0].dims if ref is not None}
        return all({ref.name for ref in region.dims if ref is not None} == names for region in self.regions(problem))

    @abc.abstractmethod
    def regions(self, problem: NodeProblem) -> list[Region]:
        """Boxes that partition the output; empty boxes are allowed."""

    def _plan(self, problem: NodeProblem) -> list[Region]:
        regions = [r for r in self.regions(problem) if all(r.extents)]
        return _simplify(regions, problem.outputs[0])

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether every region's inner axis is walked contiguously (or broadcast) by all operands."""
        return all(
            all(v.strides[-1] in (0, 1) for v in r.views) and r.extents[-1] >= SHORTEST_VECTOR for r in self._plan(problem)
        )

    def extent(self, problem: NodeProblem) -> int | Extent:
        """The outermost merged axis of the output; granules of it when it is the only one."""
        plan, out = self._plan(problem), problem.outputs[0]
        if len(plan) == 1:
            return axis_extent(plan[0].extents[0], plan[0].dims[0], _granule(plan))
        axes = [axis for axis in out.layout or range(len(out.shape)) if out.shape[axis] > 1]
        return axis_extent(out.shape[axes[0]], out.dim(axes[0])) if len(axes) > 1 else 1

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """One loop nest per region, clipped to [lo, hi)."""
        plan = self._plan(problem)
        granule = _granule(plan)
        for region in plan:
            transposes = self.moves and any(v.strides[-1] > 1 for v in region.views)
            _emit(frame, replace(region, transposes=transposes), granule, alone=len(plan) == 1)


def axis_extent(extent: int, ref: DimRef | None, granule: int = 1) -> int | Extent:
    """The length of a parallel axis that counts granules of an axis."""
    most = -(-extent // granule)
    return most if ref is None else Extent(most, (ref.name,), extent // ref.bound, granule)


def _granule(plan: Sequence[Region]) -> int:
    return GRANULE if len(plan) == 1 and len(plan[0].extents) == 1 else 1


def _emit(frame: Frame, region: Region, granule: int, *, alone: bool) -> None:
    """The part of `region` inside [lo, hi)."""
    k, start, extent = frame.k, region.at[0], region.extents[0]
    first, last = frame.lo * granule, frame.hi * granule
    if not alone:
        # A run-time extent is whole in every box, so the runtime's range ends with it.
        first = k.max(first, k.i32(start)) - start
        last = k.min(last, k.i32(start + extent)) - start
    elif granule > 1:
        count = frame.count(extent, region.dims[0])
        last = k.min(last, k.i32(count) if isinstance(count, int) else count)
    offsets: list[Expr] = [v.base for v in region.views]
    if len(region.extents) == 1:
        _vector_range(frame, region, offsets, first, last)
        return
    with k.serial(first, last) as i:
        _nest(frame, region, 1, [o + i * v.strides[0] for o, v in zip(offsets, region.views, strict=True)])


def _nest(frame: Frame, region: Region, axis: int, offsets: Sequence[Expr]) -> None:
    """Loops over the axes from `axis` on."""
    count = frame.count(region.extents[axis], region.dims[axis])
    if axis == len(region.extents) - 1:
        _vector_range(frame, region, offsets, 0, count)
        return
    with frame.k.serial(count) as i:
        _nest(frame, region, axis + 1, [o + i * v.strides[axis] for o, v in zip(offsets, region.views, strict=True)])


def _vector_range(frame: Frame, region: Region, offsets: Sequence[Expr], first: Expr, last: Expr) -> None:
    """The inner axis over [first, last): whole vectors, then single elements."""
    k, lanes = frame.k, frame.lanes
    if any(view.table for view in region.views):
        lanes = min(lanes, _LOOKUP_LANES)
    if isinstance(last, int):
        for block in cut(last - first, lanes):
            if block.lanes == 1:
                # Loops over constant bytes would become calls of memset.
                for i in range(block.loops):
                    _elements(frame, region, offsets, first + block.first + i, 1)
                continue
            with k.serial(block.loops) as i:
                _elements(frame, region, offsets, first + block.first + i * block.lanes, block.lanes)
        return
    # A whole axis has no elements before `first`, and never fewer than none.
    count = last if isinstance(first, int) else k.max(last - first, k.i32(0))
    shift = lanes.bit_length() - 1
    vectors = k.shift_right(count, k.i32(shift))
    with k.serial(vectors) as i:
        _elements(frame, region, offsets, first + i * lanes, lanes)
    with k.serial(count - vectors * lanes) as i:
        _elements(frame, region, offsets, first + vectors * lanes + i, 1)


def _elements(frame: Frame, region: Region, offsets: Sequence[Expr], index: Expr, lanes: int) -> None:
    """`lanes` neighbouring results."""
    v = Lanes(frame.k, lanes)
    out, *operands = zip(region.views, offsets, strict=True)
    values = []
    for view, offset in operands:
        assert view.operand is not None
        if view.table:
            values.append(frame.inputs[view.operand])
            continue
        stride = view.strides[-1]
        values.append(v.load(frame.inputs[view.operand], offset + index * stride, stride))
    v.put(frame.output, out[1] + index, region.body(v, values), frame.dtype, fenced=not region.transposes)
