"""graph.ir.zst gives the graph back byte by byte, and says so when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.backends.packing import Stored
from bevel.backends.schedule import Place
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


@pytest.mark.parametrize(("keep", "most"), [(0, None), (-9, None), (None, 500)], ids=["empty", "cut short", "other weights"])
def test_damage_is_a_value_error(keep: int | None, most: int | None) -> None:
    packed = pack_graph(b"head" + WEIGHTS.tobytes() + TABLE.tobytes(), STORED)
    with pytest.raises(ValueError, match=r"\w+"):
        unpack_graph(packed[:keep], payload()[:most])
