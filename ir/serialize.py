"""Graphs as files: one safetensors file, the text form in its metadata, the constants as its tensors.

Loading trusts nothing: the text is parsed, the graph verified, and its hash compared with the stored one, so that damage anywhere
in the file is an UnsupportedModel. `graph_hash` is the identity of a graph, independent of how a file encodes it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from bevel.errors import UnsupportedModel, VerifyError
from bevel.ir.graph import Graph
from bevel.ir.text import parse_graph, print_graph
from bevel.ir.types import Codebook, Quant
from bevel.ir.verify import verify

Array = npt.NDArray[Any]

# In front of each value name in the file: keeps constants apart from the format's own `__metadata__`.
_MARK = "%"
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}


def graph_hash(graph: Graph) -> str:
    """sha256 in hex over the canonical text (no constant inlined) and the constants' little-endian bytes in its order."""
    digest = hashlib.sha256(print_graph(graph, inline_constants=0).encode("ascii"))
    for value in graph.constants:
        array = value.array
        digest.update(np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C").tobytes())
    return digest.hexdigest()


def dumps(graph: Graph) -> bytes:
    """`graph` as the bytes of a graph file.

    Raises:
        VerifyError: the graph breaks a rule of its level.
    """
    verify(graph)
    tensors = {_MARK + v.name: np.asarray(v.array, order="C") for v in graph.constants}
    metadata = {"graph": print_graph(graph, inline_constants=0), "hash": graph_hash(graph)}
    return _ordered(bytes(save(tensors, metadata=metadata)))


def loads(data: bytes, origin: str = "graph file") -> Graph:
    """The graph in the bytes of a graph file.

    Args:
        data: what `dumps` returned.
        origin: what to call it in errors.

    Raises:
        UnsupportedModel: the bytes are damaged, of another version, or hold a graph that breaks a rule.
    """
    metadata = _metadata(data, origin)
    try:
        graph = parse_graph(metadata["graph"], _tensors(data, origin))
        verify(graph)
    except (UnsupportedModel, VerifyError) as error:
        raise UnsupportedModel(f"{origin}: {error}") from None
    if graph_hash(graph) != metadata["hash"]:
        raise UnsupportedModel(f"{origin} is damaged: its contents do not match its hash; write it again")
    return graph


@dataclass(frozen=True)
class CodeSpan:
    """Where a graph file holds codes of fewer than 8 bits, one in a byte.

    Attributes:
        at: position of the first.
        count: how many there are.
        bits: that a code needs.
        lowest: the least code.
        step: between codes: 2 for bipolar ones.
    """

    at: int
    count: int
    bits: int
    lowest: int
    step: int = 1


def code_spans(data: bytes) -> list[CodeSpan]:
    """Where the graph file `data` holds codes of fewer than 8 bits."""
    graph = parse_graph(_metadata(data, "graph")["graph"], _tensors(data, "graph"))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    spans = []
    for value in graph.constants:
        elem = value.type.elem
        codes = elem.storage if isinstance(elem, Quant) else elem.codes if isinstance(elem, Codebook) else None
        if codes is not None and codes.bits < 8:
            begin, end = header[_MARK + value.name]["data_offsets"]
            spans.append(CodeSpan(8 + length + begin, end - begin, codes.bits, codes.min, 2 if codes.bipolar else 1))
    return spans


def save_graph(graph: Graph, path: str | Path) -> None:
    """Write `graph` to `path`: to a temporary name beside it first, so that no partial file is ever left there.

    Raises:
        VerifyError: the graph breaks a rule of its level.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(dumps(graph))
    partial.replace(target)


def load_graph(path: str | Path) -> Graph:
    """The graph stored at `path`.

    Raises:
        UnsupportedModel: the file cannot be read, is damaged, or holds a graph that breaks a rule.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnsupportedModel(f"graph file {path}: {error.strerror or error}") from None
    return loads(data, f"graph file {path}")


def _tensors(data: bytes, origin: str) -> dict[str, Array]:
    """The tensors of a safetensors file by value name."""
    try:
        entries: list[tuple[str, dict[str, Any]]] = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise UnsupportedModel(f"{origin} is no safetensors file: {error}") from None
    tensors: dict[str, Array] = {}
    for key, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise UnsupportedModel(f"{origin}: tensor {key!r} has dtype {entry['dtype']}, expected one of {sorted(_DTYPES)}")
        tensors[key.removeprefix(_MARK)] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _ordered(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes them in another order every time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _metadata(data: bytes, origin: str) -> dict[str, str]:
    """The metadata of a safetensors file: 8 bytes of header length, then the header as JSON."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        header = None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(key), str) for key in ("graph", "hash")):
        raise UnsupportedModel(f"{origin} is no graph file: its header holds no graph and hash")
    return metadata
