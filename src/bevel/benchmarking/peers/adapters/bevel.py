"""bevel's own artifact, called through ctypes with its inputs set once: reals are quantized, codes are copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bevel import __version__
from bevel.runtime.host import HostModel


def load(
    folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
) -> tuple[Callable[[], int], Callable[[], list[Any]], dict[str, str]]:
    """Open the artifact directory `folder`."""
    model = HostModel(folder, threads)
    model.follow_shapes(inputs)
    for tensor in model.inputs:
        array = inputs[tensor.name]
        if array.dtype.kind == "f":
            model.set_input_float(tensor.name, array)
        else:
            tensor.array[...] = array

    def read() -> list[Any]:
        codes = {t.name: t for t in model.output_tensors}
        real = model.outputs_float() if all(t.scale or t.array.dtype.kind == "f" for t in codes.values()) else model.outputs()
        return [real[name] for name in outputs]

    model.run()  # raises where the call below would only give a status
    features = model.artifact.manifest["target"]["required_features"]
    return model.bound_run(), read, {"version": __version__, "isa": " ".join(features)}
