"""Weights rounded by what they multiply: every layer computes nearer to the float graph than with weights rounded to nearest.

Inputs of the networks are correlated, as images are: on independent ones rounding to nearest is the best there is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.errors import CalibrationError, UsageError
from bevel.ir import interp
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.plan import CompressionPlan, LayerPlan, parse_bits
from bevel.ir.types import F32, Codebook, Dim, Quant, TensorType
from bevel.ir.verify import verify
from bevel.passes.quantize import gptq
from bevel.passes.quantize.calibrate import Calibrate
from bevel.passes.quantize.gptq import Gptq
from bevel.passes.quantize.to_integer import ToInteger
from bevel.passes.quantize.weights import Grid, WeightForm, rounded, weight_grid

Array = npt.NDArray[Any]


def network() -> Graph:
    """Convolutions: first, strided, depthwise, grouped, pointwise with a residual; a product."""
    rng = np.random.default_rng(0)
    graph = Graph("net")
    x = graph.add_input("x", TensorType((Dim("n"), 3, 12, 12), F32))

    def conv(x: Value, oc: int, kernel: int, stride: int = 1, groups: int = 1, *, bias: bool = True) -> Value:
        ic = x.type.shape[1]
        assert isinstance(ic, int)
        shape = (oc, ic // groups, kernel, kernel)
        w = graph.add_constant(
            f"w{len(graph.nodes)}", (rng.standard_normal(shape) / np.sqrt(shape[1] * kernel**2)).astype(np.float32)
        )
        operands = [x, w]
        if bias:
            operands.append(graph.add_constant(f"b{len(graph.nodes)}", rng.standard_normal(oc).astype(np.float32) / 4))
        attrs = ConvAttrs((kernel, kernel), pads=(kernel // 2,) * 4, strides=(stride, stride), groups=groups)
        return graph.add_node("Relu", [graph.add_node("Conv", operands, attrs).output]).output

    y = conv(conv(x, 16, 3), 24, 3, 2)
    z = conv(conv(conv(y, 24, 5, groups=24), 24, 3, groups=3, bias=False), 24, 1)
    total = graph.add_node("Add", [y, z]).output
    pooled = graph.add_node("GlobalAveragePool", [conv(total, 20, 3)]).output
    graph.set_outputs([conv(pooled, 10, 1)])
    return graph


def images(count: int, seed: int = 1) -> Array:
    """Smooth: sums of random walks along both axes."""
    noise = np.random.default_rng(seed).standard_normal((count, 3, 12, 12))
    return (noise.cumsum(axis=2).cumsum(axis=3) / 8).astype(np.float32)


def annotated(graph: Graph, bits: str, **plan: Any) -> tuple[Graph, CompressionPlan]:
    data = [{"x": images(8, seed)} for seed in range(4)]
    found = Calibrate(bits=bits, data=data, bias_correction=True, **plan).run(graph)
    return found, CompressionPlan(bits=parse_bits(bits), rounding="gptq", **plan)


def layer_errors(source: Graph, graph: Graph) -> dict[str, float]:
    """Squared error of each layer of few bits on inputs that were not calibrated with, over the variance of what it computes."""
    x = {"x": images(16, 99)}
    values: dict[str, Array] = {}
    interp.run(source, x, observe=lambda value, array: values.setdefault(value.name, array))
    found = {}

    def compare(value: Value, array: Array) -> None:
        node = value.producer
        if node is not None and node.op == "Conv":
            elem = node.inputs[1].type.elem
            bits = elem.code_bits if isinstance(elem, Quant) else elem.codes.bits if isinstance(elem, Codebook) else 8
            if bits < 8:
                found[value.name] = float(((array - values[value.name]) ** 2).mean() / values[value.name].var())

    interp.run(graph, x, observe=compare)
    return found


@pytest.mark.parametrize(
    ("bits", "plan"),
    [
        ("w4a8", {}),
        ("w3a4", {}),
        ("w2a8", {}),
        ("w1.58a8", {}),
        ("w1a8", {}),
        ("w4a8", {"granularity": "tensor"}),
        ("w3a8", {"levels": "kmeans"}),
        ("w3a8", {"granularity": "group16"}),
    ],
    ids=str,
)
def test_layers_compute_nearer_to_the_float_graph(bits: str, plan: dict[str, str]) -> None:
    source = network()
    nearest, asked = annotated(source, bits, **plan)
    found = Gptq(source, asked, [{"x": images(8, seed)} for seed in range(4)]).run(nearest)
    verify(found)
    before, after = layer_errors(source, nearest), layer_errors(source, found)
    assert before.keys() == after.keys()
    assert len(after) == 5
    assert all(after[name] < before[name] for name in after), (before, after)
    types = {n.output.name: type(n.inputs[1].type.elem) for n in nearest.nodes if n.op == "Conv"}
    assert types == {n.output.name: type(n.inputs[1].type.elem) for n in found.nodes if n.op == "Conv"}
    assert ToInteger().run(found).level is Level.INTEGER


def _errors(best: Array, chosen: Array, grid: Grid, moments: gptq._Moments) -> Array:
    """Squared error of what each output channel computes, with the ridge."""
    _, own, ridge = moments._covariances()
    error = moments._grouped(best - chosen * grid.steps)
    metric = own + ridge * np.eye(own.shape[1])
    return np.asarray(np.einsum("gok,gkl,gol->go", error, metric, error).reshape(-1))


@pytest.mark.parametrize(("bits", "groups"), [(4, 1), (3, 4), (2, 16)])
def test_scales_and_sweeps_lower_the_error_of_every_channel(monkeypatch: pytest.MonkeyPatch, bits: int, groups: int) -> None:
    """Against the same weights rounded in turn once, at the scales of plain rounding, and against rounding to nearest."""
    graph = Graph("net")
    x = graph.add_input("x", TensorType((Dim("n"), 16, 12, 12), F32))
    rng = np.random.default_rng(5)
    w = rng.standard_normal((16, 16 // groups, 3, 3)).astype(np.float32)
    node = graph.add_node("Conv", [x, graph.add_constant("w", w)], ConvAttrs((3, 3), pads=(1,) * 4, groups=groups))
    moments = gptq._Moments(node)
    data = np.tile(images(8), (1, 6, 1, 1))[:, :16] + rng.standard_normal((8, 16, 12, 12)).astype(np.float32) / 4
    moments.update(data, data)
    best, least = w.astype(np.float64), np.zeros(16)
    grid = weight_grid(w, np.zeros(16, np.float32), 1.0, WeightForm(bits, "channel", "auto", "uniform"), "net")
    nearest = _errors(best, rounded(best / grid.steps, grid.levels), grid, moments)
    searched = _errors(best, *moments.rounded(best, grid, least, gptq.SHARES), moments)
    swept = _errors(best, *moments.rounded(best, grid, least, (1.0,)), moments)
    monkeypatch.setattr(gptq, "SWEEPS", 0)
    once = _errors(best, *moments.rounded(best, grid, least, (1.0,)), moments)
    with_scales = _errors(best, *moments.rounded(best, grid, least, gptq.SHARES), moments)
    assert (swept <= once * (1 + 1e-9)).all()
    assert (searched <= with_scales * (1 + 1e-9)).all()
    assert (with_scales <= once * (1 + 1e-9)).all()
    assert swept.sum() < once.sum()
    assert with_scales.sum() < once.sum()
    assert (searched <= nearest * (1 + 1e-9)).all()
    assert searched.sum() < 0.8 * nearest.sum()


def test_layers_of_8_bits_stay_as_they_are() -> None:
    source = network()
    nearest, plan = annotated(source, "w8a8")
    found = Gptq(source, plan, [{"x": images(4)}]).run(nearest)
    for before, after in zip(nearest.constants, found.constants, strict=True):
        np.testing.assert_array_equal(before.array, after.array)


def test_layers_that_the_plan_leaves_out_stay_as_they_are() -> None:
    source = network()
    nearest, plan = annotated(source, "w4a8")
    left = next(n.output.name for n in nearest.nodes if n.op == "Conv" and gptq._is_low(n))
    found = Gptq(source, replace(plan, layers={left: LayerPlan(rounding="nearest")}), [{"x": images(4)}]).run(nearest)
    for before, after in zip(nearest.nodes, found.nodes, strict=True):
        if before.op == "Conv" and gptq._is_low(before):
            same = np.array_equal(before.inputs[1].array, after.inputs[1].array)
            assert same == (before.output.name == left)


def test_rounds_the_same_way_every_time() -> None:
    source = network()
    nearest, plan = annotated(source, "w2a4")
    first, second = (Gptq(source, plan, [{"x": images(8)}]).run(nearest) for _ in range(2))
    for a, b in zip(first.constants, second.constants, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_takes_as_many_samples_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    source = network()
    nearest, plan = annotated(source, "w4a8")
    seen = []

    def batches() -> Any:
        for seed in range(50):
            seen.append(seed)
            yield {"x": images(8, seed)}

    # What is alive while the second layer, which reads most, is rounded: its input in both graphs.
    alive = 2 * 8 * 16 * 12 * 12 * 4
    monkeypatch.setattr(gptq, "MEMORY", 3 * alive)
    Gptq(source, plan, batches()).run(nearest)
    assert len(seen) == 4, "three fit, the fourth tells so"


def test_a_dead_input_does_no_harm() -> None:
    """A channel that is always zero has no variance; its weights are rounded to nearest."""
    source = network()
    nearest, plan = annotated(source, "w4a8")
    dark = [{"x": images(8) * np.float32([1, 0, 1])[None, :, None, None]}]
    found = Gptq(source, plan, dark).run(nearest)
    assert all(np.isfinite(v.type.elem.scale).all() for v in found.constants if isinstance(v.type.elem, Quant))
    verify(found)


def test_refuses_what_it_cannot_take() -> None:
    source = network()
    with pytest.raises(UsageError, match="annotated"):
        Gptq(source).run(source)
    nearest, plan = annotated(source, "w4a8")
    with pytest.raises(CalibrationError, match="no calibration data"):
        Gptq(source, plan, []).run(nearest)
