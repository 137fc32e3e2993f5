"""Unary functions: activations, powers, roundings, exponentials, circular and hyperbolic functions.

Each reference computes in float64 and rounds once. Over codes every one of them becomes a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.elementwise import real_infer, signed_infer, unary
from bevel.ir.ops.op import Call, InferRule, NoAttrs

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LeakyReluAttrs:
    """Slope of the negative half."""

    alpha: float = 0.01


@dataclass(frozen=True)
class EluAttrs:
    """Limit of the negative half, sign turned."""

    alpha: float = 1.0


@dataclass(frozen=True)
class CeluAttrs:
    """Limit of the negative half, sign turned; positive."""

    alpha: float = 1.0


@dataclass(frozen=True)
class SeluAttrs:
    """Factor of the exponential and of everything (Klambauer et al., 2017)."""

    alpha: float = 1.6732632423543772
    gamma: float = 1.0507009873554805


@dataclass(frozen=True)
class ThresholdAttrs:
    """What operands must exceed to stay."""

    alpha: float = 1.0


@dataclass(frozen=True)
class ShrinkAttrs:
    """Half width of the band that becomes zero, and how far the rest moves towards zero."""

    bias: float = 0.0
    lambd: float = 0.5


@dataclass(frozen=True)
class HardSigmoidAttrs:
    """Slope and offset of the line."""

    alpha: float = 0.2
    beta: float = 0.5


@dataclass(frozen=True)
class SwishAttrs:
    """Factor of the gate's operand."""

    alpha: float = 1.0


@dataclass(frozen=True)
class PowerAttrs:
    """The exponent."""

    exponent: float = 2.0


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) as exp(-log(1 + exp(-x))): the plain quotient overflows for large negative x."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, x))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _shrink(at: ShrinkAttrs, x: Array) -> Array:
    # The bounds of the band are float32, as operands are.
    edge = float(np.float32(at.lambd))
    return np.where(x < -edge, x + at.bias, np.where(x > edge, x - at.bias, np.where(np.isnan(x), x, 0)))


def _threshold(at: ThresholdAttrs, x: Array) -> Array:
    return np.where(x > float(np.float32(at.alpha)), x, np.where(np.isnan(x), x, 0))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


def _function(
    name: str,
    doc: str,
    wide: Callable[[Any, Array], Array],
    attrs: type[Any] = NoAttrs,
    *,
    infer: InferRule = real_infer,
    tolerance: float = 1e-5,
) -> None:
    """Register the function that `wide` computes from attributes and a float64 operand."""

    def reference(call: Call, x: Array) -> Array:
        return np.asarray(wide(call.attrs, x if x.dtype.kind in "iu" else x.astype(np.float64))).astype(x.dtype)

    unary(name, doc, reference, attrs=attrs, infer=infer, tolerance=tolerance)


_function("LeakyRelu", "x, or alpha * x where x is negative.", lambda a, x: np.where(x < 0, a.alpha * x, x), LeakyReluAttrs)
_function("Elu", "x, or alpha * (exp(x) - 1) where x is negative.", lambda a, x: _elu(x, a.alpha), EluAttrs)
_function("Selu", "gamma * Elu(x).", lambda a, x: a.gamma * _elu(x, a.alpha), SeluAttrs)
_function("Celu", "x, or alpha * (exp(x / alpha) - 1).", lambda a, x: _celu(x, a.alpha), CeluAttrs)
_function("ThresholdedRelu", "x where it exceeds alpha, else 0.", _threshold, ThresholdAttrs)
_function("Shrink", "x moved towards 0 by bias, 0 in between.", _shrink, ShrinkAttrs)
_function("HardSigmoid", "clip(alpha * x + beta, 0, 1).", lambda a, x: np.clip(a.alpha * x + a.beta, 0, 1), HardSigmoidAttrs)
_function("Swish", "x * sigmoid(alpha * x).", lambda a, x: x * sigmoid(a.alpha * x), SwishAttrs)
_function("Mish", "x * tanh(softplus(x)).", lambda _a, x: x * np.tanh(_softplus(x)))
_function("GeluTanh", "x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))).", lambda _a, x: _gelu_tanh(x))
_function("Softplus", "log(1 + exp(x)).", lambda _a, x: _softplus(x))
_function("Softsign", "x / (1 + |x|).", lambda _a, x: x / (1 + np.abs(x)))

_function("Power", "x to a constant power.", lambda a, x: np.power(x, a.exponent), PowerAttrs)
_function("Reciprocal", "1 / x.", lambda _a, x: 1 / x)
_function("Log", "Natural logarithm.", lambda _a, x: np.log(x))

_function("Floor", "The integer at or below x.", lambda _a, x: np.floor(x), tolerance=0)
_function("Ceil", "The integer at or above x.", lambda _a, x: np.ceil(x), tolerance=0)
_function("Round", "The integer next to x, the even one of two.", lambda _a, x: np.rint(x), tolerance=0)
_function("Sign", "-1, 0 or 1.", lambda _a, x: np.sign(x), infer=signed_infer, tolerance=0)

_function("Sin", "Sine.", lambda _a, x: np.sin(x))
_function("Cos", "Cosine.", lambda _a, x: np.cos(x))
_function("Tan", "Tangent.", lambda _a, x: np.tan(x))
_function("Asin", "Inverse sine.", lambda _a, x: np.arcsin(x))
_function("Acos", "Inverse cosine.", lambda _a, x: np.arccos(x))
_function("Atan", "Inverse tangent.", lambda _a, x: np.arctan(x))
_function("Sinh", "Hyperbolic sine.", lambda _a, x: np.sinh(x))
_function("Cosh", "Hyperbolic cosine.", lambda _a, x: np.cosh(x))
_function("Asinh", "Inverse hyperbolic sine.", lambda _a, x: np.arcsinh(x))
_function("Acosh", "Inverse hyperbolic cosine.", lambda _a, x: np.arccosh(x))
_function("Atanh", "Inverse hyperbolic tangent.", lambda _a, x: np.arctanh(x))
