"""QONNX: fake quantization to any number of bits, as Brevitas exports it.

    x --Quant(scale, zero point, bits)--> y          x: q<...>, which y stands for
    x --BipolarQuant(scale)--> y                     y: q<i1, ...>, codes -1 and +1

Weights become codes by the definition of the operators, whatever their rounding mode. An activation's type rounds to nearest, so
other modes are refused there. https://github.com/fastmachinelearning/qonnx/tree/main/docs/qonnx-custom-ops is the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Array, Builder, OnnxNode, Operand, normalize_array
from bevel.frontend.onnx_ops.quantize import annotate, signed_quant
from bevel.ir.graph import Value
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.types import Int, Quant, TensorType

DOMAINS = frozenset(("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"))
# Codes of weights and biases.
MAX_BITS = 32


def _away_from_zero(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x)))


def _half_away(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + 0.5))


def _half_to_zero(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x) - 0.5))


ROUNDING: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": _away_from_zero,
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": _half_away,
    "HALF_DOWN": _half_to_zero,
}
_NEAREST = ("ROUND", "HALF_EVEN")


def _rounding(node: OnnxNode, default: str) -> str:
    mode = node.text("rounding_mode", default).upper()
    if mode not in ROUNDING:
        node.refuse(f"rounding_mode {mode!r}", ", ".join(ROUNDING))
    return mode


def _bits(node: OnnxNode, index: int, what: str = "bit width") -> int:
    array = node.known(index, what)
    if array is None or array.size != 1 or not 1 <= float(array.reshape(-1)[0]) == int(array.reshape(-1)[0]) <= MAX_BITS:
        node.refuse(f"{what} {array}", f"one whole number of 1 to {MAX_BITS} bits")
    return int(array.reshape(-1)[0])


def _scale(node: OnnxNode, index: int, rank: int) -> tuple[npt.NDArray[np.float32], int | None]:
    """Scales and the axis they lie along, None for one."""
    scale = node.known(index, "scale")
    if scale is None or scale.dtype.kind != "f" or not (np.isfinite(scale).all() and (scale > 0).all()):
        node.refuse("a scale that is missing, no real or not positive", "positive finite scales")
    scale = scale.astype(np.float32)
    if scale.size == 1:
        return scale.reshape(-1), None
    # Shapes broadcast from the right.
    axes = [rank - scale.ndim + i for i, extent in enumerate(scale.shape) if extent > 1]
    if len(axes) != 1 or axes[0] < 0:
        node.refuse(f"scale of shape {list(scale.shape)}", "one scale, or one for every index of one axis")
    return scale.reshape(-1), axes[0]


def _zero_point(node: OnnxNode, index: int) -> int:
    zero = node.known(index, "zero point")
    points = np.zeros(1) if zero is None else np.unique(zero)
    if points.size != 1 or points[0] != np.rint(points[0]):
        node.refuse(f"zero points {points.tolist()}", "one whole number")
    return int(points[0])


def _limits(bits: int, *, signed: bool, narrow: bool) -> tuple[int, int]:
    """Least and greatest code."""
    if signed:
        return -(1 << (bits - 1)) + narrow, (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1 - narrow


def _quant(node: OnnxNode, bits: int, scale: Array, zero: int, axis: int | None, *, signed: bool) -> Quant:
    try:
        return signed_quant(bits, tuple(float(s) for s in scale), (zero,), axis, signed=signed)
    except ValueError as error:
        node.refuse(str(error), "zero points within the codes")


def convert_quant(builder: Builder, node: OnnxNode) -> Operand:
    """Quant (IntQuant): weights become codes, an activation gets the type."""
    operand, rank = node.operand(0), len(node.shape(0))
    scale, axis = _scale(node, 1, rank)
    zero, bits = _zero_point(node, 2), _bits(node, 3)
    signed, narrow = bool(node.integer("signed", 1)), bool(node.integer("narrow", 0))
    mode = _rounding(node, "ROUND")
    if bits == 1 and signed:
        if zero:
            node.refuse(f"bipolar codes with zero point {zero}", "zero point 0")
        return _bipolar(builder, node, operand, scale, axis)
    lo, hi = _limits(bits, signed=signed, narrow=narrow)
    quant = _quant(node, bits, scale, zero, axis, signed=signed)
    if isinstance(operand, np.ndarray):
        real = normalize_array(operand, node.input_name(0))
        along = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(rank)])
        with np.errstate(over="ignore"):
            steps = np.clip((real / along).astype(np.float32) + np.float32(zero), lo, hi)
        codes = ROUNDING[mode](steps).astype(np.int64) + (quant.zero_point[0] - zero)
        return builder.graph.add_constant(node.input_name(0), codes.astype(quant.dtype), TensorType(real.shape, quant))
    if not isinstance(operand, Value) or (operand.is_constant and isinstance(operand.type.elem, Quant)):
        node.refuse("codes as an operand", "a real operand")
    if mode not in _NEAREST:
        node.refuse(f"rounding_mode {mode!r} of an activation", ", ".join(_NEAREST))
    if axis is not None:
        node.refuse(f"activation {node.input_name(0)!r} with {scale.size} scales", "one scale for an activation")
    if not narrow:
        return annotate(builder, node, operand, quant)
    bounds = ClipAttrs(float(scale[0]) * (lo - zero), float(scale[0]) * (hi - zero))
    return node.emit("Clip", [operand], bounds, type_=operand.type.with_elem(quant))


def convert_bipolar(builder: Builder, node: OnnxNode) -> Operand:
    """BipolarQuant: the sign of each element, 0 counting as positive."""
    operand = node.operand(0)
    return _bipolar(builder, node, operand, *_scale(node, 1, len(node.shape(0))))


def _bipolar(builder: Builder, node: OnnxNode, operand: Operand, scale: Array, axis: int | None) -> Operand:
    quant = Quant(Int(1), tuple(float(s) for s in scale), (0,), axis)
    if isinstance(operand, Value):
        if operand.is_constant or axis is not None:
            node.refuse(
                f"activation {node.input_name(0)!r} with {scale.size} scales, or a constant", "an activation with one scale"
            )
        # An input keeps its reals: signs are no rounding that callers know.
        is_input = operand in builder.graph.inputs
        made = node.emit("Clip", [operand], ClipAttrs(), type_=operand.type.with_elem(quant)) if is_input else None
        return made or annotate(builder, node, operand, quant)
    if not isinstance(operand, np.ndarray):
        node.refuse("codes as an operand", "a real operand")
    real = normalize_array(operand, node.input_name(0))
    return builder.graph.add_constant(node.input_name(0), quant.quantize(real), TensorType(real.shape, quant))


def convert_trunc(builder: Builder, node: OnnxNode) -> Operand:
    """Trunc: the codes of a value without their lowest bits.

    Version 1 (scale, zero point, bits in, bits out) keeps the scale, so the value shrinks; version 2 has a scale for the result.
    """
    x = node.operand(0)
    if not isinstance(x, Value) or x.is_constant:
        node.refuse("a constant or codes as operand", "an activation")
    if _zero_point(node, 2):
        node.refuse("a zero point other than 0", "zero point 0")
    first = len(node.source.inputs) == 5
    rank = x.type.rank
    (scale, axis), bits_in = _scale(node, 1, rank), _bits(node, 3, "input bit width")
    bits_out = _bits(node, 4 if first else 6, "output bit width")
    if first:
        dropped = bits_in - bits_out
        coarse = scale * np.float32(2.0**dropped)
    else:
        out, _ = _scale(node, 4, rank)
        if _zero_point(node, 5):
            node.refuse("an output zero point other than 0", "zero point 0")
        dropped = round(float(np.log2(out[0] / scale[0])))
        coarse = out
    if axis is not None or coarse.size != 1 or dropped < 0:
        node.refuse(f"{scale.size} scales and {dropped} bits dropped", "one scale, and no more bits behind than before")
    # Version 1 says nothing of signs: they are those of what it truncates.
    signed = _may_be_negative(x) if first else bool(node.integer("signed", 1))
    narrow = False if first else bool(node.integer("narrow", 0))
    mode = _rounding(node, "FLOOR")
    fine = _quant(node, bits_in, scale, 0, None, signed=signed)
    if not (isinstance(x.type.elem, Quant) and x.type.elem.scale == fine.scale):
        x = annotate(builder, node, x, fine, suffix=".rounded")
    result = _quant(node, bits_out, coarse, 0, None, signed=signed)
    lo, hi = (float(coarse[0]) * code for code in _limits(bits_out, signed=signed, narrow=narrow))
    if mode in _NEAREST:
        y = node.emit("Clip", [x], ClipAttrs(lo, hi), type_=x.type.with_elem(result), suffix=".coarse" if first else "")
    else:
        y = _directed(builder, node, x, mode, dropped, (result, lo, hi), suffix=".coarse" if first else "")
    if not first:
        return y
    shrunk = _quant(node, bits_out, scale, 0, None, signed=signed)
    factor = _typed_constant(builder, f"{node.loc}.factor", 2.0**-dropped, rank)
    return node.emit("Mul", [y, factor], type_=x.type.with_elem(shrunk))


def _directed(
    builder: Builder, node: OnnxNode, x: Value, mode: str, dropped: int, result: tuple[Quant, float, float], suffix: str
) -> Operand:
    """Rounding down or up as rounding to nearest of what lies half a step, less half a code, lower or higher: never a tie."""
    if mode not in ("FLOOR", "CEIL"):
        node.refuse(f"rounding_mode {mode!r}", ", ".join((*_NEAREST, "FLOOR", "CEIL")))
    quant, lo, hi = result
    assert isinstance(x.type.elem, Quant)
    half = x.type.elem.scale[0] * ((1 << dropped) - 1) / 2
    shift = _typed_constant(builder, f"{node.loc}.shift", -half if mode == "FLOOR" else half, x.type.rank)
    if not half:
        return node.emit("Clip", [x], ClipAttrs(lo, hi), type_=x.type.with_elem(quant), suffix=suffix)
    moved = node.emit("Add", [x, shift], suffix=f"{suffix}.moved")
    return node.emit("Clip", [moved], ClipAttrs(lo, hi), type_=x.type.with_elem(quant), suffix=suffix)


def _typed_constant(builder: Builder, name: str, value: float, rank: int) -> Value:
    """One number as a code of scale |value|, which is exact."""
    quant = Quant(Int(8), (abs(value) or 1.0,))
    codes = np.full((1,) * rank, np.sign(value), np.int8)
    return builder.graph.add_constant(name, codes, TensorType(codes.shape, quant))


def _may_be_negative(value: Value) -> bool:
    """False where the type of what is pooled or scaled holds no negative number."""
    while not isinstance(value.type.elem, Quant):
        node = value.producer
        if node is None or node.op not in ("AveragePool", "GlobalAveragePool", "Mul"):
            return node is None or node.op != "Relu"
        value = node.inputs[0]
    return value.type.elem.zero_point[0] != value.type.elem.storage.min


TABLE: dict[str, Callable[[Builder, OnnxNode], Any]] = {
    "Quant": convert_quant,
    "IntQuant": convert_quant,
    "BipolarQuant": convert_bipolar,
    "Trunc": convert_trunc,
}
