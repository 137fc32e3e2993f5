"""QuantizeLinear and DequantizeLinear become types.

Before:  x --QuantizeLinear(s, z)--> q --DequantizeLinear(s, z)--> y --Conv-->
After:   x: q<i8, s, z> --Conv-->

Unsigned codes are re-expressed as signed ones (128 off for 8 bits, from zero points and stored codes alike), so the activations
of a graph are int8 whatever the exporter chose. Where a value is also read unquantized, or quantized twice, an unbounded Clip
carries the quantized type: to-integer turns it into a table, or into nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from bevel.frontend.builder import Array, Builder, Codes, OnnxNode, Operand, normalize_array
from bevel.ir.graph import Value
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.types import Float, Int, Quant, TensorType

# ONNX integer element types of codes: bits and whether they are signed.
CODE_TYPES = {
    "int2": (2, True),
    "uint2": (2, False),
    "int4": (4, True),
    "uint4": (4, False),
    "int8": (8, True),
    "uint8": (8, False),
    "int16": (16, True),
    "uint16": (16, False),
    "int32": (32, True),
}


# More readers of one value than any model has; comparing the types of all, for each, is quadratic.
MAX_READERS = 256


def signed_codes(array: npt.NDArray[Any]) -> Array:
    """Codes of any ONNX integer type as the signed codes of as many bits."""
    bits, signed = CODE_TYPES[array.dtype.name]
    native = Int(bits).dtype
    return array.astype(native) if signed else (array.astype(np.int64) - (1 << (bits - 1))).astype(native)


def signed_quant(bits: int, scale: tuple[float, ...], zero_point: tuple[int, ...], axis: int | None, *, signed: bool) -> Quant:
    """A type of codes that a model declares signed or unsigned, with signed codes; unsigned ones of one bit stay as they are.

    Raises:
        ValueError: as `Quant`.
    """
    if signed or bits == 1:
        return Quant(Int(bits, signed), scale, zero_point, axis)
    return Quant(Int(bits), scale, tuple(z - (1 << (bits - 1)) for z in zero_point), axis)


def read_quant(node: OnnxNode, codes: str | None, rank: int) -> Quant:
    """The type that a QuantizeLinear or DequantizeLinear node describes.

    Args:
        node: the node.
        codes: numpy name of the code type where an operand gives it, else the zero point or `output_dtype` does.
        rank: rank of the tensor.
    """
    scale, zero = node.known(1, "scale"), node.known(2, "zero point")
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    node.integer("saturate", 1)
    declared = node.integer("output_dtype", 0)
    if node.op == "QuantizeLinear":
        node.integer("precision", 0)
        codes = onnx_ir.DataType(declared).numpy().name if declared else None
    name = codes or (zero.dtype.name if zero is not None else "uint8")
    if name not in CODE_TYPES or (zero is not None and zero.dtype.name != name):
        node.refuse(f"codes of type {name}, zero point {None if zero is None else zero.dtype}", f"one of {', '.join(CODE_TYPES)}")
    if scale is None or scale.dtype.kind != "f" or (zero is not None and zero.size != scale.size):
        node.refuse("scale and zero point that do not pair", "a float scale with as many zero points")
    bits, signed = CODE_TYPES[name]
    points = [0] * scale.size if zero is None else [int(z) for z in zero.reshape(-1)]
    if block and scale.ndim > 1:
        node.refuse(f"block_size={block}", "scales per tensor or per axis")
    if len(set(points)) == 1:
        points = points[:1]
    along = None if scale.size == 1 else node.axis(axis, rank)
    if along is not None and scale.ndim != 1:
        node.refuse(f"scale of shape {list(scale.shape)}", "a scalar, or one scale for every index of an axis")
    try:
        return signed_quant(bits, tuple(float(s) for s in scale.reshape(-1)), tuple(points), along, signed=signed)
    except ValueError as error:
        node.refuse(str(error), "finite positive scales, zero points within the code type")


def annotate(builder: Builder, node: OnnxNode, value: Value, quant: Quant, suffix: str = "") -> Value:
    """Operand 0 of `node`, `value`, with type `quant`.

    Retyped where nothing reads it otherwise, else through an unbounded Clip named after the node's result and `suffix`.
    """
    if value.type.elem == quant:
        return value
    source = node.source.inputs[0]
    assert source is not None
    readers = [use.node for use in source.uses()]
    free = builder.names[value] == 1 and isinstance(value.type.elem, Float) and not source.is_graph_output()
    if free and (len(readers) == 1 or _read_alike(builder, readers, value.type.rank, quant)):
        value.type = value.type.with_elem(quant)
        return value
    result = node.emit("Clip", [value], ClipAttrs(), type_=value.type.with_elem(quant), suffix=suffix)
    assert isinstance(result, Value)
    return result


def _read_alike(builder: Builder, readers: Sequence[onnx_ir.Node], rank: int, quant: Quant) -> bool:
    """Whether every reader is a QuantizeLinear to type `quant`."""
    if len(readers) > MAX_READERS or any(r.op_type != "QuantizeLinear" for r in readers):
        return False
    return all(read_quant(OnnxNode(builder, r), None, rank) == quant for r in readers)


def convert_quantize(builder: Builder, node: OnnxNode) -> Operand:
    """QuantizeLinear: the operand gets a Quant type, the result is its codes."""
    operand = node.operand(0)
    quant = read_quant(node, None, len(node.shape(0)))
    if isinstance(operand, np.ndarray):
        real = normalize_array(operand, node.input_name(0))
        codes = quant.quantize(real)
        return Codes(builder.graph.add_constant(node.input_name(0), codes, TensorType(real.shape, quant)))
    if isinstance(operand, Codes):
        node.refuse("an integer operand", "a real operand")
    if not quant.per_tensor and not operand.is_constant:
        node.refuse(f"activation {node.input_name(0)!r} with {len(quant.scale)} scales", "one scale for an activation")
    return Codes(annotate(builder, node, operand, quant))


def convert_dequantize(builder: Builder, node: OnnxNode) -> Operand:
    """DequantizeLinear: constant codes become a quantized constant, codes of an activation become its reals."""
    operand = node.operand(0)
    rank = len(node.shape(0))
    if isinstance(operand, np.ndarray):
        if operand.dtype.name not in CODE_TYPES:
            node.refuse(f"codes of type {operand.dtype}", f"one of {', '.join(CODE_TYPES)}")
        if node.has("block_size") and (reals := _blocked(node, operand)) is not None:
            return reals
        quant = read_quant(node, operand.dtype.name, rank)
        if quant.axis is not None and operand.shape[quant.axis] != len(quant.scale):
            node.refuse(f"{len(quant.scale)} scales for extent {operand.shape[quant.axis]}", "one scale for every index")
        return builder.graph.add_constant(node.input_name(0), signed_codes(operand), TensorType(operand.shape, quant))
    if not isinstance(operand, Codes):
        node.refuse("a real operand", "the integers that QuantizeLinear or a quantized input gives")
    elem = operand.value.type.elem if operand.spelled is None else operand.spelled
    quant = read_quant(node, None, rank)
    if node.optional(2) is None and isinstance(elem, Quant) and elem.zero_point in ((0,), (elem.storage.min,)):
        # Without a zero point both sides mean code 0 of their type, which is the lowest code where that was unsigned.
        quant = replace(quant, storage=elem.storage, zero_point=elem.zero_point)
    if elem != quant:
        node.refuse(f"codes quantized as {elem} read as {quant}", "the same scale and zero point on both sides")
    return operand.value


def clip_codes(builder: Builder, node: OnnxNode, operand: Codes, low: int | None, high: int | None) -> Codes:
    """Codes between `low` and `high`, signed as `signed_codes` makes them: the type of as few bits as hold these.

    That is how PyTorch's fake quantization to fewer than 8 bits looks where an exporter has only QuantizeLinear for it.
    """
    value, spelled = operand.value, operand.value.type.elem
    if not isinstance(spelled, Quant) or len(set(spelled.zero_point)) != 1 or operand.spelled is not None:
        node.refuse("integers that QuantizeLinear did not make", "Clip between QuantizeLinear and DequantizeLinear")
    zero = spelled.zero_point[0]
    lo = spelled.storage.min if low is None else max(low, spelled.storage.min)
    hi = spelled.storage.max if high is None else min(high, spelled.storage.max)
    if not lo <= zero <= hi:
        node.refuse(f"codes {lo}..{hi} with zero point {zero}", "a range that holds the zero point")
    bits = max((hi - lo).bit_length(), 2)
    # Zero point 0 where it fits, which weights need; else the range begins at the lowest code.
    symmetric = Int(bits).min <= lo - zero and hi - zero <= Int(bits).max
    new_zero = 0 if symmetric else zero - lo + Int(bits).min
    quant = Quant(Int(bits), spelled.scale, (new_zero,), spelled.axis)
    if value.is_constant:
        codes = (np.clip(value.array, lo, hi).astype(np.int64) - zero + new_zero).astype(quant.dtype)
        return Codes(builder.graph.add_constant(value.name, codes, value.type.with_elem(quant)), spelled)
    bounds = tuple(spelled.scale[0] * (code - zero) for code in (lo, hi))
    result = node.emit("Clip", [value], ClipAttrs(*bounds), type_=value.type.with_elem(quant))
    assert isinstance(result, Value)
    return Codes(result, spelled)


def _blocked(node: OnnxNode, codes: Array) -> Array | None:
    """Reals of constant codes with a scale for each block along an axis; None where scales are not blocked.

    No type has such scales, because no sum of integers does: weights of a model of floats are all they are good for.
    """
    scale, zero = node.known(1, "scale"), node.known(2, "zero point")
    block = node.integer("block_size", 0)
    if not block or scale is None or scale.ndim != codes.ndim:
        return None
    axis = node.axis(node.integer("axis", 1), codes.ndim)
    expected = tuple(-(-n // block) if i == axis else n for i, n in enumerate(codes.shape))
    if block < 0 or scale.shape != expected or (zero is not None and zero.shape != expected):
        node.refuse(
            f"scales of shape {list(scale.shape)} in blocks of {block}", f"scales and zero points of shape {list(expected)}"
        )

    def spread(values: Array) -> Array:
        return np.repeat(values.astype(np.float32), block, axis=axis).take(range(codes.shape[axis]), axis=axis)

    steps = codes.astype(np.float32) - (spread(zero) if zero is not None else np.float32(0))
    return normalize_array(steps * spread(scale), node.outputs[0])


def input_quant(builder: Builder, value: onnx_ir.Value) -> Quant | None:
    """The type of an integer graph input: what the DequantizeLinear nodes behind it say, looking through data movement.

    Returns:
        None where no DequantizeLinear reads it: then it is a plain integer input.

    Raises:
        UnsupportedOp: they disagree.
    """
    found: Quant | None = None
    pending, seen = [value], {value}
    while pending:
        for use in pending.pop().uses():
            if use.node.op_type == "DequantizeLinear" and use.idx == 0:
                node = OnnxNode(builder, use.node)
                if any(name and name not in builder.env for name in (node.input_name(1), node.input_name(2))):
                    node.refuse("a scale or zero point that is computed or given at run time", "constant ones")
                assert value.dtype is not None
                quant = read_quant(node, value.dtype.numpy().name, 0)
                if found not in (None, quant):
                    node.refuse(f"input {value.name!r} is read as {quant} and as {found}", "one scale and zero point")
                found = quant
            elif use.idx == 0 and use.node.op_type in MOVEMENT:
                fresh = [v for v in use.node.outputs if v not in seen]
                pending += fresh
                seen.update(fresh)
    return found


# ONNX operators that move codes without changing them.
MOVEMENT = frozenset(
    (
        "CenterCropPad Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity MaxPool Pad Reshape Slice "
        "SpaceToDepth Split Squeeze Tile Transpose Unsqueeze"
    ).split()
)


TABLE = {"QuantizeLinear": convert_quantize, "DequantizeLinear": convert_dequantize}
