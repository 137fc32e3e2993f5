"""INTEGER-level operators: codes in, codes out, int32 accumulators between. docs/numerics.md gives each formula.

Convolutions and products yield raw int32 accumulators; `Requantize` turns them into codes with one dyadic rounding. Backends
fuse the pair. Every function here is exact integer arithmetic, whatever dtype numpy computes it in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.convolution import ConvAttrs, conv_macs, conv_shape, convolve, gemm_macs, gemm_shape
from bevel.ir.ops.elementwise import broadcast_shape
from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.ops.op import (
    INTEGER_ONLY,
    Call,
    NoAttrs,
    PruneRule,
    QuantRule,
    Trait,
    elements,
    no_macs,
    one_per_result,
    register,
    require,
    require_axis,
)
from bevel.ir.ops.pool import PoolAttrs, pool_shape
from bevel.ir.ops.window import windows
from bevel.ir.types import F32, I32, Codebook, Float, Int, Quant, TensorType, multiplied_integers

Array = npt.NDArray[Any]

# Softmax works at the fixed output type of its definition: probabilities in steps of 1/256.
SOFTMAX_OUT = Quant(Int(8), (1.0 / 256.0,), (-128,))
# Bits of the largest exp table entry: SOFTMAX_MAX_EXTENT of them still sum below 2^31.
SOFTMAX_TABLE_BITS = 15
SOFTMAX_MAX_EXTENT = (1 << 16) - 1


@dataclass(frozen=True)
class RequantizeAttrs:
    """Result type, channel axis of the multipliers, and clamp bounds in codes."""

    out: Quant
    axis: int
    lo: int
    hi: int


@dataclass(frozen=True)
class IntAddAttrs:
    """clamp(zp + ((ma * (a - za) + mb * (b - zb) + 2^(n-1)) >> n)), all in int32."""

    out: Quant
    ma: int
    mb: int
    n: int
    lo: int
    hi: int


@dataclass(frozen=True)
class IntMulAttrs:
    """clamp(zp + (((a - za) * (b - zb) * m + 2^(n-1)) >> n)) with an int64 product."""

    out: Quant
    m: int
    n: int
    lo: int
    hi: int


@dataclass(frozen=True)
class IntAveragePoolAttrs(PoolAttrs):
    """Window, result type, clamp, and one dyadic factor for each element count: `counts[i]` uses `m[i]`, `n[i]`."""

    out: Quant = SOFTMAX_OUT
    counts: tuple[int, ...] = ()
    m: tuple[int, ...] = ()
    n: tuple[int, ...] = ()
    lo: int = -128
    hi: int = 127


@dataclass(frozen=True)
class OutAttrs:
    """Result type."""

    out: Quant


def requantize(acc: Array, m: Array, n: Array, zero_point: int, lo: int, hi: int, *, to_even: bool = False) -> Array:
    """clamp(zp + ((acc * m + 2^(n-1)) >> n), lo, hi) with an int64 product and one rounding, ties up.

    Args:
        acc: int32 accumulators.
        m: multipliers in [2^30, 2^31) or 0, broadcastable to acc.
        n: shifts in 1..62, broadcastable to acc.
        zero_point: code of real zero.
        lo: least result.
        hi: greatest result.
        to_even: ties go to the even multiple instead: 2^(n-1) - 1 is added, and 1 more where (acc * m) >> n is odd.

    Returns:
        int64 codes.
    """
    codes = np.asarray(np.multiply(acc, m, dtype=np.int64))
    n = n.astype(np.int64)
    # |acc * m| < 2^62 and 2^(n-1) <= 2^61, so the sum cannot overflow int64.
    half = np.int64(1) << (n - 1)
    codes = np.add(codes, half - 1 + ((codes >> n) & 1) if to_even else half, out=codes)
    codes >>= n
    codes += zero_point
    return np.asarray(np.clip(codes, lo, hi, out=codes))


def _quant(type_: TensorType) -> Quant:
    require(isinstance(type_.elem, Quant), f"operand is {type_.elem}, expected a quantized type")
    assert isinstance(type_.elem, Quant)
    return type_.elem


def centered(codes: Array, type_: TensorType, dtype: type[np.signedinteger[Any]] = np.int64) -> Array:
    """Code minus zero point in `dtype`, for a per-tensor quantized operand."""
    return np.asarray(np.subtract(codes, _quant(type_).zero_point[0], dtype=dtype))


def _weighted(call: Call, x: Array, codes: Array, bias: Array, product: Callable[[Array, Array], Array], axis: int) -> Array:
    """int32 accumulators of `product(x - zp, w)` plus a bias along `axis`, computed exactly through floating-point BLAS.

    Sums of integers are exact in float32 while their bound is below 2^24, in float64 below 2^53.
    """
    zero = _quant(call.inputs[0]).zero_point[0]
    w = multiplied_integers(call.inputs[1].elem, codes)
    reach = max(int(x.max(initial=zero)) - zero, zero - int(x.min(initial=zero)))
    bound = reach * int(np.abs(w.astype(np.int64)).reshape(w.shape[0], -1).sum(axis=1).max(initial=0))
    require(bound < 1 << 53, f"accumulation bound {bound} does not fit float64")
    dtype = np.float32 if bound < 1 << 24 else np.float64
    total = product(np.subtract(x, zero, dtype=dtype), w.astype(dtype))
    bias = bias.reshape([-1 if i == axis % total.ndim else 1 for i in range(total.ndim)])
    if bound + int(np.abs(bias.astype(np.int64)).max(initial=0)) < 1 << 31:
        return np.add(total.astype(np.int32), bias, dtype=np.int32)
    wide = total.astype(np.int64) + bias
    limit = np.iinfo(np.int32)
    require(bool((wide >= limit.min).all() and (wide <= limit.max).all()), "an int32 accumulator overflowed")
    return wide.astype(np.int32)


def _int_weighted(ins: tuple[TensorType, ...]) -> None:
    x, w = _quant(ins[0]), ins[1].elem
    require(x.per_tensor, "activations must be quantized per tensor")
    if isinstance(w, Codebook):
        require(w.integers is not None, f"weights are {w}, expected a table of integers of 8 bits")
    else:
        require(all(z == 0 for z in _quant(ins[1]).zero_point), "weights must be symmetric")
    require(ins[2].elem == I32, f"bias is {ins[2].elem}, expected i32")


def _int_conv_infer(attrs: ConvAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    _int_weighted(ins)
    return (TensorType(conv_shape(attrs, ins), I32),)


def _int_conv_reference(call: Call, x: Array, w: Array, bias: Array) -> Array:
    def product(real: Array, weights: Array) -> Array:
        return convolve(real, weights, call.attrs, 0)

    return _weighted(call, x, w, bias, product, axis=1)


def _int_gemm_infer(_attrs: NoAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    _int_weighted(ins)
    return (TensorType(gemm_shape(ins), I32),)


def _int_gemm_reference(call: Call, x: Array, w: Array, bias: Array) -> Array:
    return _weighted(call, x, w, bias, lambda real, weights: real @ weights.T, axis=-1)


def _requantize_infer(attrs: RequantizeAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    acc, m, n = ins
    require_axis(attrs.axis, acc.rank)
    require(isinstance(m.elem, Int) and isinstance(n.elem, Int), f"multipliers are {m}, {n}, expected integers")
    require(attrs.out.per_tensor, f"result {attrs.out} must be quantized per tensor")
    require(acc.elem == I32, f"accumulator is {acc.elem}, expected i32")
    channels = acc.shape[attrs.axis]
    require(m.shape == n.shape == (channels,), f"multipliers are {m}, {n}, expected [{channels}]")
    return (acc.with_elem(attrs.out),)


def _requantize_reference(call: Call, acc: Array, m: Array, n: Array) -> Array:
    a = call.attrs
    shape = [-1 if i == a.axis else 1 for i in range(acc.ndim)]
    codes = requantize(acc, m.reshape(shape), n.reshape(shape), a.out.zero_point[0], a.lo, a.hi)
    return np.asarray(codes, dtype=a.out.dtype)


def _pair_infer(attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    for t in ins:
        require(_quant(t).per_tensor, "operands must be quantized per tensor")
    require(attrs.out.per_tensor, f"result {attrs.out} must be quantized per tensor")
    return (TensorType(broadcast_shape(ins[0].shape, ins[1].shape), attrs.out),)


def _int_add_reference(call: Call, a: Array, b: Array) -> Array:
    at = call.attrs
    x, y = centered(a, call.inputs[0], np.int32), centered(b, call.inputs[1], np.int32)
    reach = abs(at.ma) * int(np.abs(x).max(initial=0)) + abs(at.mb) * int(np.abs(y).max(initial=0)) + (1 << (at.n - 1))
    require(reach < 1 << 31, "IntAdd overflowed int32")
    x *= at.ma
    y *= at.mb
    total = np.asarray(x + y)
    total += np.int32(1 << (at.n - 1))
    total >>= at.n
    total += at.out.zero_point[0]
    return np.asarray(np.clip(total, at.lo, at.hi), dtype=at.out.dtype)


def _int_mul_reference(call: Call, a: Array, b: Array) -> Array:
    at = call.attrs
    product = centered(a, call.inputs[0]) * centered(b, call.inputs[1])
    m, n = np.asarray(at.m, np.int64), np.asarray(at.n, np.int64)
    return requantize(product, m, n, at.out.zero_point[0], at.lo, at.hi).astype(at.out.dtype)


def _int_pool_infer(attrs: IntAveragePoolAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require(_quant(ins[0]).per_tensor and attrs.out.per_tensor, "operand and result must be quantized per tensor")
    require(1 <= len(attrs.counts) == len(attrs.m) == len(attrs.n), "counts, m and n must have equal lengths of 1 or more")
    return (TensorType(pool_shape(attrs, ins[0]), attrs.out),)


def covered_taps(attrs: PoolAttrs, height: int, width: int) -> Array:
    """How many elements of a height x width plane each window covers, border left out: int64 [OH, OW]."""
    ones = np.ones((1, 1, height, width), np.int64)
    return np.asarray(windows(ones, attrs, 0).sum(axis=(-1, -2))[0, 0], dtype=np.int64)


def _int_pool_reference(call: Call, x: Array) -> Array:
    at = call.attrs
    acc = windows(centered(x, call.inputs[0]), at, 0).sum(axis=(-1, -2))
    taps = covered_taps(at, *x.shape[2:])
    # With one entry the factor holds everywhere (no padding, or padding that counts as elements).
    index = np.searchsorted(at.counts, taps) if len(at.counts) > 1 else np.zeros_like(taps)
    m, n = np.asarray(at.m, np.int64)[index], np.asarray(at.n, np.int64)[index]
    return requantize(acc, m, n, at.out.zero_point[0], at.lo, at.hi, to_even=True).astype(at.out.dtype)


def _lut_infer(attrs: OutAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x = _quant(ins[0])
    require(x.storage.bits <= 8 and x.per_tensor, "table lookup needs a per-tensor operand of at most 8 bits")
    require(ins[1].shape == (1 << x.storage.bits,), f"table is {ins[1]}, expected [{1 << x.storage.bits}]")
    require(attrs.out.per_tensor and ins[1].dtype == attrs.out.dtype, f"table is {ins[1]}, expected elements of {attrs.out}")
    return (ins[0].with_elem(attrs.out),)


def _lut_reference(call: Call, x: Array, table: Array) -> Array:
    return np.asarray(table[x.astype(np.int64) - _quant(call.inputs[0]).storage.min])


def _recode_infer(attrs: OutAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x = _quant(ins[0])
    require(x.per_tensor and x.storage == Int(8, signed=False), f"operand is {x}, expected a per-tensor u8 type")
    expected = Quant(Int(8), x.scale, (x.zero_point[0] - 128,))
    require(attrs.out == expected, f"result is {attrs.out}, expected {expected}")
    return (ins[0].with_elem(attrs.out),)


@dataclass(frozen=True)
class ChannelLutAttrs:
    """Result type, and the axis that each row of the table belongs to."""

    out: Quant
    axis: int


def _channel_lut_infer(attrs: ChannelLutAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x, (kind, table) = ins[0], (_quant(ins[0]), ins[1])
    require_axis(attrs.axis, x.rank)
    require(kind.storage.bits <= 8 and kind.per_tensor, "table lookup needs a per-tensor operand of at most 8 bits")
    expected = (x.shape[attrs.axis], 1 << kind.storage.bits)
    require(table.shape == expected, f"table is {table}, expected {list(map(str, expected))}")
    require(attrs.out.per_tensor and table.dtype == attrs.out.dtype, f"table is {table}, expected elements of {attrs.out}")
    return (x.with_elem(attrs.out),)


def _channel_lut_reference(call: Call, x: Array, table: Array) -> Array:
    axis = call.attrs.axis
    rows = np.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return np.asarray(table[rows, x.astype(np.int64) - _quant(call.inputs[0]).storage.min])


def softmax_table(scale: float) -> Array:
    """int32[256]: entry d is rint(2^15 * exp(-d * scale)), computed once in float64 and stored in the graph."""
    return np.asarray(np.rint(2.0**SOFTMAX_TABLE_BITS * np.exp(-np.arange(256) * scale)), dtype=np.int32)


def _int_softmax_infer(attrs: AxisAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x = _quant(ins[0])
    require_axis(attrs.axis, ins[0].rank)
    require(x.storage == Int(8) and x.per_tensor, f"operand is {x}, expected a per-tensor i8 type")
    require(ins[1].shape == (256,) and ins[1].elem == I32, f"table is {ins[1]}, expected i32[256]")
    extent = ins[0].shape[attrs.axis]
    known = isinstance(extent, int) and 1 <= extent <= SOFTMAX_MAX_EXTENT
    require(known, f"softmax over {extent}: expected 1..{SOFTMAX_MAX_EXTENT} entries")
    return (ins[0].with_elem(SOFTMAX_OUT),)


def _int_softmax_reference(call: Call, x: Array, table: Array) -> Array:
    axis = call.attrs.axis
    wide = x.astype(np.int64)
    e = table.astype(np.int64)[wide.max(axis=axis, keepdims=True) - wide]
    total = e.sum(axis=axis, keepdims=True)
    # floor(256 * e / total + 1/2), in integers.
    return np.asarray(np.clip((512 * e + total) // (2 * total) - 128, -128, 127), dtype=np.int8)


def _softmax_work(_attrs: Any, ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    return 2 * elements(ins)


def _pool_work(attrs: PoolAttrs, _ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> int:
    return elements(outs) * attrs.kernel[0] * attrs.kernel[1]


def _quantize_infer(attrs: OutAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require(isinstance(ins[0].elem, Float), f"operand is {ins[0].elem}, expected a float type")
    return (ins[0].with_elem(attrs.out),)


def _dequantize_infer(_attrs: NoAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    _quant(ins[0])
    return (ins[0].with_elem(F32),)


def _integer(name: str, doc: str, *, prune: PruneRule = PruneRule.CARRIES, **row: Any) -> None:
    """Register an INTEGER-level row: exact, produced by to-integer, itself never quantized again."""
    register(
        name,
        doc,
        levels=INTEGER_ONLY,
        quant=QuantRule.NONE,
        integer=name,
        prune=prune,
        tolerance=0.0,
        **row,
    )


_integer(
    "IntConv",
    "int32 accumulators of (x - zx) * w + bias; the border holds real zero.",
    attrs=ConvAttrs,
    arity=(3, 3),
    infer=_int_conv_infer,
    reference=_int_conv_reference,
    macs=conv_macs,
    traits={Trait.WEIGHTED},
    prune=PruneRule.PRODUCES,
)
_integer(
    "IntGemm",
    "int32 accumulators of (x - zx) times the transpose of w, plus bias.",
    arity=(3, 3),
    infer=_int_gemm_infer,
    reference=_int_gemm_reference,
    macs=gemm_macs,
    traits={Trait.WEIGHTED},
    prune=PruneRule.PRODUCES,
)
_integer(
    "Requantize",
    "clamp(zp + ((acc * m + 2^(n-1)) >> n)) with per-channel m, n.",
    attrs=RequantizeAttrs,
    arity=(3, 3),
    infer=_requantize_infer,
    reference=_requantize_reference,
    macs=one_per_result,
)
_integer(
    "IntAdd",
    "Sum of two rescaled operands; a negative multiplier subtracts.",
    attrs=IntAddAttrs,
    arity=(2, 2),
    infer=_pair_infer,
    reference=_int_add_reference,
    macs=one_per_result,
    traits={Trait.ELEMENTWISE},
)
_integer(
    "IntMul",
    "Product of two operands, rescaled.",
    attrs=IntMulAttrs,
    arity=(2, 2),
    infer=_pair_infer,
    reference=_int_mul_reference,
    macs=one_per_result,
    traits={Trait.ELEMENTWISE},
)
_integer(
    "IntAveragePool",
    "Mean of each window: int32 sum times a dyadic factor per element count, ties to even.",
    attrs=IntAveragePoolAttrs,
    arity=(1, 1),
    infer=_int_pool_infer,
    reference=_int_pool_reference,
    macs=_pool_work,
)
_integer(
    "Recode",
    "Unsigned codes as signed ones, q - 128: zero point and code move alike, so every real stays what it is.",
    attrs=OutAttrs,
    arity=(1, 1),
    infer=_recode_infer,
    reference=lambda _call, x: (x.astype(np.int16) - 128).astype(np.int8),
    macs=no_macs,
)
_integer(
    "ChannelLut",
    "table[channel, q - qmin]: any function of one code that differs from channel to channel.",
    attrs=ChannelLutAttrs,
    arity=(2, 2),
    infer=_channel_lut_infer,
    reference=_channel_lut_reference,
    macs=one_per_result,
    traits={Trait.CHANNELWISE},
)
_integer(
    "Lut",
    "A unary function as a table over all codes.",
    attrs=OutAttrs,
    arity=(2, 2),
    infer=_lut_infer,
    reference=_lut_reference,
    macs=one_per_result,
    traits={Trait.ELEMENTWISE, Trait.UNARY},
)
_integer(
    "IntSoftmax",
    "Softmax from a 256-entry exp table, int32 sum and one integer division.",
    attrs=AxisAttrs,
    arity=(2, 2),
    infer=_int_softmax_infer,
    reference=_int_softmax_reference,
    macs=_softmax_work,
    prune=PruneRule.BLOCKS,
)
_integer(
    "Quantize",
    "Border of a float island: clamp(zp + rint_half_even(x / s)).",
    attrs=OutAttrs,
    arity=(1, 1),
    infer=_quantize_infer,
    reference=lambda call, x: call.attrs.out.quantize(x),
    macs=one_per_result,
    traits={Trait.ELEMENTWISE, Trait.UNARY},
)
_integer(
    "Dequantize",
    "Border of a float island: s * (code - zp).",
    arity=(1, 1),
    infer=_dequantize_infer,
    reference=lambda call, x: _quant(call.inputs[0]).dequantize(x),
    macs=one_per_result,
    traits={Trait.ELEMENTWISE, Trait.UNARY},
)
