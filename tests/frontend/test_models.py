"""The models that ship with bevel: import and canonical form compute what onnxruntime computes, on real inputs."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from bevel.frontend import import_onnx
from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run
from bevel.ir.types import Dim, Quant
from bevel.ir.verify import verify
from bevel.passes.canonicalize import CANONICAL, canonicalize
from bevel.passes.pipeline import Check, run_passes

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[2]
FLOAT = ("resnet8_cifar10_float", "resnet20_cifar10", "kws_dscnn_float")
QDQ = ("resnet8_cifar10_int8_qdq", "kws_dscnn_int8_qdq")


@cache
def images(count: int, *, normalized: bool) -> Array:
    path = ROOT / "examples" / "prepare_cifar10.py"
    spec = importlib.util.spec_from_file_location("prepare_cifar10", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    decoded, _ = script.decode(script.IMAGES, count)
    return np.asarray(script.normalized(decoded) if normalized else script.raw_pixels(decoded))


def inputs(name: str, count: int) -> Array:
    """Real images, or spectrograms that decay over coefficients as MFCC features do."""
    if name.startswith("kws"):
        rng = np.random.default_rng(3)
        smooth = np.cumsum(rng.standard_normal((count, 49, 10, 1)), axis=1)
        return (smooth * 8.0 * np.exp(-np.arange(10) / 3.0)[:, None]).astype(np.float32)
    return images(count, normalized=name.startswith("resnet20"))


@cache
def graph_of(name: str) -> Graph:
    return canonicalize(import_onnx(ROOT / "models" / f"{name}.onnx"))


def reference(name: str, x: Array, *, optimized: bool = True) -> Array:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(ROOT / "models" / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {feed: part})[0] for part in np.array_split(x, -(-len(x) // 64))])


def interpreted(name: str, x: Array) -> Array:
    graph = graph_of(name)
    parts = np.array_split(x, -(-len(x) // 64))
    return np.concatenate([run(graph, {graph.inputs[0].name: part})[graph.outputs[0].name] for part in parts])


@pytest.mark.parametrize("name", FLOAT)
def test_float_models_match_onnxruntime(name: str) -> None:
    x = inputs(name, 128)
    want, got = reference(name, x), interpreted(name, x)
    assert graph_of(name).level is Level.FLOAT
    assert float(np.abs(want - got).max()) <= 1e-4 * float(np.abs(want).max())
    np.testing.assert_array_equal(want.argmax(1), got.argmax(1))


def agreement(name: str, count: int, *, optimized: bool) -> tuple[float, int]:
    """Share of equal top-1 and largest difference in output codes."""
    graph = graph_of(name)
    elem, out = graph.inputs[0].type.elem, graph.outputs[0].type.elem
    assert isinstance(elem, Quant)
    assert isinstance(out, Quant)
    codes = elem.quantize(inputs(name, count))
    want, got = reference(name, codes, optimized=optimized), out.quantize(interpreted(name, codes))
    return float((want.argmax(1) == got.argmax(1)).mean()), int(np.abs(want.astype(np.int64) - got).max())


@pytest.mark.parametrize("name", QDQ)
def test_quantized_models_match_onnxruntime(name: str) -> None:
    assert graph_of(name).level is Level.ANNOTATED
    # Its float operators between Q and DQ are what the file says; sums in another order move ties.
    same, _ = agreement(name, 128, optimized=False)
    assert same >= 0.99
    # Its fused integer kernels round elsewhere.
    same, _ = agreement(name, 512 if name.startswith("resnet") else 256, optimized=True)
    assert same >= 0.995


@pytest.mark.parametrize("name", [*FLOAT, *QDQ])
def test_every_canonicalization_step_keeps_the_outputs(name: str) -> None:
    graph = import_onnx(ROOT / "models" / f"{name}.onnx")
    verify(graph)
    check = Check({graph.inputs[0].name: inputs(name, 4)}, tolerance=1e-4 if name in FLOAT else 0.02)
    final = run_passes(graph, CANONICAL, check_each=check)
    assert isinstance(final.inputs[0].type.shape[0], Dim)
    assert final.outputs[0].name == graph.outputs[0].name
    assert {n.op for n in final.nodes} <= {
        "Add", "Conv", "Gemm", "GlobalAveragePool", "Pad", "Relu", "Reshape", "Slice", "Softmax", "Transpose",
    }  # fmt: skip
    again = canonicalize(final)
    assert [n.op for n in again.nodes] == [n.op for n in final.nodes]


def test_weight_only_quantization_left_no_quantized_constant() -> None:
    assert not any(isinstance(v.type.elem, Quant) for v in graph_of("kws_dscnn_float").constants)


def test_quantized_models_hold_int8_weights_and_int32_biases() -> None:
    for name in QDQ:
        for node in graph_of(name).nodes:
            if node.op in ("Conv", "Gemm"):
                storage = [str(v.type.elem.storage) for v in node.inputs if isinstance(v.type.elem, Quant)]
                assert storage == ["i8", "i8", "i32"], node
