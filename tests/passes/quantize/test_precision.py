"""Which layers and values get how many bits, and what that leaves of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevel.errors import InvalidPlan
from bevel.ir.graph import Graph, Value
from bevel.ir.interp import run, to_real
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.pool import PoolAttrs
from bevel.ir.plan import LayerPlan, parse_bits
from bevel.ir.types import F32, Dim, Int, Quant, TensorType
from bevel.ir.verify import is_integer_only, verify
from bevel.passes.pipeline import parse_pipeline, print_pipeline
from bevel.passes.quantize import Calibrate
from tests.passes.quantize.annotated import lower

BATCH = Dim("batch", 1, 64)
DATA = np.random.default_rng(3).normal(size=(48, 3, 8, 8)).astype(np.float32)


def network() -> Graph:
    """stem, pool, two residual blocks, classifier; "b1" and "b2" read the stream, "b1b" and "b2b" what those make."""
    rng = np.random.default_rng(0)
    g = Graph("net")

    def conv(x: Value, name: str, relu: bool = True) -> Value:
        w = g.add_constant(f"{name}.w", (rng.normal(size=(8, x.type.shape[1], 3, 3)) * 0.2).astype(np.float32))
        y = g.add_node("Conv", [x, w], ConvAttrs((3, 3), pads=(1, 1, 1, 1)), names=[name]).output
        return g.add_node("Relu", [y], names=[f"{name}.relu"]).output if relu else y

    def block(x: Value, name: str) -> Value:
        s = g.add_node("Add", [x, conv(conv(x, name), f"{name}b", relu=False)], names=[f"{name}.sum"]).output
        return g.add_node("Relu", [s], names=[f"{name}.out"]).output

    x = g.add_input("x", TensorType((BATCH, 3, 8, 8), F32))
    pooled = g.add_node("MaxPool", [conv(x, "stem")], PoolAttrs((2, 2), (2, 2)), names=["pool"]).output
    r = block(block(pooled, "b1"), "b2")
    tail = g.add_node("MaxPool", [conv(r, "tail")], PoolAttrs((2, 2), (2, 2)), names=["tail.pool"]).output
    p = g.add_node("GlobalAveragePool", [conv(tail, "last")], names=["mean"]).output
    g.set_outputs([p])
    verify(g)
    return g


def calibrated(graph: Graph | None = None, **options: Any) -> Graph:
    result = Calibrate(data=[{"x": DATA[:24]}, {"x": DATA[24:]}], **options).run(graph or network())
    verify(result)
    return result


def bits_read(graph: Graph) -> dict[str, tuple[int, int]]:
    """Layer -> bits of its weights' codes and of what it reads."""
    found = {}
    for node in graph.nodes:
        if node.op == "Conv":
            x, w = (v.type.elem for v in node.inputs[:2])
            assert isinstance(x, Quant)
            assert isinstance(w, Quant)
            found[node.output.name] = (w.storage.bits, x.storage.bits)
    return found


def storage_of(graph: Graph, name: str) -> Int:
    elem = graph.value(name).type.elem
    assert isinstance(elem, Quant)
    return elem.storage


def test_first_and_last_layer_and_the_stream_keep_eight_bits() -> None:
    graph = calibrated(bits="w4a3")
    low = (4, 3)
    assert bits_read(graph) == {"stem": (8, 8), "b1": low, "b1b": low, "b2": low, "b2b": low, "tail": low, "last": (8, 8)}
    for name in ("pool", "b1.out", "b1b", "b2b", "mean"):
        assert storage_of(graph, name) == Int(8), name


def test_one_conversion_serves_all_readers_and_none_is_left_where_only_layers_read() -> None:
    integer = lower(calibrated(bits="w4a3"))
    assert is_integer_only(integer)
    # Between the stream and the layer that reads it in either block; "tail" alone reads "b2.out", so the sum is made at its bits.
    assert [n.output.name for n in integer.nodes if n.op == "Lut"] == ["pool.a3", "b1.out.a3"]
    assert storage_of(integer, "b2.out.a3") == Int(3, signed=False)
    assert [n.op for n in integer.nodes if n.output.name == "b2.out.a3"] == ["IntAdd"]


def test_a_conversion_moves_in_front_of_data_movement() -> None:
    """ "last" asked for 2 bits reads a pool that nothing else reads: the pool moves codes of 2 bits."""
    plan = {"last": LayerPlan(parse_bits("w2a2"))}
    integer = lower(calibrated(bits="w4a3", layers=plan))
    (pool,) = (n for n in integer.nodes if n.output.name == "tail.pool")
    assert pool.op == "MaxPool"
    assert storage_of(integer, "tail.pool") == Int(2, signed=False)
    assert pool.inputs[0].producer is not None
    assert pool.inputs[0].producer.op == "Requantize"


def test_a_plan_says_otherwise_layer_by_layer() -> None:
    plan = {
        "stem": LayerPlan(parse_bits("w2a4")),
        "b1": LayerPlan(parse_bits("w1a8")),
        "b2b": LayerPlan(parse_bits("8")),
        "last": LayerPlan(scales="mse"),
    }
    found = bits_read(calibrated(bits="w4a3", layers=plan))
    assert found["stem"] == (2, 4)
    assert found["b1"] == (1, 8)
    assert found["b2b"] == (8, 8)
    assert found["last"] == (8, 8), "how scales are found says nothing of bits"


def test_the_stream_of_fewer_bits() -> None:
    graph = calibrated(bits="w4a4", stream=4)
    assert {storage_of(graph, name) for name in ("b1.out", "b2.out", "stem.relu", "pool")} == {Int(4, signed=False)}
    assert storage_of(graph, "b1b") == Int(8), "what only the sum reads is no stream"
    integer = lower(graph)
    assert is_integer_only(integer)
    assert not [n for n in integer.nodes if n.op == "Lut"], "layers read the stream as it is"


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w2a2", "w1.58a5", "w1a1", "w5a7"])
def test_integers_do_what_fake_quantization_does(bits: str) -> None:
    graph = calibrated(bits=bits)
    integer = lower(graph)
    (out,) = integer.outputs
    found = to_real(out, run(integer, {"x": DATA})[out.name])
    wanted = run(graph, {"x": DATA})[out.name]
    scale = out.type.elem.scale[0]  # type: ignore[union-attr]
    # Ties round up in one and to even in the other, and a step of few bits is coarse.
    assert np.abs(found - wanted).mean() < 0.5 * scale


def test_fewer_bits_are_worse_and_per_channel_scales_better() -> None:
    exact = run(network(), {"x": DATA})["mean"]

    def error(**options: Any) -> float:
        return float(((run(calibrated(**options), {"x": DATA})["mean"] - exact) ** 2).mean())

    by_bits = [error(bits=b) for b in ("w8a8", "w4a8", "w3a8", "w1.58a8")]
    assert by_bits == sorted(by_bits)
    assert error(bits="w4a8") < error(bits="w4a8", granularity="tensor", bias_correction=False)


def test_ranges_of_few_bits_weigh_clipping_against_rounding() -> None:
    graph = calibrated(bits="w4a2", method="minmax")
    seen = run(network(), {"x": DATA}, extra_outputs=("b1.relu",))["b1.relu"]
    elem = graph.value("b1.relu.a2").type.elem
    assert isinstance(elem, Quant)
    assert 3 * elem.scale[0] < 0.8 * seen.max()


@pytest.mark.parametrize(
    "layer", [LayerPlan(parse_bits("w4a8")), LayerPlan(scales="mse"), LayerPlan(levels="nf4"), LayerPlan(granularity="tensor")]
)
def test_what_has_no_weights_has_no_form_of_weights(layer: LayerPlan) -> None:
    with pytest.raises(InvalidPlan, match=r"'b1\.relu' has no weights.*b1, b1b"):
        calibrated(layers={"b1.relu": layer})


def test_a_layer_that_can_have_no_groups() -> None:
    """The plan's default leaves it with one scale per channel; asked for by name they are refused, with the reason."""
    graph = calibrated(bits="w4a8", granularity="group128")
    groups = {n.output.name: n.inputs[1].type.elem.groups for n in graph.nodes if n.op == "Conv"}  # type: ignore[union-attr]
    assert set(groups.values()) == {None}
    with pytest.raises(InvalidPlan, match=r"'b1': granularity 'group128' is out of reach: its output channels have .* weights"):
        calibrated(layers={"b1": LayerPlan(parse_bits("w4a8"), granularity="group128")})
    with pytest.raises(InvalidPlan, match="only codes of up to 4 bits fit 8, these have 8"):
        calibrated(layers={"b1": LayerPlan(granularity="group16")})
    with pytest.raises(InvalidPlan, match="levels nf4 stand in a table"):
        calibrated(layers={"b1": LayerPlan(parse_bits("w4a8"), granularity="group16", levels="nf4")})


def test_pipeline_text() -> None:
    text = "calibrate{method=mse,bits=w4a3,stream=4,scales=minmax,levels=nf4}"
    (made,) = parse_pipeline(text)
    assert made == Calibrate("mse", "w4a3", 4, scales="minmax", levels="nf4")
    assert print_pipeline([made]) == text
