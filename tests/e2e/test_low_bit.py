"""Models of fewer than 8 bits: what the interpreter computes, artifacts compute on every kind of device, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.compiler import Options, bind, build, compile_model, load_graph, prepare
from bevel.devices.profile import load_profile
from bevel.ir import interp
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import ReduceAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.plan import CompressionPlan, LayerPlan, parse_bits
from bevel.ir.text import print_graph
from bevel.ir.types import F32, Int, Quant, TensorType
from bevel.ir.verify import is_integer_only, verify
from bevel.passes.quantize import ToInteger
from tests.e2e.test_road import require_way_to, run_on

SAMPLES = 6
IMAGE = (3, 12, 12)


def write_network(path: Path) -> None:
    """A residual network: stem, max-pooling, block with a skip connection, depthwise and pointwise layer, mean, classifier."""
    rng = np.random.default_rng(11)
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weights(name: str, *shape: int) -> list[str]:
        values = rng.standard_t(4, shape) / np.sqrt(np.prod(shape[1:]))
        constants.append(numpy_helper.from_array(values.astype(np.float32), f"{name}_w"))
        constants.append(numpy_helper.from_array(rng.normal(scale=0.1, size=shape[0]).astype(np.float32), f"{name}_b"))
        return [f"{name}_w", f"{name}_b"]

    def conv(x: str, name: str, oc: int, ic: int, k: int, **attrs: Any) -> str:
        wb = weights(name, oc, ic, k, k)
        nodes.append(helper.make_node("Conv", [x, *wb], [name], name, kernel_shape=[k, k], pads=[k // 2] * 4, **attrs))
        return name

    def one(op: str, x: str, name: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, [x], [name], name, **attrs))
        return name

    stem = one("Relu", conv("image", "stem", 20, 3, 3), "stem_relu")
    pooled = one("MaxPool", stem, "pooled", kernel_shape=[2, 2], strides=[2, 2])
    inner = one("Relu", conv(pooled, "block1", 20, 20, 3), "block1_relu")
    conv(inner, "block2", 20, 20, 3)
    nodes.append(helper.make_node("Add", ["block2", pooled], ["sum"], "sum"))
    stream = one("Relu", "sum", "stream")
    wide = one("HardSwish", conv(stream, "depthwise", 20, 1, 3, group=20), "swish")
    last = one("Relu", conv(wide, "pointwise", 36, 20, 1), "pointwise_relu")
    one("Flatten", one("GlobalAveragePool", last, "mean"), "flat")
    nodes.append(helper.make_node("Gemm", ["flat", *weights("classes", 10, 36)], ["logits"], "classes", transB=1))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *IMAGE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "residual", [image], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


PLANS = {
    "w4a8": CompressionPlan(bits=parse_bits("w4a8")),
    "w2a2": CompressionPlan(bits=parse_bits("w2a2")),
    "w1a2": CompressionPlan(bits=parse_bits("w1a2")),
    "w1.58a5": CompressionPlan(bits=parse_bits("w1.58a5")),
    "w3a3, a stream of 4, ends of 4": CompressionPlan(
        bits=parse_bits("w3a3"),
        stream=4,
        layers={"stem": LayerPlan(parse_bits("w4a4")), "logits": LayerPlan(parse_bits("w4a4"), granularity="tensor")},
    ),
    "groups": CompressionPlan(
        bits=parse_bits("w4a8"),
        granularity="group16",
        layers={"block2": LayerPlan(parse_bits("w2a4")), "logits": LayerPlan(parse_bits("w3a8"), granularity="group16")},
    ),
    "tables": CompressionPlan(
        bits=parse_bits("w4a6"),
        levels="nf4",
        layers={
            "block2": LayerPlan(parse_bits("w3a6"), levels="powers"),
            "logits": LayerPlan(parse_bits("w4a8"), levels="kmeans"),
        },
    ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name of a plan -> integer graph with a symbolic batch."""
    folder = tmp_path_factory.mktemp("low-bit")
    write_network(folder / "net.onnx")
    np.savez(folder / "data.npz", image=images(40))

    @cache
    def prepare_once(name: str) -> Graph:
        return prepare(load_graph(folder / "net.onnx"), Options("host", calibration=folder / "data.npz", plan=PLANS[name]))

    return prepare_once


def images(count: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, *IMAGE)).astype(np.float32)


OTHER_PROFILES = ("x86-64", "x86-64-avx2", "raspberry-pi-4", "raspberry-pi-5", "armv7-a7")
# The kinds that differ most on the devices that differ most; the others where there is time.
QUICK = {
    ("w2a2", "x86-64-avx2"),
    ("w2a2", "raspberry-pi-4"),
    ("w3a3, a stream of 4, ends of 4", "raspberry-pi-5"),
    ("groups", "x86-64-avx2"),
    ("groups", "raspberry-pi-5"),
    ("groups", "raspberry-pi-4"),
}
SWEEP = [
    pytest.param(name, profile, marks=() if profile == "host" or (name, profile) in QUICK else pytest.mark.slow)
    for name in PLANS
    for profile in ("host", *OTHER_PROFILES)
]


@pytest.mark.parametrize(("name", "profile"), SWEEP)
def test_bytes_of_the_interpreter(name: str, profile: str, prepared: Any, tmp_path: Path) -> None:
    require_way_to(profile)
    check_bytes(prepared(name), profile, "image", "logits", images(SAMPLES), tmp_path)


def check_bytes(graph: Graph, profile: str, x: str, y: str, reals: np.ndarray, folder: Path) -> None:
    """The graph computes in integers alone, and its artifact what the interpreter does."""
    assert is_integer_only(graph)
    artifact = build(bind(graph, {}), load_profile(profile), folder / "net.bevel", Options(profile))
    assert artifact.manifest["integer_only"]
    elem = graph.value(x).type.elem
    assert isinstance(elem, Quant)
    codes = {x: elem.quantize(reals)}
    found = run_on(artifact, profile, codes)[y]
    expected = interp.run(graph, codes)[y]
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    assert len(np.unique(expected)) > 5, "results that say nothing prove nothing"


def qonnx_network(path: Path) -> None:
    """Bipolar, ternary and 3-bit weights between activations of 4 and 2 bits, as Brevitas exports them; codes leave the model."""
    rng = np.random.default_rng(12)
    nodes, constants = [], [numpy_helper.from_array(np.float32(b), f"bits{b}") for b in (2, 3, 4, 8)]
    constants.append(numpy_helper.from_array(np.float32(0), "zero"))

    def quant(op: str, x: str, y: str, scale: Any, bits: int = 0, **attrs: int) -> None:
        constants.append(numpy_helper.from_array(np.asarray(scale, np.float32), f"{y}_s"))
        operands = [x, f"{y}_s", "zero", f"bits{bits}"] if bits else [x, f"{y}_s"]
        nodes.append(helper.make_node(op, operands, [y], y, domain="qonnx.custom_op.general", **attrs))

    def conv(x: str, name: str, oc: int, ic: int, k: int, op: str, bits: int = 0, **attrs: int) -> None:
        constants.append(numpy_helper.from_array(rng.normal(size=(oc, ic, k, k)).astype(np.float32) / k, f"{name}_w"))
        quant(op, f"{name}_w", f"{name}_wq", rng.uniform(0.2, 0.4, (oc, 1, 1, 1)), bits, **attrs)
        nodes.append(helper.make_node("Conv", [x, f"{name}_wq"], [name], name, pads=[k // 2] * 4))

    quant("Quant", "x", "xq", 0.021, 8, signed=1, narrow=0)
    conv("xq", "first", 16, 3, 3, "Quant", 3, signed=1, narrow=0)
    nodes.append(helper.make_node("Relu", ["first"], ["first_relu"]))
    quant("Quant", "first_relu", "a", 0.187, 4, signed=0, narrow=0)
    conv("a", "second", 24, 16, 3, "BipolarQuant")
    quant("Quant", "second", "b", 1.313, 2, signed=1, narrow=0)
    conv("b", "third", 10, 24, 1, "Quant", 2, signed=1, narrow=1)
    quant("Quant", "third", "y", 0.371, 4, signed=0, narrow=0)
    shape = ["n", 3, 9, 9]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", shape), ("y", None))]
    graph = helper.make_graph(nodes, "brevitas", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("qonnx.custom_op.general", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


@pytest.mark.parametrize("profile", ["host", "raspberry-pi-4", pytest.param("x86-64-avx2", marks=pytest.mark.slow)])
def test_bytes_of_an_imported_model(profile: str, tmp_path: Path) -> None:
    require_way_to(profile)
    qonnx_network(tmp_path / "net.onnx")
    graph = prepare(load_graph(tmp_path / "net.onnx"), Options(profile))
    assert "q<i1" in print_graph(graph), "bipolar weights have a type of their own"
    check_bytes(graph, profile, "x", "y", np.random.default_rng(1).normal(size=(3, 3, 9, 9)).astype(np.float32), tmp_path)


def every_operator() -> Graph:
    """An ANNOTATED graph whose operators read and make codes of 2 to 8 bits, signed and unsigned; one output of each."""
    g = Graph("operators", Level.ANNOTATED)
    types = [Quant(Int(4), (0.31,), (-3,)), Quant(Int(3, signed=False), (0.47,), (2,)), Quant(Int(8), (0.05,), (7,))]
    x, u, v = (g.add_input(n, TensorType((1, 8, 6, 6), F32)) for n in "xuv")
    a, b, c = (
        g.add_node("Clip", [i], ClipAttrs(), names=[f"{i.name}.codes"], types=[i.type.with_elem(t)]).output
        for i, t in zip((x, u, v), types, strict=True)
    )
    few = iter(
        [Quant(Int(bits, signed=False), (0.01 * bits + 0.3 * scale,), (1,)) for bits in (2, 3, 4, 5, 7) for scale in (1, 2, 3, 4)]
    )
    outputs = [a, b]

    def make(op: str, inputs: list[Value], attrs: Any = None, *, own: bool = True) -> Value:
        node = g.add_node(op, inputs, attrs, names=[f"{op}{len(outputs)}"])
        node.output.type = node.output.type.with_elem(next(few) if own else inputs[0].type.elem)
        outputs.append(node.output)
        return node.output

    make("Add", [a, b])
    make("Sub", [c, a])
    make("Mul", [b, c])
    make("Max", [a, b])
    make("Concat", [a, b, c], ConcatAttrs(1))
    make("AveragePool", [a], AveragePoolAttrs((3, 3), pads=(1, 1, 1, 1)))
    make("GlobalAveragePool", [b])
    make("MaxPool", [a], PoolAttrs((3, 3), (2, 2), (1, 1, 1, 1)), own=False)
    make("MaxPool", [b], PoolAttrs((2, 2), (2, 2)))
    make("HardSwish", [a])
    make("Sigmoid", [b])
    make("Relu", [a])
    make("ReduceMean", [b], ReduceAttrs((2, 3), False))
    make("Pad", [a], PadAttrs((0, 0, 1, 2), (0, 0, 2, 1), 0.62), own=False)
    turned = make("Transpose", [b], TransposeAttrs((0, 1, 3, 2)), own=False)
    make("MatMul", [a, turned])
    make("Reshape", [a], ReshapeAttrs((1, 8, 36)), own=False)
    make("Slice", [b], SliceAttrs((0, 2, 0, 1), (-1, 7, -1, 5), (1, 1, 1, 2)), own=False)
    g.set_outputs(outputs)
    verify(g)
    return g


@pytest.mark.parametrize("profile", ["host", *(pytest.param(p, marks=pytest.mark.slow) for p in ("raspberry-pi-4", "armv7-a7"))])
def test_every_operator_on_codes_of_few_bits(profile: str, tmp_path: Path) -> None:
    require_way_to(profile)
    graph = ToInteger().run(every_operator())
    verify(graph)
    assert {n.op for n in graph.nodes if n.op in ("Quantize", "Dequantize")} == {"Quantize"}, "at the inputs, which are reals"
    artifact = build(graph, load_profile(profile), tmp_path / "net.bevel", Options(profile))
    reals = {
        v.name: np.random.default_rng(i).normal(scale=2, size=(1, 8, 6, 6)).astype(np.float32) for i, v in enumerate(graph.inputs)
    }
    found, expected = run_on(artifact, profile, {name: array[None] for name, array in reals.items()}), interp.run(graph, reals)
    assert len(expected) == 20
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].reshape(array.shape), array, err_msg=name)


def test_manifest_says_what_each_layer_has(prepared: Any, tmp_path: Path) -> None:
    artifact = build(bind(prepared("w2a2"), {}), load_profile("x86-64"), tmp_path / "net.bevel", Options("x86-64"))
    bits = {
        layer["name"]: layer["bits"] for layer in artifact.manifest["layers"] if layer["op"].startswith(("IntConv", "IntGemm"))
    }
    assert bits == {
        "stem": "w8a8", "block1": "w2a2", "block2": "w2a2", "depthwise": "w2a2", "pointwise": "w2a2", "classes": "w8a8",
    }  # fmt: skip


def test_groups_without_a_plan(tmp_path: Path) -> None:
    """The option makes another artifact, also where the one without it is in the cache."""
    write_network(tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", image=images(8))
    options = Options("host", "w4a8", tmp_path / "data.npz")
    for group, bits in ((None, "w4a8"), (32, "w4g32a8")):
        artifact, _ = compile_model(tmp_path / "net.onnx", tmp_path / "net.bevel", replace(options, weight_group=group))
        assert {layer["name"]: layer["bits"] for layer in artifact.manifest["layers"]}["block1"] == bits


def test_groups_multiply_what_the_interpreter_expands(prepared: Any, tmp_path: Path) -> None:
    """Weights in groups are int8 weights to the interpreter; one kernel keeps them packed, the report says which."""
    graph = prepared("groups")
    plain = graph.clone()
    for node in plain.nodes:
        if node.op in ("IntConv", "IntGemm"):
            w = node.inputs[1]
            assert isinstance(w.type.elem, Quant)
            w.type = w.type.with_elem(replace(w.type.elem, groups=None))
    x = {"image": images(3)}
    np.testing.assert_array_equal(interp.run(graph, x)["logits"], interp.run(plain, x)["logits"])
    artifact = build(bind(graph, {}), load_profile("x86-64-avx2"), tmp_path / "net.bevel", Options("x86-64-avx2"))
    found = {
        layer["name"]: (layer["bits"], "_groups_" in layer["kernel"])
        for layer in artifact.manifest["layers"]
        if layer["op"].startswith(("IntConv", "IntGemm"))
    }
    assert found == {
        "stem": ("w8a8", False), "block1": ("w4g16a8", False), "block2": ("w2g16a4", False), "depthwise": ("w4a8", False),
        "pointwise": ("w4a8", False), "classes": ("w3g16a8", True),
    }  # fmt: skip
