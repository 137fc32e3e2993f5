"""Calibration: ranges become types by the op table's rules, bad data and bad plans are named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.errors import CalibrationError, InvalidPlan, UnsupportedModel, UsageError
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.interp import run, to_real
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.integer import SOFTMAX_OUT
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, ReshapeAttrs
from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.ops.pool import PoolAttrs
from bevel.ir.types import F32, I8, Dim, Quant, TensorType
from bevel.ir.verify import float_islands, is_integer_only, verify
from bevel.passes.pipeline import parse_pipeline, print_pipeline
from bevel.passes.quantize import Calibrate
from bevel.passes.quantize.observe import batches
from tests.passes.quantize.annotated import lower, ops

Array = npt.NDArray[Any]
BATCH = Dim("batch", 1, 64)
SAME = ConvAttrs((3, 3), pads=(1, 1, 1, 1))


def quant_of(value: Value) -> Quant:
    assert isinstance(value.type.elem, Quant), f"{value.name} is {value.type.elem}"
    return value.type.elem


def network(seed: int = 0) -> Graph:
    """Convolutions with a residual sum, two branches joined, pools, softmax."""
    rng = np.random.default_rng(seed)
    g = Graph("net")

    def conv(x: Value, name: str, out: int, relu: bool = True) -> Value:
        w = g.add_constant(f"{name}.w", (rng.normal(size=(out, x.type.shape[1], 3, 3)) * 0.2).astype(np.float32))
        b = g.add_constant(f"{name}.b", rng.normal(size=out).astype(np.float32) * 0.1)
        y = g.add_node("Conv", [x, w, b], SAME, names=[name], loc=name).output
        return g.add_node("Relu", [y], names=[f"{name}.relu"], loc=name).output if relu else y

    x = g.add_input("x", TensorType((BATCH, 3, 8, 8), F32))
    a = conv(x, "a", 8)
    s = g.add_node("Add", [a, conv(a, "b", 8, relu=False)], names=["s"]).output
    r = g.add_node("Relu", [s], names=["r"]).output
    j = g.add_node("Concat", [conv(r, "c", 4), conv(r, "d", 6), r], ConcatAttrs(1), names=["j"]).output
    m = g.add_node("MaxPool", [j], PoolAttrs((2, 2), (2, 2)), names=["m"]).output
    p = g.add_node("GlobalAveragePool", [m], names=["p"]).output
    f = g.add_node("Reshape", [p], ReshapeAttrs((BATCH, 18)), names=["f"]).output
    w = g.add_constant("fc.w", rng.normal(size=(10, 18)).astype(np.float32))
    y = g.add_node("Gemm", [f, w], names=["logits"]).output
    g.set_outputs([g.add_node("Softmax", [y], AxisAttrs(1), names=["prob"]).output, y])
    verify(g)
    return g


def data(n: int = 32, seed: int = 5) -> Array:
    return np.random.default_rng(seed).normal(size=(n, 3, 8, 8)).astype(np.float32)


def calibrated(graph: Graph, **options: Any) -> Graph:
    x = data()
    result = Calibrate(data=[{"x": x[i : i + 8]} for i in range(0, len(x), 8)], **options).run(graph)
    verify(result)
    return result


def test_every_rule_of_the_op_table() -> None:
    graph = network()
    result = calibrated(graph)
    value = result.value
    assert result.level is Level.ANNOTATED
    assert value("a").type.elem == F32, "a Relu behind a convolution leaves its result float"
    assert value("s").type.elem == F32
    assert quant_of(value("a.relu")).zero_point == (-128,)
    assert quant_of(value("b")).zero_point != (-128,), "asymmetric"
    assert quant_of(value("c.relu")) == quant_of(value("j")) == quant_of(value("d.relu")), (
        "what only a Concat reads joins its type"
    )
    assert quant_of(value("r")) != quant_of(value("j"))
    assert quant_of(value("m")) == quant_of(value("j")), "same type through movement"
    assert value("prob").type.elem == SOFTMAX_OUT
    w = quant_of(value("a.w"))
    assert w.axis == 0
    assert len(w.scale) == 8
    assert np.abs(value("a.w").array.astype(int)).reshape(8, -1).max(axis=1).tolist() == [127] * 8
    assert quant_of(value("a.b")).scale == tuple(quant_of(value("x")).scale[0] * s for s in w.scale)
    assert graph.level is Level.FLOAT
    assert graph.value("a.w").type.elem == F32, "the source graph is left alone"


def test_integer_graph_follows_the_float_one() -> None:
    graph = network()
    integer = lower(calibrated(graph))
    assert is_integer_only(integer)
    x = data(64, 9)
    expected, found = run(graph, {"x": x}), run(integer, {"x": x})
    logits = to_real(integer.value("logits"), found["logits"])
    error = np.abs(logits - expected["logits"]).mean() / expected["logits"].std()
    assert error < 0.05
    assert (logits.argmax(1) == expected["logits"].argmax(1)).mean() > 0.9


def test_range_is_that_of_all_batches_and_contains_zero() -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType((BATCH, 4), F32))
    g.set_outputs([g.add_node("Neg", [x], names=["y"]).output])
    seen: list[tuple[str, int]] = []

    def stream() -> Iterator[dict[str, Array]]:
        for hi in (3.0, 7.0, 5.0):
            yield {"x": np.linspace(2.0, hi, 8, dtype=np.float32).reshape(2, 4)}

    result = Calibrate(data=stream(), bias_correction=False, progress=lambda *step: seen.append(step)).run(g)
    assert quant_of(result.value("x")) == Quant(I8, (float(np.float32(7 / 255)),), (-128,))
    assert quant_of(result.value("y")) == Quant(I8, (float(np.float32(7 / 255)),), (127,))
    assert seen == [("calibrate", 1), ("calibrate", 2), ("calibrate", 3)]


def test_zero_channels_and_huge_biases_keep_the_bias_exact() -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType((BATCH, 4), F32))
    weights = np.asarray([[0, 0, 0, 0], [0, 0, 0, 0], [1e-9, 0, 0, 0], [1, -2, 3, -4]], np.float32)
    bias = np.asarray([0, 5.5, 1000.0, -2], np.float32)
    y = g.add_node("Gemm", [x, g.add_constant("w", weights), g.add_constant("b", bias)], names=["y"]).output
    g.set_outputs([y])
    arrays = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    result = Calibrate(data=[{"x": arrays}], bias_correction=False).run(g)
    assert np.abs(result.value("b").array.astype(np.int64)).max() <= 2**30
    reals = quant_of(result.value("b")).dequantize(result.value("b").array)
    np.testing.assert_allclose(reals, bias, rtol=1e-6, atol=quant_of(result.value("b")).scale[3])
    integer = lower(result)
    step = quant_of(integer.value("y")).scale[0]
    found = to_real(integer.value("y"), run(integer, {"x": arrays})["y"])
    assert np.abs(found - run(g, {"x": arrays})["y"]).max() <= step


def test_value_that_is_always_zero() -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType((BATCH, 4), F32))
    g.set_outputs([g.add_node("Relu", [g.add_node("Abs", [x], names=["a"]).output], names=["y"]).output])
    integer = lower(Calibrate(data=[{"x": np.zeros((2, 4), np.float32)}]).run(g))
    assert run(integer, {"x": np.zeros((2, 4), np.float32)})["y"].tolist() == [[-128] * 4] * 2


def test_sum_that_cancels_gets_a_scale_floor() -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType((BATCH, 4), F32))
    d = g.add_node("Sub", [x, x], names=["d"]).output
    g.set_outputs([g.add_node("Relu", [d], names=["y"]).output])
    big = np.full((2, 4), 1e9, np.float32)
    integer = lower(Calibrate(data=[{"x": big}]).run(g))
    assert ops(integer) == ["IntAdd"]
    assert np.unique(run(integer, {"x": big})["y"]).tolist() == [-128]


@pytest.mark.parametrize("constant", [np.float32(3.0), np.float32(-0.1), np.linspace(-2, 1, 4, dtype=np.float32)])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_constant_operands(op: str, constant: Array) -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType((BATCH, 4), F32))
    k = g.add_constant("k", np.asarray(constant, np.float32))
    g.set_outputs([g.add_node(op, [x, k], names=["y"]).output])
    arrays = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    result = Calibrate(data=[{"x": arrays}]).run(g)
    if np.ndim(constant) == 0:
        assert to_real(result.value("k"), result.value("k").array) == constant, "a scalar is exact"
    integer = lower(result)
    found = to_real(integer.value("y"), run(integer, {"x": arrays})["y"])
    assert np.abs(found - run(g, {"x": arrays})["y"]).max() <= 2.5 * quant_of(integer.value("y")).scale[0]


def test_weights_shared_by_two_layers_are_quantized_for_each() -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType((BATCH, 4), F32))
    w = g.add_constant("w", np.eye(4, dtype=np.float32) * 3)
    b = g.add_constant("b", np.ones(4, np.float32))
    y = g.add_node("Gemm", [x, w, b], names=["y"]).output
    g.set_outputs([g.add_node("Gemm", [y, w, b], names=["z"]).output])
    result = Calibrate(data=[{"x": np.ones((1, 4), np.float32)}]).run(g)
    verify(result)
    assert quant_of(result.nodes[0].inputs[2]) != quant_of(result.nodes[1].inputs[2])
    assert is_integer_only(lower(result))


def test_padding_with_another_value_has_a_range_of_its_own() -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType((BATCH, 4), F32))
    g.set_outputs([g.add_node("Pad", [x], PadAttrs((0, 1), (0, 0), 9.0), names=["y"]).output])
    integer = lower(Calibrate(data=[{"x": np.ones((1, 4), np.float32)}]).run(g))
    assert to_real(integer.value("y"), run(integer, {"x": np.ones((1, 4), np.float32)})["y"])[0, 0] == pytest.approx(9.0)


def test_kept_float_layers_become_islands_with_their_activation() -> None:
    integer = lower(calibrated(network(), keep_float=frozenset({"c"})))
    (island,) = float_islands(integer)
    assert [n.op for n in island] == ["Dequantize", "Conv", "Relu", "Quantize"]
    assert not is_integer_only(integer)


def test_what_an_island_moves_has_a_range_of_its_own() -> None:
    """A kept MaxPool behind a kept Concat: while types are chosen there is none to copy for what integers read behind it."""
    graph = network()
    annotated = calibrated(graph, keep_float=frozenset({"j", "m"}))
    assert annotated.value("j").type.elem == F32
    assert isinstance(annotated.value("m").type.elem, Quant)
    integer = lower(annotated)
    expected = run(graph, {"x": data()})["prob"]
    found = to_real(integer.value("prob"), run(integer, {"x": data()})["prob"])
    assert np.abs(found - expected).max() < 0.1


def test_unknown_float_layer_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="nowhere"):
        calibrated(network(), keep_float=frozenset({"nowhere"}))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"y": np.zeros((1, 3, 8, 8), np.float32)}, r"holds \['y'\].*expects \['x'\]"),
        ({"x": np.zeros((1, 3, 8, 8), np.float64)}, "'x': dtype float64 found, float32 expected"),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, r"'x'.*\[1, 3, 8, 9\]"),
        ({"x": np.full((1, 3, 8, 8), np.nan, np.float32)}, "'x'.*NaN"),
        ({"x": np.full((1, 3, 8, 8), np.inf, np.float32)}, "'x'.*infinity"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "no element"),
        ({"x": np.full((1, 3, 8, 8), 3e38, np.float32)}, "layer '.*' computes NaN or infinity"),
    ],
    ids=["name", "dtype", "shape", "nan", "inf", "empty", "overflow"],
)
def test_bad_data_is_named(batch: dict[str, Array], message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(CalibrationError, match=message):
        Calibrate(data=[batch]).run(network())


def test_no_data_bad_method_bad_level_and_bad_weights() -> None:
    graph = network()
    with pytest.raises(CalibrationError, match="no calibration data"):
        Calibrate().run(graph)
    with pytest.raises(UsageError, match=r"'magic'.*minmax"):
        calibrated(graph, method="magic")
    with pytest.raises(UsageError, match="annotated"):
        calibrated(calibrated(graph))
    graph.value("d.w").array[0, 0, 0, 0] = np.nan
    with np.errstate(all="ignore"), pytest.raises((CalibrationError, UnsupportedModel), match="'d"):
        Calibrate(data=[{"x": data(1)}]).run(graph)


def test_batches_follow_the_input_shapes() -> None:
    graph = network()
    x = data(10)
    sizes = [len(b["x"]) for b in batches(graph, {"x": x, "label": np.zeros(10)}, size=4)]
    assert sizes == [4, 4, 2]
    fixed = Graph("fixed")
    fixed.add_input("x", TensorType((1, 3, 8, 8), F32))
    fixed.add_input("state", TensorType((5,), F32))
    got = list(batches(fixed, {"x": x, "state": np.zeros((10, 5), np.float32)}))
    assert len(got) == 10
    assert got[0]["x"].shape == (1, 3, 8, 8)
    assert got[0]["state"].shape == (5,)
    with pytest.raises(CalibrationError, match=r"lacks \['state'\]"):
        next(batches(fixed, {"x": x}))
    with pytest.raises(CalibrationError, match="different numbers"):
        next(batches(fixed, {"x": x, "state": np.zeros((9, 5), np.float32)}))


def test_pipeline_text_round_trips() -> None:
    text = "calibrate{keep_float=[a,b]},to-integer"
    assert print_pipeline(parse_pipeline(text)) == text
