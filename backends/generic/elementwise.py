"""Elementwise operators, float and integer: one line of arithmetic each.

Operands broadcast, have any layout, and may be constants. A new operator is one entry of `UNARY`, `BINARY` or a `_body`
function. Integer bodies work in int32 or int64 and contain no floating point. docs/numerics.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bevel.backends.generic import circular, functions, quotients
from bevel.backends.generic.definition import define
from bevel.backends.generic.lanes import Lanes, code_bias, lowest_code
from bevel.backends.generic.regions import Body, Region, Regional, whole
from bevel.backends.kernel import Buf, NodeProblem
from bevel.backends.tvm import Expr

Unary = Callable[[Lanes, Any, Expr], Expr]

UNARY: Mapping[str, Unary] = {
    "Relu": lambda v, _a, x: functions.limit(v, x, 0.0, np.inf),
    "Clip": lambda v, a, x: functions.limit(v, x, a.lo, a.hi),
    "LeakyRelu": lambda v, a, x: v.select(x < v.f32(0), v.f32(a.alpha) * x, x),
    "Elu": lambda v, a, x: functions.elu(v, x, a.alpha),
    "Selu": lambda v, a, x: v.f32(a.gamma) * functions.elu(v, x, a.alpha),
    "Celu": lambda v, a, x: functions.elu(v, x, a.alpha, a.alpha),
    "ThresholdedRelu": lambda v, a, x: v.select(x <= v.f32(a.alpha), v.f32(0), x),
    "Shrink": lambda v, a, x: _shrink(v, a, x),
    "HardSigmoid": lambda v, a, x: functions.limit(v, v.f32(a.alpha) * x + v.f32(a.beta), 0.0, 1.0),
    "HardSwish": lambda v, _a, x: x * functions.limit(v, x / v.f32(6) + v.f32(0.5), 0.0, 1.0),
    "Sigmoid": lambda v, _a, x: functions.sigmoid(v, x),
    "Silu": lambda v, _a, x: functions.silu(v, x),
    "Swish": lambda v, a, x: functions.silu(v, x, a.alpha),
    "Mish": lambda v, _a, x: functions.mish(v, x),
    "Gelu": lambda v, _a, x: functions.gelu(v, x),
    "GeluTanh": lambda v, _a, x: functions.gelu_tanh(v, x),
    "Softplus": lambda v, _a, x: functions.softplus(v, x),
    "Softsign": lambda v, _a, x: x / (v.f32(1) + functions.absolute(v, x)),
    "Exp": lambda v, _a, x: functions.exp(v, x),
    "Log": lambda v, _a, x: functions.log(v, x),
    "Erf": lambda v, _a, x: functions.erf(v, x),
    "Power": lambda v, a, x: _power(v, a.exponent, x),
    "Reciprocal": lambda v, _a, x: v.f32(1) / x,
    "Sqrt": lambda v, _a, x: v.k.math("sqrt", x),
    "Floor": lambda v, _a, x: functions.floor(v, x),
    "Ceil": lambda v, _a, x: functions.ceil(v, x),
    "Round": lambda v, _a, x: functions.round_even(v, x),
    "Sin": lambda v, _a, x: circular.sin(v, x),
    "Cos": lambda v, _a, x: circular.cos(v, x),
    "Tan": lambda v, _a, x: circular.tan(v, x),
    "Asin": lambda v, _a, x: circular.asin(v, x),
    "Acos": lambda v, _a, x: circular.acos(v, x),
    "Atan": lambda v, _a, x: circular.atan(v, x),
    "Sinh": lambda v, _a, x: circular.sinh(v, x),
    "Cosh": lambda v, _a, x: circular.cosh(v, x),
    "Tanh": lambda v, _a, x: functions.tanh(v, x),
    "Asinh": lambda v, _a, x: circular.asinh(v, x),
    "Acosh": lambda v, _a, x: circular.acosh(v, x),
    "Atanh": lambda v, _a, x: circular.atanh(v, x),
}

# Functions of reals and of integers; the last operand names the element type.
SIGNED: Mapping[str, Callable[[Lanes, Expr, str], Expr]] = {
    "Neg": lambda v, x, t: functions.negative(v, x) if t == "float32" else _opposite(v, x, t),
    "Abs": lambda v, x, t: functions.absolute(v, x) if t == "float32" else v.select(x < v.const(0, t), v.const(0, t) - x, x),
    "Sign": lambda v, x, t: functions.sign(v, x, t),
}

BINARY: Mapping[str, Callable[[Lanes, Any, Expr, Expr, str], Expr]] = {
    "Add": lambda _v, _a, x, y, _t: x + y,
    "Sub": lambda _v, _a, x, y, _t: x - y,
    "Mul": lambda _v, _a, x, y, _t: x * y,
    "Div": lambda v, _a, x, y, t: x / y if t == "float32" else quotients.divide(v, x, y, t),
    "Min": lambda v, _a, x, y, t: v.select(x < y, x, _other(v, x, y)) if t == "float32" else v.min(x, y),
    "Max": lambda v, _a, x, y, t: v.select(x > y, x, _other(v, x, y)) if t == "float32" else v.max(x, y),
    "Mod": lambda v, a, x, y, t: quotients.remainder(v, x, y, t, fmod=a.fmod),
    "Pow": lambda v, _a, x, y, t: quotients.power(v, x, y, t),
}

# Exponents of so many steps of repeated multiplication at most.
_MOST_MULTIPLIED = 16


def _other(v: Lanes, x: Expr, y: Expr) -> Expr:
    """`y`, but `x` where that is NaN."""
    return v.select(functions.is_nan(v, x) > v.i32(0), x, y)


def _opposite(v: Lanes, x: Expr, dtype: str) -> Expr:
    """-x of integers; unsigned ones as signed, where 0 - x does not promise to stay above zero."""
    signed = dtype.removeprefix("u")
    return v.bitcast(v.const(0, signed) - v.bitcast(x, signed), dtype)


def _shrink(v: Lanes, a: Any, x: Expr) -> Expr:
    inner = v.select(functions.is_nan(v, x) > v.i32(0), x, v.f32(0))
    above = v.select(x > v.f32(a.lambd), x - v.f32(a.bias), inner)
    return v.select(x < v.f32(-a.lambd), x + v.f32(a.bias), above)


def _power(v: Lanes, exponent: float, x: Expr) -> Expr:
    """Constant powers of x: small whole ones by multiplication, any other as Pow."""
    times = abs(int(exponent)) if float(exponent).is_integer() else 0
    if not 0 < times <= _MOST_MULTIPLIED:
        return quotients.power(v, x, v.f32(exponent), "float32")
    square = functions.hold(v, x, "float32")
    total = square if times & 1 else None
    while times := times >> 1:
        square = functions.hold(v, square * square, "float32")
        if times & 1:
            total = square if total is None else functions.hold(v, total * square, "float32")
    return v.f32(1) / total if exponent < 0 else total


def finish(v: Lanes, problem: NodeProblem, value: Expr) -> Expr:
    """`value` after the problem's epilogue."""
    for op, attrs in problem.epilogue:
        value = UNARY[op](v, attrs, value)
    return value


def requantize(v: Lanes, acc: Expr, m: Expr, n: Expr, zero_point: Expr, lo: Expr, hi: Expr) -> Expr:
    """clamp(zp + ((acc * m + 2^(n-1)) >> n)) in int64.

    Args:
        v: lanes.
        acc: int64, within int32 (or its product with m within 2^62).
        m: int64 in [2^30, 2^31) or 0.
        n: int64 in 1..62.
        zero_point: int64.
        lo: int64.
        hi: int64.

    Returns:
        int64 codes.
    """
    half = v.k.shift_left(v.i64(1), n - v.i64(1))
    scaled = v.k.shift_right(acc * m + half, n)
    return v.min(v.max(scaled + zero_point, lo), hi)


def aligned_strides(buf: Buf, rank: int, *, first: int | None = None) -> tuple[int, ...]:
    """Strides of `buf` broadcast to `rank` axes: its own are the last ones, or start at axis `first`."""
    at = rank - len(buf.shape) if first is None else first
    own = [0 if extent == 1 else s for extent, s in zip(buf.shape, buf.strides(), strict=True)]
    return (*([0] * at), *own, *([0] * (rank - at - len(own))))


class Elementwise(Regional):
    """An operator whose body sees operand elements of one index.

    Args:
        body: makes the computation of a problem.
        refuse: why a problem cannot be computed.
        operands: number of inputs that broadcast with the result; further ones are placed by `axis`.
        axis: the result's axis that the remaining one-dimensional inputs lie along.
    """

    def __init__(
        self,
        body: Callable[[NodeProblem], Body],
        refuse: Callable[[NodeProblem], str | None] = lambda _problem: None,
        operands: int = 2,
        axis: Callable[[NodeProblem], int] = lambda _problem: 0,
    ) -> None:
        self._body, self._refuse, self._operands, self._axis = body, refuse, operands, axis

    def refuse(self, problem: NodeProblem) -> str | None:
        """As given."""
        return self._refuse(problem)

    def regions(self, problem: NodeProblem) -> list[Region]:
        """One region: the output."""
        out = problem.outputs[0]
        rank = len(out.shape)
        views = []
        for i, buf in enumerate(problem.inputs):
            first = None if i < self._operands else self._axis(problem)
            views.append((i, 0, aligned_strides(buf, rank, first=first)))
        return [whole(out, views, self._body(problem))]


def _needs(*dtypes: str) -> Callable[[NodeProblem], str | None]:
    """Refuse problems with an operand outside `dtypes`."""

    def refuse(problem: NodeProblem) -> str | None:
        found = {buf.dtype for buf in (*problem.inputs, *problem.outputs)} - set(dtypes)
        return f"{problem.op} over {', '.join(sorted(found))}: expected {' or '.join(dtypes)}" if found else None

    return refuse


def _converts(sources: Sequence[str], results: Sequence[str]) -> Callable[[NodeProblem], str | None]:
    """Refuse problems that do not convert one of `sources` to one of `results`."""

    def refuse(problem: NodeProblem) -> str | None:
        source, result = problem.inputs[0].dtype, problem.outputs[0].dtype
        if source in sources and result in results:
            return None
        return f"{problem.op} from {source} to {result}: expected {' or '.join(sources)} to {' or '.join(results)}"

    return refuse


def _unary(problem: NodeProblem) -> Body:
    function = UNARY[problem.op]
    return lambda v, xs: finish(v, problem, function(v, problem.attrs, xs[0]))


def _signed(problem: NodeProblem) -> Body:
    function, dtype = SIGNED[problem.op], problem.inputs[0].dtype
    return lambda v, xs: finish(v, problem, function(v, xs[0], dtype))


def _binary(problem: NodeProblem) -> Body:
    function, dtype = BINARY[problem.op], problem.inputs[0].dtype
    # Integer sums that wrap do so as in the reference: LLVM knows neither the operands' ranges nor what becomes of the result.
    return lambda v, xs: finish(v, problem, function(v, problem.attrs, xs[0], xs[1], dtype))


def _numbers(problem: NodeProblem) -> str | None:
    """Refuse truth values and operands of different types."""
    dtypes = {buf.dtype for buf in (*problem.inputs, *problem.outputs)}
    if len(dtypes) == 1 and "bool" not in dtypes:
        return None
    return f"{problem.op} over {', '.join(sorted(dtypes))}: expected one type of numbers for all operands"


def _prelu(problem: NodeProblem) -> Body:
    return lambda v, xs: finish(v, problem, v.select(xs[0] < v.f32(0), xs[1] * xs[0], xs[0]))


def _batch_normalization(problem: NodeProblem) -> Body:
    epsilon = float(problem.attrs.epsilon)

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        x, scale, bias, mean, var = xs
        return finish(v, problem, (x - mean) * (scale / v.k.math("sqrt", var + v.f32(epsilon))) + bias)

    return body


def _requantize(problem: NodeProblem) -> Body:
    out, attrs = problem.outputs[0], problem.attrs
    bias = code_bias(out, signed=attrs.out.storage.signed)

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        # Multipliers fit int32, which lets a 32 x 32 -> 64 bit multiplication be used.
        acc, m, n = (v.cast(v.cast(x, "int32"), "int64") for x in xs)
        code = requantize(v, acc, m, n, v.i64(out.zero_point), v.i64(attrs.lo + bias), v.i64(attrs.hi + bias))
        return v.cast(code, out.dtype)

    return body


def _int_add(problem: NodeProblem) -> Body:
    (a, b), out, at = problem.inputs, problem.outputs[0], problem.attrs
    bias = code_bias(out, signed=at.out.storage.signed)
    # Every partial sum in this order fits int32 by IntAdd's definition: 255 * (|ma| + |mb|) + 2^(n-1) < 2^31.
    first = -at.ma * a.zero_point
    second = (1 << (at.n - 1)) - at.mb * b.zero_point

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        left, right = (v.cast(x, "int32") * v.i32(m) for x, m in zip(xs, (at.ma, at.mb), strict=True))
        total = left + v.i32(first) + right + v.i32(second)
        code = v.k.shift_right(total, v.i32(at.n)) + v.i32(out.zero_point)
        return v.cast(v.clamp(code, at.lo + bias, at.hi + bias, "int32"), out.dtype)

    return body


def _int_mul(problem: NodeProblem) -> Body:
    (a, b), out, at = problem.inputs, problem.outputs[0], problem.attrs
    bias = code_bias(out, signed=at.out.storage.signed)

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        left, right = (v.cast(x, "int32") - v.i32(buf.zero_point) for x, buf in zip(xs, (a, b), strict=True))
        product = v.cast(left * right, "int64")
        lo, hi = v.i64(at.lo + bias), v.i64(at.hi + bias)
        return v.cast(requantize(v, product, v.i64(at.m), v.i64(at.n), v.i64(out.zero_point), lo, hi), out.dtype)

    return body


def _quantize(problem: NodeProblem) -> Body:
    out, quant = problem.outputs[0], problem.attrs.out
    bias = code_bias(out, signed=quant.storage.signed)
    lo, hi = quant.storage.min + bias - out.zero_point, quant.storage.max + bias - out.zero_point
    scale = float(np.float32(quant.scale[0]))

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        # Clamping to integers before rounding equals clamping after it, and keeps the rounding in range.
        ratio = v.clamp(xs[0] / v.f32(scale), lo, hi, "float32")
        return v.cast(functions.round_to_int(v, ratio) + v.i32(out.zero_point), out.dtype)

    return body


def _dequantize(problem: NodeProblem) -> Body:
    scale, zero_point = float(np.float32(problem.scales[0])), problem.inputs[0].zero_point

    def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
        return finish(v, problem, v.cast(v.cast(xs[0], "int32") - v.i32(zero_point), "float32") * v.f32(scale))

    return body


class _Lut(Regional):
    """table[code - lowest code]; entries are converted to the result's storage where it differs from the table's."""

    def refuse(self, problem: NodeProblem) -> str | None:
        return _CODES(problem)

    def regions(self, problem: NodeProblem) -> list[Region]:
        (x, table), out = problem.inputs, problem.outputs[0]
        lowest = lowest_code(x, table.size)

        def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
            entry = v.gather(xs[1], v.cast(xs[0], "int32") - v.i32(lowest))
            if table.dtype == out.dtype:
                return entry
            return v.bitcast(v.bitcast(entry, "uint8") ^ v.const(128, "uint8"), out.dtype)

        return [whole(out, [(0, 0, x.strides())], body, table=1)]


class _Stairs(Regional):
    """The lowest code, and one more for each threshold below the operand; operands are stored codes and thresholds."""

    def refuse(self, problem: NodeProblem) -> str | None:
        return _CODES(problem)

    def regions(self, problem: NodeProblem) -> list[Region]:
        (x, thresholds), out = problem.inputs, problem.outputs[0]

        def body(v: Lanes, xs: Sequence[Expr]) -> Expr:
            code = v.const(problem.attrs.lowest, out.dtype)
            for threshold in xs[1:]:
                code = code + v.select(xs[0] > threshold, v.const(1, out.dtype), v.const(0, out.dtype))
            return code

        still = (0,) * len(out.shape)
        return [whole(out, [(0, 0, x.strides()), *((1, step, still) for step in range(thresholds.size))], body)]


_CODE_TYPES = ("int8", "uint8")
_FLOAT = _needs("float32")
_CODES = _needs(*_CODE_TYPES)

for _name in UNARY:
    define(_name, Elementwise(_unary, _FLOAT))
for _name in BINARY:
    define(_name, Elementwise(_binary, _numbers))
for _name in SIGNED:
    define(_name, Elementwise(_signed, _numbers))
define("PRelu", Elementwise(_prelu, _FLOAT))
define("BatchNormalization", Elementwise(_batch_normalization, _FLOAT, operands=1, axis=lambda _p: 1))
define("Requantize", Elementwise(_requantize, _converts(("int32",), _CODE_TYPES), operands=1, axis=lambda p: int(p.attrs.axis)))
define("IntAdd", Elementwise(_int_add, _CODES))
define("IntMul", Elementwise(_int_mul, _CODES))
define("Lut", _Lut())
define("Stairs", _Stairs())
define("Quantize", Elementwise(_quantize, _converts(("float32",), _CODE_TYPES)))
define("Dequantize", Elementwise(_dequantize, _converts(_CODE_TYPES, ("float32",))))
