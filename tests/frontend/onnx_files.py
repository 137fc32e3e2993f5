"""Small ONNX files for importer tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bevel.frontend import import_onnx
from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.passes.canonicalize import canonicalize

Array = npt.NDArray[Any]
Extents = Sequence[int | str]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Extents],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    elem: int = TensorProto.FLOAT,
    out_elem: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(n, elem, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, out_elem, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, path)
    return path


def imported(path: Path, model: onnx.ModelProto, **options: Any) -> Graph:
    return import_onnx(save(path / "m.onnx", model), **options)


def agrees(folder: Path, model: onnx.ModelProto, feeds: dict[str, Array], *, rtol: float = 1e-4) -> Graph:
    """Import, canonicalize and compare every output with onnxruntime; returns the canonical graph."""
    path = save(folder / "m.onnx", model)
    graph = canonicalize(import_onnx(path))
    # Its optimizer replaces QDQ patterns by kernels that round elsewhere; the plain operators are the definition.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results = run(graph, feeds)
    for info, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        np.testing.assert_allclose(results[info.name], want, rtol=rtol, atol=rtol * float(np.abs(want).max()))
    return graph
