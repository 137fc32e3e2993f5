"""Arithmetic with broadcasting, unary functions and clamps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir

from bevel.frontend.builder import REAL_TYPES, Builder, Codes, OnnxNode, Operand, scalar_of
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.types import Quant

Converter = Callable[[Builder, OnnxNode], Operand]


def _same(op: str) -> Converter:
    def convert(_builder: Builder, node: OnnxNode) -> Operand:
        return node.emit(op, node.operands())

    return convert


def convert_clip(_builder: Builder, node: OnnxNode) -> Operand:
    """Clip with bounds from attributes (opset below 11) or constant operands."""
    bounds = []
    for name, index, default in (("min", 1, -np.inf), ("max", 2, np.inf)):
        array = node.known(index, name)
        if array is not None and array.size != 1:
            node.refuse(f"{name} of shape {list(array.shape)}", "scalar bounds")
        bounds.append(default if array is None else float(array.reshape(-1)[0]))
    if not bounds[0] <= bounds[1]:
        node.refuse(f"bounds {bounds[0]} and {bounds[1]}", "min <= max")
    return node.emit("Clip", [node.operand(0)], ClipAttrs(bounds[0], bounds[1]))


def convert_extremum(_builder: Builder, node: OnnxNode) -> Operand:
    """Max and Min of an activation and a constant scalar are clamps."""
    operands = node.operands()
    if len(operands) == 1:
        return operands[0]
    if len(operands) == 2:
        for data, bound in (operands, operands[::-1]):
            limit = scalar_of(bound) if isinstance(bound, np.ndarray) and bound.dtype.kind == "f" and bound.size == 1 else None
            if limit is not None:
                return node.emit("Clip", [data], ClipAttrs(lo=limit) if node.op == "Max" else ClipAttrs(hi=limit))
    node.refuse("operands other than one activation and one constant scalar", "clamps")


def convert_sum(_builder: Builder, node: OnnxNode) -> Operand:
    """Sum of any number of operands, from left to right."""
    operands = node.operands()
    total = operands[0]
    for i, operand in enumerate(operands[1:], 1):
        total = node.emit("Add", [total, operand], suffix="" if i == len(operands) - 1 else f".{i}")
    return total


def convert_pow(_builder: Builder, node: OnnxNode) -> Operand:
    """Powers 2 and 1/2."""
    exponent = node.known(1, "exponent")
    power = None if exponent is None else scalar_of(exponent)
    x = node.operand(0)
    if power == 2.0:
        return node.emit("Mul", [x, x])
    if power == 0.5:
        return node.emit("Sqrt", [x])
    node.refuse(f"exponent {power}", "exponents 2 and 0.5")


def convert_hard_sigmoid(_builder: Builder, node: OnnxNode) -> Operand:
    """clip(alpha * x + beta, 0, 1)."""
    alpha, beta = np.float32(node.number("alpha", 0.2)), np.float32(node.number("beta", 0.5))
    scaled = node.emit("Mul", [node.operand(0), np.asarray(alpha)], suffix=".scaled")
    shifted = node.emit("Add", [scaled, np.asarray(beta)], suffix=".shifted")
    return node.emit("Clip", [shifted], ClipAttrs(0.0, 1.0))


def convert_gelu(_builder: Builder, node: OnnxNode) -> Operand:
    """Exact Gelu."""
    if node.text("approximate", "none") != "none":
        node.refuse("approximate='tanh'", "the exact form")
    return node.emit("Gelu", [node.operand(0)])


def convert_cast(_builder: Builder, node: OnnxNode) -> Operand:
    """Casts between float types mean nothing here: every real is a float32."""
    node.integer("saturate", 1)
    node.text("round_mode", "up")
    target = onnx_ir.DataType(node.integer("to", 1))
    operand = node.operand(0)
    if target not in REAL_TYPES or isinstance(operand, Codes) or isinstance(operand, np.ndarray):
        node.refuse(f"to={target.name}", "casts between float16, bfloat16, float32 and float64, and any cast of constants")
    if not isinstance(operand.type.elem, Quant) and operand.type.dtype.kind != "f":
        node.refuse(f"from {operand.type.elem} to {target.name}", "casts between float types")
    return operand


TABLE: dict[str, Converter] = {
    **{
        op: _same(op)
        for op in ("Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Exp", "Erf", "HardSwish", "Neg", "Abs", "Sqrt")
    },
    "Cast": convert_cast,
    "Clip": convert_clip,
    "Gelu": convert_gelu,
    "HardSigmoid": convert_hard_sigmoid,
    "Max": convert_extremum,
    "Min": convert_extremum,
    "Pow": convert_pow,
    "Sum": convert_sum,
    "Swish": _same("Silu"),
}
