"""Comparisons, truth values, bits, choices and conversions between element types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir

from bevel.frontend.builder import REAL_TYPES, Builder, Codes, OnnxNode, Operand, scalar_of
from bevel.frontend.onnx_ops.elementwise import cast, covers, elem_of, shape_of
from bevel.ir.ops.logic import CONVERTIBLE, IsInfAttrs, ShiftAttrs
from bevel.ir.types import F32, Elem, Float, Quant, elem_of_dtype

Converter = Callable[[Builder, OnnxNode], Operand]


def _same(op: str) -> Converter:
    def convert(_builder: Builder, node: OnnxNode) -> Operand:
        return node.emit(op, node.operands())

    return convert


def convert_cast(_builder: Builder, node: OnnxNode) -> Operand:
    """Cast: nothing between float types, because every real is a float32."""
    node.integer("saturate", 1)
    node.text("round_mode", "up")
    target = onnx_ir.DataType(node.integer("to", 1))
    return _cast(node, node.operand(0), _target(node, target))


def convert_cast_like(_builder: Builder, node: OnnxNode) -> Operand:
    """Cast to the element type of the second operand."""
    node.integer("saturate", 1)
    node.text("round_mode", "up")
    like = node.source.inputs[1]
    if like is not None and like.dtype is not None:
        return _cast(node, node.operand(0), _target(node, like.dtype))
    elem = elem_of(node.operand(1))
    return _cast(node, node.operand(0), F32 if isinstance(elem, Float | Quant) else elem)


def _target(node: OnnxNode, target: onnx_ir.DataType) -> Elem:
    if target in REAL_TYPES:
        return F32
    try:
        elem = elem_of_dtype(target.numpy())
    except (ValueError, TypeError):
        elem = None
    if elem is None or str(elem) not in CONVERTIBLE:
        node.refuse(f"to={target.name}", "float16, bfloat16, float32, float64, bool and integers of 8 to 64 bits")
    return elem


def _cast(node: OnnxNode, operand: Operand, elem: Elem) -> Operand:
    if isinstance(operand, np.ndarray):
        if operand.dtype == object:
            return operand
        if operand.dtype.kind not in "fiub":
            node.refuse(f"from {operand.dtype}", "float16, bfloat16, float32, float64, bool and integers of 8 to 64 bits")
        return cast(node, operand, elem, "")
    if not isinstance(operand, Codes) and elem == F32:
        return operand
    return cast(node, operand, elem, "") if elem_of(operand) != elem else operand


def convert_is_inf(_builder: Builder, node: OnnxNode) -> Operand:
    """IsInf of either sign or both."""
    signs = IsInfAttrs(bool(node.integer("detect_negative", 1)), bool(node.integer("detect_positive", 1)))
    return node.emit("IsInf", [node.operand(0)], signs)


def convert_shift(_builder: Builder, node: OnnxNode) -> Operand:
    """BitShift to either side."""
    direction = node.text("direction", "")
    if direction not in ("LEFT", "RIGHT"):
        node.refuse(f"direction={direction!r}", "LEFT and RIGHT")
    return node.emit("BitShift", node.operands(), ShiftAttrs(direction == "LEFT"))


def convert_where(_builder: Builder, node: OnnxNode) -> Operand:
    """Where; a condition that holds everywhere or nowhere chooses at import where the shape stays."""
    condition, a, b = node.operands()
    if isinstance(condition, np.ndarray) and condition.dtype == np.bool_ and (known := scalar_of(condition)) is not None:
        chosen, other = (a, b) if known else (b, a)
        shape = shape_of(chosen)
        if covers(shape, tuple(condition.shape)) and covers(shape, shape_of(other)) and elem_of(chosen) == elem_of(other):
            return chosen
    return node.emit("Where", [condition, a, b])


TABLE: dict[str, Converter] = {
    **{
        op: _same(op)
        for op in (
            "And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Not Or Xor"
        ).split()
    },
    "BitShift": convert_shift,
    "Cast": convert_cast,
    "CastLike": convert_cast_like,
    "IsInf": convert_is_inf,
    "Where": convert_where,
}
