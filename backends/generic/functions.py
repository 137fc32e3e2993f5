"""Transcendental functions from float32 multiplications and additions, so that objects need no libm.

Each is range reduction plus a minimax polynomial (Lawson's iteratively reweighted least squares on Chebyshev nodes). Errors
stated are the largest |d| / |f| over the named range in float32 arithmetic, swept against float64 by the tests.
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


def polynomial(v: Lanes, x: Expr, coefficients: Sequence[float]) -> Expr:
    """Sum of coefficients[i] * x^i by Horner's rule."""
    result = v.f32(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + v.f32(c)
    return result


def round_to_int(v: Lanes, x: Expr) -> Expr:
    """int32 of `x` rounded half to even; |x| < 2^22."""
    return v.bitcast(x + v.f32(_ROUND), "int32") - v.i32(_ROUND_BITS)


def exp(v: Lanes, x: Expr) -> Expr:
    """e^x within 2e-7; 0 below about -87.3 and infinity above 88.72."""
    clamped = v.clamp(x, _EXP_LOW, _EXP_HIGH, "float32")
    n = round_to_int(v, clamped * v.f32(1 / math.log(2)))
    whole = v.cast(n, "float32")
    r = clamped - whole * v.f32(_LN2_HIGH) - whole * v.f32(_LN2_LOW)
    # 2^n in two factors, because 2^128 is no float32.
    low = v.k.shift_right(n, v.i32(1))
    factors = [v.bitcast(v.k.shift_left(part + v.i32(127), v.i32(23)), "float32") for part in (low, n - low)]
    value = (r * r * polynomial(v, r, _EXP) + r + v.f32(1)) * factors[0] * factors[1]
    value = v.select(x > v.f32(_EXP_HIGH), v.f32(np.inf), value)
    return v.select(x < v.f32(_EXP_LOW), v.f32(0), value)


def log(v: Lanes, x: Expr) -> Expr:
    """Natural logarithm within 2e-7, subnormal operands included; -infinity of 0, NaN below it and of NaN."""
    small = x < v.f32(_SMALLEST_NORMAL)
    bits = v.bitcast(v.select(small, x * v.f32(2.0**23), x), "int32")
    exponent = v.k.shift_right(bits - v.i32(_SQRT_HALF_BITS), v.i32(23))
    r = v.bitcast(bits - v.k.shift_left(exponent, v.i32(23)), "float32") - v.f32(1)
    whole = v.cast(exponent - v.select(small, v.i32(23), v.i32(0)), "float32")
    near = r * r * r * polynomial(v, r, _LOG) - v.f32(0.5) * r * r
    value = near + whole * v.f32(_LN2_LOW) + r + whole * v.f32(_LN2_HIGH)
    value = v.select(x > v.f32(np.finfo(np.float32).max), v.f32(np.inf), value)
    # The sign of zero does not count, and a comparison with NaN does not hold.
    return v.select(x > v.f32(0), value, v.select(absolute(v, x) > v.f32(0), v.f32(np.nan), v.select(small, v.f32(-np.inf), x)))


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
    z = absolute(v, x)
    near = z + z * (z * z) * polynomial(v, z * z, _TANH)
    far = v.f32(1) - v.f32(2) / (exp(v, z + z) + v.f32(1))
    return with_sign(v, v.select(z < v.f32(_TANH_SMALL), near, far), x)


def _erfc_far(v: Lanes, z: Expr) -> Expr:
    """1 - erf(z) for z >= 1."""
    return exp(v, polynomial(v, v.min(z, v.f32(_ERF_ONE)), _LOG_ERFC))


def erf(v: Lanes, x: Expr) -> Expr:
    """Error function within 3e-7."""
    z = absolute(v, x)
    near = z * polynomial(v, z * z, _ERF)
    far = v.f32(1) - _erfc_far(v, z)
    return with_sign(v, v.select(z < v.f32(_ERF_SMALL), near, far), x)


def gelu(v: Lanes, x: Expr) -> Expr:
    """GELU, x * Phi(x), within 1e-7 of |x|; the left tail keeps its relative precision down to x = -5.6."""
    z = absolute(v, x) * v.f32(math.sqrt(0.5))
    near = v.f32(1) - z * polynomial(v, z * z, _ERF)
    tail = v.f32(0.5) * v.select(z < v.f32(_ERF_SMALL), near, _erfc_far(v, z))
    return x * v.select(x < v.f32(0), tail, v.f32(1) - tail)
