"""Elements picked or replaced by runtime indices: Gather, GatherElements, GatherND, ScatterElements, ScatterND.

Negative indices count from the end. Indices beyond the ends, an error in ONNX, are clamped into the extent: the result is
defined, the same everywhere, and no kernel ever reads or writes outside its operand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import (
    EVERYWHERE,
    FLOAT_ONLY,
    Call,
    PruneRule,
    QuantRule,
    Trait,
    no_macs,
    real_type,
    register,
    require,
    require_axis,
    require_per_tensor,
)
from bevel.ir.types import Int, Shape, TensorType

Array = npt.NDArray[Any]

# How an element that is there and its update combine.
REDUCTIONS: dict[str, Callable[[Array, tuple[Array, ...], Array], None]] = {
    "none": lambda y, at, updates: y.__setitem__(at, updates),
    "add": np.add.at,
    "mul": np.multiply.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


@dataclass(frozen=True)
class GatherAttrs:
    """Axis of the data operand that the indices pick from."""

    axis: int


@dataclass(frozen=True)
class GatherNDAttrs:
    """Leading axes that data and indices share."""

    batch_dims: int = 0


@dataclass(frozen=True)
class ScatterElementsAttrs:
    """Indexed axis, and how updates combine with what is there: none, add, mul, max, min."""

    axis: int
    reduction: str = "none"


@dataclass(frozen=True)
class ScatterNDAttrs:
    """How updates combine with what is there: none, add, mul, max, min."""

    reduction: str = "none"


def wrapped(indices: Array, extent: int) -> Array:
    """Indices into [0, extent): negative ones count from the end, the rest is clamped."""
    return np.asarray(np.clip(np.where(indices < 0, indices + extent, indices), 0, extent - 1), np.int64)


def _require_indices(type_: TensorType) -> None:
    require(type_.elem in (Int(32), Int(64)), f"indices are {type_.elem}, expected i32 or i64")


def _gather_infer(attrs: GatherAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x, indices = ins
    require_per_tensor(x)
    require_axis(attrs.axis, x.rank)
    _require_indices(indices)
    return (x.with_shape((*x.shape[: attrs.axis], *indices.shape, *x.shape[attrs.axis + 1 :])),)


def _gather_reference(call: Call, x: Array, indices: Array) -> Array:
    axis = call.attrs.axis
    return np.asarray(np.take(x, wrapped(indices, x.shape[axis]), axis=axis))


def _within(x: Shape, indices: Shape, axis: int) -> bool:
    """Whether `indices` reaches no further than `x` outside `axis`."""
    return all(
        i == axis or a == b or (isinstance(a, int) and isinstance(b, int) and b <= a)
        for i, (a, b) in enumerate(zip(x, indices, strict=True))
    )


def _gather_elements_infer(attrs: GatherAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x, indices = ins
    require_per_tensor(x)
    require_axis(attrs.axis, x.rank)
    _require_indices(indices)
    require(x.rank == indices.rank and _within(x.shape, indices.shape, attrs.axis), f"indices {indices} reach beyond {x}")
    return (x.with_shape(indices.shape),)


def _along(indices: Array, axis: int, extent: int) -> tuple[Array, ...]:
    """The index arrays of every element: its own position, but along `axis` the index."""
    at: list[Array] = list(np.indices(indices.shape, sparse=True))
    at[axis] = wrapped(indices, extent)
    return tuple(at)


def _gather_elements_reference(call: Call, x: Array, indices: Array) -> Array:
    return np.asarray(x[_along(indices, call.attrs.axis, x.shape[call.attrs.axis])])


def _depth(x: TensorType, indices: TensorType, first: int) -> int:
    """How many axes of `x`, from `first` on, an entry of `indices` addresses."""
    _require_indices(indices)
    require(indices.rank >= 1 and isinstance(indices.shape[-1], int), f"indices {indices} need a static last axis")
    depth = indices.shape[-1]
    assert isinstance(depth, int)
    require(1 <= depth <= x.rank - first, f"indices {indices} address {depth} axes of {x} behind the first {first}")
    return depth


def _gather_nd_infer(attrs: GatherNDAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x, indices = ins
    batch = attrs.batch_dims
    require_per_tensor(x)
    require(0 <= batch < min(x.rank, indices.rank), f"batch_dims {batch} of {x} and {indices}")
    require(x.shape[:batch] == indices.shape[:batch], f"{x} and {indices} differ in their first {batch} axes")
    depth = _depth(x, indices, batch)
    return (x.with_shape((*indices.shape[:-1], *x.shape[batch + depth :])),)


def _entries(indices: Array, extents: tuple[int, ...]) -> tuple[Array, ...]:
    """The last axis of `indices` as one index array for each of `extents`."""
    return tuple(wrapped(indices[..., i], extent) for i, extent in enumerate(extents))


def _gather_nd_reference(call: Call, x: Array, indices: Array) -> Array:
    batch, depth = call.attrs.batch_dims, indices.shape[-1]
    shape = (*indices.shape[:-1], *x.shape[batch + depth :])
    # Shared axes become one, whose own index is one more entry.
    flat = x.reshape(prod(x.shape[:batch]), *x.shape[batch:])
    entries = _entries(indices.reshape(len(flat), -1, depth), x.shape[batch : batch + depth])
    return np.asarray(flat[(np.arange(len(flat))[:, None], *entries)].reshape(shape))


def _require_reduction(reduction: str) -> None:
    require(reduction in REDUCTIONS, f"reduction {reduction!r}, expected one of {', '.join(REDUCTIONS)}")


def _scatter_elements_infer(attrs: ScatterElementsAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    indices = ins[1]
    x, updates = real_type(ins[0]), real_type(ins[2])
    _require_reduction(attrs.reduction)
    require_axis(attrs.axis, x.rank)
    _require_indices(indices)
    require(updates == x.with_shape(indices.shape), f"updates are {updates}, expected {x.with_shape(indices.shape)}")
    require(x.rank == indices.rank and _within(x.shape, indices.shape, attrs.axis), f"indices {indices} reach beyond {x}")
    return (x,)


def _scatter_elements_reference(call: Call, x: Array, indices: Array, updates: Array) -> Array:
    y = x.copy()
    REDUCTIONS[call.attrs.reduction](y, _along(indices, call.attrs.axis, x.shape[call.attrs.axis]), updates)
    return y


def _scatter_nd_infer(attrs: ScatterNDAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    indices = ins[1]
    x, updates = real_type(ins[0]), real_type(ins[2])
    _require_reduction(attrs.reduction)
    depth = _depth(x, indices, 0)
    expected = x.with_shape((*indices.shape[:-1], *x.shape[depth:]))
    require(updates == expected, f"updates are {updates}, expected {expected}")
    return (x,)


def _scatter_nd_reference(call: Call, x: Array, indices: Array, updates: Array) -> Array:
    y = x.copy()
    REDUCTIONS[call.attrs.reduction](y, _entries(indices, x.shape[: indices.shape[-1]]), updates)
    return y


def _gathers(name: str, doc: str, attrs: type[Any], infer: Any, reference: Any) -> None:
    register(
        name,
        doc,
        attrs=attrs,
        arity=(2, 2),
        infer=infer,
        reference=reference,
        macs=no_macs,
        levels=EVERYWHERE,
        traits={Trait.MOVEMENT},
        quant=QuantRule.SAME,
        integer=name,
        prune=PruneRule.BLOCKS,
        tolerance=0.0,
    )


def _scatters(name: str, doc: str, attrs: type[Any], infer: Any, reference: Any) -> None:
    register(
        name,
        doc,
        attrs=attrs,
        arity=(3, 3),
        infer=infer,
        reference=reference,
        macs=lambda _attrs, ins, _outs: 0 if not ins[2].is_static else ins[2].size,
        levels=FLOAT_ONLY,
        quant=QuantRule.FLOAT,
        integer=None,
        prune=PruneRule.BLOCKS,
        tolerance=1e-6,
    )


_gathers("Gather", "Slices of an axis picked by indices.", GatherAttrs, _gather_infer, _gather_reference)
_gathers(
    "GatherElements",
    "Elements picked by an index each along an axis.",
    GatherAttrs,
    _gather_elements_infer,
    _gather_elements_reference,
)
_gathers(
    "GatherND",
    "Slices picked by index tuples, the last axis of the indices.",
    GatherNDAttrs,
    _gather_nd_infer,
    _gather_nd_reference,
)
_scatters(
    "ScatterElements",
    "A copy with elements replaced at an index each along an axis.",
    ScatterElementsAttrs,
    _scatter_elements_infer,
    _scatter_elements_reference,
)
_scatters("ScatterND", "A copy with slices replaced at index tuples.", ScatterNDAttrs, _scatter_nd_infer, _scatter_nd_reference)
