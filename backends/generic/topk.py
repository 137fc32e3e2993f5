"""Selection along an axis: ArgMax, ArgMin, Hardmax and TopK, on reals, integers and codes of any layout.

Stored codes compare like the reals they stand for, so nothing is dequantized.
"""

from __future__ import annotations

from dataclasses import replace

from bevel.backends.generic.definition import Frame, define
from bevel.backends.generic.lanes import Lanes, store_dtype
from bevel.backends.generic.reduction import Reduction, Row, Split, rows, split
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Buffer, Expr

_NARROW = ("int8", "uint8", "int16", "uint16")
_KNOWN = ("float32", *_NARROW, "int32", "uint32", "int64", "uint64")


def _refuse_dtype(problem: NodeProblem) -> str | None:
    dtype = problem.inputs[0].dtype
    return None if dtype in _KNOWN else f"{problem.op} over {dtype}: expected one of {', '.join(_KNOWN)}"


def best_index(r: Row, x: Buffer, dtype: str, *, greatest: bool, last: bool) -> Buffer:
    """int32 position, along the only reduced axis, of the extreme element of each of the row's results.

    Args:
        r: the row.
        x: elements.
        dtype: of `x`.
        greatest: the greatest element instead of the least.
        last: the last of equal elements instead of the first.
    """
    k, v = r.frame.k, r.v
    kind = "int32" if dtype in _NARROW else dtype
    step = r.axes.reduced[0].x if r.axes.reduced else 1

    def better(a: Expr, b: Expr, *, ties: bool) -> Expr:
        if greatest:
            return a >= b if ties else a > b
        return a <= b if ties else a < b

    def load(u: Lanes, at: Expr, stride: int = 1) -> Expr:
        return u.cast(u.load(x, at, stride), kind)

    # Lanes along the axis remember where their vector began. Until an element wins, a lane claims one that loses every tie.
    wide = {v.n, *([r.along_lanes] if r.axes.along else [])}
    values = {n: k.alloc(n, kind) for n in wide}
    places = {n: k.alloc(n, "int32") for n in wide}
    for n in wide:
        u = Lanes(k, n)
        u.store(values[n], 0, load(u, r.x, 1 if n == v.n else 0))
        u.store(places[n], 0, u.i32(-n if last and n != v.n else 0))

    def visit(u: Lanes, at: Expr, _y: Expr) -> None:
        place = k.splat(k.floordiv(at - r.x, k.i32(step)), u.n)
        wins = k.alloc(u.n, "int32")
        u.store(wins, 0, u.select(better(load(u, at), u.load(values[u.n], 0), ties=last), u.i32(1), u.i32(0)))
        won = u.load(wins, 0) > u.i32(0)
        u.store(values[u.n], 0, u.select(won, load(u, at), u.load(values[u.n], 0)))
        u.store(places[u.n], 0, u.select(won, place, u.load(places[u.n], 0)))

    r.each(visit)
    if r.axes.along:
        n = r.along_lanes
        for lane in range(n):
            value, place = k.load(values[n], lane), k.load(places[n], lane) + lane
            best, at = k.load(values[1], 0), k.load(places[1], 0)
            tie = k.all(value == best, place > at if last else place < at)
            with k.when(k.any(better(value, best, ties=False), tie)):
                k.store(values[1], 0, value)
                k.store(places[1], 0, place)
    return places[v.n]


class _Arg(Reduction):
    """Index of the extreme element."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        return split(problem, (problem.attrs.axis,), keepdims=problem.attrs.keepdims, elementwise=False)

    def refuse(self, problem: NodeProblem) -> str | None:
        return _refuse_dtype(problem)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """One pass."""
        dtype, at = problem.inputs[0].dtype, problem.attrs

        def row(r: Row) -> None:
            index = best_index(r, frame.inputs[0], dtype, greatest=problem.op == "ArgMax", last=at.last)
            r.v.put(frame.output, r.y, r.v.cast(r.v.load(index, 0), "int64"), frame.dtype)

        rows(frame, self.split(problem), frame.lanes, row)


class _Hardmax(Reduction):
    """Zeros, and 1 at the greatest element."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        return split(problem, (problem.attrs.axis,), keepdims=True, elementwise=True)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Two passes."""
        k, axes = frame.k, self.split(problem)
        step_x, step_y = (axes.reduced[0].x, axes.reduced[0].y) if axes.reduced else (1, 1)

        def row(r: Row) -> None:
            index = best_index(r, frame.inputs[0], "float32", greatest=True, last=False)

            def write(u: Lanes, x: Expr, y: Expr) -> None:
                chosen = u.f32(0)
                if u.n == r.v.n:
                    place = k.splat(k.floordiv(x - r.x, k.i32(step_x)), u.n)
                    chosen = u.select(place == u.load(index, 0), u.f32(1), u.f32(0))
                u.put(frame.output, y, chosen, frame.dtype)

            r.each(write)
            if axes.along:
                r.v.put(frame.output, r.y + k.load(index, 0) * step_y, r.v.f32(1), frame.dtype)

        rows(frame, axes, frame.lanes, row)


class _TopK(Reduction):
    """A heap of the k best elements so far, the worst at its root, in scratch: keys, then indices."""

    scratch_dtype = "int64"

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        axes = split(problem, (problem.attrs.axis,), keepdims=True, elementwise=True)
        return replace(axes, across=False, along=False)

    def refuse(self, problem: NodeProblem) -> str | None:
        if problem.outputs[0].strides() != problem.outputs[1].strides():
            return "TopK of values and indices in different layouts"
        return _refuse_dtype(problem)

    def scratch_bytes(self, problem: NodeProblem) -> int:
        return 16 * int(problem.attrs.k)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Fill and order the heap, let better elements replace its root, then take it apart from the worst on."""
        k, v, at, x = frame.k, frame.scalar(), problem.attrs, frame.inputs[0]
        axes, kept = self.split(problem), int(at.k)
        axis = axes.reduced[0] if axes.reduced else None
        count = 1 if axis is None else frame.count(axis.extent, axis.dim)
        step_x, step_y = (0, 0) if axis is None else (axis.x, axis.y)
        heap = Heap(frame, kept, self.scratch_dtype)

        def row(r: Row) -> None:
            with k.serial(kept) as i:
                heap.put(i, _key(v, v.load(x, r.x + i * step_x), problem.inputs[0].dtype, largest=at.largest), v.cast(i, "int64"))
            with k.serial(kept // 2) as i:
                heap.sift(kept // 2 - 1 - i, k.i32(kept))
            with k.serial(k.i32(kept), count) as i:
                key = k.alloc(1, "int64")
                k.store(key, 0, _key(v, v.load(x, r.x + i * step_x), problem.inputs[0].dtype, largest=at.largest))
                # Of equal elements the one with the lower index, which came first, stays.
                with k.when(k.load(key, 0) > heap.key(0)):
                    heap.put(0, k.load(key, 0), v.cast(i, "int64"))
                    heap.sift(k.i32(0), k.i32(kept))
            with k.serial(kept) as i:
                last = kept - 1 - i
                index = v.cast(heap.index(0), "int32")
                v.put(
                    frame.outputs[0], r.y + last * step_y, v.load(x, r.x + index * step_x), store_dtype(problem.outputs[0].dtype)
                )
                v.put(frame.outputs[1], r.y + last * step_y, heap.index(0), "int64")
                heap.move(last, 0)
                heap.sift(k.i32(0), last)

        rows(frame, axes, 1, row)


def float_key(v: Lanes, value: Expr) -> Expr:
    """int32 that grows with the float32 `value`, which is not NaN; equal for equal values."""
    bits = v.bitcast(value, "int32")
    # Negative floats count down from their sign bit; the two zeros are equal.
    ordered = bits ^ (v.k.shift_right(bits, v.i32(31)) & v.i32(0x7FFFFFFF))
    return v.select(value == v.f32(0), v.i32(0), ordered)


def _key(v: Lanes, value: Expr, dtype: str, *, largest: bool) -> Expr:
    """int64 that grows with `value`, or falls where the least elements are wanted; equal for equal elements."""
    if dtype == "float32":
        key = v.cast(float_key(v, value), "int64")
    elif dtype == "uint64":
        key = v.bitcast(value, "int64") ^ v.i64(-(1 << 63))
    else:
        key = v.cast(value, "int64")
    return key if largest else v.i64(-1) - key


class Heap:
    """A binary heap in scratch with the worst element (least key; of equal keys the higher index) at place 0.

    Keys lie at the scratch's first `size` elements, indices behind them; both are of the integer type `dtype`.
    """

    def __init__(self, frame: Frame, size: int, dtype: str) -> None:
        self._k, self._scratch, self._size, self._dtype = frame.k, frame.scratch, size, dtype

    def key(self, place: Expr) -> Expr:
        """The key at `place`."""
        return self._k.load(self._scratch, place)

    def index(self, place: Expr) -> Expr:
        """The element's index at `place`."""
        return self._k.load(self._scratch, place + self._size)

    def put(self, place: Expr, key: Expr, index: Expr) -> None:
        """Store an element."""
        # Integers may be their own keys, and a loop that copies them would become a memcpy.
        Lanes(self._k, 1).put(self._scratch, place, key, self._dtype)
        self._k.store(self._scratch, place + self._size, index)

    def move(self, source: Expr, place: Expr) -> None:
        """Copy an element."""
        self.put(place, self.key(source), self.index(source))

    def _worse(self, a: Expr, b: Expr) -> Expr:
        k = self._k
        tie = k.all(self.key(a) == self.key(b), self.index(a) > self.index(b))
        return k.any(self.key(a) < self.key(b), tie)

    def sift(self, place: Expr, size: Expr) -> None:
        """Let the element at `place` sink below all worse ones among the first `size`."""
        k = self._k
        at, child, held = k.alloc(1, "int32"), k.alloc(1, "int32"), k.alloc(2, self._dtype)
        k.store(at, 0, place)
        here, below = k.load(at, 0), k.load(child, 0)
        # Expressions are evaluated where they are used, so what a swap overwrites is held.
        with k.serial(self._size.bit_length()):
            k.store(child, 0, here * 2 + 1)
            with k.when(below < size):
                right = k.min(here * 2 + 2, size - 1)
                with k.when(self._worse(right, below)):
                    k.store(child, 0, right)
                with k.when(self._worse(below, here)):
                    k.store(held, 0, self.key(here))
                    k.store(held, 1, self.index(here))
                    self.move(below, here)
                    self.put(below, k.load(held, 0), k.load(held, 1))
                    k.store(at, 0, below)


define("ArgMax", _Arg())
define("ArgMin", _Arg())
define("Hardmax", _Hardmax())
define("TopK", _TopK())
