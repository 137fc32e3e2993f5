"""Lowering: what is fused, which layouts and copies result, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bevel.backends.kernel import ConvProblem, NodeProblem
from bevel.backends.lower import lower
from bevel.backends.schedule import Schedule
from bevel.devices.profile import load_profile
from bevel.errors import UnsupportedOp, UsageError
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.integer import RequantizeAttrs
from bevel.ir.ops.movement import ReshapeAttrs, TransposeAttrs
from bevel.ir.protocols import Target
from bevel.ir.types import F32, I8, Codebook, Dim, Int, Quant, TensorType

AVX2 = load_profile("x86-64-avx2").target()
A72 = load_profile("raspberry-pi-4").target()
RNG = np.random.default_rng(0)
CODES, WEIGHTS, RESULT = Quant(I8, (0.1,), (5,)), Quant(I8, (0.01,) * 8, (0,), 0), Quant(I8, (0.2,), (-3,))


def ops(schedule: Schedule) -> list[str]:
    return [step.op for step in schedule.steps]


def conv(graph: Graph, x: Value, oc: int, ic: int) -> Value:
    w = graph.add_constant("w", RNG.standard_normal((oc, ic, 3, 3)).astype(np.float32))
    b = graph.add_constant("b", RNG.standard_normal(oc).astype(np.float32))
    return graph.add_node("Conv", [x, w, b], ConvAttrs((3, 3), pads=(1, 1, 1, 1))).output


def float_graph(shape: tuple[int | Dim, ...] = (1, 4, 8, 8)) -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", TensorType(shape, F32))
    graph.set_outputs([conv(graph, x, 8, 4)])
    return graph


def integer_graph(lo: int = -128, x_elem: Quant = CODES, w_elem: Quant | Codebook = WEIGHTS, out: Quant = RESULT) -> Graph:
    graph = Graph("net", Level.INTEGER)
    x = graph.add_input("x", TensorType((1, 4, 8, 8), x_elem))
    stored = w_elem.storage if isinstance(w_elem, Quant) else w_elem.codes
    codes = RNG.integers(stored.min, stored.max + 1, (8, 4, 3, 3))
    codes = np.where(codes == 0, 1, codes) if stored.bipolar else np.maximum(codes, -127)
    w = graph.add_constant("w", codes.astype(w_elem.dtype), TensorType(codes.shape, w_elem))
    bias = graph.add_constant("bias", np.zeros(8, np.int32))
    acc = graph.add_node("IntConv", [x, w, bias], ConvAttrs((3, 3), pads=(1, 1, 1, 1)), loc="layer").output
    m = graph.add_constant("m", np.full(8, 1 << 30, np.int32))
    n = graph.add_constant("n", np.full(8, 37, np.int32))
    attrs = RequantizeAttrs(out, 1, max(lo, out.storage.min), out.storage.max)
    graph.set_outputs([graph.add_node("Requantize", [acc, m, n], attrs, names=["y"]).output])
    return graph


def test_activation_moves_into_the_convolution() -> None:
    graph = float_graph()
    relu = graph.add_node("Relu", graph.outputs, names=["y"])
    graph.set_outputs(relu.outputs)
    schedule = lower(graph, AVX2)
    assert ops(schedule) == ["Copy", "Conv+Relu", "Copy"]
    problem = next(k.problem for k in schedule.kernels if isinstance(k.problem, ConvProblem))
    assert problem.relu


def test_activation_with_another_reader_stays() -> None:
    graph = float_graph()
    relu = graph.add_node("Relu", graph.outputs, names=["y"])
    graph.set_outputs([*graph.outputs, relu.output])
    assert "Conv" in ops(lower(graph, AVX2))


def test_epilogue_of_an_addition() -> None:
    graph = float_graph()
    value = graph.outputs[0]
    total = graph.add_node("Add", [value, value])
    clip = graph.add_node("Clip", total.outputs, ClipAttrs(0.0, 6.0), names=["y"])
    graph.set_outputs(clip.outputs)
    schedule = lower(graph, AVX2)
    assert "Add+Clip" in ops(schedule)
    problem = next(k.problem for k in schedule.kernels if isinstance(k.problem, NodeProblem) and k.problem.op == "Add")
    assert problem.epilogue == (("Clip", ClipAttrs(0.0, 6.0)),)


def test_codes_are_biased_on_x86_and_signed_on_arm() -> None:
    x86, arm = lower(integer_graph(), AVX2), lower(integer_graph(), A72)
    problems = [next(k.problem for k in s.kernels if isinstance(k.problem, ConvProblem)) for s in (x86, arm)]
    assert [(p.dtype, p.out_dtype) for p in problems if isinstance(p, ConvProblem)] == [("uint8", "uint8"), ("int8", "int8")]
    for schedule in (x86, arm):
        # The interface keeps the graph's own codes.
        assert [(t.dtype, t.zero_point, t.scale) for t in (*schedule.inputs, *schedule.outputs)] == [
            ("int8", 5, 0.1),
            ("int8", -3, 0.2),
        ]
        assert "IntConv+Requantize" in ops(schedule)


U4, U2 = Quant(Int(4, signed=False), (0.1,), (3,)), Quant(Int(2, signed=False), (0.2,))
WORDS: dict[str, tuple[Quant | Codebook, int]] = {
    "w8": (WEIGHTS, 8),
    "w4": (Quant(Int(4), (0.01,) * 8, (0,), 0), 4),
    "w1": (Quant(Int(1), (0.01,)), 1),
    "a table of 8-bit numbers": (Codebook(Int(2, signed=False), (-127.0, -1.0, 1.0, 127.0)), 8),
    "a table of 3-bit numbers": (Codebook(Int(2, signed=False), (-4.0, 0.0, 1.0, 3.0)), 3),
}


@pytest.mark.parametrize("target", [AVX2, A72], ids=["x86", "arm"])
@pytest.mark.parametrize("kind", WORDS)
def test_problems_say_how_many_bits_there_are(kind: str, target: Target) -> None:
    """Codes of few bits are stored as they are on every target, which reads and writes them as its own bytes."""
    elem, bits = WORDS[kind]
    schedule = lower(integer_graph(x_elem=U4, w_elem=elem, out=U2), target)
    problem = next(k.problem for k in schedule.kernels if isinstance(k.problem, ConvProblem))
    own = target.activation_dtype
    assert (problem.weight_bits, problem.x_bits, problem.dtype, problem.out_dtype) == (bits, 4, own, own)
    assert problem.clamp, "bytes hold more than 2 bits"
    assert [(t.dtype, t.zero_point) for t in (*schedule.inputs, *schedule.outputs)] == [("uint8", 3), ("uint8", 0)]
    plain = next(k.problem for k in lower(integer_graph(), target).kernels if isinstance(k.problem, ConvProblem))
    assert (plain.weight_bits, plain.x_bits) == (8, 8)


@pytest.mark.parametrize(("lo", "clamp"), [(-128, False), (-3, True)])
def test_only_a_narrow_clamp_costs_instructions(lo: int, clamp: bool) -> None:
    schedule = lower(integer_graph(lo), AVX2)
    problem = next(k.problem for k in schedule.kernels if isinstance(k.problem, ConvProblem))
    assert problem.clamp is clamp


def test_layers_of_equal_shape_share_a_kernel() -> None:
    graph = Graph("net")
    value = graph.add_input("x", TensorType((1, 8, 8, 8), F32))
    for _ in range(3):
        value = conv(graph, value, 8, 8)
    graph.set_outputs([value])
    schedule = lower(graph, AVX2)
    symbols = [step.symbol for step in schedule.steps if step.op == "Conv"]
    assert len(symbols) == 3
    assert len(set(symbols)) == 1


def test_a_transpose_to_what_the_convolution_wants_is_free() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 8, 8, 4), F32))
    nchw = graph.add_node("Transpose", [x], TransposeAttrs((0, 3, 1, 2)))
    y = conv(graph, nchw.output, 8, 4)
    back = graph.add_node("Transpose", [y], TransposeAttrs((0, 2, 3, 1)), names=["y"])
    graph.set_outputs(back.outputs)
    assert ops(lower(graph, AVX2)) == ["Conv"]


def test_flattening_a_map_copies_and_flattening_a_vector_does_not() -> None:
    graph = float_graph()
    flat = graph.add_node("Reshape", graph.outputs, ReshapeAttrs((1, 8 * 64)), names=["y"])
    graph.set_outputs(flat.outputs)
    assert ops(lower(graph, AVX2)) == ["Copy", "Conv", "Copy"]
    graph = float_graph()
    mean = graph.add_node("GlobalAveragePool", graph.outputs)
    flat = graph.add_node("Reshape", mean.outputs, ReshapeAttrs((1, 8)), names=["y"])
    graph.set_outputs(flat.outputs)
    assert ops(lower(graph, AVX2)) == ["Copy", "Conv", "GlobalAveragePool"]


def test_an_input_that_is_also_an_output_is_copied() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 4), F32))
    same = graph.add_node("Reshape", [x], ReshapeAttrs((4,)), names=["y"])
    graph.set_outputs(same.outputs)
    schedule = lower(graph, AVX2)
    assert ops(schedule) == ["Copy"]
    assert schedule.inputs[0].place != schedule.outputs[0].place


def test_inputs_keep_their_bytes_for_the_whole_run() -> None:
    schedule = lower(float_graph(), AVX2)
    (span,) = [life for life in schedule.lifetimes if life.name == "x"]
    assert (span.first, span.last) == (0, len(schedule.steps))


def test_symbolic_dimensions_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"batch.*--dim"):
        lower(float_graph((Dim("batch"), 4, 8, 8)), AVX2)


def test_annotated_graphs_are_refused() -> None:
    graph = float_graph()
    graph.level = Level.ANNOTATED
    with pytest.raises(UsageError, match="to-integer"):
        lower(graph, AVX2)


def test_computed_weights_of_a_product_are_refused_by_layer() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((4, 8), F32))
    w = graph.add_input("w", TensorType((3, 8), F32))
    graph.set_outputs([graph.add_node("Gemm", [x, w], loc="dynamic").output])
    with pytest.raises(UsageError, match=r"'dynamic'.*constant weights"):
        lower(graph, AVX2)


def test_a_convolution_with_computed_weights_is_a_node_of_its_own() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 4, 8, 8), F32))
    w = graph.add_input("w", TensorType((8, 4, 3, 3), F32))
    graph.set_outputs([graph.add_node("Conv", [x, w], ConvAttrs((3, 3)), loc="dynamic").output])
    assert [k.generator for k in lower(graph, AVX2).kernels if isinstance(k.problem, NodeProblem) and k.problem.op == "Conv"] == [
        "generic"
    ]


def test_an_operator_without_kernel_lists_every_reason() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 4), F32))
    total = graph.add_node("Add", [x, x], loc="sum")
    graph.set_outputs(total.outputs)
    lowered = lower(graph, AVX2)
    problem = lowered.kernels[0].problem
    assert isinstance(problem, NodeProblem)
    from bevel.backends.select import choose

    with pytest.raises(UnsupportedOp, match=r"'sum'.*generic.*vector|'sum'.*vector.*generic"):
        choose(replace(problem, op="NoSuchOperator"), AVX2, "sum")


def test_the_target_decides_the_symbol() -> None:
    other = Target("other", AVX2.arch, AVX2.features, "skylake", AVX2.triple)
    a, b = lower(float_graph(), AVX2), lower(float_graph(), other)
    assert {k.symbol for k in a.kernels}.isdisjoint(k.symbol for k in b.kernels)
