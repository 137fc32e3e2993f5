"""Division, remainders and powers: of integers without traps or library calls, of reals through float64.

Processors without a 64-bit divider would call a function, so 64-bit integers are divided bit by bit. Division by zero gives zero,
and the quotient of the least integer by -1 wraps. Remainders of reals are exact.
"""

from __future__ import annotations

import math

from bevel.backends.generic.functions import absolute, exp_reduced, hold, is_nan, with_sign
from bevel.backends.generic.lanes import Lanes
from bevel.backends.tvm import Expr

# 1.5 * 2^52: adding it leaves the integer next to a float64.
_ROUND_WIDE = 6755399441055744.0
_SQRT_HALF_BITS = 0x3F3504F3
# log((1 + s) / (1 - s)) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...); for |s| <= 0.1716 these terms leave 2e-14.
_LOG_TERMS = 8
# Beyond these, powers are 0 or infinite.
_LEAST_LOG, _GREATEST_LOG = -110.0, 90.0
# Quotients of reals reach 2^277; each step of long division takes 28 bits.
_REMAINDER_STEPS = 11
_QUOTIENT_MASK = -(1 << 24)


def divide(v: Lanes, a: Expr, b: Expr, dtype: str) -> Expr:
    """Integer a / b towards zero; 0 where b is 0."""
    if dtype in ("int64", "uint64"):
        return _divide_wide(v, a, b, dtype)
    if dtype == "uint32":
        a, b = hold(v, a, dtype), hold(v, b, dtype)
        quotient = v.k.math("truncdiv", a, v.max(b, v.const(1, dtype)))
        return v.select(b > v.const(0, dtype), quotient, v.const(0, dtype))
    a, b = hold(v, v.cast(a, "int32"), "int32"), hold(v, v.cast(b, "int32"), "int32")
    # -1 goes its own way too: the least integer has no opposite, and processors trap there.
    plain = v.select(b > v.i32(0), b, v.select(b < v.i32(-1), b, v.i32(1)))
    quotient = v.k.math("truncdiv", a, hold(v, plain, "int32"))
    edge = v.select(b < v.i32(0), v.i32(0) - a, v.i32(0))
    return v.cast(v.select(b > v.i32(0), quotient, v.select(b < v.i32(-1), quotient, edge)), dtype)


def _divide_wide(v: Lanes, a: Expr, b: Expr, dtype: str) -> Expr:
    """The schoolbook: one bit of the quotient at a time."""
    k, zero = v.k, v.const(0, dtype)
    a, b = hold(v, a, dtype), hold(v, b, dtype)
    one, none = v.const(1, "uint64"), v.const(0, "uint64")
    dividend, divisor = (
        hold(v, v.cast(v.select(x < zero, zero - x, x) if dtype == "int64" else x, "uint64"), "uint64") for x in (a, b)
    )
    quotient, rest = k.alloc(v.n, "uint64"), k.alloc(v.n, "uint64")
    v.store(quotient, 0, none)
    v.store(rest, 0, none)
    with k.serial(64) as i:
        bit = k.shift_right(dividend, k.splat(v.k.cast(k.i32(63) - i, "uint64"), v.n)) & one
        before = hold(v, v.load(rest, 0), "uint64")
        shifted = hold(v, k.shift_left(before, one) | bit, "uint64")
        # A bit that leaves at the top makes the rest greater than any divisor.
        fits = v.select(k.shift_right(before, v.const(63, "uint64")) > none, one, v.select(shifted >= divisor, one, none))
        fits = hold(v, fits, "uint64")
        v.store(rest, 0, v.select(fits > none, shifted - divisor, shifted))
        v.store(quotient, 0, k.shift_left(v.load(quotient, 0), one) | fits)
    value = hold(v, v.cast(v.load(quotient, 0), dtype), dtype)
    if dtype == "int64":
        value = v.select(a < zero, v.select(b < zero, value, zero - value), v.select(b < zero, zero - value, value))
    return v.select(_is_zero(v, b, dtype), zero, value)


def remainder(v: Lanes, a: Expr, b: Expr, dtype: str, *, fmod: bool) -> Expr:
    """What a / b leaves: with the sign of `a` if `fmod`, else of `b`. Integer remainders by 0 are 0."""
    if dtype == "float32":
        return _remainder_of_reals(v, a, b, fmod=fmod)
    zero = v.const(0, dtype)
    a, b = hold(v, a, dtype), hold(v, b, dtype)
    # By zero, the quotient is 0 and the product too.
    rest = hold(v, v.select(_is_zero(v, b, dtype), zero, a - divide(v, a, b, dtype) * b), dtype)
    if fmod or dtype.startswith("u"):
        return rest
    moved = rest + b
    return v.select(rest > zero, v.select(b < zero, moved, rest), v.select(rest < zero, v.select(b > zero, moved, rest), rest))


def _remainder_of_reals(v: Lanes, a: Expr, b: Expr, *, fmod: bool) -> Expr:
    """Long division in float64: a quotient of 29 bits times a divisor of 24 is exact, and so is what it leaves."""
    k = v.k
    a, b = hold(v, a, "float32"), hold(v, b, "float32")
    size = hold(v, v.cast(absolute(v, b), "float64"), "float64")
    rest = k.alloc(v.n, "float64")
    v.store(rest, 0, v.cast(absolute(v, a), "float64"))
    magic = v.const(_ROUND_WIDE, "float64")
    with k.serial(_REMAINDER_STEPS):
        bits = v.bitcast(v.load(rest, 0) / size, "int64") & v.const(_QUOTIENT_MASK, "int64")
        quotient = hold(v, v.bitcast(bits, "float64"), "float64")
        near = hold(v, quotient + magic, "float64") - magic
        near = hold(v, near, "float64")
        whole = v.select(near > quotient, near - v.const(1, "float64"), near)
        whole = v.select(quotient < v.const(2.0**51, "float64"), whole, quotient)
        v.store(rest, 0, v.load(rest, 0) - whole * size)
    left = hold(v, v.load(rest, 0), "float64")
    value = with_sign(v, v.cast(v.select(left >= size, left - size, left), "float32"), a)
    # Infinity divides nothing finite.
    finite = absolute(v, a) < v.f32(math.inf)
    endless = v.select(absolute(v, b) < v.f32(math.inf), v.i32(0), v.select(is_nan(v, b) > v.i32(0), v.i32(0), v.i32(1)))
    value = hold(v, v.select(endless > v.i32(0), v.select(finite, a, value), value), "float32")
    if fmod:
        return value
    crossed = (v.bitcast(value, "int32") ^ v.bitcast(b, "int32")) < v.i32(0)
    moved = v.select(absolute(v, value) > v.f32(0), v.select(crossed, value + b, value), with_sign(v, v.f32(0), b))
    return v.select(is_nan(v, value) > v.i32(0), value, moved)


def power(v: Lanes, a: Expr, b: Expr, dtype: str) -> Expr:
    """Power b of a, as C has it for reals (within 3e-7); integers wrap, and negative exponents truncate."""
    return _power_of_reals(v, a, b) if dtype == "float32" else _power_of_integers(v, a, b, dtype)


def _log_wide(v: Lanes, z: Expr) -> Expr:
    """float64 log of float32 z >= 0 within 1e-13; NaN of NaN."""
    small = z < v.f32(2.0**-126)
    bits = hold(v, v.bitcast(v.select(small, z * v.f32(2.0**23), z), "int32"), "int32")
    exponent = hold(v, v.k.shift_right(bits - v.i32(_SQRT_HALF_BITS), v.i32(23)), "int32")
    m = hold(v, v.cast(v.bitcast(bits - v.k.shift_left(exponent, v.i32(23)), "float32"), "float64"), "float64")
    one = v.const(1, "float64")
    s = hold(v, (m - one) / (m + one), "float64")
    square = hold(v, s * s, "float64")
    series = v.const(1 / (2 * _LOG_TERMS - 1), "float64")
    for term in range(_LOG_TERMS - 2, -1, -1):
        series = series * square + v.const(1 / (2 * term + 1), "float64")
    whole = v.cast(exponent - v.select(small, v.i32(23), v.i32(0)), "float64")
    value = whole * v.const(math.log(2), "float64") + (s + s) * series
    value = v.select(z > v.f32(0), value, v.const(-math.inf, "float64"))
    return v.select(z < v.f32(math.inf), value, v.cast(z, "float64"))


def _power_of_reals(v: Lanes, a: Expr, b: Expr) -> Expr:
    a, b = hold(v, a, "float32"), hold(v, b, "float32")
    z = hold(v, absolute(v, a), "float32")
    zero = v.const(0, "float64")
    exponent = hold(v, v.cast(b, "float64") * _log_wide(v, z), "float64")
    # 1 to any power and anything to the power 0 is 1, NaN and infinity included; so is -1 to an infinite one.
    huge = absolute(v, b) > v.f32(3e38)
    ones = v.select(a > v.f32(0), zero, v.select(huge, zero, exponent))
    other = v.select(z > v.f32(1), v.i32(1), v.select(z < v.f32(1), v.i32(1), is_nan(v, z)))
    exponent = hold(v, v.select(other > v.i32(0), exponent, ones), "float64")
    nonzero = v.select(absolute(v, b) > v.f32(0), v.i32(1), is_nan(v, b))
    exponent = hold(v, v.select(nonzero > v.i32(0), exponent, zero), "float64")
    least, greatest = v.const(_LEAST_LOG, "float64"), v.const(_GREATEST_LOG, "float64")
    exponent = v.select(exponent < least, least, v.select(exponent > greatest, greatest, exponent))
    exponent = hold(v, exponent, "float64")
    magic = v.const(_ROUND_WIDE, "float64")
    rounded = hold(v, exponent * v.const(1 / math.log(2), "float64") + magic, "float64")
    whole = hold(v, rounded - magic, "float64")
    r = hold(v, v.cast(exponent - whole * v.const(math.log(2), "float64"), "float32"), "float32")
    n = hold(v, v.cast(v.bitcast(rounded, "int64"), "int32"), "int32")
    value = hold(v, exp_reduced(v, n, r), "float32")
    # From 2^24 on every float32 is an even integer.
    near = hold(v, v.select(absolute(v, b) < v.f32(2.0**24), b, v.f32(0)), "float32")
    integer = hold(v, v.cast(near, "int32"), "int32")
    broken = absolute(v, near - v.cast(integer, "float32")) > v.f32(0)
    signed = v.select(v.bitcast(a, "int32") < v.i32(0), v.select((integer & v.i32(1)) > v.i32(0), v.f32(0) - value, value), value)
    # Of what is below zero there is no power between integers.
    undefined = v.select(a < v.f32(0), v.select(z < v.f32(math.inf), v.f32(math.nan), value), value)
    return v.select(broken, undefined, signed)


def _power_of_integers(v: Lanes, a: Expr, b: Expr, dtype: str) -> Expr:
    """By repeated squaring, in 64 bits for 64-bit operands, else in 32."""
    k, signed = v.k, not dtype.startswith("u")
    wide = dtype if dtype.endswith("64") else "uint32" if dtype == "uint32" else "int32"
    one, zero = v.const(1, wide), v.const(0, wide)
    a, b = hold(v, v.cast(a, wide), wide), hold(v, v.cast(b, wide), wide)
    total, square = k.alloc(v.n, wide), k.alloc(v.n, wide)
    v.store(total, 0, one)
    v.store(square, 0, a)
    with k.serial(int(wide.lstrip("uint")) - signed) as i:
        bit = k.shift_right(b, k.splat(k.cast(i, wide), v.n)) & one
        held = hold(v, v.load(square, 0), wide)
        v.store(total, 0, v.select(bit > zero, _wrapping(v, v.load(total, 0), held, wide), v.load(total, 0)))
        v.store(square, 0, _wrapping(v, held, held, wide))
    value = v.load(total, 0)
    if signed:
        odd = (b & one) > zero
        unit = v.select(a > one, zero, v.select(a > zero, one, v.select(a < v.const(-1, wide), zero, v.const(-1, wide))))
        inverse = v.select(odd, unit, unit * unit)
        inverse = v.select(_is_zero(v, a, wide), zero, inverse)
        value = v.select(b < zero, inverse, value)
    return v.cast(value, dtype)


def _wrapping(v: Lanes, a: Expr, b: Expr, dtype: str) -> Expr:
    """Product modulo 2^bits; 32-bit products in 64 bits, where they carry no promise not to overflow."""
    if dtype.endswith("64"):
        return a * b
    return v.cast(v.cast(a, "int64") * v.cast(b, "int64"), dtype)


def _is_zero(v: Lanes, x: Expr, dtype: str) -> Expr:
    return v.k.math("EQ", x, v.const(0, dtype))
