"""Arithmetic with broadcasting, clamps, activations and other unary functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand, scalar_of
from bevel.frontend.onnx_ops.quantize import clip_codes, signed_codes
from bevel.ir.ops.elementwise import ClipAttrs, ModAttrs
from bevel.ir.ops.functions import (
    CeluAttrs,
    EluAttrs,
    HardSigmoidAttrs,
    LeakyReluAttrs,
    PowerAttrs,
    SeluAttrs,
    ShrinkAttrs,
    SwishAttrs,
    ThresholdAttrs,
)
from bevel.ir.ops.logic import CastAttrs
from bevel.ir.types import Elem, Int, Quant, Shape, elem_of_dtype

Converter = Callable[[Builder, OnnxNode], Operand]


def elem_of(operand: Operand) -> Elem:
    """Element type of any operand; known arrays of symbolic dimensions count as int64."""
    if isinstance(operand, np.ndarray):
        return Int(64) if operand.dtype == object else elem_of_dtype(operand.dtype)
    return operand.value.type.elem if isinstance(operand, Codes) else operand.type.elem


def is_integer(operand: Operand) -> bool:
    """True for plain integers."""
    return isinstance(elem_of(operand), Int)


def shape_of(operand: Operand) -> Shape:
    """Shape of any operand."""
    if isinstance(operand, np.ndarray):
        return tuple(operand.shape)
    return operand.value.type.shape if isinstance(operand, Codes) else operand.type.shape


def cast(node: OnnxNode, operand: Operand, elem: Elem, suffix: str) -> Operand:
    """`operand` as elements of plain type `elem`; nothing where it has that type."""
    return operand if elem_of(operand) == elem else node.emit("Cast", [operand], CastAttrs(str(elem)), suffix=suffix)


def chain(node: OnnxNode, op: str, operands: Sequence[Operand], suffix: str = "") -> Operand:
    """`op` over any number of operands, from left to right; the last result takes the node's name with `suffix`."""
    total = operands[0]
    for i, operand in enumerate(operands[1:], 1):
        total = node.emit(op, [total, operand], suffix=suffix if i == len(operands) - 1 else f"{suffix}.{i}")
    return total


def _same(op: str) -> Converter:
    def convert(_builder: Builder, node: OnnxNode) -> Operand:
        return node.emit(op, node.operands())

    return convert


def _with_numbers(op: str, attrs: type[Any], **defaults: float) -> Converter:
    """A function of one operand whose float attributes are fields of `attrs` of the same name."""

    def convert(_builder: Builder, node: OnnxNode) -> Operand:
        found = {name: float(np.float32(node.number(name, default))) for name, default in defaults.items()}
        return node.emit(op, [node.operand(0)], attrs(**found))

    return convert


def convert_relu(_builder: Builder, node: OnnxNode) -> Operand:
    """Relu of reals, or of integers as a maximum."""
    x = node.operand(0)
    if is_integer(x):
        return node.emit("Max", [x, np.zeros((), _dtype(x))])
    return node.emit("Relu", [x])


def _dtype(operand: Operand) -> np.dtype[Any]:
    return operand.dtype if isinstance(operand, np.ndarray) else elem_of(operand).dtype


def convert_clip(builder: Builder, node: OnnxNode) -> Operand:
    """Clip: a clamp where the bounds are known reals, else Max and Min."""
    x = node.operand(0)
    bounds: list[Operand | None] = [
        np.asarray(node.number(name, 0.0), np.float32) if node.has(name) else node.optional(index)
        for name, index in (("min", 1), ("max", 2))
    ]
    if any(b is not None and shape_of(b) not in ((), (1,)) for b in bounds):
        node.refuse("bounds that are no scalars", "scalar bounds")
    known = all(b is None or isinstance(b, np.ndarray) for b in bounds)
    if known and isinstance(x, Codes) and isinstance(x.value.type.elem, Quant):
        limits = [None if b is None else int(signed_codes(np.asarray(b)).reshape(-1)[0]) for b in bounds]
        return clip_codes(builder, node, x, *limits)
    if known and not is_integer(x):
        lo, hi = (
            default if b is None else float(np.asarray(b).reshape(-1)[0])
            for b, default in zip(bounds, (-np.inf, np.inf), strict=True)
        )
        # With crossed bounds everything becomes the upper one.
        return node.emit("Clip", [x], ClipAttrs(min(lo, hi), hi))
    steps = [(op, b) for op, b in zip(("Max", "Min"), bounds, strict=True) if b is not None]
    for i, (op, bound) in enumerate(steps):
        scalar = bound.reshape(()) if isinstance(bound, np.ndarray) else bound
        x = node.emit(op, [x, scalar], suffix="" if i == len(steps) - 1 else ".low")
    return x


def convert_extremum(_builder: Builder, node: OnnxNode) -> Operand:
    """Max and Min of any number of operands; of an activation and one constant real they are clamps."""
    operands = node.operands()
    if len(operands) == 2:
        for data, bound in (operands, operands[::-1]):
            limit = _known_real(bound)
            if limit is not None and not isinstance(data, np.ndarray) and len(shape_of(bound)) <= len(shape_of(data)):
                return node.emit("Clip", [data], ClipAttrs(lo=limit) if node.op == "Max" else ClipAttrs(hi=limit))
    return chain(node, node.op, operands)


def _known_real(operand: Operand) -> float | None:
    """The value of a known array of one real, None for anything else."""
    return scalar_of(operand) if isinstance(operand, np.ndarray) and operand.dtype.kind == "f" and operand.size == 1 else None


def convert_sum(_builder: Builder, node: OnnxNode) -> Operand:
    """Sum of any number of operands."""
    return chain(node, "Add", node.operands())


def convert_mean(_builder: Builder, node: OnnxNode) -> Operand:
    """Mean of any number of operands."""
    operands = node.operands()
    if len(operands) == 1:
        return operands[0]
    return node.emit("Mul", [chain(node, "Add", operands, ".sum"), np.asarray(1 / len(operands), np.float32)])


def convert_div(_builder: Builder, node: OnnxNode) -> Operand:
    """Div; 1 / x is a function of one operand, which has an integer form."""
    a, b = node.operands()
    if _known_real(a) == 1.0 and not isinstance(b, np.ndarray) and len(shape_of(a)) <= len(shape_of(b)):
        return node.emit("Reciprocal", [b])
    return node.emit("Div", [a, b])


def convert_pow(_builder: Builder, node: OnnxNode) -> Operand:
    """Pow; the result has the base's type. Constant exponents make it a function of one operand."""
    x, exponent = node.operand(0), node.operand(1)
    whole = is_integer(x)
    if isinstance(exponent, np.ndarray) and exponent.dtype != object and not isinstance(x, np.ndarray) and not whole:
        power = scalar_of(exponent)
        if power is not None and len(exponent.shape) <= len(shape_of(x)) and exponent.size == 1:
            return _constant_power(node, x, power)
    if whole and is_integer(exponent):
        return node.emit("Pow", [x, cast(node, exponent, elem_of(x), ".exponent")])
    reals = [cast(node, x, elem_of_dtype(np.float32), ".base"), cast(node, exponent, elem_of_dtype(np.float32), ".exponent")]
    result = node.emit("Pow", reals, suffix=".real" if whole else "")
    return cast(node, result, elem_of(x), "") if whole else result


def _constant_power(node: OnnxNode, x: Operand, power: float) -> Operand:
    if power == 1.0:
        return x
    if power == 2.0:
        return node.emit("Mul", [x, x])
    if power in (0.5, -1.0):
        return node.emit("Sqrt" if power == 0.5 else "Reciprocal", [x])
    return node.emit("Power", [x], PowerAttrs(float(np.float32(power))))


def convert_mod(_builder: Builder, node: OnnxNode) -> Operand:
    """Mod with the sign of the divisor, or of the dividend."""
    return node.emit("Mod", node.operands(), ModAttrs(bool(node.integer("fmod", 0))))


def convert_prelu(_builder: Builder, node: OnnxNode) -> Operand:
    """PRelu by channel; with one slope for all elements LeakyRelu, with any other max(x, 0) + slope * min(x, 0)."""
    x, slope = node.operands()
    if is_integer(x):
        node.refuse("integers", "reals")
    shape, slopes = shape_of(x), shape_of(slope)
    if not covers(shape, slopes):
        node.refuse(
            f"slope of shape {list(map(str, slopes))} for {list(map(str, shape))}", "slopes that broadcast to the operand"
        )
    one = scalar_of(slope) if isinstance(slope, np.ndarray) and slope.dtype.kind == "f" else None
    if one is not None:
        return node.emit("LeakyRelu", [x], LeakyReluAttrs(one))
    if all(d == 1 for i, d in enumerate(slopes) if i != 1 - len(shape) + len(slopes)):
        return node.emit("PRelu", [x, slope])
    below = node.emit("Mul", [node.emit("Clip", [x], ClipAttrs(hi=0.0), suffix=".below"), slope], suffix=".scaled")
    return node.emit("Add", [node.emit("Relu", [x], suffix=".above"), below])


def covers(shape: Shape, other: Shape) -> bool:
    """Whether broadcasting `other` to `shape` leaves `shape` as it is."""
    return len(other) <= len(shape) and all(n in (1, d) for n, d in zip(reversed(other), reversed(shape), strict=False))


def convert_celu(_builder: Builder, node: OnnxNode) -> Operand:
    """Celu with a positive alpha."""
    alpha = float(np.float32(node.number("alpha", 1.0)))
    if alpha <= 0:
        node.refuse(f"alpha={alpha}", "positive alpha")
    return node.emit("Celu", [node.operand(0)], CeluAttrs(alpha))


def convert_swish(_builder: Builder, node: OnnxNode) -> Operand:
    """SiLU, or x * sigmoid(alpha * x)."""
    alpha = float(np.float32(node.number("alpha", 1.0)))
    x = node.operand(0)
    return node.emit("Silu", [x]) if alpha == 1.0 else node.emit("Swish", [x], SwishAttrs(alpha))


def convert_gelu(_builder: Builder, node: OnnxNode) -> Operand:
    """Gelu, exact or by tanh."""
    form = node.text("approximate", "none")
    if form not in ("none", "tanh"):
        node.refuse(f"approximate={form!r}", "none and tanh")
    return node.emit("Gelu" if form == "none" else "GeluTanh", [node.operand(0)])


def convert_dropout(_builder: Builder, node: OnnxNode) -> tuple[Operand, ...] | Operand:
    """Dropout does nothing at inference; its mask is true everywhere."""
    node.integer("seed", 0)
    ratio: float | None = node.number("ratio", 0.5)
    if (given := node.optional(1)) is not None:
        ratio = scalar_of(given) if isinstance(given, np.ndarray) else None
    training = node.known(2, "training_mode")
    if training is not None and bool(training.any()) and ratio != 0:
        node.refuse("training mode", "inference; export the model in eval mode")
    x = node.operand(0)
    if not any(node.outputs[1:]):
        return x
    # An output must be computed from an input: whatever IsNaN says, it says it twice.
    unknown = node.emit("IsNaN", [x], suffix=".nan")
    return x, node.emit("Equal", [unknown, unknown], result=1)


_FUNCTIONS = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor HardSwish Log Mish Neg Reciprocal Round Sigmoid Sign Sin"
    " Sinh Softplus Softsign Sqrt Tan Tanh"
)

TABLE: dict[str, Callable[[Builder, OnnxNode], Operand | tuple[Operand, ...]]] = {
    **{op: _same(op) for op in ("Add", "Sub", "Mul", *_FUNCTIONS.split())},
    "Celu": convert_celu,
    "Clip": convert_clip,
    "Div": convert_div,
    "Dropout": convert_dropout,
    "Elu": _with_numbers("Elu", EluAttrs, alpha=1.0),
    "Gelu": convert_gelu,
    "HardSigmoid": _with_numbers("HardSigmoid", HardSigmoidAttrs, alpha=0.2, beta=0.5),
    "LeakyRelu": _with_numbers("LeakyRelu", LeakyReluAttrs, alpha=0.01),
    "Max": convert_extremum,
    "Mean": convert_mean,
    "Min": convert_extremum,
    "Mod": convert_mod,
    "PRelu": convert_prelu,
    "Pow": convert_pow,
    "Relu": convert_relu,
    "Selu": _with_numbers("Selu", SeluAttrs, alpha=1.6732632423543772, gamma=1.0507009873554805),
    "Shrink": _with_numbers("Shrink", ShrinkAttrs, bias=0.0, lambd=0.5),
    "Sum": convert_sum,
    "Swish": convert_swish,
    "ThresholdedRelu": _with_numbers("ThresholdedRelu", ThresholdAttrs, alpha=1.0),
}
