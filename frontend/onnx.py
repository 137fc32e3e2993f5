"""ONNX to Graph: a model file in, a FLOAT or ANNOTATED graph out.

Values keep their ONNX names, symbolic dimensions stay symbolic unless bound, quantization becomes part of the types
(`bevel.frontend.onnx_ops.quantize`), and shape arithmetic disappears (`bevel.frontend.onnx_ops.constants`). Every float type
computes as float32. What has no meaning in the op table is refused with the node's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir

from bevel.errors import BevelError, UnsupportedModel, UnsupportedOp, UsageError, VerifyError
from bevel.frontend.builder import REAL_TYPES, Builder, Codes, OnnxNode, Operand, normalize_array
from bevel.frontend.control import Control
from bevel.frontend.onnx_file import MALFORMED, OnnxFile, one_line, read_onnx
from bevel.frontend.onnx_ops import CONVERTERS, HINTS, constants, custom, qonnx, quantize
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.movement import ReshapeAttrs
from bevel.ir.types import F32, Dim, Elem, Float, Quant, TensorType, elem_of_dtype

DimSpec = int | tuple[int, int]

# tf2onnx names a dimension that TensorFlow left open unk__17; at axis 0 that is the batch.
_ANONYMOUS = re.compile(r"unk__\d+|")


def import_onnx(path: Path, *, dims: Mapping[str, DimSpec] | None = None, pad_nms: bool = False) -> Graph:
    """Import an ONNX model.

    Args:
        path: the model file; external data is looked up beside it.
        dims: symbolic dimensions by name: an int binds one, a pair (lo, hi) bounds it. An open axis 0 without a name of its own
            is called "batch".
        pad_nms: import NonMaxSuppression with as many rows as it could ever select, those left empty filled with -1, instead of
            refusing it (docs/detectors.md).

    Returns:
        A graph of level ANNOTATED if any activation is quantized, else FLOAT (weight-only quantization is folded).

    Raises:
        UsageError: no such file, or `dims` names a dimension the model does not have.
        UnsupportedModel: the file is damaged, hostile or of an unknown operator set.
        UnsupportedOp: an operator, attribute or type that bevel lacks; names the node and what is supported.
    """
    path = Path(path)
    file = read_onnx(path)
    try:
        return _Import(file, dict(dims or {}), pad_nms=pad_nms).run()
    except BevelError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except MALFORMED as error:
        raise UnsupportedModel(f"{path}: malformed model: {one_line(error)}") from error


class _Import:
    """One import: inputs and initializers are bound, then nodes are converted in order."""

    def __init__(self, file: OnnxFile, dims: dict[str, DimSpec], *, pad_nms: bool) -> None:
        self.file = file
        self.source = file.model.graph
        self.dims = dims
        self.known_dims: set[str] = set()
        graph = Graph(self.source.name or file.path.stem, Level.ANNOTATED, file.sha256)
        self.builder = Builder(graph, file.opset, pad_nms=pad_nms)
        self.control = Control(self._convert, self._bind_initializer)

    def run(self) -> Graph:
        """The imported graph."""
        for name, initializer in self.source.initializers.items():
            self._bind_initializer(name, initializer)
        for node in self.source:
            if node.op_type == "Constant":
                self._convert(node)
        for value in self.source.inputs:
            if value.name not in self.source.initializers:
                self._bind_input(value)
        if unknown := sorted(set(self.dims) - self.known_dims):
            raise UsageError(f"dims {unknown} given, the model's symbolic dimensions are {sorted(self.known_dims)}")
        for node in self.source:
            if node.op_type != "Constant":
                self._convert(node)
        graph = self.builder.graph
        graph.set_outputs([self._output(value) for value in self.source.outputs])
        graph.prune_dead()
        if not any(isinstance(v.type.elem, Quant) for v in graph.values() if not v.is_constant):
            _dequantize_constants(graph)
            graph.level = Level.FLOAT
        # Cloning drops the constants that folding left without readers.
        return graph.clone()

    # Inputs ----------------------------------------------------------------------------------------------------------

    def _bind_initializer(self, name: str, value: onnx_ir.Value) -> None:
        tensor = value.const_value
        if tensor is None:
            raise UnsupportedModel(f"initializer {name!r} has no data")
        try:
            array = np.asarray(tensor.numpy())
        except MALFORMED as error:
            raise UnsupportedModel(f"initializer {name!r}: data does not match its type: {one_line(error)}") from error
        try:
            self.builder.bind(name, normalize_array(array, name))
        except UnsupportedOp as error:
            raise UnsupportedOp(f"{_reader(value)}{error}") from None

    def _dimension(self, value: onnx_ir.Value, axis: int, extent: int | onnx_ir.SymbolicDim) -> int | Dim:
        if isinstance(extent, int):
            if extent < 0:
                raise UnsupportedModel(f"input {value.name!r}: extent {extent} at axis {axis}, expected 0 or more")
            return extent
        name = str(extent.value or "")
        if _ANONYMOUS.fullmatch(name):
            name = "batch" if axis == 0 else f"{value.name}.{axis}"
        self.known_dims.add(name)
        bound = self.dims.get(name)
        if bound is None:
            return Dim(name)
        lo, hi = (bound, bound) if isinstance(bound, int) else bound
        if not 1 <= lo <= hi:
            raise UsageError(f"dims {name!r} = {bound}, expected a positive integer or a pair lo <= hi")
        return bound if isinstance(bound, int) else Dim(name, lo, hi)

    def _bind_input(self, value: onnx_ir.Value) -> None:
        name = value.name or ""
        if not isinstance(value.type, onnx_ir.TensorType | None):
            raise UnsupportedOp(f"{_reader(value)}input {name!r} is {value.type}; supported are dense tensors")
        if value.shape is None or value.dtype is None:
            raise UnsupportedModel(f"input {name!r} has no tensor type with a rank; declare its shape in the model")
        shape = tuple(self._dimension(value, axis, extent) for axis, extent in enumerate(value.shape))
        elem: Elem = F32
        quant = quantize.input_quant(self.builder, value) if value.dtype.is_integer() else None
        if quant is not None:
            elem = quant
        elif value.dtype not in REAL_TYPES:
            try:
                elem = elem_of_dtype(value.dtype.numpy())
            except (ValueError, TypeError):
                message = f"{_reader(value)}input {name!r} has element type {value.dtype}; supported are numbers and bool"
                raise UnsupportedOp(message) from None
        type_ = TensorType(shape, elem)
        self.builder.check_size(type_, name)
        added = self.builder.graph.add_input(name, type_)
        self.builder.bind(name, added if isinstance(elem, Float) else Codes(added))

    # Nodes -----------------------------------------------------------------------------------------------------------

    def _convert(self, source: onnx_ir.Node) -> None:
        node = OnnxNode(self.builder, source)
        result: Operand | tuple[Operand, ...] | None = None
        if source.domain in qonnx.DOMAINS and node.op in qonnx.TABLE:
            result = qonnx.TABLE[node.op](self.builder, node)
            node.check_attributes_read()
        elif source.domain not in ("", "ai.onnx"):
            result = custom.convert(node)
        elif node.op in self.control:
            result = self.control.convert(node)
        elif (result := constants.fold(node)) is None:
            converter = CONVERTERS.get(node.op)
            if converter is None:
                raise UnsupportedOp(
                    f"node {node.loc!r}: operator {node.op} (opset {node.opset}) is not supported; supported: "
                    f"{HINTS.get(node.op, ', '.join(sorted(CONVERTERS)))}"
                )
            result = converter(self.builder, node)
            node.check_attributes_read()
        for name, operand in zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=False):
            if name:
                self.builder.bind(name, operand)

    # Outputs ---------------------------------------------------------------------------------------------------------

    def _output(self, source: onnx_ir.Value) -> Value:
        """The value that leaves the graph as `source`, under the name the model gives it."""
        name, graph = source.name or "", self.builder.graph
        if name not in self.builder.env:
            raise UnsupportedModel(f"graph output {name!r} is never computed")
        value = self.builder.value(self.builder.env[name], name)
        if value.name == name:
            return value
        if value.producer is None or any(value.name == out.name for out in self.source.outputs):
            # An input, a constant or another output cannot take a second name: a view can.
            try:
                return graph.add_node("Reshape", [value], ReshapeAttrs(value.type.shape), names=[name], loc=name).output
            except VerifyError as error:
                raise UnsupportedOp(f"graph output {name!r} (Reshape): {error}; supported: computed outputs") from None
        graph.rename(value, graph.unique_name(name))
        return value


def _reader(value: onnx_ir.Value) -> str:
    """The node that reads a value first, as messages begin."""
    use = next(iter(value.uses()), None)
    return f"node {use.node.name or use.node.outputs[0].name!r} ({use.node.op_type}): " if use is not None else ""


def _dequantize_constants(graph: Graph) -> None:
    """Replace quantized constants by their reals: the graph computes in float."""
    for value in graph.constants:
        if isinstance(value.type.elem, Quant):
            name = value.name
            real = graph.add_constant(name, value.type.elem.dequantize(value.array))
            graph.replace_uses(value, real)
            if name not in graph:
                graph.rename(real, name)
