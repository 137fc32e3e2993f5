"""MNN on the CPU: fp32 at high precision, int8 by its own offline quantization (KL divergence for activations).

Its converter and quantizer are called as the library functions they are: the command-line wrappers around them install packages
into whatever Python comes first and report every conversion to a server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import MNN
import numpy as np


def prepare(files: list[Path], precision: str, shapes: dict[str, list[int]], samples: list[Path], folder: Path) -> None:
    """Convert, and quantize for "int8"."""
    import _tools

    target = folder / "model.mnn"
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", str(files[0]), "--MNNModel", str(target), "--bizCode", "bevel"])
    if precision == "fp32":
        return
    data = folder / "samples"
    for index, sample in enumerate(samples):
        place = data / str(index)
        place.mkdir(parents=True)
        with np.load(sample) as arrays:
            for name in arrays.files:
                np.savetxt(place / f"{name}.txt", arrays[name].reshape(-1), fmt="%.9g")
        described = [{"name": name, "shape": shape} for name, shape in shapes.items()]
        (place / "input.json").write_text(json.dumps({"inputs": described, "outputs": []}))
    config = folder / "quantize.json"
    settings = {"format": "RGB", "path": f"{data}/", "used_sample_num": len(samples), "input_type": "sequence"}
    settings |= {"feature_quantize_method": "KL", "weight_quantize_method": "MAX_ABS", "batch_size": 1}
    config.write_text(json.dumps(settings))
    quantized = folder / "int8.mnn"
    _tools.mnnquant(str(target), str(quantized), str(config))
    quantized.replace(target)


def load(
    folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
) -> tuple[Callable[[], None], Callable[[], list[Any]], dict[str, str]]:
    """A module whose input variables are made once: a session would reuse the memory of its inputs for activations."""
    settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
    runtime = MNN.nn.create_runtime_manager((settings,))
    names = list(inputs)
    net = MNN.nn.load_module_from_file(str(folder / "model.mnn"), names, outputs, runtime_manager=runtime)
    given = [_variable(array) for array in inputs.values()]
    found: list[Any] = []

    def call() -> None:
        found[:] = net.onForward(given)

    return call, lambda: [np.array(variable.read()) for variable in found], {"version": MNN.version()}


def _variable(array: Any) -> Any:
    """A constant of MNN; it knows float32 and int32."""
    if array.dtype.kind == "f":
        return MNN.expr.const(array, list(array.shape), MNN.expr.NCHW)
    return MNN.expr.const(array.astype(np.int32), list(array.shape), MNN.expr.NCHW, MNN.expr.int)
