"""Graph files: exact round trip, one identity, and no damage goes unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from bevel.errors import BevelError, UnsupportedModel, VerifyError
from bevel.ir.graph import Graph, Level
from bevel.ir.serialize import dumps, graph_hash, load_graph, loads, save_graph
from bevel.ir.text import print_graph
from bevel.ir.types import F32, TensorType
from tests.ir.graphs import graphs


def small() -> Graph:
    graph = Graph("small", Level.FLOAT, "cafe")
    x = graph.add_input("x", TensorType((2, 3), F32))
    w = graph.add_constant("__metadata__", np.arange(12, dtype=np.float32).reshape(3, 4).T)
    scalar = graph.add_constant("scalar", np.float32(2.5))
    y = graph.add_node("Gemm", [x, w], loc="fc").output
    graph.set_outputs([graph.add_node("Mul", [y, scalar]).output])
    return graph


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_round_trip(graph: Graph) -> None:
    loaded = loads(dumps(graph))
    assert print_graph(loaded) == print_graph(graph)
    assert graph_hash(loaded) == graph_hash(graph)
    for ours, theirs in zip(graph.constants, loaded.constants, strict=True):
        assert ours.array.dtype == theirs.array.dtype
        np.testing.assert_array_equal(ours.array, theirs.array)


def test_transposed_and_scalar_constants_and_reserved_names(tmp_path: Path) -> None:
    save_graph(small(), tmp_path / "g.ir")
    loaded = load_graph(tmp_path / "g.ir")
    np.testing.assert_array_equal(loaded.value("__metadata__").array, small().value("__metadata__").array)
    assert loaded.value("scalar").array.shape == ()
    assert [p.name for p in tmp_path.iterdir()] == ["g.ir"]


def test_hash_depends_on_contents_alone() -> None:
    graph = small()
    again = graph.clone()
    weights = again.value("__metadata__")
    weights.data = np.ascontiguousarray(weights.array)
    assert graph_hash(again) == graph_hash(graph)
    weights.data = weights.array.copy()
    weights.data[0, 0] = np.nextafter(np.float32(0), np.float32(1))
    assert graph_hash(again) != graph_hash(graph)
    renamed = graph.clone("other")
    assert graph_hash(renamed) != graph_hash(graph)


def test_broken_graphs_are_not_written(tmp_path: Path) -> None:
    graph = small()
    graph.outputs = []
    with pytest.raises(VerifyError, match="no outputs"):
        save_graph(graph, tmp_path / "g.ir")
    assert not list(tmp_path.iterdir())


def test_loading_verifies() -> None:
    data = dumps(small())
    with pytest.raises(UnsupportedModel, match="hash"):
        loads(data[:-4] + b"\x00\x00\x80\x3f")
    # The last but one tensor holds the weights, which must be finite.
    start = data.rindex(np.arange(1, 2, dtype=np.float32).tobytes())
    with pytest.raises(UnsupportedModel, match="NaN"):
        loads(data[:start] + b"\x00\x00\xc0\x7f" + data[start + 4 :])


@pytest.mark.parametrize("metadata", [None, {"graph": "x"}, {"graph": "x", "hash": "y"}])
def test_foreign_safetensors_files(metadata: dict[str, str] | None) -> None:
    with pytest.raises(UnsupportedModel):
        loads(save({"a": np.zeros(3)}, metadata=metadata))


def test_foreign_dtypes() -> None:
    header = json.dumps({"__metadata__": {"graph": "", "hash": ""}, "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}})
    with pytest.raises(UnsupportedModel, match="BF16"):
        loads(len(header).to_bytes(8, "little") + header.encode() + b"\0\0")


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ir", tmp_path):
        with pytest.raises(UnsupportedModel, match="graph file"):
            load_graph(path)


def test_every_truncation_is_an_error() -> None:
    data = dumps(small())
    for length in range(len(data)):
        with pytest.raises(UnsupportedModel):
            loads(data[:length])


def test_every_flipped_bit_is_an_error_or_changes_nothing() -> None:
    graph = small()
    data, identity = dumps(graph), graph_hash(graph)
    refused = 0
    for at in range(len(data)):
        for bit in (0, 3, 5, 7):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            try:
                assert graph_hash(loads(bytes(damaged))) == identity
            except UnsupportedModel:
                refused += 1
    assert refused > 3.5 * len(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(BevelError):
        loads(data)


def test_equal_graphs_are_equal_bytes() -> None:
    assert len({dumps(small()) for _ in range(8)}) == 1
