"""Circular and hyperbolic functions and their inverses from float32 arithmetic, as `functions` has the exponential ones.

The argument of sine, cosine and tangent is reduced in float64: products of a quotient below 2^29 and parts of pi/2 of 24 bits are
exact, so results are as precise at 1e8 as at 1. Beyond |x| = 2^28 precision is lost, but results of sine and cosine stay within
[-1, 1]. Infinity and NaN give NaN.
"""

from __future__ import annotations

import math

import numpy as np

from bevel.backends.generic.functions import absolute, exp, hold, limit, log, log1p, polynomial, with_sign
from bevel.backends.generic.lanes import Lanes
from bevel.backends.tvm import Expr

# sin r = r + r^3 P(r^2) on |r| <= pi/4; 3.7e-9.
_SIN = (-0.16666667, 0.008333329, -0.00019839313, 2.7181216e-06)
# cos r = 1 - r^2 / 2 + r^4 P(r^2) on |r| <= pi/4; 1.8e-10.
_COS = (0.041666646, -0.0013887316, 2.4433157e-05)
# tan r = r + r^3 P(r^2) on |r| <= pi/4; 2.6e-8.
_TAN = (0.33333156, 0.133388, 0.0534112, 0.024430418, 0.00311947, 0.009385667)
# asin x = x + x^3 P(x^2) on |x| <= 1/2; 5.9e-9.
_ASIN = (0.16666752, 0.074952975, 0.045470387, 0.024179451, 0.042166423)
# atan x = x + x^3 P(x^2) on |x| <= tan(pi/8); 2.2e-8.
_ATAN = (-0.3333295, 0.1997771, -0.13877672, 0.08053699)
# sinh x = x + x^3 P(x^2) on |x| <= 1; 5.3e-9.
_SINH = (0.16666667, 0.00833335, 0.0001983616, 2.8169513e-06)

# pi/2 in parts of 24, 24 and 53 bits; the last includes what float64 leaves of it.
_HALF_PI_1 = float(np.float32(math.pi / 2))
_HALF_PI_2 = float(np.float32(math.pi / 2 - _HALF_PI_1))
_HALF_PI_3 = (math.pi / 2 - _HALF_PI_1 - _HALF_PI_2) + 6.123233995736766e-17
# 1.5 * 2^52: adding it leaves the integer next to a float64 in the low mantissa bits.
_ROUND_WIDE = 6755399441055744.0
# Where squares would overflow, logarithms of sums are those of the greater summand.
_LARGE = 1e9


def _quadrant(v: Lanes, x: Expr) -> tuple[Expr, Expr]:
    """int32 n and float32 r with x = n pi/2 + r and |r| <= pi/4."""
    wide = hold(v, v.cast(x, "float64"), "float64")
    rounded = hold(v, wide * v.const(2 / math.pi, "float64") + v.const(_ROUND_WIDE, "float64"), "float64")
    whole = hold(v, rounded - v.const(_ROUND_WIDE, "float64"), "float64")
    for part in (_HALF_PI_1, _HALF_PI_2, _HALF_PI_3):
        wide = hold(v, wide - whole * v.const(part, "float64"), "float64")
    n = hold(v, v.cast(v.bitcast(rounded, "int64"), "int32"), "int32")
    return n, hold(v, limit(v, v.cast(wide, "float32"), -math.pi / 4, math.pi / 4), "float32")


def _odd(v: Lanes, r: Expr, coefficients: tuple[float, ...]) -> Expr:
    """The odd polynomial r + r^3 P(r^2)."""
    square = hold(v, r * r, "float32")
    return r + r * square * polynomial(v, square, coefficients)


def _turned(v: Lanes, n: Expr, r: Expr) -> Expr:
    """sin(n pi/2 + r)."""
    square = hold(v, r * r, "float32")
    cosine = v.f32(1) - v.f32(0.5) * square + square * square * polynomial(v, square, _COS)
    value = hold(v, v.select((n & v.i32(1)) > v.i32(0), cosine, _odd(v, r, _SIN)), "float32")
    return v.select((n & v.i32(2)) > v.i32(0), v.f32(0) - value, value)


def sin(v: Lanes, x: Expr) -> Expr:
    """Sine within 2e-7."""
    return _turned(v, *_quadrant(v, x))


def cos(v: Lanes, x: Expr) -> Expr:
    """Cosine within 2e-7."""
    n, r = _quadrant(v, x)
    return _turned(v, n + v.i32(1), r)


def tan(v: Lanes, x: Expr) -> Expr:
    """Tangent within 4e-7."""
    n, r = _quadrant(v, x)
    value = hold(v, _odd(v, r, _TAN), "float32")
    return v.select((n & v.i32(1)) > v.i32(0), v.f32(-1) / value, value)


def _asin_of_half(v: Lanes, z: Expr) -> Expr:
    """asin(z) for z <= 1/2, and asin(sqrt((1 - z) / 2)) beyond; NaN for z > 1."""
    square = hold(v, v.select(z > v.f32(0.5), (v.f32(1) - z) * v.f32(0.5), z * z), "float32")
    root = hold(v, v.select(z > v.f32(0.5), v.k.math("sqrt", square), z), "float32")
    return hold(v, root + root * square * polynomial(v, square, _ASIN), "float32")


def asin(v: Lanes, x: Expr) -> Expr:
    """Inverse sine within 3e-7; NaN outside [-1, 1]."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    angle = _asin_of_half(v, z)
    return with_sign(v, v.select(z > v.f32(0.5), v.f32(math.pi / 2) - (angle + angle), angle), x)


def acos(v: Lanes, x: Expr) -> Expr:
    """Inverse cosine within 3e-7; NaN outside [-1, 1]."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    angle = _asin_of_half(v, z)
    double = angle + angle
    far = v.select(x < v.f32(0), v.f32(math.pi) - double, double)
    return v.select(z > v.f32(0.5), far, v.f32(math.pi / 2) - with_sign(v, angle, x))


def atan(v: Lanes, x: Expr) -> Expr:
    """Inverse tangent within 3e-7."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    t = hold(v, v.select(z > v.f32(1), v.f32(1) / z, z), "float32")
    steep = t > v.f32(math.tan(math.pi / 8))
    u = hold(v, v.select(steep, (t - v.f32(1)) / (t + v.f32(1)), t), "float32")
    angle = hold(v, _odd(v, u, _ATAN) + v.select(steep, v.f32(math.pi / 4), v.f32(0)), "float32")
    return with_sign(v, v.select(z > v.f32(1), v.f32(math.pi / 2) - angle, angle), x)


def sinh(v: Lanes, x: Expr) -> Expr:
    """Hyperbolic sine within 6e-7."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    # e^z overflows before sinh z does; its root does not.
    root = hold(v, exp(v, v.f32(0.5) * z), "float32")
    far = v.f32(0.5) * root * root - v.f32(0.5) / root / root
    return with_sign(v, v.select(z < v.f32(1), _odd(v, z, _SINH), far), x)


def cosh(v: Lanes, x: Expr) -> Expr:
    """Hyperbolic cosine within 6e-7."""
    root = hold(v, exp(v, v.f32(0.5) * absolute(v, x)), "float32")
    return v.f32(0.5) * root * root + v.f32(0.5) / root / root


def asinh(v: Lanes, x: Expr) -> Expr:
    """Inverse hyperbolic sine within 4e-7: log(1 + (z + z^2 / (1 + sqrt(1 + z^2))))."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    near = hold(v, limit(v, z, -math.inf, _LARGE), "float32")
    square = near * near
    value = log1p(v, near + square / (v.f32(1) + v.k.math("sqrt", v.f32(1) + square)))
    return with_sign(v, v.select(z > v.f32(_LARGE), log(v, z) + v.f32(math.log(2)), value), x)


def acosh(v: Lanes, x: Expr) -> Expr:
    """Inverse hyperbolic cosine within 4e-7: log(1 + (t + sqrt(2 t + t^2))) with t = x - 1; NaN below 1."""
    x = hold(v, x, "float32")
    t = hold(v, limit(v, x, -math.inf, _LARGE) - v.f32(1), "float32")
    value = log1p(v, t + v.k.math("sqrt", t * (t + v.f32(2))))
    value = v.select(x > v.f32(_LARGE), log(v, x) + v.f32(math.log(2)), value)
    return v.select(x < v.f32(1), v.f32(np.nan), value)


def atanh(v: Lanes, x: Expr) -> Expr:
    """Inverse hyperbolic tangent within 4e-7: log(1 + 2 z / (1 - z)) / 2; NaN outside [-1, 1]."""
    x = hold(v, x, "float32")
    z = hold(v, absolute(v, x), "float32")
    return with_sign(v, v.f32(0.5) * log1p(v, (z + z) / (v.f32(1) - z)), x)
