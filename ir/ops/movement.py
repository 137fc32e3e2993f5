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

PAD_MODES = ("constant", "edge", "reflect", "wrap")


@dataclass(frozen=True)
class ReshapeAttrs:
    """The complete result shape, with the operand's symbolic dimensions."""

    shape: Shape


@dataclass(frozen=True)
class TransposeAttrs:
    """Result axis i is operand axis perm[i]."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class SliceAttrs:
    """Per axis of the operand: first index, end (exclusive) and positive step, clamped to the extent by the frontend.

    Axes that are not sliced have start 0, end -1 (meaning: to the end) and step 1. The end may be a symbolic dimension, which is
    then the result's extent.
    """

    starts: tuple[int, ...]
    ends: tuple[int | Dim, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class PadAttrs:
    """Elements before and after each axis, and what they are.

    Attributes:
        value: of mode "constant", in real units (quantized to a code at INTEGER level).
        mode: "constant", or elements of the operand: "edge" repeats the outermost, "reflect" mirrors at it, "wrap" starts over.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0
    mode: str = "constant"


@dataclass(frozen=True)
class ReverseAttrs:
    """Axes whose order is reversed."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class ExpandAttrs:
    """The complete result shape: each extent is the operand's own, or any where that is 1 or missing in front."""

    shape: Shape


@dataclass(frozen=True)
class TileAttrs:
    """How often each axis repeats."""

    repeats: tuple[int, ...]


@dataclass(frozen=True)
class BlockAttrs:
    """Extent of the square of pixels that lies in the channels; DCR: offset within the square before channel, CRD: behind it."""

    block: int
    mode: str = "DCR"


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
    return x.reshape(call.attrs.shape)


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
        if isinstance(end, Dim):
            fits = isinstance(extent, int) and (end.hi is None or end.hi <= extent)
            require(fits and start == 0 and step == 1, f"slice {start}:{end}:{step} of {extent}: expected 0:{end}:1 of as many")
            shape.append(end)
            continue
        if isinstance(extent, Dim) and (start, end, step) == (0, -1, 1):
            shape.append(extent)
            continue
        if isinstance(extent, Dim):
            require(end >= start, f"symbolic dimension {extent} cannot be sliced to its end")
            # What every extent has can be cut out.
            extent = extent.lo
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
    require(attrs.mode in PAD_MODES, f"mode {attrs.mode!r}, expected one of {', '.join(PAD_MODES)}")
    shape: list[int | Dim] = []
    for extent, before, after in zip(x.shape, attrs.before, attrs.after, strict=True):
        if isinstance(extent, Dim):
            require(before == after == 0, f"symbolic dimension {extent} cannot be padded")
            shape.append(extent)
        else:
            least = 0 if attrs.mode == "constant" or before == after == 0 else 1
            require(extent >= least, f"mode {attrs.mode!r} of an empty axis")
            shape.append(extent + before + after)
    return (x.with_shape(tuple(shape)),)


def pad_table(attrs: PadAttrs, axis: int, extent: int) -> Array:
    """Source index of every result index along `axis` of `extent` elements, for modes that copy elements: int64."""
    return np.pad(np.arange(extent, dtype=np.int64), (attrs.before[axis], attrs.after[axis]), mode=attrs.mode)  # type: ignore[call-overload,no-any-return]


def pad_code(value: float, type_: TensorType) -> float:
    """The stored element that stands for real `value` in a tensor of `type_`: a code where it is quantized."""
    if isinstance(type_.elem, Quant):
        return int(type_.elem.quantize(np.asarray([value], np.float32))[0])
    return value


def _pad_reference(call: Call, x: Array) -> Array:
    a = call.attrs
    if a.mode != "constant":
        for axis, extent in enumerate(x.shape):
            if a.before[axis] or a.after[axis]:
                x = np.take(x, pad_table(a, axis, extent), axis=axis)
        return x
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


def _reverse_infer(attrs: ReverseAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_per_tensor(ins[0])
    for axis in attrs.axes:
        require_axis(axis, ins[0].rank)
        require(isinstance(ins[0].shape[axis], int), f"symbolic dimension {ins[0].shape[axis]} cannot be reversed")
    return (ins[0],)


def _expand_infer(attrs: ExpandAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x = ins[0]
    require_per_tensor(x)
    front = len(attrs.shape) - x.rank
    fits = front >= 0 and all(a in (1, b) for a, b in zip(x.shape, attrs.shape[max(front, 0) :], strict=False))
    require(fits, f"cannot expand {x} to {list(map(str, attrs.shape))}")
    return (x.with_shape(attrs.shape),)


def _expand_reference(call: Call, x: Array) -> Array:
    return np.broadcast_to(x, call.attrs.shape).copy()


def _tile_infer(attrs: TileAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x = ins[0]
    require_per_tensor(x)
    require(len(attrs.repeats) == x.rank and all(n >= 1 for n in attrs.repeats), f"repeats {attrs.repeats} of {x}")
    shape: list[int | Dim] = []
    for extent, repeat in zip(x.shape, attrs.repeats, strict=True):
        require(repeat == 1 or isinstance(extent, int), f"symbolic dimension {extent} cannot be repeated")
        shape.append(extent * repeat if isinstance(extent, int) else extent)
    return (x.with_shape(tuple(shape)),)


def _image(attrs: BlockAttrs, x: TensorType) -> tuple[int, int, int]:
    """Channels, height and width of an image whose blocks are moved."""
    require_per_tensor(x)
    require(x.rank == 4 and attrs.block >= 1, f"blocks of {attrs.block} in {x}, expected rank 4 and a block of 1 or more")
    require(attrs.mode in ("DCR", "CRD"), f"mode {attrs.mode!r}, expected DCR or CRD")
    channels, height, width = x.shape[1:]
    require(
        isinstance(channels, int) and isinstance(height, int) and isinstance(width, int),
        f"{x}: channels and extents must be static",
    )
    assert isinstance(channels, int)
    assert isinstance(height, int)
    assert isinstance(width, int)
    return channels, height, width


def _depth_to_space_infer(attrs: BlockAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    channels, height, width = _image(attrs, ins[0])
    b = attrs.block
    require(channels % (b * b) == 0, f"{channels} channels are no multiple of {b} * {b}")
    return (ins[0].with_shape((ins[0].shape[0], channels // (b * b), height * b, width * b)),)


def _depth_to_space_reference(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    b = call.attrs.block
    if call.attrs.mode == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth_infer(attrs: BlockAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    channels, height, width = _image(attrs, ins[0])
    b = attrs.block
    require(height % b == 0 and width % b == 0, f"image {height} x {width} is no multiple of {b}")
    return (ins[0].with_shape((ins[0].shape[0], channels * b * b, height // b, width // b)),)


def _space_to_depth_reference(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    b = call.attrs.block
    parts = x.reshape(n, c, h // b, b, w // b, b)
    moved = parts.transpose(0, 3, 5, 1, 2, 4) if call.attrs.mode == "DCR" else parts.transpose(0, 1, 3, 5, 2, 4)
    return moved.reshape(n, c * b * b, h // b, w // b)


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
_movement("Pad", "A border: constant, or made of the operand's elements.", PadAttrs, _pad_infer, _pad_reference, PruneRule.BLOCKS)
_movement(
    "Reverse",
    "Axes in opposite order.",
    ReverseAttrs,
    _reverse_infer,
    lambda call, x: np.flip(x, call.attrs.axes).copy(),
    PruneRule.BLOCKS,
)
_movement("Expand", "Axes of extent 1 broadcast.", ExpandAttrs, _expand_infer, _expand_reference, PruneRule.BLOCKS)
_movement(
    "Tile",
    "The operand repeated along its axes.",
    TileAttrs,
    _tile_infer,
    lambda call, x: np.tile(x, call.attrs.repeats),
    PruneRule.BLOCKS,
)
_movement(
    "DepthToSpace",
    "Channels moved into squares of pixels.",
    BlockAttrs,
    _depth_to_space_infer,
    _depth_to_space_reference,
    PruneRule.BLOCKS,
)
_movement(
    "SpaceToDepth",
    "Squares of pixels moved into channels.",
    BlockAttrs,
    _space_to_depth_infer,
    _space_to_depth_reference,
    PruneRule.BLOCKS,
)
_movement(
    "Concat",
    "Operands joined along an axis.",
    ConcatAttrs,
    _concat_infer,
    lambda call, *xs: np.concatenate(xs, axis=call.attrs.axis),
    PruneRule.CONCATENATES,
    arity=(1, None),
)
