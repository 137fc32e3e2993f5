"""Data movement: operators that copy elements, on reals and codes alike."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import (
    EVERYWHERE,
    Call,
    PruneRule,
    QuantRule,
    Trait,
    no_macs,
    register,
    require,
    require_axis,
    require_per_tensor,
)
from bevel.ir.types import F32, Dim, Float, Quant, Shape, TensorType

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ReshapeAttrs:
    """The complete result shape; at most one symbolic dimension beyond the operand's own."""

    shape: Shape


@dataclass(frozen=True)
class TransposeAttrs:
    """Result axis i is operand axis perm[i]."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class SliceAttrs:
    """Per axis of the operand: first index, end (exclusive) and positive step, clamped to the extent by the frontend.

    Axes that are not sliced have start 0, end -1 (meaning: to the end) and step 1.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class PadAttrs:
    """Constant padding: elements before and after each axis; value in real units (quantized to a code at INTEGER level)."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True)
class ConcatAttrs:
    """Axis along which operands are joined."""

    axis: int


def _known(shape: Shape) -> tuple[int, Any]:
    """Product of the integers and sorted names of the symbols of a shape."""
    return prod(d for d in shape if isinstance(d, int)), sorted(str(d) for d in shape if isinstance(d, Dim))


def _reshape_infer(attrs: ReshapeAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_per_tensor(ins[0])
    require(
        all(isinstance(d, Dim) or d >= 0 for d in attrs.shape), f"shape {list(map(str, attrs.shape))} has a negative dimension"
    )
    found, expected = _known(attrs.shape), _known(ins[0].shape)
    require(found == expected, f"cannot reshape {ins[0]} to {list(map(str, attrs.shape))}")
    return (ins[0].with_shape(attrs.shape),)


def _reshape_reference(call: Call, x: Array) -> Array:
    symbols = [i for i, d in enumerate(call.attrs.shape) if isinstance(d, Dim)]
    require(len(symbols) <= 1, f"Reshape to {list(map(str, call.attrs.shape))}: more than one symbolic dimension")
    return x.reshape([-1 if isinstance(d, Dim) else d for d in call.attrs.shape])


def _transpose_infer(attrs: TransposeAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x = ins[0]
    require(sorted(attrs.perm) == list(range(x.rank)), f"perm {attrs.perm} does not permute {x.rank} axes")
    elem = x.elem
    if isinstance(elem, Quant) and elem.axis is not None:
        elem = Quant(elem.storage, elem.scale, elem.zero_point, attrs.perm.index(elem.axis), elem.block)
    return (TensorType(tuple(x.shape[a] for a in attrs.perm), elem),)


def _slice_infer(attrs: SliceAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_per_tensor(ins[0])
    x = ins[0]
    require(len(attrs.starts) == len(attrs.ends) == len(attrs.steps) == x.rank, f"slice needs {x.rank} entries per field")
    shape: list[int | Dim] = []
    for extent, start, end, step in zip(x.shape, attrs.starts, attrs.ends, attrs.steps, strict=True):
        require(step >= 1 and start >= 0, f"slice start {start} step {step}: expected start >= 0 and step >= 1")
        if isinstance(extent, Dim):
            require((start, end, step) == (0, -1, 1), f"symbolic dimension {extent} cannot be sliced")
            shape.append(extent)
            continue
        stop = extent if end == -1 else end
        require(0 <= start <= stop <= extent, f"slice {start}:{stop} outside 0:{extent}")
        shape.append(-(-(stop - start) // step))
    return (x.with_shape(tuple(shape)),)


def _slice_reference(call: Call, x: Array) -> Array:
    a = call.attrs
    return x[tuple(slice(s, None if e == -1 else e, t) for s, e, t in zip(a.starts, a.ends, a.steps, strict=True))]


def _pad_infer(attrs: PadAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_per_tensor(ins[0])
    x = ins[0]
    require(len(attrs.before) == len(attrs.after) == x.rank, f"pad needs {x.rank} entries per field")
    require(all(n >= 0 for n in (*attrs.before, *attrs.after)), "negative padding: use Slice")
    shape: list[int | Dim] = []
    for extent, before, after in zip(x.shape, attrs.before, attrs.after, strict=True):
        if isinstance(extent, Dim):
            require(before == after == 0, f"symbolic dimension {extent} cannot be padded")
            shape.append(extent)
        else:
            shape.append(extent + before + after)
    return (x.with_shape(tuple(shape)),)


def pad_code(value: float, type_: TensorType) -> float:
    """The stored element that stands for real `value` in a tensor of `type_`: a code where it is quantized."""
    if isinstance(type_.elem, Quant):
        return int(type_.elem.quantize(np.asarray([value], np.float32))[0])
    return value


def _pad_reference(call: Call, x: Array) -> Array:
    a = call.attrs
    fill = a.value if x.dtype.kind == "f" else pad_code(a.value, call.inputs[0])
    return np.pad(x, list(zip(a.before, a.after, strict=True)), constant_values=fill)


def _concat_infer(attrs: ConcatAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    first = ins[0]
    require_per_tensor(first)
    require_axis(attrs.axis, first.rank)
    total = 0
    # Reals of different quantized types join as float32 (ANNOTATED); codes of different types never do.
    alike = all(t.elem == first.elem for t in ins)
    for t in ins:
        real = isinstance(t.elem, Float | Quant) and isinstance(first.elem, Float | Quant)
        require(t.elem == first.elem or real, f"operands are {first.elem} and {t.elem}")
        same = t.rank == first.rank and all(
            a == b for i, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)) if i != attrs.axis
        )
        require(same, f"shapes {first} and {t} differ outside axis {attrs.axis}")
        extent = t.shape[attrs.axis]
        require(isinstance(extent, int), "the concatenated axis is symbolic")
        assert isinstance(extent, int)
        total += extent
    joined = first.with_shape((*first.shape[: attrs.axis], total, *first.shape[attrs.axis + 1 :]))
    return (joined if alike else joined.with_elem(F32),)


def _movement(name: str, doc: str, attrs: type[Any], infer: Any, reference: Any, prune: PruneRule, **more: Any) -> None:
    register(
        name,
        doc,
        attrs=attrs,
        arity=more.get("arity", (1, 1)),
        infer=infer,
        reference=reference,
        macs=no_macs,
        levels=EVERYWHERE,
        traits={Trait.MOVEMENT, *more.get("traits", ())},
        quant=QuantRule.SAME,
        integer=name,
        prune=prune,
        tolerance=0.0,
    )


_movement(
    "Reshape",
    "The same elements in row-major order under another shape.",
    ReshapeAttrs,
    _reshape_infer,
    _reshape_reference,
    PruneRule.FLATTENS,
    traits=(Trait.VIEW,),
)
_movement(
    "Transpose",
    "Axes permuted.",
    TransposeAttrs,
    _transpose_infer,
    lambda call, x: np.ascontiguousarray(x.transpose(call.attrs.perm)),
    PruneRule.REORDERS,
)
_movement(
    "Slice",
    "Every step-th index from start to end of each axis.",
    SliceAttrs,
    _slice_infer,
    _slice_reference,
    PruneRule.BLOCKS,
)
_movement("Pad", "A constant border.", PadAttrs, _pad_infer, _pad_reference, PruneRule.BLOCKS)
_movement(
    "Concat",
    "Operands joined along an axis.",
    ConcatAttrs,
    _concat_infer,
    lambda call, *xs: np.concatenate(xs, axis=call.attrs.axis),
    PruneRule.CONCATENATES,
    arity=(1, None),
)
