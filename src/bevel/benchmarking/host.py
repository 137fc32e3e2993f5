"""Benchmarks on this machine: several measuring processes, each with the artifact and its peers interleaved."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.benchmarking.statistics import Latency, summarize
from bevel.compiler import Say
from bevel.data import save_arrays
from bevel.errors import ToolchainError, UsageError
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]
PROCESSES = 5
BLOCKS = 60


@dataclass(frozen=True)
class Contest:
    """Latencies of one interleaved run.

    Attributes:
        ours: the artifact.
        peers: by name.
        ratios: median over processes of (peer median / our median): above 1, bevel is faster.
    """

    ours: Latency
    peers: Mapping[str, Latency]
    ratios: Mapping[str, float]


def measure_host(
    artifact: Artifact,
    inputs: Mapping[str, Array],
    peers: Mapping[str, tuple[str, Path, Mapping[str, Array]]],
    *,
    threads: int,
    processes: int = PROCESSES,
    blocks: int = BLOCKS,
    say: Say | None = None,
) -> Contest:
    """Measure `artifact`, and peers, on this machine.

    Args:
        artifact: for this machine's ISA.
        inputs: what it runs on.
        peers: name -> (engine, model file, inputs).
        threads: for every contestant.
        processes: measuring processes; the interval is taken over them.
        blocks: interleaved blocks in each.
        say: progress.

    Raises:
        ToolchainError: a measuring process failed; its message is in the error.
    """
    with tempfile.TemporaryDirectory(prefix="bevel-bench-") as folder:
        contestants: dict[str, dict[str, str]] = {}
        everyone = {"bevel": ("bevel", artifact.path, inputs), **peers}
        for index, (name, (engine, model, arrays)) in enumerate(everyone.items()):
            file = save_arrays(Path(folder) / f"{index}.npz", arrays)
            contestants[name] = {"engine": engine, "model": str(model), "inputs": str(file)}
        job = json.dumps({"threads": threads, "blocks": blocks, "contestants": contestants})
        runs = []
        for done in range(processes):
            runs.append(_process(job))
            if say is not None:
                say("measure", done + 1, processes)
    latency = {name: summarize([run[name] for run in runs]) for name in contestants}
    ratios = {
        name: float(np.median([np.median(run[name]) / np.median(run["bevel"]) for run in runs]))
        for name in contestants
        if name != "bevel"
    }
    return Contest(latency.pop("bevel"), latency, ratios)


def _process(job: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "bevel.benchmarking.worker"]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolchainError(
            f"a measuring process failed: {done.stderr.strip().splitlines()[-1] if done.stderr else 'no message'}"
        )
    result: dict[str, list[float]] = json.loads(done.stdout)
    return result


def find_peers(
    names: Sequence[str],
    model: Path | None,
    artifact: Artifact,
    inputs: Mapping[str, Array],
    calibration: Path | None,
    folder: Path,
) -> dict[str, tuple[str, Path, Mapping[str, Array]]]:
    """Set up the peers of `--against`.

    `onnxruntime` runs the model file as it is. `onnxruntime-int8` runs it after onnxruntime's own static quantization (QDQ,
    per channel) with the same calibration data.

    Raises:
        UsageError: an unknown peer, or no model file or calibration data for it.
        ToolchainError: the peer is not installed.
    """
    peers: dict[str, tuple[str, Path, Mapping[str, Array]]] = {}
    for name in names:
        if name not in ("onnxruntime", "onnxruntime-int8"):
            raise UsageError(f"--against {name}: known peers are onnxruntime and onnxruntime-int8")
        if model is None:
            raise UsageError(f"--against {name}: give the model it should run with --model MODEL.onnx")
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise ToolchainError(f"--against {name}: onnxruntime is not installed: pip install 'bevel[peers]'") from error
        path = model
        if name == "onnxruntime-int8":
            if calibration is None:
                raise UsageError("--against onnxruntime-int8: give the calibration data with --calib DATA.npz")
            path = _quantize_onnx(model, artifact, calibration, folder)
        peers[name] = ("onnxruntime", path, inputs)
    return peers


def _quantize_onnx(model: Path, artifact: Artifact, calibration: Path, folder: Path) -> Path:
    """The model after onnxruntime's static quantization on the first 100 calibration samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from bevel.data import open_data
    from bevel.evaluation import artifact_inputs

    data = open_data(calibration, artifact_inputs(artifact))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Feeds samples one by one."""

        def __init__(self) -> None:
            self._samples = iter(data.batches(1, 100))

        def get_next(self) -> dict[str, Array] | None:
            """The next sample, None at the end."""
            return next(self._samples, None)

    prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return quantized
