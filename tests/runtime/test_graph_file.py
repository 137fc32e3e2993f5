"""graph.ir.zst gives the graph back byte by byte, and says so when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.backends.packing import Stored
from bevel.backends.schedule import Place
from bevel.ir.graph import Graph, Level
from bevel.ir.serialize import code_spans, dumps
from bevel.ir.types import Codebook, Int, Quant, TensorType
from bevel.runtime.graph_file import pack_graph, unpack_graph

RNG = np.random.default_rng(4)
WEIGHTS = RNG.integers(-128, 128, 6000).astype(np.int8)
TABLE = RNG.standard_normal(2000).astype(np.float32)
PERM = RNG.permutation(6000)


def payload() -> bytes:
    packed = np.zeros(7000, np.int16)
    packed[PERM] = WEIGHTS
    return b"\1" * 64 + packed.tobytes() + b"\0" * 48 + TABLE.tobytes() + b"\0" * 64


STORED = [Stored(WEIGHTS, Place("weights", 64), "int16", PERM), Stored(TABLE, Place("weights", 64 + 14000 + 48), "float32", None)]


@pytest.mark.parametrize(
    "graph",
    [
        b"head" + WEIGHTS.tobytes() + b"middle" + TABLE.tobytes() + b"tail",
        TABLE.tobytes() + WEIGHTS.tobytes(),
        WEIGHTS.tobytes() + WEIGHTS.tobytes() + b"once is cut",
        b"a=[0.5,1e-08,3.0,-2.25] b=[0.1,0.2,0.3,0.4] c=[1,2,3,4] d=[0.5,0.5] e=[.,.,.,.] f=[1e99,1e99,1e99,1e99]"
        + TABLE.tobytes(),
        b"neither is here",
        b"",
    ],
)
def test_round_trip(graph: bytes) -> None:
    packed = pack_graph(graph, [*STORED, STORED[0]])
    assert unpack_graph(packed, payload()) == graph


def test_constants_in_the_weights_cost_little() -> None:
    graph = b"head" + TABLE.tobytes() + b"tail"
    assert len(pack_graph(graph, [])) > 7000
    assert len(pack_graph(graph, STORED)) < 300


def test_scales_in_the_text_cost_what_float32_numbers_cost() -> None:
    text = b"[" + ",".join(map(repr, TABLE.astype(np.float64).tolist())).encode() + b"]"
    assert len(pack_graph(text, [])) < TABLE.nbytes + 200
    assert len(text) > 4 * TABLE.nbytes
    assert unpack_graph(pack_graph(text, []), b"") == text


@pytest.mark.parametrize(
    ("elem", "most"),
    [
        (Quant(Int(4), (1.0,)), 4.1),
        (Quant(Int(3), (1.0,)), 3.1),
        (Quant(Int(2), (1.0,)), 2.1),
        (Quant(Int(1), (1.0,)), 1.1),
        (Codebook(Int(2, signed=False), (-3.0, -1.0, 1.0, 3.0)), 2.1),
    ],
    ids=str,
)
def test_codes_take_the_bits_they_need(elem: Quant | Codebook, most: float) -> None:
    """Random ones, which no compression makes smaller; weights.bin holds others of them already."""
    storage = elem.storage if isinstance(elem, Quant) else elem.codes
    codes = RNG.integers(storage.min, storage.max + 1, (2, 40, 101)).astype(storage.dtype)
    codes[codes == 0] = 1 if storage.bipolar else 0
    graph = Graph("net", Level.INTEGER)
    x = graph.add_input("x", TensorType((1, 101), Quant(Int(8), (1.0,))))
    for i, name in enumerate("vw"):
        w = graph.add_constant(name, codes[i], TensorType(codes[i].shape, elem))
        bias = graph.add_constant(f"{name}.b", np.zeros(40, np.int32))
        graph.set_outputs([*graph.outputs, graph.add_node("IntGemm", [x, w, bias], names=[f"{name}.y"]).output])
    data = dumps(graph)
    spans = code_spans(data)
    assert [s.count for s in spans] == [40 * 101, 40 * 101]
    packed = pack_graph(data, [], spans)
    assert unpack_graph(packed, b"") == data
    assert len(packed) < len(pack_graph(data.replace(codes.tobytes(), b""), [])) + 1200 + 2 * 40 * 101 * most / 8
    weights = [Stored(codes[1], Place("weights", 0), codes.dtype.name, None)]
    with_weights = pack_graph(data, weights, spans)
    assert unpack_graph(with_weights, codes[1].tobytes()) == data
    assert len(with_weights) < len(packed) - 40 * 101 * storage.bits / 8 + 200


@pytest.mark.parametrize(("keep", "most"), [(0, None), (-9, None), (None, 500)], ids=["empty", "cut short", "other weights"])
def test_damage_is_a_value_error(keep: int | None, most: int | None) -> None:
    packed = pack_graph(b"head" + WEIGHTS.tobytes() + TABLE.tobytes(), STORED)
    with pytest.raises(ValueError, match=r"\w+"):
        unpack_graph(packed[:keep], payload()[:most])
