"""onnxruntime: the ONNX file as it is, or after its own static quantization (QDQ, per channel); all graph optimizations on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


def prepare(files: list[Path], precision: str, shapes: dict[str, list[int]], samples: list[Path], folder: Path) -> None:
    """Copy the model, or quantize it."""
    if precision == "fp32":
        # External data is found by its name beside the model.
        shutil.copy(files[0], folder / "model.onnx")
        for file in files[1:]:
            shutil.copy(file, folder / file.name)
        return
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Feeds samples one by one."""

        def __init__(self) -> None:
            self._files = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            """The next sample, None at the end."""
            file = next(self._files, None)
            return None if file is None else dict(np.load(file))

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(files[0]), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(folder / "model.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def load(
    folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
) -> tuple[Callable[[], None], Callable[[], list[Any]], dict[str, str]]:
    """A session with bound inputs and outputs."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    # Its threads spin within a run, as by default, but not on while the others have their turn.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for spec in session.get_inputs():
        binding.bind_cpu_input(spec.name, inputs[spec.name])
    for name in outputs:
        binding.bind_output(name, "cpu")

    def call() -> None:
        session.run_with_iobinding(binding)

    return call, binding.copy_outputs_to_cpu, {"version": ort.__version__}
