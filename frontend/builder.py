"""What converters work with: the graph being built, and one ONNX node seen through its operands and attributes.

An operand is one of three things. A `Value` of the graph holds reals (fake-quantized where its type is `Quant`). A numpy array
is known at import time: a weight, or shape arithmetic, whose elements may be symbolic `Dim`s. `Codes` are what lies between
QuantizeLinear and DequantizeLinear: the integers that a Value of `Quant` type stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx_ir

from bevel.errors import UnsupportedModel, UnsupportedOp, VerifyError
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.interp import evaluate
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.op import elements
from bevel.ir.types import Dim, Float, Quant, Shape, TensorType

Array = npt.NDArray[Any]

# Every real computes as float32; element types of 8 bits and fewer would lose their meaning with that.
REAL_TYPES = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.DOUBLE)
# One tensor of 2^31 elements exceeds every device bevel serves; a declared size beyond it is an attack or a mistake.
MAX_ELEMENTS = 2**31 - 1
# What may be computed at import: shape arithmetic and tables, not a network on constants.
MAX_FOLDED = 2**26
MAX_FOLDED_MACS = 2**32


@dataclass(frozen=True)
class Codes:
    """The integer codes of a quantized value, or a plain integer value that no DequantizeLinear gives a scale.

    Attributes:
        value: whose codes they are.
        spelled: the type that the model's codes have where the value's has fewer bits.
    """

    value: Value
    spelled: Quant | None = None


Operand = Value | Codes | Array


def normalize_array(array: Array, name: str) -> Array:
    """`array` as importers keep it: float32 for every float type, integers and truth values as they are.

    Infinities and NaN stay: masks are made of them. Layers refuse them in their weights.

    Raises:
        UnsupportedModel: a number beyond float32; names the tensor.
        UnsupportedOp: an element type without meaning here.
    """
    array = np.asarray(array)
    if array.dtype.kind in "iub" or array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        return array
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):
            real = array.astype(np.float32)
        if array.dtype.itemsize > 4 and not np.array_equal(np.isinf(real), np.isinf(array)):
            raise UnsupportedModel(f"tensor {name!r} holds values beyond float32; scale them down or export it in float32")
        return real
    raise UnsupportedOp(f"tensor {name!r} has element type {array.dtype}; expected floats, integers or bool")


class Builder:
    """The graph under construction and what each ONNX value name stands for.

    Attributes:
        graph: the result.
        opset: version of the default operator set.
        pad_nms: NonMaxSuppression may fill the rows that an image leaves empty.
        env: operand of each ONNX value converted so far.
    """

    def __init__(self, graph: Graph, opset: int, *, pad_nms: bool = False) -> None:
        self.graph = graph
        self.opset = opset
        self.pad_nms = pad_nms
        self.env: dict[str, Operand] = {}
        self.names: Counter[Value] = Counter()
        self._materialized: dict[str, tuple[Array, Value]] = {}

    def bind(self, name: str, operand: Operand) -> None:
        """Let ONNX value `name` stand for `operand`."""
        self.env[name] = operand
        if isinstance(operand, Value):
            self.names[operand] += 1

    def constant(self, array: Array, name: str) -> Value:
        """A constant of the graph holding `array`."""
        if array.dtype == object:
            raise UnsupportedOp(f"value {name!r} depends on a symbolic dimension; bind it with dims= at import")
        if array.dtype.kind not in "fiub":
            array = array.astype(np.int8 if array.dtype.name.startswith("int") else np.uint8)
        # Transposed weights are views; constants are stored row-major.
        return self.graph.add_constant(name, np.require(array, requirements="C"))

    def value(self, operand: Operand, name: str) -> Value:
        """The graph value of any operand; a known array called `name` becomes one constant however often it is used."""
        if isinstance(operand, Codes):
            return operand.value
        if isinstance(operand, Value):
            return operand
        known = self._materialized.get(name)
        if known is None or known[0] is not operand:
            known = self._materialized[name] = (operand, self.constant(operand, name))
        return known[1]

    def check_size(self, type_: TensorType, name: str) -> None:
        """Refuse absurd extents.

        Raises:
            UnsupportedModel: more than MAX_ELEMENTS elements with every symbolic dimension at its lower bound.
        """
        count = 1
        for extent in type_.shape:
            count *= extent if isinstance(extent, int) else extent.lo
        if count > MAX_ELEMENTS:
            raise UnsupportedModel(f"value {name!r} of type {type_} has {count} elements, expected at most {MAX_ELEMENTS}")


class OnnxNode:
    """One ONNX node as its converter reads it; every attribute must be read, so none is ignored silently.

    Attributes:
        op: operator type.
        loc: node name, or its first named output where it has none.
        opset: operator set version.
        outputs: ONNX names of its results.
        source: the onnx-ir node.
    """

    def __init__(self, builder: Builder, source: onnx_ir.Node) -> None:
        self.builder = builder
        self.source = source
        self.op = source.op_type
        self.opset = builder.opset
        self.outputs = tuple(v.name or "" for v in source.outputs)
        self.loc = source.name or next((name for name in self.outputs if name), source.op_type)
        self._unread = set(source.attributes)

    def refuse(self, found: str, supported: str) -> NoReturn:
        """Raise the error that names this node, what it asks for and what bevel has instead."""
        raise UnsupportedOp(f"node {self.loc!r} ({self.op}, opset {self.opset}): {found}; supported: {supported}")

    def check_attributes_read(self) -> None:
        """Refuse attributes that the converter knows nothing of."""
        if self._unread:
            self.refuse(f"unknown attributes {sorted(self._unread)}", "the attributes of the ONNX operator specification")

    # Attributes ------------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """True when the attribute is present."""
        return name in self.source.attributes

    def _attribute(self, name: str) -> Any:
        self._unread.discard(name)
        attribute = self.source.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            self.refuse(f"attribute {name} refers to a function parameter", "models with functions inlined")
        return None if attribute is None else attribute.value

    def integer(self, name: str, default: int) -> int:
        """Integer attribute."""
        value = self._attribute(name)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """Float attribute; must be finite."""
        value = self._attribute(name)
        if value is not None and not np.isfinite(value):
            self.refuse(f"{name}={value}", "finite numbers")
        return default if value is None else float(value)

    def text(self, name: str, default: str) -> str:
        """String attribute."""
        value = self._attribute(name)
        return default if value is None else str(value)

    def ints(self, name: str) -> tuple[int, ...] | None:
        """List of integers, None where absent."""
        value = self._attribute(name)
        return None if value is None else tuple(int(v) for v in value)

    def raw(self, name: str) -> Any:
        """The attribute as onnx-ir has it, None where absent."""
        return self._attribute(name)

    # Operands --------------------------------------------------------------------------------------------------------

    def input_name(self, index: int) -> str:
        """ONNX name of operand `index`, "" where it is left out."""
        inputs = self.source.inputs
        value = inputs[index] if index < len(inputs) else None
        return (value.name or "") if value is not None else ""

    def optional(self, index: int) -> Operand | None:
        """Operand `index`, None where it is left out."""
        name = self.input_name(index)
        if not name:
            return None
        if name not in self.builder.env:
            raise UnsupportedModel(f"node {self.loc!r} ({self.op}) reads {name!r}, which nothing computes")
        return self.builder.env[name]

    def operand(self, index: int) -> Operand:
        """Operand `index`."""
        found = self.optional(index)
        if found is None:
            self.refuse(f"operand {index} is missing", "the operands of the ONNX operator specification")
        return found

    def operands(self) -> tuple[Operand, ...]:
        """All operands; none may be left out."""
        return tuple(self.operand(i) for i in range(len(self.source.inputs)))

    def shape(self, index: int) -> Shape:
        """Shape of operand `index`."""
        operand = self.operand(index)
        if isinstance(operand, np.ndarray):
            return tuple(operand.shape)
        return operand.value.type.shape if isinstance(operand, Codes) else operand.type.shape

    def known(self, index: int, what: str) -> Array | None:
        """Elements of operand `index` if they are known at import time (quantized weights as reals), None where left out."""
        operand = self.optional(index)
        if operand is None or isinstance(operand, np.ndarray):
            return operand
        value = operand.value if isinstance(operand, Codes) else operand
        if value.data is None:
            self.refuse(f"{what} {self.input_name(index)!r} is computed by the model", f"a constant {what}")
        elem = value.type.elem
        return elem.dequantize(value.data) if isinstance(elem, Quant) and not isinstance(operand, Codes) else value.data

    def known_ints(self, index: int, what: str) -> tuple[int, ...] | None:
        """Integers of operand `index`, None where left out."""
        array = self.known(index, what)
        if array is None:
            return None
        if array.dtype == object:
            self.refuse(f"{what} depends on a symbolic dimension", f"constant {what}; bind the dimension with dims=")
        if array.dtype.kind not in "iu":
            self.refuse(f"{what} of type {array.dtype}", f"integer {what}")
        return tuple(int(v) for v in array.reshape(-1))

    def ints_or_input(self, name: str, index: int) -> tuple[int, ...] | None:
        """Integers that older operator sets keep in an attribute and newer ones in an operand."""
        return self.ints(name) if self.has(name) else self.known_ints(index, name)

    def axis(self, axis: int, rank: int) -> int:
        """`axis` counted from the front."""
        if not -rank <= axis < rank:
            self.refuse(f"axis {axis} outside rank {rank}", f"axes of {-rank} to {rank - 1}")
        return axis % rank

    def static(self, shape: Shape, what: str) -> tuple[int, ...]:
        """`shape` as integers; refuses symbolic dimensions."""
        for extent in shape:
            if isinstance(extent, Dim):
                self.refuse(f"{what} has symbolic dimension {extent}", f"static {what}; bind it with dims= at import")
        return tuple(d for d in shape if isinstance(d, int))

    # Building --------------------------------------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        operands: Sequence[Operand],
        attrs: Any = None,
        *,
        suffix: str = "",
        type_: TensorType | None = None,
        result: int = 0,
    ) -> Operand:
        """Add one node with one result, or that result at once where every operand is known.

        Args:
            op: name in the op table.
            operands: reals, integers, truth values, known arrays, or quantized codes for data movement.
            attrs: the op's attribute dataclass.
            suffix: appended to the ONNX output's name, for helper nodes before the last.
            type_: result type instead of the type rule's.
            result: index of the ONNX output that names it.
        """
        name = (self.outputs[result] or self.loc) + suffix
        return self._emit(op, operands, attrs, [name], None if type_ is None else [type_])[0]

    def emit_all(
        self, op: str, operands: Sequence[Operand], attrs: Any = None, *, results: int, suffix: str = ""
    ) -> tuple[Operand, ...]:
        """Add one node with `results` results, named like the ONNX node's outputs and `suffix`; see `emit`."""
        own = (*self.outputs, *[""] * results)[:results]
        return self._emit(op, operands, attrs, [name + suffix if name else f"{self.loc}.{i}" for i, name in enumerate(own)], None)

    def _emit(
        self, op: str, operands: Sequence[Operand], attrs: Any, names: list[str], types: list[TensorType] | None
    ) -> tuple[Operand, ...]:
        coded = any(isinstance(o, Codes) and isinstance(o.value.type.elem, Quant) for o in operands)
        if coded and Trait.MOVEMENT not in lookup(op).traits:
            self.refuse("arithmetic on integers without scale", "QuantizeLinear/DequantizeLinear around the operator")
        builder = self.builder
        known = self._constant_names()
        values = [builder.value(o, known.get(_address(o), f"{names[0]}.{i}")) for i, o in enumerate(operands)]
        if lookup(op).traits & {Trait.WEIGHTED, Trait.CHANNELWISE}:
            _require_finite(values[1:])
        try:
            node = builder.graph.add_node(op, values, attrs, names=names, loc=self.loc, types=types)
        except VerifyError as error:
            self.refuse(f"{error}", lookup(op).doc)
        results = node.outputs
        for result in results:
            builder.check_size(result.type, result.name)
            if coded and isinstance(result.type.elem, Float):
                self.refuse("codes of different scales joined as integers", "DequantizeLinear before the operator")
        # What has a symbolic shape is known at run time only, whatever it is computed from.
        if not all(v.is_constant for v in values) or not all(r.type.is_static for r in results):
            return tuple(r if isinstance(r.type.elem, Float | Quant) and not coded else Codes(r) for r in results)
        kept = tuple(r.type for r in results)
        if (
            max(elements((t,)) for t in kept) > MAX_FOLDED
            or lookup(op).macs(node.attrs, tuple(v.type for v in values), kept) > MAX_FOLDED_MACS
        ):
            self.refuse(f"constants that compute {kept[0]}", f"up to {MAX_FOLDED} elements; store the result in the model")
        arrays = evaluate(node, Level.ANNOTATED)
        builder.graph.remove(node)
        folded: list[Operand] = []
        for name, array, type_ in zip(names, arrays, kept, strict=True):
            if isinstance(type_.elem, Quant):
                constant = builder.graph.add_constant(name, array, type_)
                folded.append(Codes(constant) if coded else constant)
            else:
                folded.append(normalize_array(array, name))
        return tuple(folded)

    def _constant_names(self) -> dict[int, str]:
        """ONNX names of known operands by the address of their data, so that transposed weights keep theirs too."""
        found: dict[int, str] = {}
        for i in range(len(self.source.inputs)):
            operand = self.optional(i)
            if isinstance(operand, np.ndarray):
                found.setdefault(_address(operand), self.input_name(i))
        return found


def _require_finite(values: Sequence[Value]) -> None:
    """Refuse NaN and infinity in the weights of a layer."""
    for value in values:
        if value.data is not None and value.data.dtype.kind == "f" and not np.isfinite(value.data).all():
            raise UnsupportedModel(f"tensor {value.name!r} holds NaN or infinity; weights must be finite")


def _address(operand: Operand) -> int:
    """Where a known array keeps its data, 0 for other operands."""
    return int(operand.ctypes.data) if isinstance(operand, np.ndarray) else 0


def scalar_of(array: Array) -> float | None:
    """The value that every element of `array` has, None if they differ or there is none."""
    flat = array.reshape(-1)
    return float(flat[0]) if flat.size and bool((flat == flat[0]).all()) else None
