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
from bevel.benchmarking.worker import Measured
from bevel.compiler import Say, load_graph
from bevel.data import save_arrays
from bevel.errors import ToolchainError, UsageError
from bevel.ir.graph import Level
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]
PROCESSES = 5
ROUNDS = 60


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
    rounds: int = ROUNDS,
    say: Say | None = None,
) -> Contest:
    """Measure `artifact`, and peers, on this machine.

    Args:
        artifact: for this machine's ISA.
        inputs: what it runs on.
        peers: name -> (engine, model file, inputs).
        threads: for every contestant.
        processes: measuring processes; the interval is taken over them, and up to as many more narrow it when it is wide.
        rounds: interleaved rounds in each, one block of every contestant.
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
        job = json.dumps({"threads": threads, "rounds": rounds, "contestants": contestants})
        runs: list[Measured] = []
        latency: dict[str, Latency] = {}
        # More processes while the interval is too wide to quote, up to twice as many.
        while len(runs) < processes or (len(runs) < 2 * processes and processes > 1 and latency["bevel"].unstable):
            runs.append(_process(job))
            disturbed = [run.disturbed for run in runs]
            latency = {
                name: summarize([run.wall_ms[name] for run in runs], [run.cpu_ms[name] for run in runs], disturbed)
                for name in contestants
            }
            if say is not None:
                say("measure", len(runs), max(processes, len(runs)))
    ratios = {
        name: float(np.median([np.median(run.wall_ms[name]) / np.median(run.wall_ms["bevel"]) for run in runs])) for name in peers
    }
    return Contest(latency.pop("bevel"), latency, ratios)


def _process(job: str) -> Measured:
    command = [sys.executable, "-m", "bevel.benchmarking.worker"]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise ToolchainError(f"a measuring process failed: {last[0]}")
    return Measured(**json.loads(done.stdout))


PEERS = ("onnxruntime", "onnxruntime-int8")


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

    Args:
        names: of PEERS.
        model: the ONNX file they run.
        artifact: what they are compared with.
        inputs: what they run on.
        calibration: data set for onnxruntime-int8.
        folder: where files may be put that live as long as the measurement.

    Returns:
        Name -> (engine, model file, inputs).

    Raises:
        UsageError: an unknown peer, or no model file or calibration data for it.
        ToolchainError: the peer is not installed, or cannot quantize the model.
    """
    peers: dict[str, tuple[str, Path, Mapping[str, Array]]] = {}
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--against {name}: known peers are {' and '.join(PEERS)}")
        if model is None:
            source = artifact.manifest["provenance"].get("model", "MODEL.onnx")
            raise UsageError(f"--against {name}: give the model it should run, --model {source}")
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise ToolchainError(f"--against {name}: onnxruntime is not installed: pip install 'bevel[peers]'") from error
        path = model
        if name == "onnxruntime-int8":
            if calibration is None:
                raise UsageError(f"--against {name}: give its calibration data, --calib DATA.npz")
            path = _quantize_onnx(model, artifact, calibration, folder)
        peers[name] = ("onnxruntime", path, inputs)
    return peers


def _quantize_onnx(model: Path, artifact: Artifact, calibration: Path, folder: Path) -> Path:
    """The model after onnxruntime's static quantization on the first 100 calibration samples."""
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        NotImplemented,
        RuntimeException,
    )
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from bevel.data import open_data
    from bevel.evaluation import artifact_inputs

    if load_graph(model, pad_nms=True).level is not Level.FLOAT:
        raise UsageError(f"--against onnxruntime-int8: {model} is quantized already; --against onnxruntime runs it as it is")
    data = open_data(calibration, artifact_inputs(artifact))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Feeds samples one by one."""

        def __init__(self) -> None:
            self._samples = iter(data.batches(1, 100))

        def get_next(self) -> dict[str, Array] | None:
            """The next sample, None at the end."""
            return next(self._samples, None)

    prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
    try:
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
    except (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException, ValueError, TypeError, OSError) as error:
        raise ToolchainError(f"--against onnxruntime-int8: onnxruntime cannot quantize {model}: {error}") from error
    return quantized
