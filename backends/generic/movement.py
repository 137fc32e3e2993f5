"""Data movement: stored elements are copied, never computed.

`Copy` is no operator of the op table: lowering inserts it where a tensor changes layout or where codes cross the graph's
border, int8 on one side and uint8 biased by 128 on the other. Its attributes are `NoAttrs`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.elementwise import aligned_strides, finish
from bevel.backends.generic.index import PAD_COPIES
from bevel.backends.generic.lanes import Lanes, code_bias, store_dtype
from bevel.backends.generic.regions import Body, Region, Regional, box, whole
from bevel.backends.kernel import Array, Buf, Extent, NodeProblem
from bevel.backends.tvm import Expr
from bevel.ir.ops.movement import pad_code
from bevel.ir.types import Int, Quant, TensorType

_CODES = ("int8", "uint8")


def _same_storage(problem: NodeProblem) -> str | None:
    dtypes = {buf.dtype for buf in (*problem.inputs, *problem.outputs)}
    return None if len(dtypes) == 1 else f"{problem.op} between {', '.join(sorted(dtypes))}: expected one storage type"


def _copied(problem: NodeProblem) -> Body:
    return lambda v, xs: finish(v, problem, xs[0])


class _Movement(Regional):
    """Operators that keep the storage type."""

    moves = True

    def refuse(self, problem: NodeProblem) -> str | None:
        """Checks that all operands are stored alike."""
        return _same_storage(problem)


class _Copy(Regional):
    moves = True

    def refuse(self, problem: NodeProblem) -> str | None:
        x, y = problem.inputs[0], problem.outputs[0]
        if x.shape != y.shape:
            return f"Copy from shape {x.shape} to {y.shape}"
        if x.dtype != y.dtype and not (x.dtype in _CODES and y.dtype in _CODES):
            return f"Copy from {x.dtype} to {y.dtype}: expected equal types or codes"
        return None

    def regions(self, problem: NodeProblem) -> list[Region]:
        x, y = problem.inputs[0], problem.outputs[0]

        def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
            if x.dtype == y.dtype:
                return _copied(problem)(v, xs)
            return v.bitcast(v.bitcast(xs[0], "uint8") ^ v.const(128, "uint8"), y.dtype)

        return [whole(y, [(0, 0, x.strides())], body)]


class _Reshape(_Movement):
    """The elements in logical row-major order under another shape, whatever the layouts."""

    def regions(self, problem: NodeProblem) -> list[Region]:
        x, y = problem.inputs[0], problem.outputs[0]
        axes = _common_axes(x, y)
        if axes is None:
            return []
        extents, xs, ys = axes
        order = sorted(range(len(extents)), key=lambda a: -ys[a])
        view = Buf(tuple(extents[a] for a in order), y.dtype)
        return [whole(view, [(0, 0, tuple(xs[a] for a in order))], _copied(problem))]

    def vectorised(self, problem: NodeProblem) -> bool:
        """Never where the shapes have no common axes."""
        return bool(self.regions(problem)) and super().vectorised(problem)

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Never: lowering makes views of reshapes that keep run-time extents."""
        return False

    def extent(self, problem: NodeProblem) -> int | Extent:
        """Elements, where the shapes have no common axes."""
        return super().extent(problem) if self.regions(problem) else problem.outputs[0].size

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Regions, or element by element where the shapes have no common axes."""
        if self.regions(problem):
            super().emit(frame, problem)
            return
        v = frame.scalar()
        with frame.k.serial(frame.lo, frame.hi) as i:
            element = v.load(frame.inputs[0], _offset(frame, problem.inputs[0], i))
            at = _offset(frame, problem.outputs[0], i)
            v.put(frame.output, at, _copied(problem)(v, [element]), store_dtype(problem.outputs[0].dtype))


def _offset(frame: Frame, buf: Buf, index: Expr) -> Expr:
    """Where element `index` of the logical row-major order lies in memory."""
    offset: Expr = 0
    for extent, stride in zip(reversed(buf.shape), reversed(buf.strides()), strict=True):
        offset = offset + frame.k.floormod(index, frame.k.i32(extent)) * stride
        index = frame.k.floordiv(index, frame.k.i32(extent))
    return offset


def _common_axes(x: Buf, y: Buf) -> tuple[list[int], list[int], list[int]] | None:
    """Extents of axes that refine both shapes in row-major order, and their strides in x and y; None if there are none."""
    if x.layout is None and y.layout is None:
        return [x.size], [1], [1]
    extents: list[int] = []
    strides: tuple[list[int], list[int]] = ([], [])
    left = [[n, s] for n, s in zip(x.shape, x.strides(), strict=True) if n > 1]
    right = [[n, s] for n, s in zip(y.shape, y.strides(), strict=True) if n > 1]
    while left and right:
        (n, s), (m, t) = left[-1], right[-1]
        small, large = sorted((n, m))
        if large % small:
            return None
        extents.insert(0, small)
        strides[0].insert(0, s)
        strides[1].insert(0, t)
        for side, extent in ((left, n), (right, m)):
            if extent == small:
                side.pop()
            else:
                side[-1][0] //= small
                side[-1][1] *= small
    return extents, *strides


class _Transpose(_Movement):
    def regions(self, problem: NodeProblem) -> list[Region]:
        x, y = problem.inputs[0], problem.outputs[0]
        strides = x.strides()
        return [whole(y, [(0, 0, [strides[a] for a in problem.attrs.perm])], _copied(problem))]


class _Slice(_Movement):
    def regions(self, problem: NodeProblem) -> list[Region]:
        x, y, at = problem.inputs[0], problem.outputs[0], problem.attrs
        strides = x.strides()
        base = sum(start * s for start, s in zip(at.starts, strides, strict=True))
        return [whole(y, [(0, base, [step * s for step, s in zip(at.steps, strides, strict=True)])], _copied(problem))]


class _Concat(_Movement):
    def regions(self, problem: NodeProblem) -> list[Region]:
        y, axis = problem.outputs[0], problem.attrs.axis
        regions, position = [], 0
        for i, x in enumerate(problem.inputs):
            at = [position if a == axis else 0 for a in range(len(y.shape))]
            regions.append(box(y, at, x.shape, [(i, 0, x.strides())], _copied(problem)))
            position += x.shape[axis]
        return regions


class _Reverse(_Movement):
    def regions(self, problem: NodeProblem) -> list[Region]:
        x, y, axes = problem.inputs[0], problem.outputs[0], problem.attrs.axes
        base = sum((x.shape[a] - 1) * s for a, s in enumerate(x.strides()) if a in axes)
        return [whole(y, [(0, base, [-s if a in axes else s for a, s in enumerate(x.strides())])], _copied(problem))]


class _Expand(_Movement):
    def regions(self, problem: NodeProblem) -> list[Region]:
        x, y = problem.inputs[0], problem.outputs[0]
        return [whole(y, [(0, 0, aligned_strides(x, len(y.shape)))], _copied(problem))]


# An axis or a part of one: its extent, and its element stride in the operand.
Part = tuple[int, int]


class _Split(_Movement):
    """Operators that cut axes of the result into parts, each of which lies along the operand with a stride of its own."""

    def parts(self, problem: NodeProblem) -> list[list[Part]]:
        """The parts of each axis of the result, outermost first."""
        raise NotImplementedError

    def regions(self, problem: NodeProblem) -> list[Region]:
        y = problem.outputs[0]
        found = self.parts(problem)
        order = y.layout or range(len(y.shape))
        flat = [part for axis in order for part in found[axis]]
        # Run-time extents are those of whole axes.
        dims = tuple(y.dim(axis) for axis in order for _ in found[axis])
        view = Buf(tuple(extent for extent, _ in flat), y.dtype, dims=dims if any(dims) else ())
        return [whole(view, [(0, 0, [stride for _, stride in flat])], _copied(problem))]


class _Tile(_Split):
    def parts(self, problem: NodeProblem) -> list[list[Part]]:
        x, repeats = problem.inputs[0], problem.attrs.repeats
        axes = zip(x.shape, x.strides(), repeats, strict=True)
        return [[(n, s)] if r == 1 else [(r, 0), (n, s)] for n, s, r in axes]


class _DepthToSpace(_Split):
    def parts(self, problem: NodeProblem) -> list[list[Part]]:
        x, b = problem.inputs[0], problem.attrs.block
        n, c, h, w = x.shape
        sn, sc, sh, sw = x.strides()
        inner = c // (b * b)
        # A channel of the operand is (row, column, channel) or (channel, row, column).
        row, column, channel = (b * inner, inner, 1) if problem.attrs.mode == "DCR" else (b, 1, b * b)
        return [[(n, sn)], [(inner, channel * sc)], [(h, sh), (b, row * sc)], [(w, sw), (b, column * sc)]]


class _SpaceToDepth(_Split):
    def parts(self, problem: NodeProblem) -> list[list[Part]]:
        x, b = problem.inputs[0], problem.attrs.block
        n, c, h, w = x.shape
        sn, sc, sh, sw = x.strides()
        channel, pixel = [(c, sc)], [(b, sh), (b, sw)]
        channels = [*pixel, *channel] if problem.attrs.mode == "DCR" else [*channel, *pixel]
        return [[(n, sn)], channels, [(h // b, b * sh)], [(w // b, b * sw)]]


class _ConstantPad(_Movement):
    def refuse(self, problem: NodeProblem) -> str | None:
        if problem.outputs[0].dtype in _CODES and not problem.scales:
            return "Pad of codes without a scale: its real value cannot be quantized"
        return super().refuse(problem)

    def regions(self, problem: NodeProblem) -> list[Region]:
        x, y, at = problem.inputs[0], problem.outputs[0], problem.attrs
        fill = stored_fill(problem)

        def border(v: Lanes, _xs: Sequence[Expr]) -> Expr:
            return finish(v, problem, v.const(fill, store_dtype(y.dtype)))

        regions = [box(y, at.before, x.shape, [(0, 0, x.strides())], _copied(problem))]
        # Before and after each axis: full along later axes, inside the border along earlier ones.
        for axis, (before, after) in enumerate(zip(at.before, at.after, strict=True)):
            for start, width in ((0, before), (y.shape[axis] - after, after)):
                corner = [*at.before[:axis], start, *([0] * (len(y.shape) - axis - 1))]
                extents = [*x.shape[:axis], width, *y.shape[axis + 1 :]]
                regions.append(box(y, corner, extents, [], border))
        return regions


class _Pad(Definition):
    """A constant border, or one copied from the operand through tables."""

    def __init__(self) -> None:
        self._constant = _ConstantPad()

    def _of(self, problem: NodeProblem) -> Definition:
        return self._constant if problem.attrs.mode == "constant" else PAD_COPIES

    def refuse(self, problem: NodeProblem) -> str | None:
        return self._of(problem).refuse(problem)

    def takes_dims(self, problem: NodeProblem) -> bool:
        return self._of(problem).takes_dims(problem)

    def vectorised(self, problem: NodeProblem) -> bool:
        return self._of(problem).vectorised(problem)

    def extent(self, problem: NodeProblem) -> int | Extent:
        return self._of(problem).extent(problem)

    def tables(self, problem: NodeProblem) -> list[Array]:
        return self._of(problem).tables(problem)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        self._of(problem).emit(frame, problem)


def stored_fill(problem: NodeProblem) -> float:
    """The stored element that Pad's real value becomes."""
    out, value = problem.outputs[0], problem.attrs.value
    if out.dtype not in _CODES:
        return float(value) if out.dtype == "float32" else int(value)
    bias = code_bias(out)
    elem = Quant(Int(8), (problem.scales[0],), (out.zero_point - bias,))
    return int(pad_code(value, TensorType(out.shape, elem))) + bias


define("Copy", _Copy())
define("Recode", _Copy())
define("Reshape", _Reshape())
define("Transpose", _Transpose())
define("Slice", _Slice())
define("Concat", _Concat())
define("Pad", _Pad())
define("Reverse", _Reverse())
define("Expand", _Expand())
define("Tile", _Tile())
define("DepthToSpace", _DepthToSpace())
define("SpaceToDepth", _SpaceToDepth())
