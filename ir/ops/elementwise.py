"""Elementwise operators: arithmetic with broadcasting, unary functions, clamps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import (
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


def binary_infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """Broadcast two reals (float32 result) or two equal integer types."""
    a, b = ins
    if _real(a) and _real(b):
        return (TensorType(broadcast_shape(a.shape, b.shape), F32),)
    require(a.elem == b.elem and isinstance(a.elem, Int), f"operands are {a.elem} and {b.elem}")
    return (TensorType(broadcast_shape(a.shape, b.shape), a.elem),)


def _unary_infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    return (ins[0].with_elem(F32),)


def erf(x: Array) -> Array:
    """The error function in float64, from libm: the usual rational approximations give too few digits."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), dtype=np.float64)


def _binary(name: str, symbol: str, function: Callable[[Array, Array], Array], integer: str | None) -> None:
    register(
        name,
        f"a {symbol} b with broadcasting.",
        arity=(2, 2),
        infer=binary_infer,
        reference=lambda _call, a, b: function(a, b),
        macs=one_per_result,
        levels=FLOAT_ONLY,
        traits={Trait.ELEMENTWISE},
        quant=QuantRule.OWN if integer else QuantRule.FLOAT,
        integer=integer,
        prune=PruneRule.CARRIES,
    )


def _unary(
    name: str,
    doc: str,
    reference: Callable[..., Array],
    *,
    attrs: type[Any] = NoAttrs,
    traits: frozenset[Trait] = frozenset(),
    quant: QuantRule = QuantRule.OWN,
    infer: InferRule = _unary_infer,
    tolerance: float = 1e-5,
) -> None:
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
    # Integers divide towards zero, as in ONNX and C.
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient), dtype=a.dtype)


def _gelu(_call: Call, x: Array) -> Array:
    wide = x.astype(np.float64)
    return np.asarray(0.5 * wide * (1.0 + erf(wide / np.sqrt(2.0)))).astype(x.dtype)


_binary("Add", "+", np.add, "IntAdd")
_binary("Sub", "-", np.subtract, "IntAdd")
_binary("Mul", "*", np.multiply, "IntMul")
_binary("Div", "/", _divide, None)

_CLAMP = frozenset({Trait.ACTIVATION})
_unary("Relu", "max(x, 0).", lambda _c, x: np.maximum(x, 0), traits=_CLAMP, quant=QuantRule.FUSED)
_unary(
    "Clip",
    "Clamp to [lo, hi].",
    lambda c, x: np.clip(x, np.asarray(c.attrs.lo, x.dtype), np.asarray(c.attrs.hi, x.dtype)),
    attrs=ClipAttrs,
    traits=_CLAMP,
    quant=QuantRule.FUSED,
)
_unary("Sigmoid", "1 / (1 + exp(-x)).", _sigmoid)
_unary("Tanh", "Hyperbolic tangent.", lambda _c, x: np.tanh(x))
_unary("Exp", "e to the x.", lambda _c, x: np.exp(x))
_unary("Erf", "Error function.", lambda _c, x: erf(x).astype(x.dtype))
_unary("Gelu", "x * Phi(x), Phi the normal distribution function.", _gelu)
_unary("HardSwish", "x * clip(x / 6 + 1/2, 0, 1).", lambda _c, x: x * np.clip(x / 6 + np.float32(0.5), 0, 1))
_unary("Silu", "x * sigmoid(x).", lambda c, x: x * _sigmoid(c, x))
_unary("Neg", "-x.", lambda _c, x: -x)
_unary("Abs", "|x|.", lambda _c, x: np.abs(x))
_unary("Sqrt", "Square root.", lambda _c, x: np.sqrt(x))
