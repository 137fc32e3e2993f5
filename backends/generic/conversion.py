"""Conversions between element types, without library calls on cores that lack 64-bit conversions."""

from __future__ import annotations

from bevel.backends.generic.functions import absolute, hold, is_nan
from bevel.backends.generic.lanes import Lanes
from bevel.backends.tvm import Expr

_INT32_END = 2.0**31


def convert(v: Lanes, x: Expr, source: str, result: str) -> Expr:
    """`x` of `source` as `result`, as the op table's Cast defines it: "bool" is a byte of 0 or 1."""
    if result == "bool":
        return _truth(v, x, source)
    if source == "float32":
        return x if result == "float32" else _from_real(v, x, result)
    if result == "float32":
        return _wide_to_real(v, x, source) if source.endswith("64") else v.cast(x, "float32")
    return v.cast(x, result)


def _truth(v: Lanes, x: Expr, source: str) -> Expr:
    if source == "float32":
        # The sign of zero does not count; NaN is true.
        return v.cast(v.select((v.bitcast(x, "int32") & v.i32(0x7FFFFFFF)) > v.i32(0), v.i32(1), v.i32(0)), "uint8")
    held = "uint8" if source == "bool" else source
    zero = v.const(0, held)
    return v.select(v.k.math("EQ", x, zero), v.const(0, "uint8"), v.const(1, "uint8"))


def _from_real(v: Lanes, x: Expr, result: str) -> Expr:
    """Towards zero, saturated to 32 bits (64 for results that need them), then the low bits; NaN gives 0."""
    x = hold(v, x, "float32")
    if result in ("int64", "uint64", "uint32"):
        return _wide_from_real(v, x, result)
    inside = v.select(absolute(v, x) < v.f32(_INT32_END), x, v.f32(0))
    edge = v.select(x < v.f32(0), v.i32(-(1 << 31)), v.i32((1 << 31) - 1))
    edge = v.select(is_nan(v, x) > v.i32(0), v.i32(0), edge)
    value = v.select(absolute(v, x) < v.f32(_INT32_END), v.cast(hold(v, inside, "float32"), "int32"), edge)
    return v.cast(value, result)


def _wide_from_real(v: Lanes, x: Expr, result: str) -> Expr:
    """The mantissa shifted by the exponent, in 64-bit integers."""
    k = v.k
    bits = hold(v, v.bitcast(x, "int32"), "int32")
    exponent = hold(v, (k.shift_right(bits, v.i32(23)) & v.i32(255)) - v.i32(150), "int32")
    mantissa = hold(v, v.cast((bits & v.i32(0x7FFFFF)) | v.i32(0x800000), "uint64"), "uint64")
    up = v.cast(v.min(v.max(exponent, v.i32(0)), v.i32(40)), "uint64")
    down = v.cast(v.min(v.max(v.i32(0) - exponent, v.i32(0)), v.i32(63)), "uint64")
    size = hold(v, v.cast(k.shift_right(k.shift_left(mantissa, up), down), "int64"), "int64")
    value = v.select(bits < v.i32(0), v.i64(0) - size, size)
    last, end = v.i64((1 << 63) - 1), v.f32(2.0**63)
    value = v.select(absolute(v, x) < end, value, v.select(x < v.f32(0), v.i64(-(1 << 63)), last))
    if result == "uint64":
        # Beyond 2^63 the sign bit counts as one of the number; -1 has all bits set.
        above = v.select(x < v.f32(2.0**64), size, v.i64(-1))
        value = v.select(x < end, value, above)
    value = v.select(is_nan(v, x) > v.i32(0), v.i64(0), value)
    return v.cast(hold(v, value, "int64"), result)


def _wide_to_real(v: Lanes, x: Expr, source: str) -> Expr:
    """Halves of 32 bits, joined in float64."""
    half = "int32" if source == "int64" else "uint32"
    x = hold(v, x, source)
    high = v.cast(v.cast(v.k.shift_right(x, v.const(32, source)), half), "float64")
    low = v.cast(v.cast(x, "uint32"), "float64")
    return v.cast(high * v.const(2.0**32, "float64") + low, "float32")
