"""LiteRT (the TensorFlow Lite interpreter with XNNPACK): converted by litert-torch, int8 by the AI Edge Quantizer.

int8 means static quantization of activations and weights, per channel. The quantized model takes and gives codes, as bevel's own
artifacts do, so the inputs are quantized once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(files: list[Path], precision: str, shapes: dict[str, list[int]], samples: list[Path], folder: Path) -> None:
    """Convert, and quantize for "int8"."""
    target = folder / "model.tflite"
    import litert_torch

    from bevel.benchmarking.peers.adapters.onnx_to_torch import OnnxModule

    module = OnnxModule(files[0], shapes).eval()
    names = module.inputs
    litert_torch.convert(module, module.examples).export(str(target))
    (folder / "io.json").write_text(json.dumps(names))
    if precision == "int8":
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe

        signature, description = next(iter(Interpreter(str(target)).get_signature_list().items()))
        keys = description["inputs"]
        data = []
        for sample in samples:
            with np.load(sample) as arrays:
                data.append({key: arrays[name] for key, name in zip(keys, names, strict=True)})
        tool = quantizer.Quantizer(str(target), recipe.static_wi8_ai8())
        found = tool.quantize(tool.calibrate({signature: data}))
        target.unlink()
        found.export_model(str(target))


def load(
    folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
) -> tuple[Callable[[], Any], Callable[[], list[Any]], dict[str, str]]:
    """An interpreter whose inputs are set once; it keeps them."""
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=threads)
    interpreter.allocate_tensors()
    names = json.loads((folder / "io.json").read_text())
    # litert-torch names them args_0, args_1, ... and output_0, output_1, ... in the order of the module.
    taken = sorted(interpreter.get_input_details(), key=lambda detail: _number(detail["name"]))
    for detail, name in zip(taken, names, strict=True):
        interpreter.set_tensor(detail["index"], _codes(inputs[name], detail))
    signature = next(iter(interpreter.get_signature_list()))
    runner = interpreter.get_signature_runner(signature)
    given = runner.get_output_details()
    order = [given[key]["index"] for key in sorted(given, key=_number)]
    details = {detail["index"]: detail for detail in interpreter.get_output_details()}

    def read() -> list[Any]:
        return [_reals(interpreter.get_tensor(index), details[index]) for index in order]

    return interpreter.invoke, read, {"version": ai_edge_litert.__version__}


def _codes(array: Any, detail: dict[str, Any]) -> Any:
    """Reals as the codes a quantized input takes; other arrays in the input's type, which has 32 bits where ONNX has 64."""
    scale, zero = detail["quantization"]
    if not scale or array.dtype.kind != "f" or detail["dtype"] == np.float32:
        return array.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _reals(array: Any, detail: dict[str, Any]) -> Any:
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - zero) * scale if scale and array.dtype.kind == "i" else array


def _number(name: str) -> int:
    """The position in a name such as serving_default_args_0:0 or output_1."""
    return int(name.partition(":")[0].rpartition("_")[2])
