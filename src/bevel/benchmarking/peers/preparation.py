"""From `--against` to contestants: the engine's environment, its own files of the model, and the cap of its instruction set.

In: names, the ONNX file, calibration data. Out: `Contestant`s. Prepared files are kept in the cache by the content of everything
that went into them: the model, the calibration samples, the engine and its adapter.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.backends.objects import cache_dir
from bevel.benchmarking.peers.contest import Contestant
from bevel.benchmarking.peers.engines import CONTESTANTS, ISAS, Engine
from bevel.benchmarking.peers.environment import ensure_environment
from bevel.benchmarking.peers.process import WorkerProcess
from bevel.compiler import Say, load_graph
from bevel.data import open_data, save_arrays
from bevel.errors import ToolchainError, UsageError
from bevel.evaluation import artifact_inputs
from bevel.frontend.onnx_file import read_onnx
from bevel.ir import interp
from bevel.ir.graph import Level
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]
# As many as onnxruntime's and NNCF's examples use; more change little and take minutes.
CALIBRATION_SAMPLES = 100


def find_peers(
    names: Sequence[str],
    model: Path | None,
    artifact: Artifact,
    inputs: Mapping[str, Array],
    calibration: Path | None,
    *,
    isa: str | None = None,
    say: Say | None = None,
) -> dict[str, Contestant]:
    """Set up the peers of `--against`.

    A plain name runs the model file as it is, NAME-int8 what the engine's own quantizer makes of it with the calibration data.

    Args:
        names: of CONTESTANTS.
        model: the ONNX file they run.
        artifact: what they are compared with.
        inputs: what they run on.
        calibration: data set for int8.
        isa: keep engines within this instruction set; one that cannot be capped stays as it is, `capped` False.
        say: progress of installations and conversions.

    Returns:
        By name.

    Raises:
        UsageError: an unknown peer, or no model file or calibration data for it.
        ToolchainError: the engine cannot be installed, or cannot convert, quantize or run the model.
    """
    peers: dict[str, Contestant] = {}
    for name in names:
        if name not in CONTESTANTS:
            raise UsageError(f"--against {name}: known peers are {', '.join(CONTESTANTS)}")
        if model is None:
            source = artifact.manifest["provenance"].get("model", "MODEL.onnx")
            raise UsageError(f"--against {name}: give the model it should run, --model {source}")
        engine, precision = CONTESTANTS[name]
        samples: list[dict[str, Array]] = []
        if precision == "int8":
            if calibration is None:
                raise UsageError(f"--against {name}: give its calibration data, --calib DATA.npz")
            if load_graph(model, pad_nms=True).level is not Level.FLOAT:
                raise UsageError(f"--against {name}: {model} is quantized already; --against {engine.name} runs it as it is")
            data = open_data(calibration, artifact_inputs(artifact))
            samples = [data.sample(index) for index in range(min(len(data), CALIBRATION_SAMPLES))]
        env = engine.caps.get(isa or "", {})
        python = engine_python(engine, say)
        folder = _prepared(name, engine, precision, model, inputs, samples, say)
        peers[name] = Contestant(name, python, engine.name, folder, inputs, _outputs(model), env, capped=bool(env))
    return peers


def engine_python(engine: Engine, say: Say | None = None) -> Path:
    """The interpreter that runs an engine: bevel's own where its extra is installed, else that of the engine's environment.

    Raises:
        ToolchainError: the environment cannot be made.
    """
    if engine.extra is not None and importlib.util.find_spec(engine.extra) is not None:
        return Path(sys.executable)
    return ensure_environment(f"{engine.name}-{engine.version}", engine.packages, engine.alone, say).python


def hold_to(names: Sequence[str], isa: str | None, artifact: Artifact) -> tuple[list[str], list[str]]:
    """The peers that can be held to an instruction set, and those that nothing holds; all can where `isa` is None.

    Raises:
        UsageError: the artifact itself needs more, or nothing holds any of them.
    """
    if isa is None:
        return list(names), []
    beyond = set(artifact.manifest["target"]["required_features"]) - ISAS[isa]
    if beyond:
        needs = ", ".join(sorted(beyond))
        raise UsageError(f"--isa {isa}: {artifact.name} needs {needs}; compile it with --device x86-64-{isa}")
    out = [name for name in names if name in CONTESTANTS and isa not in CONTESTANTS[name][0].caps]
    if len(out) == len(names):
        raise UsageError(f"--isa {isa}: nothing holds {', '.join(out)} to it; without --isa they are measured as they are")
    return [name for name in names if name not in out], out


def reference_outputs(model: Path, inputs: Mapping[str, Array], artifact: Artifact) -> list[Array] | None:
    """What the model computes, by the numpy interpreter: fp32, or fake quantization of a model that comes quantized.

    None for a model whose outputs change their size with the data.
    """
    if any(layer["op"] == "NonMaxSuppression" for layer in artifact.manifest["layers"]):
        return None
    # Tables of a model may be as long as its bounds, so it needs those that the artifact has.
    bounds = _actual_extents(model, inputs)
    bounds |= {str(dim["name"]): (int(dim["lo"]), int(dim["hi"])) for dim in artifact.manifest["dims"]}
    graph = load_graph(model, bounds)
    return [np.asarray(array) for array in interp.run(graph, dict(inputs)).values()]


def _actual_extents(model: Path, inputs: Mapping[str, Array]) -> dict[str, tuple[int, int]]:
    """What `inputs` make of the symbolic dimensions of an ONNX file, but for leading ones: those are batches, which are bound."""
    extents: dict[str, tuple[int, int]] = {}
    if model.is_dir() or model.suffix == ".ir":
        return extents
    for value in read_onnx(model).model.graph.inputs:
        for axis, extent in enumerate(value.shape or ()):
            if axis and not isinstance(extent, int) and extent.value is not None and str(value.name) in inputs:
                extents[str(extent.value)] = (inputs[str(value.name)].shape[axis],) * 2
    return extents


def _outputs(model: Path) -> tuple[str, ...]:
    return tuple(value.name for value in load_graph(model, pad_nms=True).outputs)


def _tools_python(engine: Engine, precision: str, say: Say | None) -> Path:
    """The interpreter that prepares models."""
    if precision not in engine.tooled or (engine.extra is not None and importlib.util.find_spec(engine.extra) is not None):
        return engine_python(engine, say)
    name = f"{engine.name}-{engine.version}-tools"
    return ensure_environment(name, (*engine.packages, *engine.tools), engine.alone, say).python


def _prepared(
    name: str,
    engine: Engine,
    precision: str,
    model: Path,
    inputs: Mapping[str, Array],
    samples: Sequence[Mapping[str, Array]],
    say: Say | None,
) -> Path:
    """The folder with the engine's files."""
    from bevel.frontend.external_files import external_files

    files = [model, *external_files(model)]
    shapes = {key: list(array.shape) for key, array in inputs.items()}
    folder = cache_dir() / "prepared" / _key(engine, precision, files, shapes, samples)
    if folder.is_dir():
        os.utime(folder)
        return folder
    python = _tools_python(engine, precision, say)
    if say is not None:
        say(f"convert for {name}", 0, 1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tempfile.TemporaryDirectory(prefix="bevel-samples-") as scratch:
            paths = []
            for index, sample in enumerate(samples):
                paths.append(str(Path(scratch) / f"{index:04}.npz"))
                save_arrays(Path(paths[-1]), sample)
            label = f"--against {name}: {engine.name} {engine.version} cannot take {model}"
            with WorkerProcess(label, python, engine.name) as worker:
                worker.ask(
                    "prepare",
                    files=[str(file.resolve()) for file in files],
                    precision=precision,
                    shapes=shapes,
                    samples=paths,
                    folder=str(work),
                )
        try:
            work.rename(folder)
        except OSError as error:
            # Another process was faster: rename does not replace a directory that holds files.
            if not folder.is_dir():
                raise ToolchainError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if say is not None:
        say(f"convert for {name}", 1, 1)
    return folder


def _key(
    engine: Engine,
    precision: str,
    files: Sequence[Path],
    shapes: Mapping[str, Sequence[int]],
    samples: Sequence[Mapping[str, Array]],
) -> str:
    adapters = Path(__file__).with_name("adapters")
    sources = [(adapters / f"{name}.py").read_bytes() for name in (engine.name, "onnx_to_torch")]
    packages = [*engine.packages, *engine.alone, *engine.tools]
    if engine.extra is not None and importlib.util.find_spec(engine.extra) is not None:
        packages = [importlib.metadata.version(engine.extra)]
    digest = hashlib.sha256(json.dumps([packages, precision, shapes]).encode())
    for source in sources:
        digest.update(source)
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    for sample in samples:
        for key, array in sorted(sample.items()):
            digest.update(f"{key} {array.dtype} {array.shape}\0".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
