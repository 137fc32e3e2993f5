"""Fake quantization to fewer than 8 bits becomes compact types: QDQ of 4 and 2 bits, clipped codes of PyTorch, QONNX of Brevitas.

QDQ models are compared with onnxruntime. QONNX has no runtime here: its operators are computed in numpy, as its documents define
them, around onnxruntime's convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.errors import UnsupportedOp
from bevel.frontend import import_onnx
from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run, to_real
from bevel.ir.types import Int, Quant
from bevel.ir.verify import is_integer_only, verify
from bevel.passes.canonicalize import canonicalize
from bevel.passes.quantize import ToInteger
from tests.frontend.onnx_files import agrees, model_of, save

node = helper.make_node
F = np.float32
Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 5) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(F)


def quantized(graph: Graph, name: str) -> Quant:
    elem = graph.value(name).type.elem
    assert isinstance(elem, Quant)
    return elem


def integer_of(graph: Graph, feeds: Mapping[str, Array], steps: float = 1) -> Graph:
    """The INTEGER graph, once its first output is within `steps` of the fake-quantized graph's; without float islands."""
    integer = ToInteger().run(graph)
    verify(integer)
    assert is_integer_only(integer)
    out = integer.outputs[0]
    assert isinstance(out.type.elem, Quant)
    found, wanted = to_real(out, run(integer, feeds)[out.name]), run(graph, feeds)[out.name]
    assert np.abs(found - wanted).max() <= (steps + 1e-3) * out.type.elem.scale[0]
    assert (np.abs(found - wanted) > 1e-6).mean() < 0.02, "only ties of the rounding may differ"
    return integer


# QDQ -----------------------------------------------------------------------------------------------------------------------


def typed_model(kind: str) -> onnx.ModelProto:
    """A convolution between activations of UINT4 and weights of INT4 (INT2, UINT2) with scales for each channel."""
    low, high, opset = {"4": (ml_dtypes.int4, ml_dtypes.uint4, 21), "2": (ml_dtypes.int2, ml_dtypes.uint2, 25)}[kind]
    bits = int(kind)
    rng = np.random.default_rng(3)
    weights = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (4, 3, 3, 3)).astype(np.int8).astype(low)
    constants = {
        "s": F(0.3), "z": np.asarray(1, np.uint8).astype(high), "w": weights, "ws": np.asarray([0.1, 0.2, 0.3, 0.4], F),
        "wz": np.zeros(4, np.int8).astype(low), "os": F(0.5), "oz": np.asarray(0, np.uint8).astype(high),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xr"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wr"], axis=0),
        node("Conv", ["xr", "wr"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "os", "oz"], ["q"]),
        node("DequantizeLinear", ["q", "os", "oz"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["n", 3, 6, 6]}, ["y"], constants, opset=opset)
    model.ir_version = 10 if kind == "4" else 12
    return model


def test_qdq_of_four_bits(tmp_path: Path) -> None:
    feeds = {"x": normal(3, 3, 6, 6)}
    graph = agrees(tmp_path, typed_model("4"), feeds, rtol=1e-5)
    assert quantized(graph, "x") == Quant(Int(4), (float(F(0.3)),), (1 - 8,))
    integer = integer_of(graph, feeds)
    # Kernels know unsigned codes; the model's input takes int8, which holds the same codes.
    assert quantized(integer, "x").storage == Int(8)
    assert quantized(integer, "y") == Quant(Int(4, signed=False), (0.5,))
    (conv,) = (n for n in integer.nodes if n.op == "IntConv")
    assert [v.type.elem.storage for v in conv.inputs[:2]] == [Int(4, signed=False), Int(4)]  # type: ignore[union-attr]


def test_qdq_of_two_bits(tmp_path: Path) -> None:
    """onnxruntime does not run INT2: the reference is the definition, in numpy."""
    model = typed_model("2")
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", model)))
    x = normal(3, 3, 6, 6)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    real = (np.clip(np.rint(x / F(0.3)) + 1, 0, 3) - 1) * F(0.3)
    weights = arrays["w"].astype(F) * arrays["ws"].reshape(4, 1, 1, 1)
    expected = np.clip(np.rint(np.maximum(convolved(real, weights), 0) / F(0.5)), 0, 3) * F(0.5)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], expected, atol=1e-6)
    integer_of(graph, {"x": x})


@pytest.mark.parametrize(("dtype", "lo", "hi", "zero", "storage"), [
    (np.uint8, 0, 15, 3, Int(4)), (np.int8, -8, 7, 0, Int(4)), (np.int8, -4, 3, -1, Int(3)), (np.uint8, 0, 126, 0, Int(7)),
])  # fmt: skip
def test_codes_clipped_between_quantize_and_dequantize(
    dtype: Any, lo: int, hi: int, zero: int, storage: Int, tmp_path: Path
) -> None:
    constants = {
        "s": F(0.2), "z": dtype(zero), "lo": dtype(lo), "hi": dtype(hi), "w": normal(4, 6), "ws": F(0.15), "wz": np.int8(0),
        "wlo": np.int8(-7), "whi": np.int8(7), "os": F(0.0973), "oz": np.int8(2),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("Clip", ["xq", "lo", "hi"], ["xc"]),
        node("DequantizeLinear", ["xc", "s", "z"], ["xr"]),
        node("QuantizeLinear", ["w", "ws", "wz"], ["wq"]),
        node("Clip", ["wq", "wlo", "whi"], ["wc"]),
        node("DequantizeLinear", ["wc", "ws", "wz"], ["wr"]),
        node("Gemm", ["xr", "wr"], ["c"], transB=1),
        node("QuantizeLinear", ["c", "os", "oz"], ["q"]),
        node("DequantizeLinear", ["q", "os", "oz"], ["y"]),
    ]
    feeds = {"x": 2 * normal(40, 6)}
    graph = agrees(tmp_path, model_of(nodes, {"x": ["n", 6]}, ["y"], constants), feeds, rtol=1e-5)
    (gemm,) = (n for n in graph.nodes if n.op == "Gemm")
    assert [quantized(graph, v.name).storage for v in gemm.inputs[:2]] == [storage, Int(4)]
    integer = integer_of(graph, feeds)
    assert [n.op for n in integer.nodes if n.op in ("Quantize", "Dequantize")] == []


def test_two_types_of_one_scale_are_one_rounding(tmp_path: Path) -> None:
    """Clipped codes behind a layer narrow its clamp: no table is left."""
    constants = {
        "s": F(0.2),
        "z": np.uint8(0),
        "hi": np.uint8(7),
        "lo": np.uint8(0),
        "w": normal(4, 6),
        "ws": F(0.05),
        "wz": np.int8(0),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]), node("DequantizeLinear", ["xq", "s", "z"], ["xr"]),
        node("QuantizeLinear", ["w", "ws", "wz"], ["wq"]), node("DequantizeLinear", ["wq", "ws", "wz"], ["wr"]),
        node("Gemm", ["xr", "wr"], ["c"], transB=1), node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        node("Clip", ["q", "lo", "hi"], ["k"]), node("DequantizeLinear", ["k", "s", "z"], ["y"]),
    ]  # fmt: skip
    feeds = {"x": np.abs(normal(40, 6))}
    graph = agrees(tmp_path, model_of(nodes, {"x": ["n", 6]}, ["y"], constants), feeds, rtol=1e-5)
    integer = integer_of(graph, feeds)
    assert [n.op for n in integer.nodes] == ["IntGemm", "Requantize"]
    assert quantized(integer, "y") == Quant(Int(3, signed=False), (float(F(0.2)),))


# QONNX ---------------------------------------------------------------------------------------------------------------------


DOMAIN = "qonnx.custom_op.general"
ROUND: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round, "CEIL": np.ceil, "FLOOR": np.floor, "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)), "DOWN": np.fix,
    "HALF_EVEN": np.round, "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
    "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5), "ROUND_TO_ZERO": np.fix,
}  # fmt: skip


def limits(signed: int, narrow: int, bits: int) -> tuple[int, int]:
    return (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)


def quant(x: Array, scale: Any, zero: float, bits: int, signed: int = 1, narrow: int = 0, rounding_mode: str = "ROUND") -> Array:
    """Quant of the QONNX documents."""
    y = np.clip(x / scale + F(zero), *limits(signed, narrow, bits))
    return np.asarray((ROUND[rounding_mode](y) - F(zero)) * scale, F)


def convolved(x: Array, w: Array, **attrs: Any) -> Array:
    """onnxruntime's convolution of reals."""
    import onnxruntime

    model = model_of([node("Conv", ["x", "w"], ["y"], **attrs)], {"x": x.shape, "w": w.shape}, ["y"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x, "w": w})[0])


def qonnx_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], constants: dict[str, Any], outputs: tuple[str, ...] = ("y",)
) -> Any:
    model = model_of(nodes, inputs, outputs, constants)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def q(op: str, inputs: list[str], output: str, **attrs: Any) -> onnx.NodeProto:
    return node(op, inputs, [output], domain=DOMAIN, **attrs)


WEIGHTS: dict[str, tuple[str, dict[str, Any], int, Int]] = {
    "4 bits": ("Quant", {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}, 4, Int(4)),
    "narrow 3 bits": ("Quant", {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}, 3, Int(3)),
    "ternary, as IntQuant": ("IntQuant", {"signed": 1, "narrow": 1, "rounding_mode": "HALF_UP"}, 2, Int(2)),
    "towards zero": ("Quant", {"signed": 1, "narrow": 0, "rounding_mode": "DOWN"}, 5, Int(5)),
    "ceiling": ("Quant", {"signed": 1, "narrow": 0, "rounding_mode": "CEIL"}, 2, Int(2)),
    "bipolar by Quant": ("Quant", {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}, 1, Int(1)),
    "bipolar": ("BipolarQuant", {}, 1, Int(1)),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_qonnx(kind: str, tmp_path: Path) -> None:
    op, attrs, bits, storage = WEIGHTS[kind]
    x, w, scale = normal(4, 3, 6, 6), normal(5, 3, 3, 3, seed=6), np.linspace(0.2, 0.6, 5, dtype=F).reshape(5, 1, 1, 1)
    w[0, 0, 0, 0] = 0.0
    operands = ["w", "ws", "zero", "bits"] if op != "BipolarQuant" else ["w", "ws"]
    nodes = [
        q("Quant", ["x", "xs", "zero", "four"], "xr", signed=1, narrow=0, rounding_mode="ROUND"),
        q(op, operands, "wr", **attrs),
        node("Conv", ["xr", "wr"], ["c"]),
        q("Quant", ["c", "os", "zero", "eight"], "y", signed=1, narrow=0, rounding_mode="ROUND"),
    ]
    constants = {"w": w, "ws": scale, "zero": F(0), "bits": F(bits), "xs": F(0.25), "os": F(0.1937), "four": F(4), "eight": F(8)}
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", qonnx_model(nodes, {"x": ["n", 3, 6, 6]}, constants))))
    assert graph.level is Level.ANNOTATED
    reals = np.where(w >= 0, scale, -scale) if storage.bits == 1 else quant(w, scale, 0, bits, **attrs)
    wanted = quant(convolved(quant(x, F(0.25), 0, 4), reals.astype(F)), F(0.1937), 0, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], wanted, atol=1e-5)
    (conv,) = graph.nodes
    weight = quantized(graph, conv.inputs[1].name)
    assert (weight.storage, weight.axis) == (storage, 0)
    integer_of(graph, {"x": x})


ACTIVATIONS: dict[str, tuple[int, int, int, int]] = {
    "unsigned": (4, 0, 0, 0), "unsigned, narrow": (3, 0, 1, 0), "signed, narrow": (5, 1, 1, 0), "two bits": (2, 0, 0, 0),
    "one bit": (1, 0, 0, 0), "asymmetric": (4, 0, 0, 6), "8 bits": (8, 1, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_of_qonnx(kind: str, tmp_path: Path) -> None:
    bits, signed, narrow, zero = ACTIVATIONS[kind]
    x, w = normal(4, 3, 6, 6), normal(5, 3, 1, 1, seed=6)
    nodes = [
        q("Quant", ["x", "xs", "zero", "eight"], "xr", signed=1, narrow=0, rounding_mode="ROUND"),
        q("Quant", ["w", "ws", "zero", "four"], "wr", signed=1, narrow=1, rounding_mode="ROUND"),
        node("Conv", ["xr", "wr"], ["c"]),
        q("Quant", ["c", "as", "az", "abits"], "a", signed=signed, narrow=narrow, rounding_mode="ROUND"),
        node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "wr2"], ["d"]),
        q("Quant", ["w2", "ws", "zero", "four"], "wr2", signed=1, narrow=1, rounding_mode="ROUND"),
        q("Quant", ["d", "os", "zero", "eight"], "y", signed=1, narrow=0, rounding_mode="ROUND"),
    ]
    nodes[5], nodes[6] = nodes[6], nodes[5]
    constants = {
        "w": w, "w2": normal(2, 5, 1, 1, seed=7), "ws": F(0.3), "zero": F(0), "four": F(4), "eight": F(8), "xs": F(0.0317),
        "as": F(0.2539), "az": F(zero), "abits": F(bits), "os": F(0.1937),
    }  # fmt: skip
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", qonnx_model(nodes, {"x": ["n", 3, 6, 6]}, constants))))
    first = convolved(quant(x, F(0.0317), 0, 8), quant(w, F(0.3), 0, 4, narrow=1))
    act = quant(first, F(0.2539), zero, bits, signed, narrow)
    pooled = act.reshape(4, 5, 3, 2, 3, 2).max(axis=(3, 5))
    wanted = quant(convolved(pooled, quant(constants["w2"], F(0.3), 0, 4, narrow=1)), F(0.1937), 0, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], wanted, atol=1e-5)
    integer = integer_of(graph, {"x": x}, steps=3)
    convs = [n for n in integer.nodes if n.op == "IntConv"]
    assert quantized(integer, convs[1].inputs[0].name).storage == (Int(8) if bits == 8 else Int(bits, signed=False))
    assert [n.op for n in integer.nodes] == ["IntConv", "Requantize", "MaxPool", "IntConv", "Requantize"]


@pytest.mark.parametrize("mode", ["FLOOR", "CEIL", "ROUND"])
@pytest.mark.parametrize("version", [1, 2])
def test_trunc(version: int, mode: str, tmp_path: Path) -> None:
    """Codes of 8 bits lose their lowest 3: 5 bits of the same scale (version 1), or of one 8 times as large."""
    x = 8 * normal(64, 6)
    s, t = F(0.25), 8.0
    nodes = [
        q("Quant", ["x", "s", "zero", "eight"], "a", signed=0, narrow=0, rounding_mode="ROUND"),
        q("Trunc", ["a", "s", "zero", "eight", "five"], "y", rounding_mode=mode)
        if version == 1
        else q("Trunc", ["a", "s", "zero", "eight", "s8", "zero", "five"], "y", rounding_mode=mode, signed=0, narrow=0),
    ]
    constants = {"s": s, "zero": F(0), "eight": F(8), "five": F(5), "s8": F(s * t)}
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", qonnx_model(nodes, {"x": ["n", 6]}, constants))))
    codes = np.clip(ROUND[mode](np.round(quant(x, s, 0, 8, signed=0) / s) / t), 0, 31)
    wanted = codes * (s if version == 1 else F(s * t))
    np.testing.assert_allclose(run(graph, {"x": x})["y"], wanted, atol=1e-6)
    integer = ToInteger().run(graph)
    assert is_integer_only(integer)
    found = to_real(integer.outputs[0], run(integer, {"x": x})["y"])
    different = np.abs(found - wanted) > 1e-6
    # Ties of ROUND go up in integers, to even in the definition.
    assert different.mean() < (0.1 if mode == "ROUND" else 1e-9)


@pytest.mark.parametrize("op", ["BipolarQuant", "Quant"])
def test_bipolar_activations_of_qonnx(op: str, tmp_path: Path) -> None:
    """Signs of an input, of sums with a bias and of what has no integer form, borders of zeros between them: all exact."""
    x, w1, w2, w3 = normal(4, 3, 6, 6), normal(16, 3, 3, 3, seed=6), normal(8, 16, 3, 3, seed=7), normal(5, 8, 3, 3, seed=8)
    # Some sums with the bias are 0, whose sign is positive, and some biases lie between steps.
    bias = np.where(np.arange(16) % 2 == 0, 0.1, 0.13).astype(F)

    def signs(name: str, result: str) -> onnx.NodeProto:
        if op == "BipolarQuant":
            return q(op, [name, "s"], result)
        return q(op, [name, "s", "zero", "one"], result, signed=1, narrow=0, rounding_mode="ROUND")

    nodes = [
        q("Quant", ["w1", "ws", "zero", "four"], "wr1", signed=1, narrow=1, rounding_mode="ROUND"),
        *(q("BipolarQuant", [f"w{i}", "s"], f"wr{i}") for i in (2, 3)),
        signs("x", "xr"),
        node("Conv", ["xr", "wr1", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Clip", ["c", "least", "most"], ["h"]),
        signs("h", "cr"),
        node("Conv", ["cr", "wr2"], ["d"], pads=[1, 1, 1, 1]),
        node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Sin", ["p"], ["t"]),
        signs("t", "dr"),
        node("Conv", ["dr", "wr3"], ["e"]),
        q("Quant", ["e", "os", "zero", "eight"], "y", signed=1, narrow=0, rounding_mode="ROUND"),
    ]
    constants = {
        "w1": w1, "w2": w2, "w3": w3, "b": bias, "s": F(0.5), "ws": F(0.2), "os": F(0.25), "zero": F(0), "one": F(1),
        "four": F(4), "eight": F(8), "least": F(-1), "most": F(1),
    }  # fmt: skip
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", qonnx_model(nodes, {"x": ["n", 3, 6, 6]}, constants))))
    s = F(0.5)

    def sign(values: Any) -> Any:
        return np.where(values >= 0, s, -s).astype(F)

    def padded(values: Any) -> Any:
        return np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))

    first = convolved(padded(sign(x)), quant(w1, F(0.2), 0, 4, narrow=1)) + bias[:, None, None]
    # Multiples of a hundredth: those next to zero are told apart from rounding.
    second = convolved(padded(sign(np.round(first, 3))), sign(w2))
    pooled = second.reshape(4, 8, 3, 2, 3, 2).max(axis=(3, 5))
    wanted = quant(convolved(sign(np.sin(pooled)), sign(w3)), F(0.25), 0, 8)
    integer = ToInteger().run(graph)
    found = to_real(integer.outputs[0], run(integer, {"x": x})["y"])
    np.testing.assert_array_equal(found, wanted)
    # The second convolution feeds what has no integer form.
    assert [n.op for n in integer.nodes].count("IntConv") == 2


def test_signs_stay_codes_from_layer_to_layer(tmp_path: Path) -> None:
    """Between integer layers, with pooling and borders, bipolar activations leave no float behind, and every sum is exact."""
    x, w = normal(4, 3, 6, 6), normal(8, 3, 3, 3, seed=6)
    w2 = normal(5, 8, 3, 3, seed=7)
    nodes = [
        q("Quant", ["x", "xs", "zero", "eight"], "xr", signed=1, narrow=0, rounding_mode="ROUND"),
        *(q("BipolarQuant", [name, "s"], f"{name}r") for name in ("w", "w2")),
        node("Conv", ["xr", "wr"], ["c"], pads=[1, 1, 1, 1]),
        q("BipolarQuant", ["c", "s"], "cr"),
        node("MaxPool", ["cr"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2r"], ["d"], pads=[1, 1, 1, 1]),
        q("Quant", ["d", "os", "zero", "eight"], "y", signed=1, narrow=0, rounding_mode="ROUND"),
    ]
    constants = {"w": w, "w2": w2, "s": F(0.5), "xs": F(0.125), "os": F(0.25), "zero": F(0), "eight": F(8)}
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", qonnx_model(nodes, {"x": ["n", 3, 6, 6]}, constants))))

    def signs(values: Any) -> Any:
        return np.where(values >= 0, F(0.5), F(-0.5))

    def bordered(values: Any) -> Any:
        return np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))

    pooled = signs(convolved(bordered(quant(x, F(0.125), 0, 8)), signs(w))).reshape(4, 8, 3, 2, 3, 2).max(axis=(3, 5))
    wanted = quant(convolved(bordered(pooled), signs(w2)), F(0.25), 0, 8)
    integer = ToInteger().run(graph)
    assert is_integer_only(integer)
    np.testing.assert_array_equal(to_real(integer.outputs[0], run(integer, {"x": x})["y"]), wanted)


REFUSED: dict[str, tuple[onnx.NodeProto, str]] = {
    "another rounding of an activation": (
        q("Quant", ["x", "s", "z", "four"], "y", rounding_mode="FLOOR"), "rounding_mode 'FLOOR' of an activation"),
    "an unknown rounding": (q("Quant", ["x", "s", "z", "four"], "y", rounding_mode="BEST"), "rounding_mode 'BEST'"),
    "half a bit": (q("Quant", ["x", "s", "z", "half"], "y"), "bit width"),
    "scales of a bipolar activation": (q("BipolarQuant", ["x", "ss"], "y"), "an activation with one scale"),
    "an unknown attribute": (q("Quant", ["x", "s", "z", "four"], "y", sign=1), "unknown attributes"),
    "scales of an activation": (q("Quant", ["x", "ss", "z", "four"], "y"), "one scale for an activation"),
    "a scale of zero": (q("Quant", ["x", "z", "z", "four"], "y"), "positive finite scales"),
    "another operator": (q("FloatQuant", ["x", "s"], "y"), "domain"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_type_is_refused(kind: str, tmp_path: Path) -> None:
    made, message = REFUSED[kind]
    constants = {"s": F(0.1), "z": F(0), "four": F(4), "half": F(3.5), "ss": np.ones((1, 6), F)}
    with pytest.raises(UnsupportedOp, match=message):
        import_onnx(save(tmp_path / "m.onnx", qonnx_model([made], {"x": ["n", 6]}, constants)))


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_of_weights_in_a_model_of_floats(axis: int, tmp_path: Path) -> None:
    """Scales for groups of inputs, as weight-only quantizers write them: reals are all that is left of them."""
    rng = np.random.default_rng(3)
    codes, shape = rng.integers(0, 16, (6, 10)).astype(np.uint8), (2, 10) if axis == 0 else (6, 4)
    constants = {
        "w": codes.astype(ml_dtypes.uint4), "ws": rng.uniform(0.1, 0.3, shape).astype(F),
        "wz": rng.integers(0, 16, shape).astype(np.uint8).astype(ml_dtypes.uint4),
    }  # fmt: skip
    nodes = [
        node("DequantizeLinear", ["w", "ws", "wz"], ["wr"], axis=axis, block_size=3),
        node("Gemm", ["x", "wr"], ["y"], transB=1),
    ]
    model = model_of(nodes, {"x": ["n", 10]}, ["y"], constants, opset=21)
    model.ir_version = 10
    assert agrees(tmp_path, model, {"x": normal(3, 10)}).level is Level.FLOAT


def test_int4_stays_four_bits_in_a_model_of_floats(tmp_path: Path) -> None:
    """Weight-only quantization folds: no activation has a type."""
    codes = np.arange(-8, 8).astype(np.int8).reshape(4, 4)
    constants = {"w": codes.astype(ml_dtypes.int4), "ws": F(0.1)}
    nodes = [node("DequantizeLinear", ["w", "ws"], ["wr"]), node("Gemm", ["x", "wr"], ["y"], transB=1)]
    model = model_of(nodes, {"x": ["n", 4]}, ["y"], constants, opset=21)
    model.ir_version = 10
    graph = agrees(tmp_path, model, {"x": normal(3, 4)})
    assert graph.level is Level.FLOAT
    assert TensorProto.INT4 == model.graph.initializer[0].data_type


@pytest.mark.parametrize("op", ["Quant", "BipolarQuant"])
def test_products_of_qonnx_weights(op: str, tmp_path: Path) -> None:
    """Weights [K, N] with a scale for each column, transposed on the way to codes [N, K], and a bias added behind."""
    x, w = normal(8, 6), normal(6, 4, seed=6)
    scale = np.linspace(0.2, 0.5, 4, dtype=F)
    # A step of the sums is large with few bits; biases off that grid would be rounded to it.
    bias = np.asarray([3, -2, 0, 7], F) * F(0.25) * scale
    nodes = [
        q("Quant", ["x", "xs", "zero", "four"], "xr", signed=1, narrow=0, rounding_mode="ROUND"),
        q(op, ["w", "ws", "zero", "three"], "wr", signed=1, narrow=1, rounding_mode="ROUND")
        if op == "Quant"
        else q(op, ["w", "ws"], "wr"),
        node("MatMul", ["xr", "wr"], ["c"]),
        node("Add", ["c", "b"], ["d"]),
        q("Quant", ["d", "os", "zero", "eight"], "y", signed=1, narrow=0, rounding_mode="ROUND"),
    ]
    constants = {
        "w": w, "ws": scale, "b": bias, "zero": F(0), "xs": F(0.25), "os": F(0.0793), "three": F(3), "four": F(4), "eight": F(8),
    }  # fmt: skip
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", qonnx_model(nodes, {"x": ["n", 6]}, constants))))
    reals = quant(w, scale, 0, 3, narrow=1) if op == "Quant" else np.where(w >= 0, scale, -scale).astype(F)
    wanted = quant(quant(x, F(0.25), 0, 4) @ reals + bias, F(0.0793), 0, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], wanted, atol=1e-5)
    integer = integer_of(graph, {"x": x})
    (gemm,) = (n for n in integer.nodes if n.op == "IntGemm")
    weight = quantized(integer, gemm.inputs[1].name)
    assert (weight.storage, weight.axis) == (Int(3) if op == "Quant" else Int(1), 0)


@pytest.mark.parametrize("mode", ["FLOOR", "ROUND"])
def test_average_pooling_that_truncates(mode: str, tmp_path: Path) -> None:
    """As Brevitas writes it: the mean of a 4x4 window, times its 16 elements, loses the 4 bits that the sum has more."""
    x, s = 4 * normal(2, 3, 4, 4), F(0.25)
    nodes = [
        q("Quant", ["x", "s", "zero", "four"], "a", signed=0, narrow=0, rounding_mode="ROUND"),
        node("AveragePool", ["a"], ["p"], kernel_shape=[4, 4]),
        node("Mul", ["p", "count"], ["sum"]),
        q("Trunc", ["sum", "s", "zero", "eight", "four"], "y", rounding_mode=mode),
    ]
    constants = {"s": s, "zero": F(0), "four": F(4), "eight": F(8), "count": F(16)}
    graph = canonicalize(import_onnx(save(tmp_path / "m.onnx", qonnx_model(nodes, {"x": ["n", 3, 4, 4]}, constants))))
    sums = np.rint(quant(x, s, 0, 4, signed=0) / s).sum(axis=(2, 3), keepdims=True)
    wanted = ROUND[mode](sums / 16) * s
    np.testing.assert_allclose(run(graph, {"x": x})["y"], wanted, atol=1e-6)
    integer = ToInteger().run(graph)
    verify(integer)
    found = to_real(integer.outputs[0], run(integer, {"x": x})["y"])
    assert np.abs(found - wanted).max() <= (s if mode == "ROUND" else 0)
