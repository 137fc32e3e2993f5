"""From a model file to an artifact: the pipeline of `bevel compile`.

In: an ONNX file, a saved graph (.ir) or another artifact, a device profile, bits and calibration data. Out: an artifact
directory. The stages are `load_graph`, `prepare` (canonical FLOAT, or INTEGER through calibration), `lower`, kernels to
objects, link. The finished artifact is cached by the content of everything that went in.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel import __version__
from bevel.data import DataSet, inputs_of, open_data
from bevel.devices.profile import Profile, load_profile
from bevel.errors import ArtifactError, CalibrationError, UsageError
from bevel.ir.graph import Graph, Level
from bevel.ir.types import Dim, Float, Int, Quant
from bevel.runtime.artifact import MANIFEST, Artifact

Array = npt.NDArray[Any]
Say = Callable[[str, int, int], None]

GOLDEN_CASES = 2
CALIBRATION_BATCH = 64
# How far a golden input drawn at random reaches: normalized images lie within it.
_RANDOM_RANGE = 2.0


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Progress for callers that show none."""


@dataclass(frozen=True)
class Options:
    """What decides an artifact besides the model.

    Attributes:
        device: profile name or TOML path.
        bits: "fp32" or "8" (= "w8a8").
        calibration: data set path; needed to quantize a float model.
        samples: how many calibration samples to use at most.
        method: calibration method.
        dims: extents of symbolic dimensions; a leading batch dimension is 1 unless given.
        plan: path of a CompressionPlan.
    """

    device: str
    bits: str = "8"
    calibration: Path | None = None
    samples: int = 256
    method: str = "minmax"
    dims: Mapping[str, int] = field(default_factory=dict)
    plan: Path | None = None


def load_graph(model: Path) -> Graph:
    """The graph of an ONNX file, a saved graph or an artifact, as stored.

    Raises:
        UsageError: there is no such file.
        UnsupportedModel: it is damaged or asks for what bevel does not implement.
    """
    if model.is_dir():
        artifact = Artifact.open(model)
        if artifact.graph is None:
            raise ArtifactError(f"{model}: holds no graph to compile from; compile the original model")
        model = artifact.graph
    if not model.is_file():
        raise UsageError(f"{model}: no such file; expected an .onnx model, a saved graph (.ir) or an artifact directory")
    if model.suffix == ".ir":
        from bevel.ir.serialize import load_graph as load_saved

        return load_saved(model)
    from bevel.frontend.onnx import import_onnx

    graph = import_onnx(model)
    graph.name = model.stem
    return graph


def prepare(graph: Graph, options: Options, say: Say = _silent) -> Graph:
    """Canonicalize and, for 8 bits, quantize to INTEGER.

    Raises:
        CalibrationError: a float model is to be quantized without, or with unfit, calibration data.
        UsageError: bits that the model's level does not allow.
    """
    from bevel.passes.canonicalize import canonicalize

    if graph.level is not Level.INTEGER:
        graph = canonicalize(graph)
    fp32, eight = options.bits in ("fp32", "32"), options.bits in ("8", "w8a8")
    if not fp32 and not eight:
        raise UsageError(f"--bits {options.bits}: this version compiles fp32 and 8 (w8a8)")
    if fp32:
        if graph.level is not Level.FLOAT:
            raise UsageError(f"{graph.name!r} is already quantized: compile it with --bits 8")
        return graph
    if graph.level is Level.INTEGER:
        return graph
    from bevel.passes.quantize.calibrate import Calibrate
    from bevel.passes.quantize.to_integer import ToInteger

    if graph.level is Level.FLOAT:
        if options.calibration is None:
            raise CalibrationError(
                f"{graph.name!r} is a float model: --bits 8 needs --calib DATA.npz with arrays named "
                f"{[v.name for v in graph.inputs]} to measure its activations"
            )
        data = open_data(options.calibration, inputs_of(graph))
        total = min(options.samples, len(data))
        calibrate = Calibrate(
            options.method,
            data.batches(CALIBRATION_BATCH, options.samples),
            progress=lambda done: say("calibrate", min(done * CALIBRATION_BATCH, total), total),
        )
        graph = calibrate.run(graph)
    return ToInteger().run(graph)


def bind(graph: Graph, dims: Mapping[str, int]) -> Graph:
    """`graph` without symbolic dimensions: those of `dims`, and 1 for a leading batch axis.

    Raises:
        UsageError: a dimension stays unbound, or `dims` names one that the model does not have.
    """
    from bevel.passes.bind_dims import bind_dims

    known = {d.name for v in graph.inputs for d in v.type.shape if isinstance(d, Dim)}
    if unknown := sorted(set(dims) - known):
        raise UsageError(f"--dim {unknown[0]}: the model's symbolic dimensions are {sorted(known) or 'none'}")
    bound = dict(dims)
    for value in graph.inputs:
        for axis, dim in enumerate(value.type.shape):
            if isinstance(dim, Dim) and axis == 0:
                bound.setdefault(dim.name, 1)
    if left := sorted(known - set(bound)):
        raise UsageError(f"dimension {left[0]!r} of {graph.name!r} is symbolic: give it with --dim {left[0]}=N")
    return bind_dims(graph, bound)


def compile_model(model: str | Path, output: str | Path, options: Options, say: Say = _silent) -> tuple[Artifact, float]:
    """Compile `model` into the artifact directory `output`.

    Args:
        model: .onnx, .ir or artifact directory.
        output: by convention NAME.bevel; replaced if it is an artifact.
        options: device, bits, data.
        say: progress: (stage, done, total).

    Returns:
        The artifact and the seconds it took.

    Raises:
        BevelError: a subclass says what is wrong with the model, the data, the options or the toolchain.
    """
    start = time.monotonic()
    model, output = Path(model), Path(output)
    profile = load_profile(options.device)
    if options.plan is not None:
        from bevel.ir.plan import load_plan

        load_plan(options.plan)
    key = _cache_key(model, profile, options)
    cached = _artifact_cache() / key
    if (cached / MANIFEST).is_file():
        _copy_artifact(cached, output)
        return Artifact.open(output), time.monotonic() - start
    say("import", 0, 1)
    graph = bind(prepare(load_graph(model), options, say), options.dims)
    artifact = build(graph, profile, output, options, provenance=_provenance(model, options, key), say=say)
    _copy_artifact(output, cached)
    return artifact, time.monotonic() - start


def build(
    graph: Graph,
    profile: Profile,
    output: Path,
    options: Options,
    *,
    provenance: Mapping[str, Any] | None = None,
    say: Say = _silent,
) -> Artifact:
    """Turn a static FLOAT or INTEGER graph into an artifact for one device."""
    from bevel.backends.lower import lower
    from bevel.backends.objects import compile_kernels
    from bevel.ir.serialize import dumps
    from bevel.ir.verify import float_islands, is_integer_only, verify
    from bevel.runtime.artifact import write_artifact

    verify(graph)
    say("lower", 0, 1)
    schedule = lower(graph, profile.target())
    objects = compile_kernels(schedule.kernels, schedule.target, progress=lambda done, total: say("kernels", done, total))
    say("link", 0, 1)
    islands = [node.loc or node.outputs[0].name for island in float_islands(graph) for node in island]
    return write_artifact(
        output,
        schedule,
        objects,
        golden=golden_cases(graph, options),
        provenance=provenance or {"bevel": __version__},
        graph_bytes=dumps(graph),
        integer_only=is_integer_only(graph),
        float_islands=islands if graph.level is Level.INTEGER else [],
        fields={"memory": [vars(lifetime) for lifetime in schedule.lifetimes]},
    )


def golden_cases(graph: Graph, options: Options) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """Self-test cases: inputs from the calibration data, else drawn from a fixed seed; outputs by the interpreter."""
    from bevel.ir import interp

    data: DataSet | None = None
    if options.calibration is not None:
        data = open_data(options.calibration, inputs_of(graph))
    cases = []
    for index in range(GOLDEN_CASES):
        inputs = {}
        rng = np.random.default_rng(index)
        for value in graph.inputs:
            if data is not None:
                array = data.sample(index % len(data))[value.name]
                array = interp.boundary_codes(value, array) if isinstance(value.type.elem, Quant) else array
            else:
                array = _random_input(value.type.elem, value.type.static_shape, rng)
            inputs[value.name] = array.astype(value.type.dtype)
        cases.append((inputs, interp.run(graph, inputs)))
    return cases


def _random_input(elem: object, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if isinstance(elem, Quant):
        return rng.integers(elem.storage.min, elem.storage.max + 1, shape)
    if isinstance(elem, Float):
        return rng.uniform(-_RANDOM_RANGE, _RANDOM_RANGE, shape)
    if isinstance(elem, Int):
        return rng.integers(0, 2, shape)
    return rng.integers(0, 2, shape).astype(bool)


# Cache ---------------------------------------------------------------------------------------------------------------


def _artifact_cache() -> Path:
    from bevel.backends.objects import cache_dir

    return cache_dir() / "artifacts"


@cache
def source_digest() -> str:
    """Hash of all of bevel's own source, so that no cached artifact outlives a change of the compiler."""
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(
        p for folder in (root, *(f.resolve() for f in root.iterdir() if f.is_symlink())) for p in folder.rglob("*")
    ):
        if path.suffix in (".py", ".c", ".h") and path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _hash_file(path: Path, digest: Any) -> None:
    """Feed a file, or every file of a directory, into `digest`; a missing one is reported by whoever opens it."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())


def _cache_key(model: Path, profile: Profile, options: Options) -> str:
    digest = hashlib.sha256(source_digest().encode())
    _hash_file(model, digest)
    # External data of an ONNX model lies beside it; hashing the folder's .data files keeps the key honest.
    if model.is_file():
        for side in sorted([*model.parent.glob("*.data"), *model.parent.glob("*.bin")]):
            _hash_file(side, digest)
    digest.update(repr((profile.target(), options.bits, options.samples, options.method, sorted(options.dims.items()))).encode())
    for path in (options.calibration, options.plan):
        if path is not None:
            _hash_file(path, digest)
    return digest.hexdigest()[:32]


def _copy_artifact(source: Path, target: Path) -> None:
    """Copy an artifact directory so that the target appears whole or not at all."""
    if target.exists() and not (target / MANIFEST).is_file():
        raise ArtifactError(f"{target}: exists and is not an artifact; choose another -o or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _provenance(model: Path, options: Options, key: str) -> dict[str, Any]:
    from importlib import metadata

    return {
        "bevel": __version__,
        "tvm": metadata.version("apache-tvm"),
        "model": model.name,
        "key": key,
        "bits": options.bits,
        "calibration": {"method": options.method, "samples": options.samples} if options.calibration else None,
    }
