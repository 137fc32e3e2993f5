"""What is known at import time: Constant nodes, Shape, and arithmetic on arrays whose elements may be symbolic dimensions.

Exporters compute shapes with operators (Shape, Gather, Concat, ...). Such chains are evaluated here on numpy arrays; where a
dimension is symbolic the array has dtype object and holds its `Dim`, which moves along but takes part in no arithmetic. A tensor
of symbolic shape is no such array: it is computed by the graph, from a constant that is cut or repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from bevel.frontend.builder import MAX_FOLDED, Array, Builder, OnnxNode, Operand, normalize_array
from bevel.frontend.onnx_file import one_line
from bevel.ir.ops.movement import ExpandAttrs, SliceAttrs
from bevel.ir.types import Dim


def convert_constant(_builder: Builder, node: OnnxNode) -> Operand:
    """Constant given as tensor, number or list of numbers."""
    if (tensor := node.raw("value")) is not None:
        return normalize_array(tensor.numpy(), node.outputs[0])
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if (value := node.raw(name)) is not None:
            return normalize_array(np.asarray(value, dtype), node.outputs[0])
    node.refuse("a constant that is no dense tensor of numbers", "value, value_float(s), value_int(s)")


def convert_shape(_builder: Builder, node: OnnxNode) -> Operand:
    """Shape, or a range of it; symbolic dimensions stay symbolic."""
    shape = node.shape(0)
    begin, end = node.integer("start", 0), node.integer("end", len(shape))
    part = shape[slice(begin, end)]
    return np.asarray(part, object if any(isinstance(d, Dim) for d in part) else np.int64)


def convert_size(_builder: Builder, node: OnnxNode) -> Operand:
    """Number of elements of a static shape."""
    return np.asarray(prod(node.static(node.shape(0), "operand")), np.int64)


def _axes(node: OnnxNode) -> tuple[int, ...] | None:
    return node.ints_or_input("axes", 1)


def _cast(node: OnnxNode, x: Array) -> Array:
    if x.dtype == object:
        return x
    dtype = onnx_ir.DataType(node.integer("to", 1)).numpy()
    return x.astype(np.float32 if dtype.kind == "f" else dtype)


def _gather(node: OnnxNode, x: Array, indices: Array) -> Array:
    limited(node, (x.size, indices.size))
    return np.asarray(np.take(x, indices.astype(np.int64), axis=node.integer("axis", 0)))


def _concat(node: OnnxNode, *arrays: Array) -> Array:
    limited(node, (sum(a.size for a in arrays),))
    return np.concatenate(arrays, axis=node.integer("axis", 0))


def _slice(node: OnnxNode, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    where = range(len(starts)) if axes is None else axes.tolist()
    cut = [slice(None)] * x.ndim
    for i, axis in enumerate(where):
        cut[axis] = slice(int(starts[i]), int(ends[i]), 1 if steps is None else int(steps[i]))
    return x[tuple(cut)]


def _squeeze(node: OnnxNode, x: Array, _axes_operand: Array | None = None) -> Array:
    return np.squeeze(x, _axes(node))


def _unsqueeze(node: OnnxNode, x: Array, _axes_operand: Array | None = None) -> Array:
    return np.expand_dims(x, _axes(node) or ())


def _reshape(node: OnnxNode, x: Array, shape: Array) -> Array:
    copy = not node.integer("allowzero", 0)
    return x.reshape([x.shape[i] if d == 0 and copy else int(d) for i, d in enumerate(shape.tolist())])


def _divide(_node: OnnxNode, a: Array, b: Array) -> Array:
    # ONNX integer division truncates toward zero.
    return a / b if a.dtype.kind == "f" else np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)), a.dtype)


def limited(node: OnnxNode, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` if a constant may have it; refuses more elements than are computed at import."""
    if min(shape, default=0) < 0 or prod(shape) > MAX_FOLDED:
        node.refuse(f"a constant of shape {list(shape)}", f"up to {MAX_FOLDED} elements")
    return shape


def _constant_of_shape(node: OnnxNode, shape: Array) -> Array:
    tensor = node.raw("value")
    fill = np.zeros(1, np.float32) if tensor is None else normalize_array(tensor.numpy(), node.outputs[0])
    return np.full(limited(node, tuple(int(d) for d in shape)), fill.reshape(-1)[0], fill.dtype)


def _expand(node: OnnxNode, x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, limited(node, np.broadcast_shapes(x.shape, tuple(int(d) for d in shape)))).copy()


def _range(node: OnnxNode, start: Array, limit: Array, delta: Array) -> Array:
    start, limit, delta = (a.reshape(()) for a in (start, limit, delta))
    count = max(int(np.ceil((float(limit) - float(start)) / float(delta))), 0)
    limited(node, (count,))
    return np.asarray(start + np.arange(count) * delta, start.dtype)


def _reduce_prod(node: OnnxNode, x: Array, _axes_operand: Array | None = None) -> Array:
    axes = _axes(node)
    return np.asarray(np.prod(x, axis=tuple(axes) if axes else None, keepdims=bool(node.integer("keepdims", 1))), x.dtype)


def _mod(node: OnnxNode, a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b) if node.integer("fmod", 0) else np.mod(a, b))


def _ufunc(function: Callable[..., Any]) -> Callable[..., Array]:
    def fold(_node: OnnxNode, *arrays: npt.NDArray[Any]) -> Array:
        if any(a.dtype == object for a in arrays):
            raise TypeError("arithmetic on a symbolic dimension")
        limited(_node, np.broadcast_shapes(*(a.shape for a in arrays)))
        return np.asarray(function(*arrays))

    return fold


FOLDERS: dict[str, Callable[..., Array]] = {
    "Abs": _ufunc(np.abs),
    "Add": _ufunc(np.add),
    "And": _ufunc(np.logical_and),
    "Cast": _cast,
    "Ceil": _ufunc(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": lambda _node, a, b: np.asarray(a == b),
    "Expand": _expand,
    "Floor": _ufunc(np.floor),
    "Gather": _gather,
    "Greater": _ufunc(np.greater),
    "Identity": lambda _node, x: x,
    "Less": _ufunc(np.less),
    "Max": _ufunc(np.maximum),
    "Min": _ufunc(np.minimum),
    "Mod": _mod,
    "Mul": _ufunc(np.multiply),
    "Neg": _ufunc(np.negative),
    "Not": _ufunc(np.logical_not),
    "Or": _ufunc(np.logical_or),
    "Pow": _ufunc(np.power),
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Sqrt": _ufunc(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _ufunc(np.subtract),
    "Transpose": lambda node, x: x.transpose(node.ints("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": lambda _node, condition, a, b: np.asarray(np.where(condition, a, b)),
}


# Operands that may hold a symbolic extent of the result; then its converter makes a node of the graph.
_EXTENT_OPERANDS = {"ConstantOfShape": (0,), "Expand": (1,), "Range": (0, 1, 2), "Slice": (1, 2)}


def _symbolic(array: Array | None) -> bool:
    return array is not None and array.dtype == object and any(isinstance(v, Dim) for v in array.reshape(-1))


def convert_range(_builder: Builder, node: OnnxNode) -> Operand:
    """Range up to a symbolic dimension: that many of the numbers up to its bound."""
    start, limit, delta = (node.known(i, what) for i, what in enumerate(("start", "limit", "delta")))
    last = None if limit is None or not limit.size else limit.reshape(-1)[0]
    if not isinstance(last, Dim) or _symbolic(start) or _symbolic(delta) or start is None or int(start) != 0 or delta != 1:
        node.refuse(f"from {start} to {limit} by {delta}", "known numbers, or 0 up to a dimension by 1")
    if last.hi is None:
        node.refuse(f"as many numbers as dimension {last}", f"a bounded dimension: give --dim {last.name}=LO:HI")
    return node.emit("Slice", [np.arange(last.hi, dtype=start.dtype)], SliceAttrs((0,), (last,), (1,)))


def convert_constant_of_shape(_builder: Builder, node: OnnxNode) -> Operand:
    """A constant of symbolic shape: one element repeated."""
    shape = node.known(0, "shape")
    if shape is None:
        node.refuse("no shape operand", "a known shape")
    tensor = node.raw("value")
    fill = np.zeros(1, np.float32) if tensor is None else normalize_array(tensor.numpy(), node.outputs[0])
    target = tuple(shape.reshape(-1).tolist())
    return node.emit("Expand", [fill.reshape((1,) * len(target))], ExpandAttrs(target))


def fold(node: OnnxNode) -> Operand | None:
    """The result of a node whose operands are all known, None where its operator or an operand is not."""
    if node.op not in FOLDERS or not node.source.inputs:
        return None
    operands = [node.optional(i) for i in range(len(node.source.inputs))]
    arrays: list[Array | None] = []
    for operand in operands:
        if operand is not None and not isinstance(operand, np.ndarray):
            return None
        arrays.append(operand)
    if any(_symbolic(arrays[i]) for i in _EXTENT_OPERANDS.get(node.op, ()) if i < len(arrays)):
        return None
    try:
        with np.errstate(all="ignore"):
            result = FOLDERS[node.op](node, *arrays)
    except (ArithmeticError, ValueError, TypeError, IndexError, AttributeError) as error:
        node.refuse(f"cannot be evaluated at import: {one_line(error)}", "static shapes; bind symbolic dimensions with dims=")
    if result.dtype == object:
        return result
    return normalize_array(result, node.outputs[0])


TABLE = {
    "Constant": convert_constant,
    "ConstantOfShape": convert_constant_of_shape,
    "Range": convert_range,
    "Shape": convert_shape,
    "Size": convert_size,
}
