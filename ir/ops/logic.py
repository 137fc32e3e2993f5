"""Comparisons, truth values, bits, choices and conversions between element types.

None has an integer form over quantized operands: there they are float islands. Plain integers and truth values stay what
they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.elementwise import broadcast_shape
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
from bevel.ir.types import BOOL, F16, F32, Bool, Codebook, Elem, Float, Int, Quant, TensorType

Array = npt.NDArray[Any]

# Types that values convert to, by the name the text form gives them.
_PLAIN: tuple[Elem, ...] = (F32, F16, BOOL, *(Int(bits, signed) for bits in (8, 16, 32, 64) for signed in (True, False)))
CONVERTIBLE: dict[str, Elem] = {str(elem): elem for elem in _PLAIN}


@dataclass(frozen=True)
class CastAttrs:
    """Name of the result's element type: one of CONVERTIBLE."""

    to: str = "f32"


@dataclass(frozen=True)
class IsInfAttrs:
    """Which infinities count."""

    negative: bool = True
    positive: bool = True


@dataclass(frozen=True)
class ShiftAttrs:
    """Direction: towards higher or lower bits."""

    left: bool = True


def _is_real(type_: TensorType) -> bool:
    return isinstance(type_.elem, Float | Quant | Codebook)


def _comparison_infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    a, b = ins
    numbers = isinstance(a.elem, Int) and a.elem == b.elem
    reals = _is_real(a) and _is_real(b)
    require(reals or numbers, f"operands are {a.elem} and {b.elem}, expected two reals or one integer type")
    return (TensorType(broadcast_shape(a.shape, b.shape), BOOL),)


def _equal_infer(attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    if ins[0].elem == ins[1].elem == BOOL:
        return (TensorType(broadcast_shape(ins[0].shape, ins[1].shape), BOOL),)
    return _comparison_infer(attrs, ins)


def _same_infer(kind: type[Elem], what: str) -> InferRule:
    """All operands of one element type of class `kind`, and so is the result."""

    def infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
        elem, shape = ins[0].elem, ins[0].shape
        for other in ins[1:]:
            shape = broadcast_shape(shape, other.shape)
        same = isinstance(elem, kind) and all(t.elem == elem for t in ins)
        require(same, f"operands are {', '.join(str(t.elem) for t in ins)}, expected {what}")
        return (TensorType(shape, elem),)

    return infer


def _real_to_bool(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    return (ins[0].with_elem(BOOL),)


def _where_infer(_attrs: Any, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    condition, a, b = ins
    require(condition.elem == BOOL, f"condition is {condition.elem}, expected bool")
    reals = _is_real(a) and _is_real(b)
    plain = isinstance(a.elem, Int | Bool) and a.elem == b.elem
    require(reals or plain, f"choices are {a.elem} and {b.elem}, expected two reals or one integer type")
    shape = broadcast_shape(condition.shape, broadcast_shape(a.shape, b.shape))
    return (TensorType(shape, F32 if reals else a.elem),)


def _cast_infer(attrs: CastAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require(attrs.to in CONVERTIBLE, f"conversion to {attrs.to!r}, expected one of {', '.join(CONVERTIBLE)}")
    source = ins[0].elem
    require(isinstance(source, Bool) or str(source) in CONVERTIBLE or _is_real(ins[0]), f"conversion from {source}")
    return (ins[0].with_elem(CONVERTIBLE[attrs.to]),)


def _truncate(x: Array, dtype: np.dtype[Any]) -> Array:
    """Reals to integers: towards zero, saturated at 32 bits (64 where the result needs them), then the low bits; NaN gives 0.

    The wide type is int32 or int64, but uint64 for reals that only it holds.
    """
    wide = x.astype(np.float64)
    wide = np.trunc(np.where(np.isnan(wide), 0.0, wide))
    bits = 32 if dtype.itemsize < 4 or dtype == np.int32 else 64
    low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1)
    if dtype == np.uint64:
        most = wide >= 2.0**64
        large = np.where((wide >= high) & ~most, wide, 0.0).astype(np.uint64)
        return np.where(most, np.uint64(2**64 - 1), np.where(wide >= high, large, _saturate(wide, low, high).astype(np.uint64)))
    return _saturate(wide, low, high).astype(dtype)


def _saturate(wide: Array, low: float, high: float) -> Array:
    """int64 of whole numbers, limited to [low, high)."""
    inside = np.where((wide >= low) & (wide < high), wide, 0.0).astype(np.int64)
    return np.where(wide >= high, np.int64(int(high) - 1), np.where(wide < low, np.int64(int(low)), inside))


def _cast(call: Call, x: Array) -> Array:
    dtype = call.outputs[0].dtype
    if x.dtype.kind == "f" and dtype.kind in "iu":
        return _truncate(x, dtype)
    # Wide integers round to float64 first.
    return x.astype(np.float64).astype(dtype) if dtype.kind == "f" else x.astype(dtype)


def _is_inf(call: Call, x: Array) -> Array:
    return np.asarray((call.attrs.positive & np.isposinf(x)) | (call.attrs.negative & np.isneginf(x)))


def _shift(call: Call, a: Array, b: Array) -> Array:
    return np.asarray(np.left_shift(a, b) if call.attrs.left else np.right_shift(a, b))


def _row(name: str, doc: str, arity: int, infer: InferRule, reference: Callable[..., Array], attrs: type[Any] = NoAttrs) -> None:
    register(
        name,
        doc,
        attrs=attrs,
        arity=(arity, arity),
        infer=infer,
        reference=reference,
        macs=one_per_result,
        levels=FLOAT_ONLY,
        traits={Trait.ELEMENTWISE, Trait.UNARY} if arity == 1 else {Trait.ELEMENTWISE},
        quant=QuantRule.FLOAT,
        integer=None,
        prune=PruneRule.CARRIES,
        tolerance=0.0,
    )


_row("Equal", "a = b.", 2, _equal_infer, lambda _c, a, b: np.equal(a, b))
_row("Less", "a < b.", 2, _comparison_infer, lambda _c, a, b: np.less(a, b))
_row("LessOrEqual", "a <= b.", 2, _comparison_infer, lambda _c, a, b: np.less_equal(a, b))
_row("Greater", "a > b.", 2, _comparison_infer, lambda _c, a, b: np.greater(a, b))
_row("GreaterOrEqual", "a >= b.", 2, _comparison_infer, lambda _c, a, b: np.greater_equal(a, b))

_row("Not", "Negation of truth values.", 1, _same_infer(Bool, "bool"), lambda _c, x: np.logical_not(x))
_row("And", "Both.", 2, _same_infer(Bool, "bool"), lambda _c, a, b: np.logical_and(a, b))
_row("Or", "Either or both.", 2, _same_infer(Bool, "bool"), lambda _c, a, b: np.logical_or(a, b))
_row("Xor", "Either, not both.", 2, _same_infer(Bool, "bool"), lambda _c, a, b: np.logical_xor(a, b))

_INTEGERS = _same_infer(Int, "one integer type")
_row("BitwiseNot", "Every bit turned.", 1, _INTEGERS, lambda _c, x: np.invert(x))
_row("BitwiseAnd", "Bits set in both.", 2, _INTEGERS, lambda _c, a, b: np.bitwise_and(a, b))
_row("BitwiseOr", "Bits set in either.", 2, _INTEGERS, lambda _c, a, b: np.bitwise_or(a, b))
_row("BitwiseXor", "Bits that differ.", 2, _INTEGERS, lambda _c, a, b: np.bitwise_xor(a, b))
_row("BitShift", "a shifted by b bits: zeros move in, or copies of the sign from above.", 2, _INTEGERS, _shift, ShiftAttrs)

_row("IsNaN", "Whether x is no number.", 1, _real_to_bool, lambda _c, x: np.isnan(x))
_row("IsInf", "Whether x is infinite.", 1, _real_to_bool, _is_inf, IsInfAttrs)
_row(
    "Where",
    "a where the condition holds, else b, with broadcasting.",
    3,
    _where_infer,
    lambda _c, c, a, b: np.asarray(np.where(c, a, b)),
)
_row("Cast", "x as another element type; docs/numerics.md says what overflows give.", 1, _cast_infer, _cast, CastAttrs)
