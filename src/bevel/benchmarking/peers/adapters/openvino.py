"""OpenVINO on the CPU: fp32 computed in f32, int8 by NNCF's post-training quantization."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov


def prepare(files: list[Path], precision: str, shapes: dict[str, list[int]], samples: list[Path], folder: Path) -> None:
    """Convert to OpenVINO's own format with fixed shapes, quantized for "int8"."""
    model = ov.Core().read_model(files[0])
    model.reshape({name: ov.PartialShape(shape) for name, shape in shapes.items()})
    if precision == "int8":
        # NNCF reports every quantization to a server, except in tests of its own.
        os.environ["NNCF_CI"] = "1"
        import nncf

        data = nncf.Dataset([dict(np.load(sample)) for sample in samples])
        # What NNCF's documentation asks for where there is attention; it smooths activations first.
        kind = nncf.ModelType.TRANSFORMER if _has_attention(model) else None
        model = nncf.quantize(model, data, subset_size=len(samples), model_type=kind)
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _has_attention(model: ov.Model) -> bool:
    """True where a softmax feeds a matrix product."""
    kinds = {"Softmax": "MatMul", "ScaledDotProductAttention": None}
    for node in model.get_ops():
        if node.get_type_name() not in kinds:
            continue
        wanted = kinds[node.get_type_name()]
        readers = (t.get_node().get_type_name() for o in node.outputs() for t in o.get_target_inputs())
        if wanted is None or wanted in readers:
            return True
    return False


def load(
    folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
) -> tuple[Callable[[], Any], Callable[[], list[Any]], dict[str, str]]:
    """One inference request whose input tensors share the arrays' memory."""
    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Without it OpenVINO computes fp32 models in bf16 on CPUs that have AMX.
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", settings)
    request = compiled.create_infer_request()
    for port in compiled.inputs:
        (name,) = port.get_names() & inputs.keys()
        request.set_tensor(port, ov.Tensor(inputs[name], shared_memory=True))
    ports = [next(port for port in compiled.outputs if name in port.get_names()) for name in outputs]

    def read() -> list[Any]:
        return [np.array(request.get_tensor(port).data) for port in ports]

    kinds = Counter(
        str(op.get_rt_info()["primitiveType"].value) for op in compiled.get_runtime_model().get_ops() if _multiplies(op)
    )
    facts = {"version": ov.get_version().split("-")[0], "isa": kinds.most_common(1)[0][0] if kinds else ""}
    # MLAS chooses its instruction set without asking oneDNN.
    if foreign := sorted(kind for kind in kinds if "mlas" in kind):
        facts["beyond_cap"] = " ".join(foreign)
    return request.infer, read, facts


def _multiplies(op: ov.Node) -> bool:
    info = op.get_rt_info()
    return "layerType" in info and str(info["layerType"].value) in ("Convolution", "FullyConnected", "MatMul")
