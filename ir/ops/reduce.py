"""Reductions over whole axes and running sums along one, on reals, plain integers and (maximum, minimum) codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.integer import SOFTMAX_OUT, centered, requantize
from bevel.ir.ops.normalize import AxisAttrs, ReduceAttrs
from bevel.ir.ops.op import (
    EVERYWHERE,
    FLOAT_ONLY,
    INTEGER_ONLY,
    Call,
    InferRule,
    PruneRule,
    QuantRule,
    Trait,
    elements,
    real_type,
    register,
    require,
    require_axis,
    require_per_tensor,
    require_real,
)
from bevel.ir.types import F32, Bool, Float, Int, Quant, Shape, TensorType

Array = npt.NDArray[Any]

# The longest reduction whose int32 sum of centered codes (at most 255 each) cannot overflow.
INT_REDUCE_MAX_COUNT = (1 << 31) // 255 - 1


@dataclass(frozen=True)
class ScanAttrs(AxisAttrs):
    """Running sum: whether an element's own value is left out, and whether it runs from the end."""

    exclusive: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class IntReduceAttrs(ReduceAttrs):
    """Reduced axes, result type, dyadic factor of the sum and clamp bounds in codes."""

    out: Quant = SOFTMAX_OUT
    m: int = 1 << 30
    n: int = 30
    lo: int = -128
    hi: int = 127


def reduced_shape(attrs: ReduceAttrs, shape: Shape) -> Shape:
    """What is left of `shape`.

    Raises:
        VerifyError: axes are outside the rank, unsorted or repeated.
    """
    for axis in attrs.axes:
        require_axis(axis, len(shape))
    require(sorted(set(attrs.axes)) == list(attrs.axes), f"axes {attrs.axes} must be sorted and distinct")
    if attrs.keepdims:
        return tuple(1 if i in attrs.axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in attrs.axes)


def _real_infer(attrs: ReduceAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    return (TensorType(reduced_shape(attrs, ins[0].shape), F32),)


def _number_infer(attrs: ReduceAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    (x,) = ins
    if not isinstance(x.elem, Int):
        return _real_infer(attrs, ins)
    return (TensorType(reduced_shape(attrs, x.shape), x.elem),)


def _extremum_infer(attrs: ReduceAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    (x,) = ins
    require(isinstance(x.elem, Float | Quant | Int | Bool), f"operand is {x.elem}, expected numbers")
    require_per_tensor(x)
    return (TensorType(reduced_shape(attrs, x.shape), x.elem),)


def _scan_infer(attrs: ScanAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    (x,) = ins
    require_axis(attrs.axis, x.rank)
    if isinstance(x.elem, Int):
        return ins
    require_real(x)
    return (real_type(x),)


def work(_attrs: Any, ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    """MAC rule of reductions: one operation for each operand element."""
    return elements(ins)


def _reference(compute: Callable[[Array, Any], Array]) -> Callable[[Call, Array], Array]:
    """`compute(x, axis and keepdims as keywords)` in float64, or in the integer type itself."""

    def reference(call: Call, x: Array) -> Array:
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            result = compute(wide, {"axis": call.attrs.axes, "keepdims": call.attrs.keepdims})
            return np.asarray(result).astype(x.dtype)

    return reference


def _log_sum_exp(x: Array, how: Any) -> Array:
    # Infinite maxima would give inf - inf.
    top = np.clip(x.max(axis=how["axis"], keepdims=True), -1e300, 1e300)
    total = np.log(np.exp(x - top).sum(axis=how["axis"], keepdims=True)) + top
    return np.asarray(total if how["keepdims"] else np.squeeze(total, how["axis"]))


def _scan(function: Callable[..., Array], neutral: int) -> Callable[[Call, Array], Array]:
    def reference(call: Call, x: Array) -> Array:
        at = call.attrs
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        moved = np.moveaxis(np.flip(wide, at.axis) if at.reverse else wide, at.axis, 0)
        if at.exclusive:
            moved = np.concatenate([np.full_like(moved[:1], neutral), moved[:-1]])
        result = np.moveaxis(function(moved, axis=0, dtype=wide.dtype), 0, at.axis)
        return np.ascontiguousarray(np.flip(result, at.axis) if at.reverse else result).astype(x.dtype)

    return reference


def _int_reduce_infer(attrs: IntReduceAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    (x,) = ins
    require(isinstance(x.elem, Quant) and attrs.out.per_tensor, f"operand is {x.elem}, expected a quantized type")
    require_per_tensor(x)
    shape = reduced_shape(attrs, x.shape)
    count = 1
    for axis in attrs.axes:
        extent = x.shape[axis]
        require(isinstance(extent, int), f"reduced axis {axis} has symbolic extent {extent}")
        count *= extent if isinstance(extent, int) else 1
    require(1 <= count <= INT_REDUCE_MAX_COUNT, f"{count} elements are summed, expected 1..{INT_REDUCE_MAX_COUNT}")
    return (TensorType(shape, attrs.out),)


def _int_reduce_reference(call: Call, x: Array) -> Array:
    at = call.attrs
    acc = centered(x, call.inputs[0]).sum(axis=at.axes, keepdims=at.keepdims)
    m, n = np.asarray(at.m, np.int64), np.asarray(at.n, np.int64)
    return requantize(np.asarray(acc), m, n, at.out.zero_point[0], at.lo, at.hi, to_even=True).astype(at.out.dtype)


def _reduction(
    name: str,
    doc: str,
    compute: Callable[[Array, Any], Array],
    *,
    infer: InferRule = _number_infer,
    quant: QuantRule = QuantRule.FLOAT,
    integer: str | None = None,
    **row: Any,
) -> None:
    register(
        name,
        doc,
        attrs=ReduceAttrs,
        arity=(1, 1),
        infer=infer,
        reference=_reference(compute),
        macs=work,
        quant=quant,
        integer=integer,
        prune=PruneRule.BLOCKS,
        **{"levels": FLOAT_ONLY, **row},
    )


# Calibration types these two; a long or symbolic reduction stays a float island all the same.
_OWN: Any = {"quant": QuantRule.OWN, "integer": "IntReduce"}
# Extrema of codes are codes of extrema.
_MOVES: Any = {
    "infer": _extremum_infer,
    "quant": QuantRule.SAME,
    "levels": EVERYWHERE,
    "traits": {Trait.MOVEMENT},
    "tolerance": 0.0,
}

_reduction("ReduceMean", "Mean over axes.", lambda x, how: x.mean(**how), infer=_real_infer, **_OWN)
_reduction("ReduceSum", "Sum over axes; integers wrap.", lambda x, how: x.sum(**how, dtype=x.dtype), **_OWN)
_reduction("ReduceMax", "Maximum over axes.", lambda x, how: x.max(**how), integer="ReduceMax", **_MOVES)
_reduction("ReduceMin", "Minimum over axes.", lambda x, how: x.min(**how), integer="ReduceMin", **_MOVES)
_reduction("ReduceProd", "Product over axes; integers wrap.", lambda x, how: x.prod(**how, dtype=x.dtype))
_reduction("ReduceL1", "Sum of magnitudes over axes.", lambda x, how: np.abs(x).sum(**how, dtype=x.dtype))
_reduction("ReduceL2", "Root of the sum of squares over axes.", lambda x, how: np.sqrt((x * x).sum(**how)), infer=_real_infer)
_reduction("ReduceSumSquare", "Sum of squares over axes.", lambda x, how: (x * x).sum(**how, dtype=x.dtype))
_reduction("ReduceLogSum", "Logarithm of the sum over axes.", lambda x, how: np.log(x.sum(**how)), infer=_real_infer)
_reduction("ReduceLogSumExp", "Logarithm of the sum of exponentials over axes.", _log_sum_exp, infer=_real_infer)

for _name, _doc, _compute in (
    ("CumSum", "Running sum along an axis.", _scan(np.cumsum, 0)),
    ("CumProd", "Running product along an axis.", _scan(np.cumprod, 1)),
):
    register(
        _name,
        _doc,
        attrs=ScanAttrs,
        arity=(1, 1),
        infer=_scan_infer,
        reference=_compute,
        macs=work,
        levels=FLOAT_ONLY,
        quant=QuantRule.FLOAT,
        integer=None,
        prune=PruneRule.BLOCKS,
    )

register(
    "IntReduce",
    "Sum or mean over axes: int32 sum times one dyadic factor, ties to even.",
    attrs=IntReduceAttrs,
    arity=(1, 1),
    infer=_int_reduce_infer,
    reference=_int_reduce_reference,
    macs=work,
    levels=INTEGER_ONLY,
    quant=QuantRule.NONE,
    integer="IntReduce",
    prune=PruneRule.BLOCKS,
    tolerance=0.0,
)
