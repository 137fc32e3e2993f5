"""The static roofline: what bounds a layer, how estimates scale, and what is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bevel.devices.cost import Roofline, graph_cost
from bevel.devices.profile import Figure, load_profile
from bevel.errors import UsageError
from bevel.ir.graph import Graph
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.types import F32, TensorType

PI4 = load_profile("raspberry-pi-4")


def network(channels: int = 64, groups: int = 1) -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, channels, 16, 16), F32))
    w = graph.add_constant("w", np.zeros((channels, channels // groups, 3, 3), np.float32))
    conv = graph.add_node("Conv", [x, w], ConvAttrs((3, 3), pads=(1, 1, 1, 1), groups=groups), loc="conv")
    relu = graph.add_node("Relu", conv.outputs, loc="relu")
    graph.set_outputs(relu.outputs)
    return graph


def test_a_compute_bound_layer_takes_its_macs_at_the_peak() -> None:
    (layer,) = graph_cost(network(), Roofline(PI4), ("fp32", "w8a8"))
    expected = layer.macs / (PI4.peaks.fp32_gmacs.value * 1e9) * 1e3 + PI4.peaks.launch_us.value * 1e-3
    assert layer.bits["fp32"].ms == pytest.approx(expected)
    assert layer.bits["fp32"].provenance == "static"
    assert layer.bits["fp32"].lo < layer.bits["fp32"].ms < layer.bits["fp32"].hi
    assert layer.pays


def test_an_activation_is_part_of_the_layer_that_feeds_it() -> None:
    assert [layer.name for layer in graph_cost(network(), Roofline(PI4), ("fp32", "w8a8"))] == ["conv"]


def test_channels_beyond_whole_vectors_cost_a_whole_vector() -> None:
    host = replace(PI4, features=frozenset({"avx512"}))
    graph = network(16)
    narrow = network(17)
    (even,), (odd,) = (graph_cost(g, Roofline(host), ("fp32",)) for g in (graph, narrow))
    launch = host.peaks.launch_us.value * 1e-3
    assert (odd.bits["fp32"].ms - launch) / (even.bits["fp32"].ms - launch) == pytest.approx(2 * 17 / 16, rel=1e-6)


def test_requantization_costs_where_the_reduction_is_short() -> None:
    def overhead(channels: int) -> float:
        (layer,) = graph_cost(network(channels), Roofline(PI4), ("w8a8",))
        arithmetic = layer.macs / (PI4.peaks.int8_gmacs.value * 1e9) * 1e3
        return (layer.bits["w8a8"].ms - PI4.peaks.launch_us.value * 1e-3) / arithmetic

    # One result in a cycle; a result of 16 channels has a quarter of the MACs of one of 64.
    assert overhead(64) > 1.0
    assert (overhead(16) - 1) / (overhead(64) - 1) == pytest.approx(4, rel=1e-6)


def test_int8_does_not_pay_where_its_peak_is_lower() -> None:
    slow = replace(PI4, peaks=replace(PI4.peaks, int8_gmacs=Figure(1.0, "static", "made up")))
    (layer,) = graph_cost(network(), Roofline(slow), ("fp32", "w8a8"))
    assert not layer.pays


def test_unknown_precision_is_refused() -> None:
    node = network().nodes[0]
    with pytest.raises(UsageError, match="w3a3"):
        Roofline(PI4).layer_cost(node, "w3a3")
