"""Bias correction: a layer's mean output is the float one again, in memory of one sample, the same every time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.ir.graph import Graph, Value
from bevel.ir.interp import run
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.types import F32, Dim, Quant, TensorType
from bevel.ir.verify import verify
from bevel.passes.quantize import Calibrate
from bevel.passes.quantize.bias_correction import InputMean, bias_correction
from bevel.passes.quantize.scales import MAX_BIAS

Array = npt.NDArray[Any]
BATCH = Dim("batch", 1, 64)

LAYERS = {
    "dense": ConvAttrs((3, 3), pads=(1, 1, 1, 1)),
    "pointwise": ConvAttrs((1, 1)),
    "grouped": ConvAttrs((3, 3), (2, 2), (1, 0, 1, 0), groups=2),
    "depthwise": ConvAttrs((5, 3), (1, 2), (2, 1, 2, 1), groups=6),
    "dilated": ConvAttrs((3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "gemm": None,
}


def layer(kind: str, *, bias: bool = True) -> Graph:
    """One layer whose weights are rounded coarsely: one large weight in each row, the others within a few steps."""
    rng = np.random.default_rng(3)
    attrs = LAYERS[kind]
    shape = (12, 6) if attrs is None else (12, 6 // attrs.groups, *attrs.kernel)
    w = rng.normal(size=shape) * 0.01
    w.reshape(12, -1)[:, 0] = 1.0
    g = Graph("layer")
    x = g.add_input("x", TensorType((BATCH, 6) if attrs is None else (BATCH, 6, 9, 7), F32))
    operands = [x, g.add_constant("w", w.astype(np.float32))]
    operands += [g.add_constant("b", rng.normal(size=12).astype(np.float32))] if bias else []
    y = g.add_node("Gemm" if attrs is None else "Conv", operands, attrs, names=["y"]).output
    g.set_outputs([y])
    return g


def data(graph: Graph, count: int = 48) -> Array:
    """Positive, as behind a Relu: the means matter."""
    rng = np.random.default_rng(5)
    return np.abs(rng.normal(size=(count, *graph.inputs[0].type.shape[1:]))).astype(np.float32)


def mean_shift(graph: Graph, annotated: Graph, x: Array) -> Array:
    """By how much each channel's mean moves, in steps of the result's type."""
    axes = tuple(i for i in range(graph.outputs[0].type.rank) if i != 1)
    elem: Any = annotated.outputs[0].type.elem
    return np.asarray((run(annotated, {"x": x})["y"] - run(graph, {"x": x})["y"]).mean(axis=axes) / elem.scale[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_means_are_those_of_the_float_layer(kind: str, bias: bool) -> None:
    graph = layer(kind, bias=bias)
    x = data(graph)
    batches = [{"x": part} for part in np.array_split(x, 5)]
    plain = Calibrate(bias_correction=False, data=batches).run(graph)
    corrected = Calibrate(bias_correction=True, data=iter(batches)).run(graph)
    verify(corrected)
    before, after = np.abs(mean_shift(graph, plain, x)), np.abs(mean_shift(graph, corrected, x))
    assert before.max() > 0.1, "the weights are rounded coarsely enough to tell"
    # What is left comes from rounding activations: of 48 samples for Gemm, of thousands of positions for Conv.
    assert after.max() < (0.15 if kind == "gemm" else 0.05)
    assert after.mean() < 0.3 * before.mean()


@pytest.mark.parametrize("kind", LAYERS)
def test_correction_is_the_mean_error_exactly(kind: str) -> None:
    graph = layer(kind)
    x = data(graph)
    (node,) = graph.nodes
    mean = InputMean(node)
    for part in np.array_split(x, 7):
        mean.update(part)
    weights = node.inputs[1].array
    rounded = np.round(weights * 20) / 20
    found = bias_correction(node, weights, rounded, mean)
    coarse = graph.clone()
    coarse.set_input(coarse.nodes[0], 1, coarse.add_constant("rounded", rounded.astype(np.float32)))
    difference = run(graph, {"x": x})["y"].astype(np.float64) - run(coarse, {"x": x})["y"]
    expected = difference.mean(axis=tuple(i for i in range(difference.ndim) if i != 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_samples_of_different_shapes_count_by_their_positions() -> None:
    (node,) = layer("dense").nodes
    rng = np.random.default_rng(0)
    mean = InputMean(node)
    sums, positions = np.zeros((6, 3, 3)), 0
    for extent in (4, 9, 4, 6):
        x = rng.normal(size=(1, 6, extent, extent)).astype(np.float32)
        mean.update(x)
        padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
        for i, j in np.ndindex(extent, extent):
            sums += padded[:, i : i + 3, j : j + 3]
        positions += extent * extent
    np.testing.assert_allclose(mean.taps(), sums / positions, atol=1e-6)


def deep(seed: int = 0) -> Graph:
    """Depthwise and pointwise layers in turn, as MobileNet has them."""
    rng = np.random.default_rng(seed)
    g = Graph("deep")
    value: Value = g.add_input("x", TensorType((BATCH, 6, 9, 7), F32))
    for index in range(6):
        attrs = ConvAttrs((3, 3), pads=(1, 1, 1, 1), groups=6) if index % 2 else ConvAttrs((1, 1))
        w = rng.normal(size=(6, 1 if index % 2 else 6, *attrs.kernel)) * 0.05
        w.reshape(6, -1)[:, 0] = rng.uniform(0.5, 1.5, 6)
        conv = g.add_node("Conv", [value, g.add_constant(f"w{index}", w.astype(np.float32))], attrs, names=[f"c{index}"]).output
        value = g.add_node("Relu", [conv], names=[f"r{index}"]).output
    g.set_outputs([g.add_node("Reshape", [value], _flat(), names=["y"]).output])
    verify(g)
    return g


def _flat() -> Any:
    from bevel.ir.ops.movement import ReshapeAttrs

    return ReshapeAttrs((BATCH, 378))


def test_network_comes_closer_to_the_float_one() -> None:
    graph = deep()
    x = data(graph, 64)
    reference = run(graph, {"x": x[32:]})["y"]
    errors = {}
    for corrected in (False, True):
        annotated = Calibrate(bias_correction=corrected, data=[{"x": x[:32]}]).run(graph)
        errors[corrected] = float(((run(annotated, {"x": x[32:]})["y"] - reference) ** 2).mean())
    assert errors[True] < 0.9 * errors[False]


def test_same_data_same_codes() -> None:
    graph = deep()
    batches = [{"x": part} for part in np.array_split(data(graph), 6)]
    one, two = (Calibrate(method="mse", data=batches).run(graph) for _ in range(2))
    for value in one.constants:
        np.testing.assert_array_equal(value.array, two.value(value.name).array)
        assert value.type == two.value(value.name).type
    # Batches of another size sum in another order: the same up to float rounding, at most a step of an int32 bias.
    other = Calibrate(method="mse", data=[{"x": part} for part in np.array_split(data(graph), 11)]).run(graph)
    for value in one.constants:
        scale = np.asarray(value.type.elem.scale) if isinstance(value.type.elem, Quant) else np.ones(1)
        assert np.abs(value.array.astype(np.int64) - other.value(value.name).array).max() <= 1 + 1e-5 / scale.min()


def test_corrected_biases_stay_within_the_overflow_proof() -> None:
    graph = layer("gemm")
    graph.value("b").array[:] = 1e9
    annotated = Calibrate(data=[{"x": data(graph)}]).run(graph)
    assert np.abs(annotated.nodes[0].inputs[2].array.astype(np.int64)).max() <= MAX_BIAS


def test_memory_is_that_of_a_sample() -> None:
    graph = deep()

    def stream(count: int) -> Iterator[dict[str, Array]]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield {"x": np.abs(rng.normal(size=(8, 6, 9, 7))).astype(np.float32)}

    peaks = []
    for count in (10, 100):
        tracemalloc.start()
        Calibrate(method="mse", data=stream(count)).run(graph)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Ten times the samples: the ranges of rarer values take some more bins.
    assert peaks[1] < 1.3 * peaks[0]
