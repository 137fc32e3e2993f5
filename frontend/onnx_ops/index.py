"""Operators that pick or place elements by index, and those whose result shape depends on data, which are refused."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand
from bevel.frontend.onnx_ops.constants import limited
from bevel.ir.ops.index import GatherAttrs, GatherNDAttrs, ScatterElementsAttrs, ScatterNDAttrs, wrapped
from bevel.ir.ops.movement import ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.types import Dim, elem_of_dtype

Array = npt.NDArray[Any]


def _indices(node: OnnxNode, index: int) -> Operand:
    """The index operand: int32 where it is known, else as the model computes it."""
    operand = node.operand(index)
    if not isinstance(operand, np.ndarray):
        if not isinstance(operand, Codes):
            node.refuse("indices that are reals", "integer indices")
        return operand
    if operand.dtype.kind not in "iu":
        node.refuse(f"indices of type {operand.dtype}", "integer indices; bind symbolic dimensions with dims=")
    limit = np.iinfo(np.int32)
    return np.clip(operand, limit.min, limit.max).astype(np.int32)


def _known_indices(node: OnnxNode, index: int, extent: int) -> Array | None:
    """The index operand as indices into [0, extent), None where the model computes it."""
    operand = _indices(node, index)
    if not isinstance(operand, np.ndarray):
        return None
    if operand.size and not -extent <= operand.min() <= operand.max() < extent:
        node.refuse(f"indices {operand.min()}..{operand.max()} of extent {extent}", "indices inside the axis")
    return wrapped(operand, extent)


def _first_indices(node: OnnxNode, index: int, extent: Dim) -> Array | None:
    """The index operand where it is known to lie inside every extent, None where only the run tells."""
    operand = node.operand(index)
    if not isinstance(operand, np.ndarray) or operand.dtype.kind not in "iu" or not operand.size:
        return None
    return operand if 0 <= operand.min() <= operand.max() < extent.lo else None


def convert_gather(_builder: Builder, node: OnnxNode) -> Operand:
    """Gather; of one index, or of consecutive ones, a Slice."""
    shape = node.shape(0)
    axis = node.axis(node.integer("axis", 0), len(shape))
    extent = shape[axis]
    indices = _first_indices(node, 1, extent) if isinstance(extent, Dim) else _known_indices(node, 1, extent)
    if indices is None or indices.ndim > 1 or not _consecutive(indices):
        picked = _indices(node, 1) if indices is None else indices.astype(np.int32)
        return node.emit("Gather", [node.operand(0), picked], GatherAttrs(axis))
    first, stop = int(indices.reshape(-1)[0]), int(indices.reshape(-1)[-1]) + 1
    starts, ends, steps = [0] * len(shape), [-1] * len(shape), (1,) * len(shape)
    starts[axis], ends[axis] = first, stop
    cut = SliceAttrs(tuple(starts), tuple(ends), steps)
    part = node.emit("Slice", [node.operand(0)], cut, suffix="" if indices.ndim else ".slice")
    return part if indices.ndim else node.emit("Reshape", [part], ReshapeAttrs((*shape[:axis], *shape[axis + 1 :])))


def _consecutive(indices: Array) -> bool:
    flat = indices.reshape(-1)
    return bool(flat.size) and bool((flat == np.arange(flat[0], flat[0] + flat.size)).all())


def convert_gather_elements(_builder: Builder, node: OnnxNode) -> Operand:
    """GatherElements."""
    axis = node.axis(node.integer("axis", 0), len(node.shape(0)))
    return node.emit("GatherElements", [node.operand(0), _indices(node, 1)], GatherAttrs(axis))


def convert_gather_nd(_builder: Builder, node: OnnxNode) -> Operand:
    """GatherND."""
    return node.emit("GatherND", [node.operand(0), _indices(node, 1)], GatherNDAttrs(node.integer("batch_dims", 0)))


def _scatter_operands(node: OnnxNode) -> list[Operand]:
    """Data, indices and updates; a pair of codes must mean the same."""
    return [node.operand(0), _indices(node, 1), node.operand(2)]


def convert_scatter_elements(_builder: Builder, node: OnnxNode) -> Operand:
    """ScatterElements, and Scatter as it was called before."""
    axis = node.axis(node.integer("axis", 0), len(node.shape(0)))
    attrs = ScatterElementsAttrs(axis, node.text("reduction", "none"))
    return node.emit("ScatterElements", _scatter_operands(node), attrs)


def convert_scatter_nd(_builder: Builder, node: OnnxNode) -> Operand:
    """ScatterND."""
    return node.emit("ScatterND", _scatter_operands(node), ScatterNDAttrs(node.text("reduction", "none")))


def convert_compress(_builder: Builder, node: OnnxNode) -> Operand:
    """Compress by a constant condition: a Gather."""
    shape = node.static(node.shape(0), "operand")
    operand, axis = node.operand(0), 0
    if node.has("axis"):
        axis = node.axis(node.integer("axis", 0), len(shape))
    else:
        operand = node.emit("Reshape", [operand], ReshapeAttrs((prod(shape),)), suffix=".flat")
    condition = node.known(1, "condition")
    if condition is None or condition.dtype != bool or condition.ndim != 1:
        node.refuse("a condition that is no list of truth values", "a constant condition")
    return node.emit("Gather", [operand, np.flatnonzero(condition).astype(np.int32)], GatherAttrs(axis))


def convert_reverse_sequence(_builder: Builder, node: OnnxNode) -> Operand:
    """ReverseSequence of constant lengths: a GatherND over the time axis of each sequence."""
    shape = node.shape(0)
    time, batch = node.integer("time_axis", 0), node.integer("batch_axis", 1)
    lengths = node.known_ints(1, "sequence_lens")
    if len(shape) < 2 or {time, batch} != {0, 1} or lengths is None:
        node.refuse(f"time_axis={time}, batch_axis={batch} of rank {len(shape)}", "axes 0 and 1, and constant lengths")
    (steps,) = node.static((shape[time],), "time axis")
    if len(lengths) != shape[batch] or not all(0 <= n <= steps for n in lengths):
        node.refuse(f"lengths {list(lengths)[:8]} of {steps} steps", "one length up to the time axis for every sequence")
    limited(node, (len(lengths), steps))
    order = np.arange(steps) * np.ones((len(lengths), 1), np.int64)
    ends = np.asarray(lengths)[:, None]
    order = np.where(order < ends, ends - 1 - order, order)
    swap = TransposeAttrs((1, 0, *range(2, len(shape))))
    operand = node.operand(0) if batch == 0 else node.emit("Transpose", [node.operand(0)], swap, suffix=".sequences")
    picked = [operand, order[:, :, None].astype(np.int32)]
    if batch == 0:
        return node.emit("GatherND", picked, GatherNDAttrs(1))
    moved = node.emit("GatherND", picked, GatherNDAttrs(1), suffix=".reversed")
    return node.emit("Transpose", [moved], swap)


def convert_col2im(_builder: Builder, node: OnnxNode) -> Operand:
    """Col2Im: blocks added into a padded image at constant places."""
    image, block = node.known_ints(1, "image_shape"), node.known_ints(2, "block_shape")
    if not image or not block or len(image) != len(block):
        node.refuse(f"image {image} of blocks {block}", "as many block extents as image extents")
    rank = len(image)
    strides, dilations = node.ints("strides") or (1,) * rank, node.ints("dilations") or (1,) * rank
    pads = node.ints("pads") or (0,) * (2 * rank)
    batch, columns, places = node.static(node.shape(0), "operand")
    padded = [n + pads[i] + pads[i + rank] for i, n in enumerate(image)]
    counts = [(n - d * (b - 1) - 1) // s + 1 for n, b, s, d in zip(padded, block, strides, dilations, strict=True)]
    if columns % prod(block) or places != prod(counts) or min(counts) < 1:
        node.refuse(f"{columns} rows and {places} columns", f"a multiple of {prod(block)} rows and {prod(counts)} columns")
    channels = columns // prod(block)
    limited(node, (prod(padded), batch, channels))
    limited(node, (prod(block), places))
    taps = np.indices(block).reshape(rank, -1, 1) * np.reshape(dilations, (rank, 1, 1))
    corners = np.indices(counts).reshape(rank, 1, -1) * np.reshape(strides, (rank, 1, 1))
    at = np.ravel_multi_index(tuple(taps + corners), padded)
    # [N, C, taps, places] -> [taps, places, N, C]: what is added lies at one index each.
    parts = node.emit("Reshape", [node.operand(0)], ReshapeAttrs((batch, channels, prod(block), places)), suffix=".blocks")
    moved = node.emit("Transpose", [parts], TransposeAttrs((2, 3, 0, 1)), suffix=".moved")
    blank = np.zeros((prod(padded), batch, channels), np.float32)
    added = node.emit("ScatterND", [blank, at[..., None].astype(np.int32), moved], ScatterNDAttrs("add"), suffix=".added")
    back = node.emit("Transpose", [added], TransposeAttrs((1, 2, 0)), suffix=".image")
    whole = node.emit("Reshape", [back], ReshapeAttrs((batch, channels, *padded)), suffix=".padded")
    ends = tuple(p + n for p, n in zip(pads, image, strict=False))
    return node.emit("Slice", [whole], SliceAttrs((0, 0, *pads[:rank]), (-1, -1, *ends), (1,) * (rank + 2)))


def one_hot(node: OnnxNode, operand: Operand, depth: int, axis: int) -> Operand:
    """Truth values: whether each index is the position along new `axis`; negative indices count from the end."""
    shape = (operand if isinstance(operand, np.ndarray) else _value(operand)).shape
    spread = node.emit("Reshape", [operand], ReshapeAttrs((*shape[:axis], 1, *shape[axis:])), suffix=".spread")
    elem = _value(spread).elem if not isinstance(spread, np.ndarray) else elem_of_dtype(spread.dtype)
    line = np.arange(depth).astype(elem.dtype).reshape(depth, *[1] * (len(shape) - axis))
    from_front = node.emit("Equal", [spread, line], suffix=".front")
    from_end = node.emit("Equal", [spread, line - np.asarray(depth, line.dtype)], suffix=".end")
    return node.emit("Or", [from_front, from_end], suffix=".here")


def _value(operand: Operand) -> Any:
    assert not isinstance(operand, np.ndarray)
    return (operand.value if isinstance(operand, Codes) else operand).type


def convert_one_hot(_builder: Builder, node: OnnxNode) -> Operand:
    """OneHot of a constant depth: comparisons with every position, and a choice of two values."""
    depth, values = node.known(1, "depth"), node.known(2, "values")
    rank = len(node.shape(0)) + 1
    axis = node.axis(node.integer("axis", -1), rank)
    if depth is None or depth.size != 1 or values is None or values.size != 2:
        node.refuse("depth or values missing", "a constant depth and two constant values")
    count = int(depth.reshape(-1)[0])
    if count < 1:
        node.refuse(f"depth {count}", "a depth of 1 or more")
    limited(node, (count,))
    off, on = values.reshape(-1)
    here = one_hot(node, node.operand(0), count, axis)
    return node.emit("Where", [here, np.asarray(on), np.asarray(off)])


def refuse_sequence(_builder: Builder, node: OnnxNode) -> Operand:
    """Operators on sequences of tensors."""
    node.refuse("a sequence of tensors", "dense tensors: Split with one output for each part")


def refuse_data_dependent(_builder: Builder, node: OnnxNode) -> Operand:
    """Operators that give as many results as the data has."""
    node.refuse(
        "the extent of its result depends on the data",
        "fixed or bounded extents: end the model in front of it and do this step in the application",
    )


TABLE = {
    "Col2Im": convert_col2im,
    "Compress": convert_compress,
    "Gather": convert_gather,
    "GatherElements": convert_gather_elements,
    "GatherND": convert_gather_nd,
    "NonZero": refuse_data_dependent,
    "OneHot": convert_one_hot,
    "ReverseSequence": convert_reverse_sequence,
    "Scatter": convert_scatter_elements,
    "ScatterElements": convert_scatter_elements,
    "ScatterND": convert_scatter_nd,
    "SplitToSequence": refuse_sequence,
    "Unique": refuse_data_dependent,
}
