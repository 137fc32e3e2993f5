"""ONNX's own operator tests: what the importer accepts computes what ONNX says, and the rest is refused with one clear error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from bevel.errors import UnsupportedModel
from bevel.frontend import import_onnx
from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.ir.types import Quant
from bevel.passes.canonicalize import canonicalize

Array = npt.NDArray[Any]
# ONNX's own case generators divide by zero on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# These feed something else than dense numbers, or random numbers.
UNUSABLE = ("float8", "float4", "e4m3", "e5m2", "FLOAT8", "FLOAT4", "training_dropout", "bernoulli", "_sequence", "_opt")


@cache
def node_tests() -> tuple[Any, ...]:
    return tuple(c for c in collect_testcases(None) if not any(mark in c.name for mark in UNUSABLE))


def frozen(model: onnx.ModelProto, inputs: list[Array]) -> onnx.ModelProto:
    """The model with every input but the first stored as an initializer, as real models have weights, axes and bounds."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    names = [i.name for i in copy.graph.input]
    copy.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in zip(names[1:], inputs[1:], strict=True))
    del copy.graph.input[1:]
    return copy


def variants(case: Any) -> Iterator[tuple[str, onnx.ModelProto, list[Array], list[Array]]]:
    for inputs, outputs in case.data_sets:
        arrays, expected = list(inputs), list(outputs)
        if all(isinstance(a, np.ndarray | np.generic) for a in (*arrays, *expected)):
            arrays = [np.asarray(a) for a in arrays]
            yield case.name, case.model, arrays, expected
            if len(arrays) > 1 and len(arrays) == len(case.model.graph.input):
                yield f"{case.name} frozen", frozen(case.model, arrays), arrays[:1], expected


def feed(graph: Graph, model: onnx.ModelProto, arrays: list[Array]) -> dict[str, Array]:
    named = dict(zip((i.name for i in model.graph.input), arrays, strict=True))
    result = {}
    for value in graph.inputs:
        array = named[value.name]
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        elif isinstance(value.type.elem, Quant) and array.dtype.kind == "u":
            # Unsigned codes are signed in a graph.
            array = (array.astype(np.int64) - (1 << (value.type.elem.storage.bits - 1))).astype(value.type.dtype)
        result[value.name] = array
    return result


def stored(graph: Graph, index: int, array: Array, expected: Array) -> Array:
    """Output `index` as the model would store it: unsigned codes where ONNX has them."""
    elem = graph.outputs[index].type.elem
    if isinstance(elem, Quant) and expected.dtype.kind in "iu":
        codes = elem.quantize(array) if array.dtype.kind == "f" else array
        return codes.astype(np.int64) + ((1 << (elem.storage.bits - 1)) if expected.dtype.kind == "u" else 0)
    return array


def test_accepted_operators_agree_with_onnx(tmp_path: Path) -> None:
    agreed: Counter[str] = Counter()
    for case in node_tests():
        for name, model, arrays, expected in variants(case):
            path = tmp_path / "case.onnx"
            onnx.save(model, path)
            try:
                graph = canonicalize(import_onnx(path))
            except UnsupportedModel:
                continue
            given = feed(graph, model, arrays)
            if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in given.values()):
                continue  # the interpreter takes finite numbers
            results = run(graph, given)
            for i, (value, want) in enumerate(zip(graph.outputs, expected, strict=True)):
                got = stored(graph, i, results[value.name], np.asarray(want))
                # Reduced types round every intermediate result; here each is a float32.
                coarse = 4 * {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(np.asarray(want).dtype.name, 0.0)
                real, wanted = got.astype(np.float64), np.asarray(want).astype(np.float64)
                np.testing.assert_allclose(real, wanted, rtol=max(coarse, 2e-3), atol=max(coarse, 1e-5), err_msg=name)
            agreed[model.graph.node[0].op_type] += 1
    # Operators of image models that must not silently fall back to refusals.
    for op, least in {
        "AveragePool": 10, "BatchNormalization": 2, "Clip": 3, "Concat": 12, "Conv": 6, "DequantizeLinear": 2, "Flatten": 9,
        "Gemm": 12, "GlobalAveragePool": 2, "MatMul": 4, "MaxPool": 10, "Pad": 2, "QuantizeLinear": 2, "ReduceMean": 6,
        "Reshape": 8, "Slice": 6, "Softmax": 6, "Split": 8, "Squeeze": 2, "Transpose": 7, "Unsqueeze": 4,
    }.items():  # fmt: skip
        assert agreed[op] >= least, f"{op}: {agreed[op]} node tests pass, expected {least}"
    assert agreed.total() >= 250


@pytest.mark.parametrize("op", ["DeformConv", "DynamicQuantizeLinear", "If", "NonMaxSuppression"])
def test_refusals_name_node_operator_and_alternatives(op: str, tmp_path: Path) -> None:
    case = next(c for c in node_tests() if [n.op_type for n in c.model.graph.node] == [op])
    path = tmp_path / "case.onnx"
    onnx.save(case.model, path)
    with pytest.raises(UnsupportedModel, match=rf"\b{op}\b.*\bopset \d+\).*; supported: \w+"):
        import_onnx(path)
