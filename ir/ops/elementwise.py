"""Elementwise arithmetic: operators of two operands with broadcasting, the commonest unary functions, clamps.

`functions.py` has the other unary functions, `logic.py` comparisons, truth values, bits and conversions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import (
    EVERYWHERE,
    FLOAT_ONLY,
    Call,
    InferRule,
    NoAttrs,
    PruneRule,
    QuantRule,
    Trait,
    one_per_result,
    register,
    require,
    require_real,
)
from bevel.ir.types import F32, Codebook, Dim, Float, Int, Quant, Shape, TensorType

Array = npt.NDArray[Any]


def broadcast_shape(a: Shape, b: Shape) -> Shape:
    """The numpy broadcast of two shapes; equal symbolic dimensions stay symbolic.

    Raises:
        VerifyError: dimensions do not agree.
    """
    result: list[int | Dim] = []
    for i in range(max(len(a), len(b))):
        x = a[len(a) - 1 - i] if i < len(a) else 1
        y = b[len(b) - 1 - i] if i < len(b) else 1
        require(x == y or x == 1 or y == 1, f"shapes {list(map(str, a))} and {list(map(str, b))} do not broadcast")
        result.append(y if x == 1 else x)
    return tuple(reversed(result))


@dataclass(frozen=True)
class ClipAttrs:
    """Clamp bounds, in real units."""

    lo: float = -np.inf
    hi: float = np.inf


def _real(type_: TensorType) -> bool:
    return isinstance(type_.elem, Float | Quant | Codebook)


@dataclass(frozen=True)
class ModAttrs:
    """Whether the remainder has the dividend's sign (`fmod` of C) or the divisor's (`%` of Python)."""

    fmod: bool = False


def binary_infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """Broadcast two reals (float32 result) or two equal integer types."""
    a, b = ins
    if _real(a) and _real(b):
        return (TensorType(broadcast_shape(a.shape, b.shape), F32),)
    require(a.elem == b.elem and isinstance(a.elem, Int), f"operands are {a.elem} and {b.elem}")
    return (TensorType(broadcast_shape(a.shape, b.shape), a.elem),)


def _extremum_infer(attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """Like `binary_infer`; codes of one type keep it: the order of codes is the order of what they stand for."""
    a, b = ins
    if isinstance(a.elem, Quant) and a.elem == b.elem and a.elem.per_tensor:
        return (TensorType(broadcast_shape(a.shape, b.shape), a.elem),)
    return binary_infer(attrs, ins)


def _prelu_infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x, slope = ins
    require_real(x, slope)
    axis = 1 - x.rank + slope.rank
    channels = all(d == 1 for i, d in enumerate(slope.shape) if i != axis)
    fits = channels and broadcast_shape(x.shape, slope.shape) == x.shape
    require(fits, f"slope {slope} is not one number for each channel (axis 1) of {x}")
    return (x.with_elem(F32),)


def real_infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """Reals in, float32 of the same shape out."""
    require_real(*ins)
    return (ins[0].with_elem(F32),)


def signed_infer(attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """Like `real_infer`; integers keep their type."""
    return (ins[0],) if isinstance(ins[0].elem, Int) else real_infer(attrs, ins)


def erf(x: Array) -> Array:
    """The error function in float64, from libm: the usual rational approximations give too few digits."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), dtype=np.float64)


def _binary(
    name: str,
    doc: str,
    reference: Callable[..., Array],
    integer: str | None,
    *,
    attrs: type[Any] = NoAttrs,
    tolerance: float = 1e-5,
    codes: bool = False,
) -> None:
    register(
        name,
        doc,
        attrs=attrs,
        arity=(2, 2),
        infer=_extremum_infer if codes else binary_infer,
        reference=reference,
        macs=one_per_result,
        levels=EVERYWHERE if codes else FLOAT_ONLY,
        traits={Trait.ELEMENTWISE},
        quant=QuantRule.OWN if integer else QuantRule.FLOAT,
        integer=integer,
        prune=PruneRule.CARRIES,
        tolerance=tolerance,
    )


def unary(
    name: str,
    doc: str,
    reference: Callable[..., Array],
    *,
    attrs: type[Any] = NoAttrs,
    traits: frozenset[Trait] = frozenset(),
    quant: QuantRule = QuantRule.OWN,
    infer: InferRule = real_infer,
    tolerance: float = 1e-5,
) -> None:
    """Register a function of one operand; over codes it becomes a table.

    Args:
        name: of the operator.
        doc: what it computes, one line.
        reference: numpy semantics, with the operand's dtype as result.
        attrs: its attribute dataclass.
        traits: further traits.
        quant: quantization rule.
        infer: type rule.
        tolerance: largest error of a float backend.
    """
    register(
        name,
        doc,
        attrs=attrs,
        arity=(1, 1),
        infer=infer,
        reference=reference,
        macs=one_per_result,
        levels=FLOAT_ONLY,
        traits=traits | {Trait.ELEMENTWISE, Trait.UNARY},
        quant=quant,
        integer="Lut" if Trait.ACTIVATION not in traits else "clamp of the producer, or Lut",
        prune=PruneRule.CARRIES,
        tolerance=tolerance,
    )


def _sigmoid(_call: Call, x: Array) -> Array:
    # exp(-log(1 + exp(-x))): the plain quotient overflows for large negative x.
    return np.asarray(np.exp(-np.logaddexp(0.0, -x.astype(np.float64)))).astype(x.dtype)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    # Integers divide towards zero, as in ONNX and C; by zero gives zero.
    quotient = a // b
    inexact = (quotient * b != a) & ((a < 0) != (b < 0)) & (b != 0)
    return np.asarray(quotient + inexact, dtype=a.dtype)


def _pow(_call: Call, a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(np.power(a.astype(np.float64), b)).astype(a.dtype)
    # Integer powers wrap; a negative exponent leaves the integer part of the fraction.
    value = np.power(a, np.where(b < 0, 0, b).astype(a.dtype))
    odd = np.where(b % 2 != 0, a, 1)
    return np.asarray(np.where(b < 0, np.where(np.abs(a) == 1, odd, 0), value), dtype=a.dtype)


def _mod(call: Call, a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b) if call.attrs.fmod else np.mod(a, b), dtype=a.dtype)


def _gelu(_call: Call, x: Array) -> Array:
    wide = x.astype(np.float64)
    return np.asarray(0.5 * wide * (1.0 + erf(wide / np.sqrt(2.0)))).astype(x.dtype)


_binary("Add", "a + b with broadcasting.", lambda _c, a, b: np.add(a, b), "IntAdd")
_binary("Sub", "a - b with broadcasting.", lambda _c, a, b: np.subtract(a, b), "IntAdd")
_binary("Mul", "a * b with broadcasting.", lambda _c, a, b: np.multiply(a, b), "IntMul")
_binary("Div", "a / b with broadcasting; integers divide towards zero.", lambda _c, a, b: _divide(a, b), None)
_binary("Min", "The lesser of a and b with broadcasting.", lambda _c, a, b: np.minimum(a, b), "Min", tolerance=0, codes=True)
_binary("Max", "The greater of a and b with broadcasting.", lambda _c, a, b: np.maximum(a, b), "Max", tolerance=0, codes=True)
_binary("Mod", "Remainder of a / b with broadcasting.", _mod, None, attrs=ModAttrs)
_binary("Pow", "a to the power b with broadcasting.", _pow, None)
register(
    "PRelu",
    "x, or slope * x where x is negative; one slope for each channel (axis 1).",
    arity=(2, 2),
    infer=_prelu_infer,
    reference=lambda _call, x, slope: np.where(x < 0, slope * x, x),
    macs=one_per_result,
    levels=FLOAT_ONLY,
    traits={Trait.ELEMENTWISE, Trait.CHANNELWISE},
    quant=QuantRule.OWN,
    integer="ChannelLut",
    prune=PruneRule.CARRIES,
)

_CLAMP = frozenset({Trait.ACTIVATION})
unary("Relu", "max(x, 0).", lambda _c, x: np.maximum(x, 0), traits=_CLAMP, quant=QuantRule.FUSED)
unary(
    "Clip",
    "Clamp to [lo, hi].",
    lambda c, x: np.clip(x, np.asarray(c.attrs.lo, x.dtype), np.asarray(c.attrs.hi, x.dtype)),
    attrs=ClipAttrs,
    traits=_CLAMP,
    quant=QuantRule.FUSED,
)
unary("Sigmoid", "1 / (1 + exp(-x)).", _sigmoid)
unary("Tanh", "Hyperbolic tangent.", lambda _c, x: np.tanh(x))
unary("Exp", "e to the x.", lambda _c, x: np.exp(x))
unary("Erf", "Error function.", lambda _c, x: erf(x).astype(x.dtype))
unary("Gelu", "x * Phi(x), Phi the normal distribution function.", _gelu)
unary("HardSwish", "x * clip(x / 6 + 1/2, 0, 1).", lambda _c, x: x * np.clip(x / 6 + np.float32(0.5), 0, 1))
unary("Silu", "x * sigmoid(x).", lambda c, x: x * _sigmoid(c, x))
unary("Neg", "-x.", lambda _c, x: np.negative(x), infer=signed_infer)
unary("Abs", "|x|.", lambda _c, x: np.abs(x), infer=signed_infer)
unary("Sqrt", "Square root.", lambda _c, x: np.sqrt(x))
