"""Selection along an axis by comparing elements: ArgMax, ArgMin, TopK, Hardmax. On codes as well as on reals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.ops.op import (
    EVERYWHERE,
    FLOAT_ONLY,
    Call,
    PruneRule,
    QuantRule,
    Trait,
    register,
    require,
    require_axis,
    require_per_tensor,
    require_real,
)
from bevel.ir.ops.reduce import work
from bevel.ir.types import F32, I64, Float, Int, Quant, TensorType

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ArgAttrs(AxisAttrs):
    """Whether the axis stays with extent 1, and which of equal elements is chosen."""

    keepdims: bool = True
    last: bool = False


@dataclass(frozen=True)
class TopKAttrs(AxisAttrs):
    """How many elements, and whether the greatest or the least ones."""

    k: int = 1
    largest: bool = True


def _comparable(x: TensorType, axis: int) -> None:
    require(isinstance(x.elem, Float | Quant | Int), f"operand is {x.elem}, expected numbers")
    require_per_tensor(x)
    require_axis(axis, x.rank)
    require(x.shape[axis] != 0, f"axis {axis} of {x} has no element")


def _arg_infer(attrs: ArgAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    (x,) = ins
    _comparable(x, attrs.axis)
    rest = (1,) if attrs.keepdims else ()
    return (TensorType((*x.shape[: attrs.axis], *rest, *x.shape[attrs.axis + 1 :]), I64),)


def _arg_reference(name: str) -> Any:
    choose = np.argmax if name == "ArgMax" else np.argmin

    def reference(call: Call, x: Array) -> Array:
        at = call.attrs
        if at.last:
            index = x.shape[at.axis] - 1 - choose(np.flip(x, at.axis), axis=at.axis, keepdims=at.keepdims)
        else:
            index = choose(x, axis=at.axis, keepdims=at.keepdims)
        return np.asarray(index, dtype=np.int64)

    return reference


def _top_infer(attrs: TopKAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    (x,) = ins
    _comparable(x, attrs.axis)
    extent = x.shape[attrs.axis]
    # A symbolic axis must hold k elements at its lower bound, so that the result's shape is known.
    least = extent if isinstance(extent, int) else extent.lo
    require(1 <= attrs.k <= least, f"k={attrs.k} of an axis of {extent} elements")
    shape = (*x.shape[: attrs.axis], attrs.k, *x.shape[attrs.axis + 1 :])
    return TensorType(shape, x.elem), TensorType(shape, I64)


def _top_reference(call: Call, x: Array) -> tuple[Array, Array]:
    at = call.attrs
    # A stable sort of the reversed order, read backwards, keeps equal elements in order of their indices.
    if at.largest:
        order = x.shape[at.axis] - 1 - np.flip(np.argsort(np.flip(x, at.axis), axis=at.axis, kind="stable"), at.axis)
    else:
        order = np.argsort(x, axis=at.axis, kind="stable")
    index = np.take(order, np.arange(at.k), axis=at.axis)
    return np.take_along_axis(x, index, axis=at.axis), index.astype(np.int64)


def _hardmax_infer(attrs: AxisAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    _comparable(ins[0], attrs.axis)
    return (ins[0].with_elem(F32),)


def _hardmax_reference(call: Call, x: Array) -> Array:
    axis = call.attrs.axis
    result = np.zeros_like(x)
    np.put_along_axis(result, x.argmax(axis=axis, keepdims=True), 1, axis=axis)
    return result


for _name, _which in (("ArgMax", "greatest"), ("ArgMin", "least")):
    register(
        _name,
        f"Index of the {_which} element along an axis, on reals, integers or codes.",
        attrs=ArgAttrs,
        arity=(1, 1),
        infer=_arg_infer,
        reference=_arg_reference(_name),
        macs=work,
        levels=EVERYWHERE,
        quant=QuantRule.SAME,
        integer=_name,
        prune=PruneRule.BLOCKS,
        tolerance=0.0,
    )
register(
    "TopK",
    "The k greatest (or least) elements along an axis in order, and their indices; equal ones by index.",
    attrs=TopKAttrs,
    arity=(1, 1),
    infer=_top_infer,
    reference=_top_reference,
    macs=work,
    levels=EVERYWHERE,
    traits={Trait.MOVEMENT},
    quant=QuantRule.SAME,
    integer="TopK",
    prune=PruneRule.BLOCKS,
    tolerance=0.0,
)
register(
    "Hardmax",
    "1 at the first greatest element along an axis, 0 elsewhere.",
    attrs=AxisAttrs,
    arity=(1, 1),
    infer=_hardmax_infer,
    reference=_hardmax_reference,
    macs=work,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
    tolerance=0.0,
)
