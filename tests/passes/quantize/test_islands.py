"""The report of float islands: every float layer is listed with the reason that applies and its share of the work."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.ir.graph import Graph
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.pool import PoolAttrs
from bevel.ir.types import F32, Dim, TensorType
from bevel.passes.quantize import Calibrate, ToInteger
from bevel.passes.quantize.islands import explain_islands
from bevel.passes.quantize.observation import Observation

BATCH = Dim("batch", 1, 8)


def network() -> Graph:
    """Convolution, clamp, a quotient of two results, convolution, pool."""
    rng = np.random.default_rng(0)
    g = Graph("net")
    x = g.add_input("x", TensorType((BATCH, 4, 6, 6), F32))
    w = g.add_constant("w", rng.normal(size=(4, 4, 1, 1)).astype(np.float32))
    a = g.add_node("Conv", [x, w], ConvAttrs((1, 1)), names=["a"], loc="a").output
    s = g.add_node("Sigmoid", [a], names=["s"], loc="s").output
    q = g.add_node("Div", [a, s], names=["q"], loc="quotient").output
    b = g.add_node("Conv", [q, w], ConvAttrs((1, 1)), names=["b"], loc="b").output
    r = g.add_node("Relu", [b], names=["r"], loc="r").output
    g.set_outputs([g.add_node("MaxPool", [r], PoolAttrs((2, 2), (2, 2)), names=["y"], loc="y").output])
    return g


def quantized(keep: frozenset[str] = frozenset()) -> tuple[Graph, list[Observation]]:
    seen: list[Observation] = []
    data = [{"x": np.random.default_rng(1).normal(size=(8, 4, 6, 6)).astype(np.float32)}]
    graph = Calibrate(method="mse", data=data, keep_float=keep, report=seen.extend).run(network())
    return ToInteger().run(graph), seen


def test_reasons_and_shares() -> None:
    graph, _ = quantized(frozenset({"b"}))
    rows = {row.layer: row for row in explain_islands(graph, {"b"}) if row.op not in ("Quantize", "Dequantize")}
    assert rows["quotient"].reason == "Div has no integer form"
    assert rows["b"].reason == "kept in float as asked"
    assert rows["r"].reason == "follows a float layer"
    assert set(rows) == {"quotient", "b", "r"}
    assert rows["b"].macs % (4 * 4 * 36) == 0
    assert rows["b"].macs_share == pytest.approx(rows["b"].macs / sum(node_macs(graph)))
    every = explain_islands(graph, {"b"})
    assert {r.reason for r in every if r.op in ("Quantize", "Dequantize")} == {"converts at the border between codes and reals"}
    assert 0 < sum(r.bytes_share for r in every) < 1


def node_macs(graph: Graph) -> list[int]:
    from bevel.ir.ops import lookup

    return [lookup(n.op).cost(n).macs for n in graph.nodes]


def test_an_integer_graph_has_none() -> None:
    graph = network()
    graph.replace_uses(graph.value("q"), graph.value("s"))
    graph.prune_dead()
    data = [{"x": np.ones((1, 4, 6, 6), np.float32)}]
    assert explain_islands(ToInteger().run(Calibrate(data=data).run(graph))) == []


def test_observations_are_those_of_every_value_with_a_range_of_its_own() -> None:
    _, seen = quantized()
    rows = {row.name: row for row in seen}
    assert list(rows) == ["x", "a", "s", "q", "r"], "in execution order; b is fused, y takes over"
    assert all(row.chosen[0] <= 0 <= row.chosen[1] for row in seen)
    x = np.random.default_rng(1).normal(size=(8, 4, 6, 6)).astype(np.float32)
    assert rows["x"].observed == (x.min(), x.max())
    outside = ((x < rows["x"].chosen[0] - rows["x"].scale / 2) | (x > rows["x"].chosen[1] + rows["x"].scale / 2)).mean()
    assert rows["x"].clipped == pytest.approx(outside, abs=2e-3)
    assert rows["x"].chosen[1] == pytest.approx(rows["x"].scale * (127 - rows["x"].zero_point))
