"""Data movement: every view becomes a Reshape to a complete shape, every cut a Slice over all axes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
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


def convert_slice(_builder: Builder, node: OnnxNode) -> Operand:
    """Slice with constant bounds and positive steps, clamped to the extents."""
    shape = node.shape(0)
    begin, stop = node.known_ints(1, "starts"), node.known_ints(2, "ends")
    if begin is None or stop is None or len(begin) != len(stop):
        node.refuse("starts and ends that do not pair", "one start and end for every axis")
    axes = node.known_ints(3, "axes") or tuple(range(len(begin)))
    strides = node.known_ints(4, "steps") or (1,) * len(begin)
    if not len(axes) == len(strides) == len(begin):
        node.refuse(f"{len(begin)} starts, {len(axes)} axes, {len(strides)} steps", "as many of each")
    starts, ends, steps = [0] * len(shape), [-1] * len(shape), [1] * len(shape)
    for axis, first, last, step in zip(axes, begin, stop, strides, strict=True):
        axis = node.axis(axis, len(shape))
        extent = shape[axis]
        if step < 1:
            node.refuse(f"step {step}", "positive steps")
        if isinstance(extent, Dim):
            if first != 0 or step != 1 or last < np.iinfo(np.int32).max:
                node.refuse(f"cuts symbolic dimension {extent}", "static extents; bind the dimension with dims=")
            continue
        start, end, _ = slice(first, last).indices(extent)
        starts[axis], ends[axis], steps[axis] = start, -1 if end == extent else max(end, start), step
    return node.emit("Slice", [node.operand(0)], SliceAttrs(tuple(starts), tuple(ends), tuple(steps)))


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


def convert_gather(_builder: Builder, node: OnnxNode) -> Operand:
    """Gather of one index, or of consecutive ones, from an activation."""
    shape = node.shape(0)
    axis = node.axis(node.integer("axis", 0), len(shape))
    indices = node.known(1, "indices")
    (extent,) = node.static(shape[axis : axis + 1], "gathered axis")
    if indices is None or indices.dtype.kind != "i" or indices.ndim > 1 or not indices.size:
        node.refuse("indices of rank 2 or more", "one index, or a list of consecutive ones")
    flat = [int(i) + (extent if i < 0 else 0) for i in indices.reshape(-1)]
    if flat != list(range(flat[0], flat[0] + len(flat))) or flat[0] < 0 or flat[-1] >= extent:
        node.refuse(f"indices {flat[:8]} of extent {extent}", "one index, or a list of consecutive ones")
    suffix = "" if indices.ndim else ".slice"
    part = _slice_axis(node, node.operand(0), shape, axis, flat[0], flat[0] + len(flat), suffix)
    return part if indices.ndim else node.emit("Reshape", [part], ReshapeAttrs((*shape[:axis], *shape[axis + 1 :])))


def convert_pad(_builder: Builder, node: OnnxNode) -> Operand:
    """Constant padding; negative padding cuts."""
    shape = node.shape(0)
    if (mode := node.text("mode", "constant")) != "constant":
        node.refuse(f"mode={mode!r}", "mode='constant'")
    pads = node.ints_or_input("pads", 1)
    fill = node.known(2, "constant_value")
    axes = node.known_ints(3, "axes") or tuple(range(len(shape)))
    if pads is None or len(pads) != 2 * len(axes):
        node.refuse(f"pads {pads} for {len(axes)} axes", "two pads for every axis")
    before, after = [0] * len(shape), [0] * len(shape)
    for i, a in enumerate(axes):
        axis = node.axis(a, len(shape))
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    operand = node.operand(0)
    if min(*before, *after) < 0:
        ends = tuple(-1 if b >= 0 else node.static((d,), "cut extent")[0] + b for d, b in zip(shape, after, strict=True))
        cut = SliceAttrs(tuple(max(-b, 0) for b in before), ends, (1,) * len(shape))
        operand = node.emit("Slice", [operand], cut, suffix=".cut")
    value = 0.0 if fill is None or not fill.size else float(fill.reshape(-1)[0])
    if not np.isfinite(value):
        node.refuse(f"constant_value={value}", "finite values")
    attrs = PadAttrs(tuple(max(b, 0) for b in before), tuple(max(a, 0) for a in after), value)
    return node.emit("Pad", [operand], attrs)


def convert_concat(_builder: Builder, node: OnnxNode) -> Operand:
    """Concat."""
    axis = node.axis(node.integer("axis", 0), len(node.shape(0)))
    return node.emit("Concat", node.operands(), ConcatAttrs(axis))


def convert_identity(_builder: Builder, node: OnnxNode) -> Operand:
    """Identity: another name."""
    return node.operand(0)


def convert_dropout(_builder: Builder, node: OnnxNode) -> Operand:
    """Dropout does nothing at inference."""
    node.number("ratio", 0.5)
    node.integer("seed", 0)
    training = node.known(2, "training_mode")
    if any(node.outputs[1:]) or (training is not None and bool(training.any())):
        node.refuse("training mode or the mask output", "inference; export the model in eval mode")
    return node.operand(0)


def convert_expand(_builder: Builder, node: OnnxNode) -> Operand:
    """Expand that changes nothing."""
    shape = node.shape(0)
    target = node.known(1, "shape")
    wanted = () if target is None else tuple(target.reshape(-1).tolist())
    padded = (1,) * (len(shape) - len(wanted)) + wanted
    if len(wanted) > len(shape) or any(w not in (1, d) for w, d in zip(padded, shape, strict=True)):
        node.refuse(f"[{', '.join(map(str, shape))}] to {list(map(str, wanted))}", "the operand's own shape")
    return node.operand(0)


def convert_depth_to_space(_builder: Builder, node: OnnxNode) -> Operand:
    """DepthToSpace as Reshape, Transpose, Reshape."""
    batch, channels, height, width = node.shape(0)
    c, h, w = node.static((channels, height, width), "image extents")
    block, mode = node.integer("blocksize", 1), node.text("mode", "DCR")
    if block < 1 or c % (block * block) or mode not in ("DCR", "CRD"):
        node.refuse(f"blocksize={block}, mode={mode!r} of {c} channels", "channels divisible by blocksize^2, DCR or CRD")
    inner = c // (block * block)
    split = (batch, block, block, inner, h, w) if mode == "DCR" else (batch, inner, block, block, h, w)
    perm = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    parts = node.emit("Reshape", [node.operand(0)], ReshapeAttrs(split), suffix=".split")
    moved = node.emit("Transpose", [parts], TransposeAttrs(perm), suffix=".moved")
    return node.emit("Reshape", [moved], ReshapeAttrs((batch, inner, h * block, w * block)))


TABLE = {
    "Concat": convert_concat,
    "DepthToSpace": convert_depth_to_space,
    "Dropout": convert_dropout,
    "Expand": convert_expand,
    "Flatten": convert_flatten,
    "Gather": convert_gather,
    "Identity": convert_identity,
    "Pad": convert_pad,
    "Reshape": convert_reshape,
    "Slice": convert_slice,
    "Split": convert_split,
    "Squeeze": convert_squeeze,
    "Transpose": convert_transpose,
    "Unsqueeze": convert_unsqueeze,
}
