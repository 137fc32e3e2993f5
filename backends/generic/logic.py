"""Derived kernels of comparisons, truth values, bits, choices and conversions; truth values are bytes of 0 or 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bevel.backends.generic.conversion import convert
from bevel.backends.generic.definition import define
from bevel.backends.generic.elementwise import Elementwise
from bevel.backends.generic.functions import absolute, hold, is_nan
from bevel.backends.generic.lanes import Lanes
from bevel.backends.generic.regions import Body
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Expr


def _byte(v: Lanes, condition: Expr) -> Expr:
    return v.select(condition, v.const(1, "uint8"), v.const(0, "uint8"))


COMPARISONS: dict[str, Callable[[Lanes, Expr, Expr], Expr]] = {
    "Equal": lambda v, a, b: v.k.math("EQ", a, b),
    "Less": lambda _v, a, b: a < b,
    "LessOrEqual": lambda _v, a, b: a <= b,
    "Greater": lambda _v, a, b: a > b,
    "GreaterOrEqual": lambda _v, a, b: a >= b,
}

BITS: dict[str, Callable[[Expr, Expr], Expr]] = {
    "And": lambda a, b: a & b,
    "Or": lambda a, b: a | b,
    "Xor": lambda a, b: a ^ b,
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
}


def _comparison(problem: NodeProblem) -> Body:
    compare = COMPARISONS[problem.op]
    return lambda v, xs: _byte(v, compare(v, xs[0], xs[1]))


def _bits(problem: NodeProblem) -> Body:
    combine = BITS[problem.op]
    return lambda _v, xs: combine(xs[0], xs[1])


def _not(_problem: NodeProblem) -> Body:
    return lambda v, xs: xs[0] ^ v.const(1, "uint8")


def _bitwise_not(_problem: NodeProblem) -> Body:
    return lambda v, xs: v.k.math("bitwise_not", xs[0])


def _shift(problem: NodeProblem) -> Body:
    dtype, left = problem.outputs[0].dtype, problem.attrs.left
    bits = 8 * np.dtype(dtype).itemsize

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        a, b, zero, last = xs[0], hold(v, xs[1], dtype), v.const(0, dtype), v.const(bits - 1, dtype)
        # A shift by a negative number is one by a large one.
        amount = hold(v, v.select(b < zero, last, v.min(b, last)), dtype)
        if left:
            return v.select(b < zero, zero, v.select(b > last, zero, v.k.shift_left(a, amount)))
        moved = v.k.shift_right(a, amount)
        return moved if dtype.startswith("int") else v.select(b > last, zero, moved)

    return body


def _is_nan(_problem: NodeProblem) -> Body:
    return lambda v, xs: v.cast(is_nan(v, xs[0]), "uint8")


def _is_inf(problem: NodeProblem) -> Body:
    at = problem.attrs

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        x = hold(v, xs[0], "float32")
        counted = v.select(x > v.f32(0), v.const(at.positive, "uint8"), v.const(at.negative, "uint8"))
        return v.select(v.k.math("EQ", absolute(v, x), v.f32(np.inf)), counted, v.const(0, "uint8"))

    return body


def _where(_problem: NodeProblem) -> Body:
    return lambda v, xs: v.select(xs[0] > v.const(0, "uint8"), xs[1], xs[2])


def _cast(problem: NodeProblem) -> Body:
    source, result = problem.inputs[0].dtype, problem.outputs[0].dtype
    return lambda v, xs: convert(v, xs[0], source, result)


def _alike(first: int) -> Callable[[NodeProblem], str | None]:
    """Refuse problems whose operands from `first` on differ in type."""

    def refuse(problem: NodeProblem) -> str | None:
        dtypes = [buf.dtype for buf in problem.inputs[first:]]
        return f"{problem.op} over {', '.join(dtypes)}: expected one type" if len(set(dtypes)) > 1 else None

    return refuse


def _of(*dtypes: str) -> Callable[[NodeProblem], str | None]:
    """Refuse problems with an operand outside `dtypes`."""

    def refuse(problem: NodeProblem) -> str | None:
        found = {buf.dtype for buf in problem.inputs} - set(dtypes)
        return f"{problem.op} over {', '.join(sorted(found))}: expected {' or '.join(dtypes)}" if found else None

    return refuse


for _name in COMPARISONS:
    define(_name, Elementwise(_comparison, _alike(0)))
for _name in BITS:
    define(_name, Elementwise(_bits, _alike(0)))
define("Not", Elementwise(_not, _of("bool")))
define("BitwiseNot", Elementwise(_bitwise_not))
define("BitShift", Elementwise(_shift, _alike(0)))
define("IsNaN", Elementwise(_is_nan, _of("float32")))
define("IsInf", Elementwise(_is_inf, _of("float32")))
define("Where", Elementwise(_where, _alike(1), operands=3))
define("Cast", Elementwise(_cast))
