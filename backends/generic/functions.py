"""Transcendental functions from float32 multiplications and additions, so that objects need no libm.

Each is range reduction plus a minimax polynomial (Lawson's iteratively reweighted least squares on Chebyshev nodes). Errors
stated are the largest |d| / |f| over the named range in float32 arithmetic, swept against float64 by the tests. NaN gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bevel.backends.generic.lanes import Lanes
from bevel.backends.tvm import Expr

# 1.5 * 2^23: adding it to |x| < 2^22 leaves round-half-even(x) in the low mantissa bits, with no conversion instruction.
_ROUND = 12582912.0
_ROUND_BITS = 0x4B400000

_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
# e^r = 1 + r + r^2 P(r) on |r| <= ln(2)/2; 3.4e-9.
_EXP = (0.5, 0.166665122, 0.0416661873, 0.00836959854, 0.00139517174)
# Between these, e^x is a normal float32.
_EXP_LOW, _EXP_HIGH = -87.33654, 88.72283
# tanh x = x + x^3 P(x^2) on |x| <= 0.625; 4.1e-9.
_TANH = (-0.333332837, 0.133314908, -0.0537434965, 0.0206505787, -0.00571703678)
_TANH_SMALL = 0.625
# erf x = x P(x^2) on |x| <= 1; 1.2e-9.
_ERF = (1.12837911, -0.37612626, 0.112836003, -0.0268544443, 0.00518953521, -0.000802084105, 7.8891193e-05)
# erfc x = e^P(x) on [1, 4]; 1.6e-9 of erf. Beyond 4, erfc is below 2^-25.
_LOG_ERFC = (
    -9.39824604e-05,
    -1.12835836,
    -0.635421455,
    -0.106274225,
    0.0239921715,
    -0.00380336051,
    0.000370051537,
    -1.64212415e-05,
)
_ERF_SMALL, _ERF_ONE = 1.0, 4.0
# log(1 + r) = r - r^2 / 2 + r^3 P(r) on sqrt(1/2) <= 1 + r <= sqrt(2); 5.9e-9.
_LOG = (0.333333313, -0.250008196, 0.200012267, -0.166233569, 0.142017588, -0.131601825, 0.12761575, -0.0763449296)
_SQRT_HALF_BITS = 0x3F3504F3
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_GREATEST = float(np.finfo(np.float32).max)


def polynomial(v: Lanes, x: Expr, coefficients: Sequence[float]) -> Expr:
    """Sum of coefficients[i] * x^i by Horner's rule."""
    result = v.f32(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + v.f32(c)
    return result


def round_to_int(v: Lanes, x: Expr) -> Expr:
    """int32 of `x` rounded half to even; |x| < 2^22."""
    return v.bitcast(x + v.f32(_ROUND), "int32") - v.i32(_ROUND_BITS)


def hold(v: Lanes, value: Expr, dtype: str) -> Expr:
    """`value` in a register: code of an expression is generated once for each of its uses."""
    register = v.k.alloc(v.n, dtype)
    v.store(register, 0, value)
    return v.load(register, 0)


def limit(v: Lanes, x: Expr, lo: float, hi: float) -> Expr:
    """`x` within constants [lo, hi], NaN if it is NaN (the builder's min and max lose it); one infinite bound costs nothing."""
    x = hold(v, x, "float32")
    x = x if lo == -math.inf else hold(v, v.select(x < v.f32(lo), v.f32(lo), x), "float32")
    return x if hi == math.inf else v.select(x > v.f32(hi), v.f32(hi), x)


def _reduced(v: Lanes, x: Expr) -> tuple[Expr, Expr]:
    """int32 n and r in [-ln(2)/2, ln(2)/2] with x = n ln(2) + r; |x| < 2^20."""
    n = hold(v, round_to_int(v, x * v.f32(1 / math.log(2))), "int32")
    whole = v.cast(n, "float32")
    return n, hold(v, x - whole * v.f32(_LN2_HIGH) - whole * v.f32(_LN2_LOW), "float32")


def power_of_two(v: Lanes, n: Expr) -> Expr:
    """2^n for int32 n in -126..127."""
    return v.bitcast(v.k.shift_left(n + v.i32(127), v.i32(23)), "float32")


def exp_reduced(v: Lanes, n: Expr, r: Expr) -> Expr:
    """2^n e^r for |r| <= ln(2)/2 and n in -252..254."""
    # 2^n in two factors, because 2^128 is no float32.
    low = v.k.shift_right(n, v.i32(1))
    return (r * r * polynomial(v, r, _EXP) + r + v.f32(1)) * power_of_two(v, low) * power_of_two(v, n - low)


def exp(v: Lanes, x: Expr) -> Expr:
    """e^x within 2e-7; 0 below about -87.3 and infinity above 88.72."""
    x = hold(v, x, "float32")
    value = exp_reduced(v, *_reduced(v, hold(v, limit(v, x, _EXP_LOW, _EXP_HIGH), "float32")))
    value = v.select(x > v.f32(_EXP_HIGH), v.f32(np.inf), value)
    return v.select(x < v.f32(_EXP_LOW), v.f32(0), value)


def exp_below(v: Lanes, x: Expr) -> Expr:
    """e^x within 2e-7 for x <= 0, in two thirds of the instructions of `exp`; 0 below about -87.3."""
    x = hold(v, x, "float32")
    n, r = _reduced(v, hold(v, v.select(x < v.f32(_EXP_LOW), v.f32(_EXP_LOW), x), "float32"))
    value = (r * r * polynomial(v, r, _EXP) + r + v.f32(1)) * power_of_two(v, n)
    return v.select(x < v.f32(_EXP_LOW), v.f32(0), value)


def expm1_below(v: Lanes, x: Expr) -> Expr:
    """e^x - 1 within 3e-7 for x <= 0, and 0 for x > 0."""
    n, r = _reduced(v, hold(v, limit(v, x, _EXP_LOW, 0.0), "float32"))
    scale = hold(v, power_of_two(v, n), "float32")
    return scale * (r * r * polynomial(v, r, _EXP) + r) + (scale - v.f32(1))


def _log_of(v: Lanes, r: Expr, exponent: Expr) -> Expr:
    """log(1 + r) + exponent * ln(2) for 1 + r in [sqrt(1/2), sqrt(2)]."""
    near = r * r * r * polynomial(v, r, _LOG) - v.f32(0.5) * r * r
    return near + exponent * v.f32(_LN2_LOW) + r + exponent * v.f32(_LN2_HIGH)


def log(v: Lanes, x: Expr) -> Expr:
    """Natural logarithm within 2e-7, of subnormals too where the CPU has them; -infinity of 0, NaN below it and of NaN."""
    x = hold(v, x, "float32")
    small = x < v.f32(_SMALLEST_NORMAL)
    bits = hold(v, v.bitcast(v.select(small, x * v.f32(2.0**23), x), "int32"), "int32")
    exponent = hold(v, v.k.shift_right(bits - v.i32(_SQRT_HALF_BITS), v.i32(23)), "int32")
    r = hold(v, v.bitcast(bits - v.k.shift_left(exponent, v.i32(23)), "float32") - v.f32(1), "float32")
    value = _log_of(v, r, hold(v, v.cast(exponent - v.select(small, v.i32(23), v.i32(0)), "float32"), "float32"))
    value = v.select(x > v.f32(_GREATEST), v.f32(np.inf), value)
    # The sign of zero does not count, and a comparison with NaN does not hold.
    return v.select(x > v.f32(0), value, v.select(absolute(v, x) > v.f32(0), v.f32(np.nan), v.select(small, v.f32(-np.inf), x)))


def log1p(v: Lanes, t: Expr) -> Expr:
    """log(1 + t) within 3e-7; -infinity of -1 and NaN below."""
    t = hold(v, t, "float32")
    total = hold(v, v.f32(1) + t, "float32")
    bits = hold(v, v.bitcast(total, "int32"), "int32")
    exponent = hold(v, v.k.shift_right(bits - v.i32(_SQRT_HALF_BITS), v.i32(23)), "int32")
    # Where no power of two splits off, t itself is r: the sum would have rounded it.
    split = v.bitcast(bits - v.k.shift_left(exponent, v.i32(23)), "float32") - v.f32(1)
    r = hold(v, v.select(absolute(v, v.cast(exponent, "float32")) > v.f32(0), split, t), "float32")
    value = _log_of(v, r, hold(v, v.cast(exponent, "float32"), "float32"))
    value = v.select(total > v.f32(_GREATEST), v.f32(np.inf), value)
    edge = v.select(total < v.f32(0), v.f32(np.nan), v.f32(-np.inf))
    return v.select(total > v.f32(0), value, v.select(is_nan(v, t) > v.i32(0), t, edge))


def is_nan(v: Lanes, x: Expr) -> Expr:
    """int32 1 where `x` is NaN, else 0; by its bits, because simplifiers take x = x for granted."""
    magnitude = v.bitcast(x, "int32") & v.i32(0x7FFFFFFF)
    return v.select(magnitude > v.i32(0x7F800000), v.i32(1), v.i32(0))


def absolute(v: Lanes, x: Expr) -> Expr:
    """|x|: the sign bit cleared."""
    return v.bitcast(v.bitcast(x, "uint32") & v.const(0x7FFFFFFF, "uint32"), "float32")


def with_sign(v: Lanes, magnitude: Expr, x: Expr) -> Expr:
    """`magnitude` (not negative) with the sign of `x`."""
    sign = v.bitcast(x, "uint32") & v.const(0x80000000, "uint32")
    return v.bitcast(v.bitcast(magnitude, "uint32") | sign, "float32")


def sigmoid(v: Lanes, x: Expr) -> Expr:
    """1 / (1 + e^-x) within 4e-7."""
    return v.f32(1) / (v.f32(1) + exp(v, v.f32(0) - x))


def tanh(v: Lanes, x: Expr) -> Expr:
    """Hyperbolic tangent within 4e-7."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    near = z + z * (z * z) * polynomial(v, z * z, _TANH)
    far = v.f32(1) - v.f32(2) / (exp(v, z + z) + v.f32(1))
    return with_sign(v, v.select(z < v.f32(_TANH_SMALL), near, far), x)


def _erfc_far(v: Lanes, z: Expr) -> Expr:
    """1 - erf(z) for z >= 1."""
    return exp(v, polynomial(v, hold(v, limit(v, z, -math.inf, _ERF_ONE), "float32"), _LOG_ERFC))


def erf(v: Lanes, x: Expr) -> Expr:
    """Error function within 3e-7."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    near = z * polynomial(v, z * z, _ERF)
    far = v.f32(1) - _erfc_far(v, z)
    return with_sign(v, v.select(z < v.f32(_ERF_SMALL), near, far), x)


def gelu(v: Lanes, x: Expr) -> Expr:
    """GELU, x * Phi(x), within 1e-7 of |x|; the left tail keeps its relative precision down to x = -5.6."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x) * v.f32(math.sqrt(0.5)), "float32")
    near = v.f32(1) - z * polynomial(v, z * z, _ERF)
    tail = v.f32(0.5) * v.select(z < v.f32(_ERF_SMALL), near, _erfc_far(v, z))
    return x * v.select(x < v.f32(0), tail, v.f32(1) - tail)


def silu(v: Lanes, x: Expr, alpha: float = 1.0) -> Expr:
    """SiLU, x * sigmoid(alpha * x)."""
    x = hold(v, x, "float32")
    return x * sigmoid(v, x * v.f32(alpha) if alpha != 1.0 else x)


def gelu_tanh(v: Lanes, x: Expr) -> Expr:
    """GELU by tanh: x / 2 * (1 + tanh(u)) = x * sigmoid(2 u)."""
    x = hold(v, x, "float32")
    return x * sigmoid(v, v.f32(2 * math.sqrt(2 / math.pi)) * (x + v.f32(0.044715) * x * x * x))


def softplus(v: Lanes, x: Expr) -> Expr:
    """log(1 + e^x) as max(x, 0) + log(1 + e^-|x|)."""
    x = hold(v, x, "float32")
    return limit(v, x, 0.0, math.inf) + log1p(v, exp(v, v.f32(0) - absolute(v, x)))


def mish(v: Lanes, x: Expr) -> Expr:
    """Mish, x * tanh(softplus(x)): with w = e^x (e^x + 2) that is x * w / (w + 2)."""
    x = hold(v, x, "float32")
    # Beyond 20 the quotient is 1, and w stays far from overflow.
    e = hold(v, exp(v, limit(v, x, -math.inf, 20.0)), "float32")
    w = hold(v, e * (e + v.f32(2)), "float32")
    return x * (w / (w + v.f32(2)))


def elu(v: Lanes, x: Expr, alpha: float, width: float = 1.0) -> Expr:
    """x, or alpha * (e^(x / width) - 1) where x is negative."""
    x = hold(v, x, "float32")
    return v.select(x > v.f32(0), x, v.f32(alpha) * expm1_below(v, x / v.f32(width) if width != 1.0 else x))


def truncated(v: Lanes, x: Expr) -> Expr:
    """The integer next to `x` towards zero, as float32, with the sign of `x`."""
    z = hold(v, absolute(v, x), "float32")
    # From 2^23 on every float32 is an integer.
    small = v.cast(v.cast(v.select(z < v.f32(2.0**23), z, v.f32(0)), "int32"), "float32")
    return with_sign(v, v.select(z < v.f32(2.0**23), small, z), x)


def floor(v: Lanes, x: Expr) -> Expr:
    """The integer at or below `x`."""
    x = hold(v, x, "float32")
    t = hold(v, truncated(v, x), "float32")
    return v.select(t > x, t - v.f32(1), t)


def ceil(v: Lanes, x: Expr) -> Expr:
    """The integer at or above `x`."""
    x = hold(v, x, "float32")
    t = hold(v, truncated(v, x), "float32")
    return v.select(t < x, t + v.f32(1), t)


def round_even(v: Lanes, x: Expr) -> Expr:
    """The integer next to `x`, the even one of two."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    near = v.cast(round_to_int(v, v.select(z < v.f32(2.0**22), z, v.f32(0))), "float32")
    # Between 2^22 and 2^23 halves remain; adding 2^23 rounds them away.
    large = hold(v, z + v.f32(2.0**23), "float32") - v.f32(2.0**23)
    rounded = v.select(z < v.f32(2.0**22), near, v.select(z < v.f32(2.0**23), large, z))
    return with_sign(v, rounded, x)


def negative(v: Lanes, x: Expr) -> Expr:
    """-x: the sign bit turned."""
    return v.bitcast(v.bitcast(x, "uint32") ^ v.const(0x80000000, "uint32"), "float32")


def sign(v: Lanes, x: Expr, dtype: str) -> Expr:
    """-1, 0 or 1 in `dtype`; NaN of NaN."""
    zero, one = v.const(0, dtype), v.const(1, dtype)
    below = x if dtype.startswith("uint") else v.select(x < zero, v.const(-1, dtype), x)
    return v.select(x > zero, one, below)
