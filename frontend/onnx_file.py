"""Reads an ONNX file that may be damaged or hostile: bytes in, a checked onnx-ir model and the file's sha256 out.

Everything that later code relies on is checked here once: a parsable protobuf with a graph, an opset we know, one definition
for every name, nodes in an order that can run, extents that are no attack, external data inside the model's folder.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto
from onnx_ir import external_data
from onnx_ir.passes import InvariantError
from onnx_ir.passes.common import InlinePass

from bevel.errors import UnsupportedModel, UnsupportedOp, UsageError

# Converters accept every form these operator set versions give an operator.
OPSETS = range(7, 29)
# protobuf cannot hold more in one message; larger models keep their weights in external data.
MAX_FILE_BYTES = 2**31
# More nodes than any model for an edge device has; stops functions that call functions that call functions.
MAX_NODES = 20_000
# What deserializing a malformed but parsable protobuf raises inside onnx-ir.
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    OSError,
    AssertionError,
    InvariantError,
)


@dataclass(frozen=True)
class OnnxFile:
    """A loaded model.

    Attributes:
        path: where it came from.
        model: nodes in execution order, local functions inlined.
        opset: version of the default operator set.
        sha256: hash of the file's bytes, hexadecimal.
    """

    path: Path
    model: onnx_ir.Model
    opset: int
    sha256: str


def read_onnx(path: Path) -> OnnxFile:
    """Load and check `path`.

    Raises:
        UsageError: no such file.
        UnsupportedModel: damaged, hostile or of an unknown operator set; names the file and what was found.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such model file")
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise UnsupportedModel(f"{path}: {size} bytes, expected an ONNX file of 1 byte to 2 GiB")
    data = path.read_bytes()
    try:
        proto = ModelProto.FromString(data)
    except DecodeError:
        raise UnsupportedModel(f"{path}: not an ONNX file, or truncated: its protobuf does not parse; export it again") from None
    try:
        opset = _check_proto(path, proto)
        model = onnx_ir.from_proto(proto)
        external_data.set_base_dir(model.graph, path.parent)
        if model.functions:
            model = InlinePass()(model).model
        model.graph.sort()
    except MALFORMED as error:
        raise UnsupportedModel(f"{path}: malformed model: {one_line(error)}") from error
    return OnnxFile(path, model, opset, hashlib.sha256(data).hexdigest())


def one_line(error: Exception) -> str:
    """What a third-party exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _check_proto(path: Path, proto: ModelProto) -> int:
    """The opset of a proto that is sound enough to deserialize."""
    if not proto.HasField("graph") or not proto.graph.output:
        raise UnsupportedModel(f"{path}: holds no graph with outputs, so it is not a complete ONNX model")
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset not in OPSETS:
        first = proto.graph.node[0].op_type if proto.graph.node else "none"
        raise UnsupportedOp(
            f"{path}: operator set version {opset} (first operator: {first}), supported are {OPSETS.start} to {OPSETS.stop - 1}; "
            "convert it with onnx.version_converter or export it again"
        )
    defined = [t.name for t in proto.graph.initializer]
    defined += [i.name for i in proto.graph.input if i.name not in set(defined)]
    defined += [name for node in proto.graph.node for name in node.output if name]
    seen: set[str] = set()
    for name in defined:
        if name in seen:
            raise UnsupportedModel(f"{path}: value {name!r} is defined twice, expected one definition for every name")
        seen.add(name)
    # protobuf hands text that is no UTF-8 over as bytes.
    if any(not isinstance(name, str) for name in (*seen, *(node.name for node in proto.graph.node))):
        raise UnsupportedModel(f"{path}: names of values or nodes are not UTF-8 text, so the file is damaged")
    for name in seen:
        if not name or not name.isprintable():
            raise UnsupportedModel(f"{path}: a value is called {name!r}, expected printable text")
    for node in proto.graph.node:
        if not node.op_type.isprintable() or not node.domain.isprintable():
            raise UnsupportedModel(f"{path}: an operator is called {node.op_type!r} of {node.domain!r}, expected printable text")
        for name in node.input:
            if name and name not in seen:
                raise UnsupportedModel(f"{path}: node {node.name!r} ({node.op_type}) reads {name!r}, which nothing computes")
    outputs = Counter(output.name for output in proto.graph.output)
    if repeated := [name for name, count in outputs.items() if count > 1]:
        raise UnsupportedModel(f"{path}: graph output {repeated[0]!r} is listed twice, expected distinct outputs")
    for output in proto.graph.output:
        if output.name not in seen:
            raise UnsupportedModel(f"{path}: graph output {output.name!r} is never computed")
    for tensor in _tensors(proto):
        _check_tensor(path, tensor)
    nodes = _expanded_nodes(path, proto)
    if nodes > MAX_NODES:
        raise UnsupportedModel(f"{path}: {nodes} nodes with functions inlined, expected at most {MAX_NODES}")
    return opset


def _tensors(proto: ModelProto) -> Iterator[TensorProto]:
    yield from proto.graph.initializer
    for body in (proto.graph, *proto.functions):
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t


def _check_tensor(path: Path, tensor: TensorProto) -> None:
    """Refuse negative extents and external data that leaves the folder or the file it names."""
    if any(d < 0 for d in tensor.dims):
        raise UnsupportedModel(f"{path}: tensor {tensor.name!r} has extents {list(tensor.dims)}, expected none below 0")
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder):
        raise UnsupportedModel(f"{path}: tensor {tensor.name!r} keeps its data in {location!r}, outside the model's folder")
    if not target.is_file():
        raise UnsupportedModel(f"{path}: data of tensor {tensor.name!r} is missing: expected {target}")
    try:
        end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
    except ValueError:
        raise UnsupportedModel(f"{path}: external data of tensor {tensor.name!r} has no numeric offset and length") from None
    if not 0 <= end <= target.stat().st_size:
        raise UnsupportedModel(f"{path}: tensor {tensor.name!r} ends at byte {end} of {target.name}, which is shorter")


def _expanded_nodes(path: Path, proto: ModelProto) -> int:
    """Nodes after inlining every local function; saturates above MAX_NODES and refuses recursion."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(key: tuple[str, str], callers: frozenset[tuple[str, str]]) -> int:
        if key in callers:
            raise UnsupportedModel(f"{path}: function {key[1]!r} calls itself")
        if key not in counted:
            inner = callers | {key}
            total = sum(count((n.domain, n.op_type), inner) if (n.domain, n.op_type) in bodies else 1 for n in bodies[key].node)
            counted[key] = min(total, MAX_NODES + 1)
        return counted[key]

    for key in bodies:
        count(key, frozenset())
    return sum(count((n.domain, n.op_type), frozenset()) if (n.domain, n.op_type) in bodies else 1 for n in proto.graph.node)
