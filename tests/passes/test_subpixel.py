"""Transposed convolutions equal the convolutions that `subpixel` makes of them, over all their attributes, in reals and codes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run
from bevel.ir.ops.convolution import ConvTransposeAttrs
from bevel.ir.types import F32, I8, I32, Quant, TensorType
from bevel.passes.pipeline import run_passes
from bevel.passes.quantize.to_integer import ToInteger
from bevel.passes.subpixel import Subpixel


@st.composite
def transposed(draw: st.DrawFn) -> tuple[ConvTransposeAttrs, tuple[int, int]]:
    """Attributes and input extents whose result is not empty."""
    small = st.tuples(st.integers(1, 3), st.integers(1, 4))
    at = ConvTransposeAttrs(
        draw(st.tuples(st.integers(1, 4), st.integers(1, 5))),
        draw(small),
        draw(st.tuples(*[st.integers(0, 3)] * 4)),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        draw(st.integers(1, 2)),
        draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
    )
    return at, draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))


def fits(at: ConvTransposeAttrs, extents: tuple[int, int]) -> bool:
    return all(
        at.strides[i] * (extents[i] - 1) + at.dilations[i] * (at.kernel[i] - 1) + 1 + at.output_padding[i]
        > at.pads[i] + at.pads[2 + i]
        for i in (0, 1)
    )


@settings(deadline=None, max_examples=150)
@given(transposed())
def test_reals(case: tuple[ConvTransposeAttrs, tuple[int, int]]) -> None:
    at, extents = case
    if not fits(at, extents):
        return
    rng = np.random.default_rng(0)
    graph = Graph("up")
    x = graph.add_input("x", TensorType((2, 4, *extents), F32))
    w = graph.add_constant("w", rng.normal(size=(4, 3, *at.kernel)).astype(np.float32))
    b = graph.add_constant("b", rng.normal(size=3 * at.groups).astype(np.float32))
    graph.set_outputs(graph.add_node("ConvTranspose", [x, w, b], at, names=["y"]).outputs)
    after = run_passes(graph, [Subpixel()])
    assert not [n for n in after.nodes if n.op == "ConvTranspose"]
    feed = {"x": rng.normal(size=(2, 4, *extents)).astype(np.float32)}
    np.testing.assert_allclose(run(after, feed)["y"], run(graph, feed)["y"], rtol=1e-5, atol=1e-5)


def test_codes_of_every_channel_keep_their_scale() -> None:
    """Annotated weights with a scale per output channel: same fake-quantized result, and integers alone after to-integer."""
    rng = np.random.default_rng(1)
    at = ConvTransposeAttrs((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, (1, 1))
    graph = Graph("up", Level.ANNOTATED)
    x = graph.add_input("x", TensorType((1, 4, 5, 5), Quant(I8, (0.05,), (3,))))
    scales = (0.01, 0.02, 0.005)
    codes = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    w = graph.add_constant("w", codes, TensorType((4, 3, 3, 3), Quant(I8, scales, (0,), 1)))
    bias_type = Quant(I32, tuple(0.05 * s for s in scales), (0,), 0)
    b = graph.add_constant("b", rng.integers(-900, 900, 3).astype(np.int32), TensorType((3,), bias_type))
    node = graph.add_node("ConvTranspose", [x, w, b], at, names=["y"])
    node.output.type = node.output.type.with_elem(Quant(I8, (0.04,), (-5,)))
    graph.set_outputs(node.outputs)
    after = run_passes(graph, [Subpixel()])
    feed = {"x": rng.normal(size=(1, 4, 5, 5)).astype(np.float32) * 3}
    want = run(graph, feed)["y"]
    np.testing.assert_allclose(run(after, feed)["y"], want, atol=1e-6)
    integer = ToInteger().run(after)
    assert {n.op for n in integer.nodes} <= {"IntConv", "Requantize", "Transpose", "Reshape", "Slice"}
    x_codes = Quant(I8, (0.05,), (3,)).quantize(feed["x"])
    got = run(integer, {"x": x_codes})["y"]
    real = got if got.dtype.kind == "f" else Quant(I8, (0.04,), (-5,)).dequantize(got)
    assert np.abs(real - want).max() <= 0.0401
