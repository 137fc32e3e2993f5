"""Conv and Gemm: codes agree with fake quantization, biases rescale exactly, overflow is proved or refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.errors import UnsupportedModel
from bevel.ir.interp import run
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.types import I8, I32, Quant, TensorType
from bevel.ir.verify import is_integer_only
from tests.passes.quantize.annotated import Annotated, assert_close, lower, ops, q8, random_inputs

SAME = ConvAttrs((3, 3), pads=(1, 1, 1, 1))


@given(
    groups=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([1, 2]),
    zx=st.sampled_from([-128, -3, 127]),
    zy=st.sampled_from([-128, 5, 127]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_conv_with_ragged_borders_groups_and_zero_points(groups: int, stride: int, zx: int, zy: int, seed: int) -> None:
    a = Annotated(seed)
    x = a.input("x", (2, 4, 7, 9), q8(0.03, zx))
    w = a.weights((8, 4 // groups, 3, 2), a.rng.uniform(0.001, 0.02, 8))
    attrs = ConvAttrs((3, 2), (stride, 1), (1, 0, 0, 1), groups=groups)
    y = a.node("Conv", [x, w, a.bias(a.rng.normal(size=8))], q8(0.25, zy), attrs, "y")
    integer = assert_close(a.done(y))
    assert ops(integer) == ["IntConv", "Requantize"]
    assert integer.value("y").producer is integer.nodes[-1]


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Relu", None),
        ("Clip", ClipAttrs(0.0, 6.0)),
        ("Clip", ClipAttrs(-5.0, -1.0)),
        ("Clip", ClipAttrs(0.5, 3.0)),
        ("Clip", ClipAttrs(-np.inf, 1.0)),
        ("Clip", ClipAttrs()),
    ],
    ids=["relu", "relu6", "negative", "without-zero", "upper", "unbounded"],
)
@pytest.mark.parametrize("between", [None, q8(0.06, 3)], ids=["float-between", "quantized-between"])
def test_activation_becomes_the_clamp(op: str, attrs: ClipAttrs | None, between: Quant | None) -> None:
    a = Annotated()
    x = a.input("x", (1, 3, 8, 8), q8(0.04, 2))
    c = a.node("Conv", [x, a.weights((4, 3, 3, 3), np.full(4, 0.004))], between, SAME, "c")
    out = between or q8(0.06, -20)
    r = a.node(op, [c], out, attrs, "r")
    integer = assert_close(a.done(r))
    assert ops(integer) == ["IntConv", "Requantize"]
    assert integer.nodes[-1].output.name == "r"
    assert integer.nodes[0].loc == "c"


def test_activation_after_another_type_stays_a_second_rounding() -> None:
    a = Annotated()
    x = a.input("x", (1, 3, 8, 8), q8(0.04, 2))
    c = a.node("Conv", [x, a.weights((4, 3, 3, 3), np.full(4, 0.004))], q8(0.05, 3), SAME, "c")
    r = a.node("Relu", [c], q8(0.0213, -128), name="r")
    assert ops(assert_close(a.done(r))) == ["IntConv", "Requantize", "Lut"]


def test_chain_of_clamps() -> None:
    a = Annotated()
    x = a.input("x", (4, 16), q8(0.04, 2))
    g = a.node("Gemm", [x, a.weights((8, 16), np.full(8, 0.01))], None, name="g")
    r = a.node("Relu", [g], None, name="r")
    c = a.node("Clip", [r], q8(0.02, -100), ClipAttrs(-1.0, 2.0), "c")
    assert ops(assert_close(a.done(c))) == ["IntGemm", "Requantize"]


def test_gemm_over_a_batch_of_matrices() -> None:
    a = Annotated()
    x = a.input("x", (2, 5, 16), q8(0.04, 2))
    y = a.node("Gemm", [x, a.weights((8, 16), np.linspace(0.001, 0.02, 8)), a.bias(np.arange(8))], q8(0.1, 1), name="y")
    assert_close(a.done(y))


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_bias_of_any_scale_is_rescaled_exactly(seed: int) -> None:
    a = Annotated(seed)
    sx, sw, sb = (float(np.float32(v)) for v in a.rng.uniform(0.001, 0.1, 3))
    codes = a.rng.integers(-(2**24), 2**24, 4).astype(np.int32)
    x = a.input("x", (2, 16), q8(sx, 2))
    bias = a.graph.add_constant("b", codes, TensorType((4,), Quant(I32, (sb,))))
    y = a.node("Gemm", [x, a.weights((4, 16), np.full(4, sw)), bias], q8(0.5, 1), name="y")
    expected = [Fraction(sb) * int(q) / (Fraction(sx) * Fraction(sw)) for q in codes]
    if max(abs(e) for e in expected) > 2**31 - 1 - 16 * 127 * 255:
        with pytest.raises(UnsupportedModel, match="layer 'y'"):
            lower(a.done(y))
        return
    stored = lower(a.done(y)).nodes[0].inputs[2].array
    assert all(abs(int(s) - e) <= Fraction(1, 2) for s, e in zip(stored, expected, strict=True))


def test_missing_bias_is_zero_and_per_tensor_weights_with_minus_128_are_taken() -> None:
    a = Annotated()
    x = a.input("x", (4, 32), q8(0.04, -7))
    codes = a.rng.integers(-128, 128, (8, 32)).astype(np.int8)
    codes[0, 0] = -128
    w = a.graph.add_constant("w", codes, TensorType((8, 32), Quant(I8, (0.0078125,))))
    y = a.node("Gemm", [x, w], q8(0.1, 1), name="y")
    integer = assert_close(a.done(y))
    assert not integer.nodes[0].inputs[2].array.any()


def test_overflow_is_refused_with_the_layers_name() -> None:
    a = Annotated()
    x = a.input("x", (1, 70_000), q8(0.04, -128))
    w = a.weights((1, 70_000), np.ones(1), np.full((1, 70_000), 127, np.int8))
    y = a.node("Gemm", [x, w], q8(0.1, 1), name="wide")
    with pytest.raises(UnsupportedModel, match=r"layer 'wide'.*2266950000.*fp32"):
        lower(a.done(y))


def test_largest_reduction_with_the_largest_bias_still_fits() -> None:
    a = Annotated()
    k = 33_155
    x = a.input("x", (1, k), q8(1.0, -128))
    w = a.weights((2, k), np.ones(2), np.full((2, k), 127, np.int8))
    y = a.node("Gemm", [x, w, a.bias(np.asarray([2.0**30, -(2.0**30)]))], q8(2.0**23, -128), name="y")
    integer = lower(a.done(y))
    codes = run(integer, {"x": np.full((1, k), 127, np.int8)})["y"]
    assert codes.tolist() == [[127, -128]]


@pytest.mark.parametrize("ratio", [2.0**-70, 2.0**-33, 2.0**-20, 2.0**20, 2.0**50])
def test_extreme_output_scales(ratio: float) -> None:
    a = Annotated()
    x = a.input("x", (3, 8), q8(1.0, 0))
    y = a.node("Gemm", [x, a.weights((4, 8), np.ones(4))], q8(1.0 / ratio, 3), name="y")
    graph = a.done(y)
    integer = lower(graph)
    feed = random_inputs(graph)
    elem = graph.outputs[0].type.elem
    assert isinstance(elem, Quant)
    np.testing.assert_array_equal(run(integer, feed)["y"], elem.quantize(run(graph, feed)["y"]))


def test_asymmetric_weights_are_refused() -> None:
    a = Annotated()
    x = a.input("x", (1, 8), q8(0.04))
    w = a.graph.add_constant("w", np.zeros((4, 8), np.int8), TensorType((4, 8), Quant(I8, (0.1,), (5,))))
    with pytest.raises(UnsupportedModel, match=r"layer 'y'.*symmetric"):
        lower(a.done(a.node("Gemm", [x, w], q8(0.1), name="y")))


def test_result_is_integer_only() -> None:
    a = Annotated()
    x = a.input("x", (1, 8), q8(0.04))
    assert is_integer_only(lower(a.done(a.node("Gemm", [x, a.weights((4, 8), np.ones(4))], q8(0.1), name="y"))))
