"""Reductions to one number per row, and running sums: every Reduce operator, IntReduce, CumSum and CumProd.

Float sums of many terms are compensated (Kahan, 1965), so that a mean over a large image is as precise as one over a small one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.generic import functions
from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.lanes import Lanes, code_bias, store_dtype
from bevel.backends.generic.reduction import WIDTH, Combine, Reduction, Row, Split, rows, split
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Buffer, Expr

# Terms that one accumulator takes before their rounding errors, which grow like the square root, deserve compensation.
_PLAIN_TERMS = 1024
_INTEGERS = ("int32", "int64", "uint32", "uint64")
_NARROW = ("int8", "uint8", "int16", "uint16", "bool")
_GREATEST = float(np.finfo(np.float32).max)

# Maps an operand element of a type to what is accumulated.
Term = Callable[[Lanes, Expr, str], Expr]


def precise_sum(r: Row, element: Callable[[Lanes, Expr, Expr], Expr]) -> Buffer:
    """float32 sum of `element(lanes, input offset, output offset)` over the row, as `Row.fold` returns it."""
    k = r.frame.k
    most = math.prod(axis.extent for axis in r.axes.reduced)
    wide = r.along_lanes if r.axes.along else r.v.n
    if most <= _PLAIN_TERMS * (wide if r.axes.along else 1):
        return r.fold("float32", 0, lambda _u, a, b: a + b, element)
    lost = {}
    for lanes in dict.fromkeys((r.v.n, wide)):
        lost[lanes] = k.alloc(lanes, "float32")
        k.store(lost[lanes], 0, k.const(0, "float32", lanes), lanes)

    def add(u: Lanes, total: Expr, term: Expr) -> Expr:
        if u.n not in lost:
            return total + term
        # What rounding took from the total last time is taken off the next term.
        terms, sums = k.alloc(u.n, "float32"), k.alloc(u.n, "float32")
        u.store(terms, 0, term - u.load(lost[u.n], 0))
        u.store(sums, 0, total + u.load(terms, 0))
        u.store(lost[u.n], 0, (u.load(sums, 0) - total) - u.load(terms, 0))
        return u.load(sums, 0)

    return r.fold("float32", 0, add, element)


def row_count(r: Row) -> Expr:
    """float32 number of elements that a row reduces, in every lane of its result."""
    count = math.prod(r.frame.count(axis.extent, axis.dim) for axis in r.axes.reduced)
    return r.v.f32(count) if isinstance(count, int) else r.v.k.splat(r.v.k.cast(count, "float32"), r.v.n)


@dataclass(frozen=True)
class _Rule:
    """What a Reduce operator accumulates, how it ends, and which storage types it takes.

    `combine` is None for a sum.
    """

    term: Term
    dtypes: Sequence[str]
    combine: Combine | None = None
    finish: Callable[[Row, Expr], Expr] = lambda _r, total: total


def _itself(_u: Lanes, x: Expr, _dtype: str) -> Expr:
    return x


def _square(_u: Lanes, x: Expr, _dtype: str) -> Expr:
    return x * x


def _magnitude(u: Lanes, x: Expr, dtype: str) -> Expr:
    if dtype == "float32":
        return functions.absolute(u, x)
    return x if dtype.startswith("uint") else u.max(x, u.const(0, dtype) - x)


_FLOAT = ("float32",)
RULES = {
    "ReduceSum": _Rule(_itself, (*_FLOAT, *_INTEGERS)),
    "ReduceMean": _Rule(_itself, _FLOAT, finish=lambda r, total: total / row_count(r)),
    "ReduceMax": _Rule(_itself, (*_FLOAT, *_INTEGERS, *_NARROW), lambda u, a, b: u.max(a, b)),
    "ReduceMin": _Rule(_itself, (*_FLOAT, *_INTEGERS, *_NARROW), lambda u, a, b: u.min(a, b)),
    "ReduceProd": _Rule(_itself, (*_FLOAT, *_INTEGERS), lambda _u, a, b: a * b),
    "ReduceL1": _Rule(_magnitude, (*_FLOAT, *_INTEGERS)),
    "ReduceL2": _Rule(_square, _FLOAT, finish=lambda r, total: r.v.k.math("sqrt", total)),
    "ReduceSumSquare": _Rule(_square, (*_FLOAT, *_INTEGERS)),
    "ReduceLogSum": _Rule(_itself, _FLOAT, finish=lambda r, total: functions.log(r.v, total)),
}


def _initial(op: str, dtype: str) -> float:
    """What an accumulator of `dtype` starts with."""
    if op == "ReduceProd":
        return 1
    if op not in ("ReduceMax", "ReduceMin"):
        return 0
    sign = -1 if op == "ReduceMax" else 1
    if dtype == "float32":
        return sign * math.inf
    limits = np.iinfo(dtype)
    return limits.min if op == "ReduceMax" else limits.max


class _Axes(Reduction):
    """A Reduce operator over `attrs.axes`."""

    def split(self, problem: NodeProblem) -> Split:
        at = problem.attrs
        return split(problem, at.axes, keepdims=at.keepdims, elementwise=False)


class _Fold(_Axes):
    """The operators of `RULES`: one pass."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def refuse(self, problem: NodeProblem) -> str | None:
        found = {problem.inputs[0].dtype, problem.outputs[0].dtype}
        known = RULES[problem.op].dtypes
        if len(found) == 1 and found <= set(known):
            return None
        return f"{problem.op} over {', '.join(sorted(found))}: expected one of {', '.join(known)}"

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Accumulate, finish, store."""
        rule, stored = RULES[problem.op], store_dtype(problem.inputs[0].dtype)
        dtype = "int32" if problem.inputs[0].dtype in _NARROW else stored

        def element(u: Lanes, x: Expr, _y: Expr) -> Expr:
            value = u.load(frame.inputs[0], x)
            return rule.term(u, value if dtype == stored else u.cast(value, dtype), dtype)

        def row(r: Row) -> None:
            if rule.combine is None and dtype == "float32":
                total = precise_sum(r, element)
            else:
                combine = rule.combine or (lambda _u, a, b: a + b)
                total = r.fold(dtype, _initial(problem.op, dtype), combine, element)
            value = rule.finish(r, r.v.load(total, 0))
            r.v.put(frame.output, r.y, value if dtype == stored else r.v.cast(value, stored), frame.dtype)

        rows(frame, self.split(problem), WIDTH * frame.lanes, row)


class _LogSumExp(_Axes):
    """Maximum; logarithm of the sum of exponentials below it."""

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Two passes."""
        x_buffer = frame.inputs[0]

        def row(r: Row) -> None:
            top = r.fold("float32", -math.inf, lambda u, a, b: u.max(a, b), lambda u, x, _y: u.load(x_buffer, x))
            # An infinite maximum would give inf - inf.
            r.v.store(top, 0, r.v.clamp(r.v.load(top, 0), -_GREATEST, _GREATEST, "float32"))
            total = precise_sum(r, lambda u, x, _y: functions.exp(u, u.load(x_buffer, x) - r.spread(u, top)))
            value = functions.log(r.v, r.v.load(total, 0)) + r.v.load(top, 0)
            r.v.put(frame.output, r.y, value, frame.dtype)

        rows(frame, self.split(problem), frame.lanes, row)


class _IntReduce(_Axes):
    """int32 sum of codes, less their zero points, times one dyadic factor with ties to even."""

    def refuse(self, problem: NodeProblem) -> str | None:
        found = {problem.inputs[0].dtype, problem.outputs[0].dtype} - {"int8", "uint8"}
        return f"IntReduce over {', '.join(sorted(found))}: expected codes" if found else None

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """One pass."""
        x, y, at = problem.inputs[0], problem.outputs[0], problem.attrs
        bias = code_bias(y, signed=at.out.storage.signed)

        def row(r: Row) -> None:
            k, v = r.v.k, r.v
            count = math.prod(axis.extent for axis in r.axes.reduced)
            total = r.fold("int32", 0, lambda _u, a, b: a + b, lambda u, i, _y: u.cast(u.load(frame.inputs[0], i), "int32"))
            product = v.cast(v.load(total, 0) - v.i32(count * x.zero_point), "int64") * v.i64(at.m)
            n = v.i64(at.n)
            floor = k.shift_right(product, n)
            odd = floor - k.shift_left(k.shift_right(floor, v.i64(1)), v.i64(1))
            code = k.shift_right(product + v.i64((1 << (at.n - 1)) - 1) + odd, n) + v.i64(y.zero_point)
            v.put(frame.output, r.y, v.cast(v.min(v.max(code, v.i64(at.lo + bias)), v.i64(at.hi + bias)), y.dtype), frame.dtype)

        rows(frame, self.split(problem), frame.lanes, row)


class _Scan(Reduction):
    """A running sum or product: lanes run across other axes only, because each result needs the one before."""

    def __init__(self, neutral: int, combine: Callable[[Expr, Expr], Expr]) -> None:
        self._neutral, self._combine = neutral, combine

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Kept and reduced axes may have run-time extents."""
        return True

    def split(self, problem: NodeProblem) -> Split:
        return replace(split(problem, (problem.attrs.axis,), keepdims=True, elementwise=True), along=False)

    def refuse(self, problem: NodeProblem) -> str | None:
        found = {problem.inputs[0].dtype, problem.outputs[0].dtype}
        if len(found) == 1 and found <= {*_FLOAT, *_INTEGERS}:
            return None
        return f"{problem.op} over {', '.join(sorted(found))}: expected float32 or integers of 32 and 64 bits"

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """One pass, from the end where it is reversed."""
        k, at, dtype = frame.k, problem.attrs, problem.outputs[0].dtype

        def row(r: Row) -> None:
            v, axis = r.v, next(iter(r.axes.reduced), None)
            held = k.alloc(v.n, dtype)
            v.store(held, 0, v.const(self._neutral, dtype))
            count = 1 if axis is None else frame.count(axis.extent, axis.dim)
            with k.serial(count) as step:
                i = count - 1 - step if at.reverse else step
                x, y = (0, 0) if axis is None else (i * axis.x, i * axis.y)
                before = k.alloc(v.n, dtype)
                v.store(before, 0, v.load(held, 0))
                v.store(held, 0, self._combine(v.load(held, 0), v.load(frame.inputs[0], r.x + x)))
                value = v.load(before if at.exclusive else held, 0)
                v.put(frame.output, r.y + y, value, frame.dtype)

        rows(frame, self.split(problem), frame.lanes, row)


_DEFINITIONS: dict[str, Definition] = {
    **dict.fromkeys(RULES, _Fold()),
    "ReduceLogSumExp": _LogSumExp(),
    "IntReduce": _IntReduce(),
    "CumSum": _Scan(0, lambda a, b: a + b),
    "CumProd": _Scan(1, lambda a, b: a * b),
}
for _name, _definition in _DEFINITIONS.items():
    define(_name, _definition)
