"""Batch normalization behind layers of a quantized model: scales take it, codes and integers stay, no island is left."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.types import Codebook, Dim, Int, Quant, TensorType
from bevel.ir.verify import is_integer_only, verify
from bevel.passes.canonicalize import canonicalize
from bevel.passes.quantize import ToInteger

BATCH = Dim("n", 1, 8)
ELEMS: dict[str, tuple[Quant | Codebook, Int | None]] = {
    "narrow": (Quant(Int(4), (0.1, 0.2, 0.3, 0.4), (0,), 0), Int(4)),
    "with the lowest code": (Quant(Int(4), (0.1,)), Int(5)),
    "bipolar": (Quant(Int(1), (0.2,)), Int(1)),
    "8 bits": (Quant(Int(8), (0.01,)), Int(8)),
    "8 bits with the lowest code": (Quant(Int(8), (0.01,)), None),
    "asymmetric": (Quant(Int(4), (0.1,), (1,)), None),
    "a table": (Codebook(Int(2, signed=False), (-3.0, 0.0, 1.0, 7.0), (0.1, 0.2, 0.3, 0.4), 0), None),
}


def network(elem: Quant | Codebook, lowest: bool, gamma: np.ndarray) -> Graph:
    rng = np.random.default_rng(2)
    stored = elem.storage if isinstance(elem, Quant) else elem.codes
    codes = rng.integers(stored.min if lowest else stored.min + (not stored.bipolar), stored.max + 1, (4, 3, 3, 3))
    codes = np.where(codes == 0, 1, codes) if stored.bipolar else codes
    if lowest:
        codes[:, 0, 0, 0] = stored.min
    g = Graph("net", Level.ANNOTATED)
    x = g.add_input("x", TensorType((BATCH, 3, 6, 6), Quant(Int(4), (0.3,), (-1,))))
    w = g.add_constant("w", codes.astype(elem.dtype), TensorType(codes.shape, elem))
    b = g.add_constant("b", rng.integers(-20, 20, 4).astype(np.int32), TensorType((4,), Quant(Int(32), (0.03,))))
    c = g.add_node("Conv", [x, w, b], ConvAttrs((3, 3), pads=(1, 1, 1, 1)), names=["c"]).output
    statistics = [gamma, rng.normal(size=4), rng.normal(size=4), rng.uniform(0.5, 2, 4)]
    operands = [g.add_constant(f"s{i}", s.astype(np.float32)) for i, s in enumerate(statistics)]
    n = g.add_node("BatchNormalization", [c, *operands], names=["n"]).output
    out = TensorType((BATCH, 4, 6, 6), Quant(Int(4), (0.5,), (-8,)))
    g.set_outputs([g.add_node("Relu", [n], names=["y"], types=[out]).output])
    verify(g)
    return g


@pytest.mark.parametrize("kind", ELEMS)
def test_normalization_behind_codes(kind: str) -> None:
    elem, storage = ELEMS[kind]
    graph = network(elem, "lowest" in kind, np.asarray([1.5, -0.7, 0.2, -1.1]))
    folded = canonicalize(graph)
    verify(folded)
    x = np.random.default_rng(3).normal(size=(5, 3, 6, 6)).astype(np.float32)
    found, wanted = run(folded, {"x": x})["y"], run(graph, {"x": x})["y"]
    assert (np.abs(found - wanted) > 1e-5).mean() < 0.002, "only what lies on a rounding threshold may move"
    integer = ToInteger().run(folded)
    verify(integer)
    assert is_integer_only(integer) is (storage is not None)
    if storage is not None:
        assert [n.op for n in folded.nodes] == ["Conv", "Relu"]
        weight = folded.nodes[0].inputs[1].type.elem
        assert isinstance(weight, Quant)
        assert weight.storage == storage


def test_a_table_takes_positive_factors() -> None:
    graph = network(ELEMS["a table"][0], False, np.asarray([1.5, 0.7, 0.2, 1.1]))
    folded = canonicalize(graph)
    assert [n.op for n in folded.nodes] == ["Conv", "Relu"]
    weight = folded.nodes[0].inputs[1].type.elem
    assert isinstance(weight, Codebook)
    assert weight.table == (-3.0, 0.0, 1.0, 7.0)
    assert is_integer_only(ToInteger().run(folded))


def test_a_channel_that_is_switched_off() -> None:
    folded = canonicalize(network(ELEMS["narrow"][0], False, np.asarray([1.5, 0.0, 0.2, 1.1])))
    assert not folded.nodes[0].inputs[1].array[1].any()
    assert is_integer_only(ToInteger().run(folded))
