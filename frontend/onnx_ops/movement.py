"""Data movement: every view becomes a Reshape to a complete shape, every cut a Slice over all axes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand, normalize_array
from bevel.frontend.onnx_ops.constants import limited
from bevel.ir.ops.movement import (
    PAD_MODES,
    BlockAttrs,
    ConcatAttrs,
    ExpandAttrs,
    PadAttrs,
    ReshapeAttrs,
    ReverseAttrs,
    SliceAttrs,
    TileAttrs,
    TransposeAttrs,
)
from bevel.ir.types import Dim, Shape

Array = npt.NDArray[Any]


def resolve_shape(node: OnnxNode, source: Shape, target: Array, *, zero_copies: bool) -> Shape:
    """The complete shape that a Reshape of `source` to `target` means.

    Args:
        node: for messages.
        source: operand shape.
        target: entries as ints or Dims; one may be -1, and 0 copies the source's extent.
        zero_copies: whether 0 copies (ONNX allowzero=0).
    """
    wanted: list[int | Dim] = []
    for i, entry in enumerate(target.reshape(-1).tolist()):
        if entry == 0 and zero_copies:
            if i >= len(source):
                node.refuse(f"0 at axis {i} copies from rank {len(source)}", "0 only where the operand has that axis")
            wanted.append(source[i])
        else:
            wanted.append(entry)
    product = prod(d for d in source if isinstance(d, int))
    symbols = [d for d in source if isinstance(d, Dim)]
    known = prod(d for d in wanted if isinstance(d, int) and d != -1)
    for d in wanted:
        if isinstance(d, Dim) and d in symbols:
            symbols.remove(d)
    found = f"[{', '.join(map(str, source))}] to [{', '.join(map(str, wanted))}]"
    hint = "shapes whose symbolic dimensions survive; otherwise bind them with dims= at import"
    if wanted.count(-1) > 1 or any(isinstance(d, int) and d < -1 for d in wanted):
        node.refuse(found, "one -1 at most")
    if -1 not in wanted:
        if symbols or known != product:
            node.refuse(found, hint)
        return tuple(wanted)
    rest: int | Dim
    if not symbols and known > 0 and product % known == 0:
        rest = product // known
    elif len(symbols) == 1 and known == product:
        rest = symbols[0]
    else:
        node.refuse(found, hint)
    return tuple(rest if d == -1 else d for d in wanted)


def _reshape(node: OnnxNode, shape: Shape) -> Operand:
    """Reshape operand 0, or the operand itself where it has that shape already."""
    operand = node.operand(0)
    return operand if shape == node.shape(0) else node.emit("Reshape", [operand], ReshapeAttrs(shape))


def convert_reshape(_builder: Builder, node: OnnxNode) -> Operand:
    """Reshape to a constant or partly symbolic shape."""
    target = node.known(1, "shape")
    if target is None:
        node.refuse("no shape operand", "a constant shape")
    return _reshape(node, resolve_shape(node, node.shape(0), target, zero_copies=not node.integer("allowzero", 0)))


def convert_flatten(_builder: Builder, node: OnnxNode) -> Operand:
    """Flatten to two dimensions."""
    shape = node.shape(0)
    axis = node.integer("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        node.refuse(f"axis {axis} outside rank {len(shape)}", f"{-len(shape)} to {len(shape)}")
    axis = axis + len(shape) if axis < 0 else axis
    target: list[int | Dim] = []
    for part in (shape[:axis], shape[axis:]):
        symbols = [d for d in part if isinstance(d, Dim)]
        numbers = prod(d for d in part if isinstance(d, int))
        if symbols and (len(symbols) > 1 or numbers != 1):
            node.refuse(f"joins symbolic dimension {symbols[0]} with others", "static extents; bind the dimension with dims=")
        target.append(symbols[0] if symbols else numbers)
    return _reshape(node, tuple(target))


def convert_squeeze(_builder: Builder, node: OnnxNode) -> Operand:
    """Squeeze the given axes, or all of extent 1."""
    shape = node.shape(0)
    axes = node.ints_or_input("axes", 1)
    drop = {i for i, d in enumerate(shape) if d == 1} if axes is None else {node.axis(a, len(shape)) for a in axes}
    if any(shape[i] != 1 for i in drop):
        node.refuse(f"axes {sorted(drop)} of [{', '.join(map(str, shape))}]", "axes of extent 1")
    return _reshape(node, tuple(d for i, d in enumerate(shape) if i not in drop))


def convert_unsqueeze(_builder: Builder, node: OnnxNode) -> Operand:
    """Insert axes of extent 1."""
    shape = node.shape(0)
    axes = node.ints_or_input("axes", 1) or ()
    rank = len(shape) + len(axes)
    where = {node.axis(a, rank) for a in axes}
    if len(where) != len(axes):
        node.refuse(f"axes {list(axes)}", "distinct axes")
    rest = iter(shape)
    return _reshape(node, tuple(1 if i in where else next(rest) for i in range(rank)))


def convert_transpose(_builder: Builder, node: OnnxNode) -> Operand:
    """Transpose; NHWC exports keep theirs, backends make them free."""
    rank = len(node.shape(0))
    perm = node.ints("perm") or tuple(reversed(range(rank)))
    return node.emit("Transpose", [node.operand(0)], TransposeAttrs(perm))


def _slice_axis(node: OnnxNode, operand: Operand, shape: Shape, axis: int, start: int, end: int, suffix: str = "") -> Operand:
    starts, ends, steps = [0] * len(shape), [-1] * len(shape), [1] * len(shape)
    starts[axis], ends[axis] = start, end
    return node.emit("Slice", [operand], SliceAttrs(tuple(starts), tuple(ends), tuple(steps)), suffix=suffix)


def _bounds(node: OnnxNode, index: int, what: str) -> list[Any]:
    """Known integers of operand `index`; entries may be symbolic dimensions."""
    found = node.known(index, what)
    if found is None or found.dtype.kind not in "iuO":
        node.refuse(f"{what} missing or no integers", f"constant {what}")
    return list(found.reshape(-1).tolist())


def convert_slice(_builder: Builder, node: OnnxNode) -> Operand:
    """Slice with constant bounds, clamped to the extents; a negative step reverses what a positive one picks."""
    shape = node.shape(0)
    if node.has("starts"):
        begin, stop = [*(node.ints("starts") or ())], [*(node.ints("ends") or ())]
        axes = node.ints("axes") or tuple(range(len(begin)))
        strides = (1,) * len(begin)
    else:
        begin, stop = _bounds(node, 1, "starts"), _bounds(node, 2, "ends")
        axes = node.known_ints(3, "axes") or tuple(range(len(begin)))
        strides = node.known_ints(4, "steps") or (1,) * len(begin)
    if not len(axes) == len(strides) == len(begin) == len(stop):
        node.refuse(f"{len(begin)} starts, {len(stop)} ends, {len(axes)} axes, {len(strides)} steps", "as many of each")
    starts, steps = [0] * len(shape), [1] * len(shape)
    ends: list[int | Dim] = [-1] * len(shape)
    reversed_axes = []
    first: Any
    last: Any
    for axis, first, last, step in zip(axes, begin, stop, strides, strict=True):
        axis = node.axis(axis, len(shape))
        extent = shape[axis]
        if isinstance(extent, Dim):
            whole = last == extent or (isinstance(last, int) and last >= np.iinfo(np.int32).max)
            if first != 0 or step != 1 or not whole:
                node.refuse(f"cuts symbolic dimension {extent}", "static extents; bind the dimension with dims=")
            continue
        if isinstance(last, Dim) and first == 0 and step == 1:
            ends[axis] = last
            continue
        if step == 0 or not isinstance(first, int) or not isinstance(last, int):
            node.refuse(
                f"{first}:{last}:{step} of axis {axis}", "constant bounds and a step other than 0; bind dimensions with dims="
            )
        picked = range(extent)[slice(first, last, step)]
        if step < 0:
            picked = picked[::-1]
            reversed_axes.append(axis)
        picked = picked or range(0)
        end = picked[-1] + 1 if picked else picked.start
        starts[axis], ends[axis], steps[axis] = picked.start, -1 if end == extent else end, abs(step)
    attrs = SliceAttrs(tuple(starts), tuple(ends), tuple(steps))
    if not reversed_axes:
        return node.emit("Slice", [node.operand(0)], attrs)
    part = node.emit("Slice", [node.operand(0)], attrs, suffix=".forward")
    return node.emit("Reverse", [part], ReverseAttrs(tuple(sorted(reversed_axes))))


def convert_split(_builder: Builder, node: OnnxNode) -> tuple[Operand, ...]:
    """Split into Slices."""
    shape = node.shape(0)
    axis = node.axis(node.integer("axis", 0), len(shape))
    (extent,) = node.static(shape[axis : axis + 1], "split axis")
    node.integer("num_outputs", 0)
    count = len(node.outputs)
    even = -(-extent // count)
    parts = node.ints_or_input("split", 1) or tuple(min(even, extent - i * even) for i in range(count))
    if len(parts) != count or sum(parts) != extent or min(parts) < 0:
        node.refuse(f"split={list(parts)} of extent {extent} into {count} results", "parts that add up to the extent")
    results, start = [], 0
    for i, part in enumerate(parts):
        suffix = "" if i == 0 else f".{i}"
        results.append(_slice_axis(node, node.operand(0), shape, axis, start, start + part, suffix))
        start += part
    return tuple(results)


def convert_pad(_builder: Builder, node: OnnxNode) -> Operand:
    """Pad; negative padding cuts."""
    shape = node.shape(0)
    mode = node.text("mode", "constant")
    if mode not in PAD_MODES:
        node.refuse(f"mode={mode!r}", ", ".join(PAD_MODES))
    pads = node.ints_or_input("pads", 1)
    fill = np.asarray(node.number("value", 0.0)) if node.has("value") else node.known(2, "constant_value")
    axes = node.known_ints(3, "axes") or tuple(range(len(shape)))
    if pads is None or len(pads) != 2 * len(axes):
        node.refuse(f"pads {pads} for {len(axes)} axes", "two pads for every axis")
    before, after = [0] * len(shape), [0] * len(shape)
    for i, a in enumerate(axes):
        axis = node.axis(a, len(shape))
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    operand = node.operand(0)
    if min(*before, *after) < 0:
        operand = _cut(node, operand, [min(b, 0) for b in before], [min(a, 0) for a in after])
    value = 0.0 if mode != "constant" or fill is None or not fill.size else float(fill.reshape(-1)[0])
    if not np.isfinite(value):
        node.refuse(f"constant_value={value}", "finite values")
    attrs = PadAttrs(tuple(max(b, 0) for b in before), tuple(max(a, 0) for a in after), value, mode)
    return node.emit("Pad", [operand], attrs)


def _cut(node: OnnxNode, operand: Operand, before: list[int], after: list[int]) -> Operand:
    """Without the elements that negative padding removes."""
    shape = node.shape(0)
    starts, ends = [-b for b in before], [-1] * len(shape)
    for axis, (first, a) in enumerate(zip(starts, after, strict=True)):
        if a < 0:
            (extent,) = node.static((shape[axis],), "cut extent")
            ends[axis] = max(extent + a, first)
    return node.emit("Slice", [operand], SliceAttrs(tuple(starts), tuple(ends), (1,) * len(shape)), suffix=".cut")


def convert_center_crop_pad(_builder: Builder, node: OnnxNode) -> Operand:
    """CenterCropPad to constant extents: a Slice and a Pad."""
    shape = node.shape(0)
    target = node.known_ints(1, "shape")
    axes = tuple(node.axis(a, len(shape)) for a in node.ints("axes") or range(len(shape)))
    if target is None or len(target) != len(axes) or min(target, default=0) < 1:
        node.refuse(f"shape {target} for axes {list(axes)}", "one positive extent for every axis")
    starts, ends = [0] * len(shape), [-1] * len(shape)
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, size in zip(axes, target, strict=True):
        (extent,) = node.static((shape[axis],), "cropped or padded extent")
        if extent > size:
            starts[axis] = (extent - size) // 2
            ends[axis] = starts[axis] + size
        else:
            before[axis] = (size - extent) // 2
            after[axis] = size - extent - before[axis]
    cut = node.emit("Slice", [node.operand(0)], SliceAttrs(tuple(starts), tuple(ends), (1,) * len(shape)), suffix=".cropped")
    return node.emit("Pad", [cut], PadAttrs(tuple(before), tuple(after)))


def convert_concat(_builder: Builder, node: OnnxNode) -> Operand:
    """Concat."""
    axis = node.axis(node.integer("axis", 0), len(node.shape(0)))
    return node.emit("Concat", node.operands(), ConcatAttrs(axis))


def convert_identity(_builder: Builder, node: OnnxNode) -> Operand:
    """Identity: another name."""
    return node.operand(0)


def convert_expand(_builder: Builder, node: OnnxNode) -> Operand:
    """Expand to a constant or partly symbolic shape."""
    shape = node.shape(0)
    target = node.known(1, "shape")
    wanted = () if target is None else tuple(target.reshape(-1).tolist())
    rank = max(len(shape), len(wanted))
    own = (1,) * (rank - len(shape)) + shape
    padded = (1,) * (rank - len(wanted)) + wanted
    result: list[int | Dim] = []
    for a, w in zip(own, padded, strict=True):
        if w != 1 and a != 1 and a != w:
            node.refuse(f"[{', '.join(map(str, shape))}] to [{', '.join(map(str, wanted))}]", "extents that broadcast")
        result.append(w if a == 1 else a)
    return node.operand(0) if tuple(result) == shape else node.emit("Expand", [node.operand(0)], ExpandAttrs(tuple(result)))


def convert_tile(_builder: Builder, node: OnnxNode) -> Operand:
    """Tile by constant repeats."""
    repeats = node.known_ints(1, "repeats")
    if node.opset < 6:
        node.refuse("tiles along one axis", "opset 6 and later")
    if repeats is None or len(repeats) != len(node.shape(0)) or min(repeats, default=1) < 1:
        node.refuse(f"repeats {repeats} for rank {len(node.shape(0))}", "one positive repeat for every axis")
    return node.operand(0) if set(repeats) <= {1} else node.emit("Tile", [node.operand(0)], TileAttrs(repeats))


def convert_depth_to_space(_builder: Builder, node: OnnxNode) -> Operand:
    """DepthToSpace."""
    return node.emit("DepthToSpace", [node.operand(0)], BlockAttrs(node.integer("blocksize", 1), node.text("mode", "DCR")))


def convert_space_to_depth(_builder: Builder, node: OnnxNode) -> Operand:
    """SpaceToDepth."""
    return node.emit("SpaceToDepth", [node.operand(0)], BlockAttrs(node.integer("blocksize", 1), node.text("mode", "DCR")))


def convert_trilu(_builder: Builder, node: OnnxNode) -> Operand:
    """Trilu of static matrices: a choice between the operand and zero by a constant triangle."""
    shape = node.shape(0)
    rows, columns = limited(node, node.static(shape[-2:], "matrix"))
    offset = node.known_ints(1, "k") or (0,)
    keep = np.tri(rows, columns, offset[0], dtype=bool)
    if node.integer("upper", 1):
        keep = ~np.tri(rows, columns, offset[0] - 1, dtype=bool)
    operand = node.operand(0)
    return node.emit("Where", [keep, operand, np.zeros((), dtype_of(operand))])


def dtype_of(operand: Operand) -> np.dtype[Any]:
    """The type that an operand's elements compute in."""
    if isinstance(operand, np.ndarray):
        return operand.dtype
    return operand.value.type.dtype if isinstance(operand, Codes) else np.dtype(np.float32)


def convert_eye_like(_builder: Builder, node: OnnxNode) -> Operand:
    """EyeLike of a static shape: a constant."""
    shape = limited(node, node.static(node.shape(0), "operand"))
    code = node.integer("dtype", 0)
    dtype = onnx_ir.DataType(code).numpy() if code else dtype_of(node.operand(0))
    offset = node.integer("k", 0)
    if len(shape) != 2 or dtype.kind not in "fiub":
        node.refuse(f"rank {len(shape)}, {dtype}", "rank 2 and numbers")
    return normalize_array(np.eye(*shape, k=offset, dtype=dtype), node.outputs[0])


TABLE = {
    "CenterCropPad": convert_center_crop_pad,
    "Concat": convert_concat,
    "DepthToSpace": convert_depth_to_space,
    "Expand": convert_expand,
    "EyeLike": convert_eye_like,
    "Flatten": convert_flatten,
    "Identity": convert_identity,
    "Pad": convert_pad,
    "Reshape": convert_reshape,
    "Slice": convert_slice,
    "SpaceToDepth": convert_space_to_depth,
    "Split": convert_split,
    "Squeeze": convert_squeeze,
    "Tile": convert_tile,
    "Transpose": convert_transpose,
    "Trilu": convert_trilu,
    "Unsqueeze": convert_unsqueeze,
}
