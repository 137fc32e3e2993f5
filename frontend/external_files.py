"""Which files besides itself an ONNX model consists of, found without importing the model: for whoever hashes or copies it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def external_files(model: Path) -> list[Path]:
    """Files the ONNX file `model` keeps its weights in.

    None for a file that does not parse, and none outside the model's folder: its import refuses such a model, and a hostile one
    must not choose what is read.
    """
    # A tensor stored elsewhere says so in an entry with this key, and few models hold one: most need no parsing here.
    if model.suffix != ".onnx" or not model.is_file() or b"location" not in (data := model.read_bytes()):
        return []
    # Imported here: most callers never get this far, and onnx takes a fifth of a second.
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import ModelProto

    try:
        graph = ModelProto.FromString(data).graph
    except DecodeError:
        return []
    folder = model.parent.resolve()
    named = {folder / entry.value for t in _tensors(graph) for entry in t.external_data if entry.key == "location"}
    return sorted(path for path in named if path.resolve().is_relative_to(folder))


def _tensors(graph: Any) -> Iterator[Any]:
    """Every TensorProto of a GraphProto, subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _tensors(inner)
