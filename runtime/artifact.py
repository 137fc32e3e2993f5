"""NAME.bevel/: everything one model needs on one device, written atomically and checked when opened.

    manifest.json  lib/libmodel.so  lib/libmodel.a  bin/bevel-run  include/model.h  example.c  weights.bin
    selftest/CASE.in.INDEX.npy  selftest/CASE.out.INDEX.npy  [graph.ir.zst]  [any other file given]

A large self-test input that consists of blocks of equal elements is stored with one element for each.

The manifest is for tools; the device never reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.backends.schedule import Cascade, IoTensor, Schedule, Step
from bevel.errors import ArtifactError, UsageError
from bevel.ir.serialize import CodeSpan
from bevel.runtime import custom
from bevel.runtime.codegen import C_DIR, check_schedule, model_c, model_h, required_features
from bevel.runtime.graph_file import pack_graph, unpack_graph
from bevel.runtime.manifest import CORE_FILES, FORMAT, FORMAT_VERSION, GRAPH_FILE, MANIFEST, read_manifest
from bevel.runtime.toolchain import Toolchain, find_toolchain, link, runtime_digest
from bevel.runtime.weights import HEADER_BYTES, weights_image

__all__ = ["LARGE_INPUT_BYTES", "MANIFEST", "Artifact", "replacing", "write_artifact"]

# Self-test inputs of more bytes are looked at for blocks of equal elements.
LARGE_INPUT_BYTES = 16 * 1024
# A stored input that stands for more than this is hostile.
_MOST_INPUT_BYTES = 1 << 30

Array = npt.NDArray[Any]
Golden = Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk.

    Attributes:
        path: its directory.
        manifest: contents of manifest.json.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Artifact:
        """Open an artifact directory; `verify` compares the hash of every file (else only presence and size).

        Raises:
            ArtifactError: not an artifact, of another format version, incomplete or damaged; names the file.
        """
        root = Path(path)
        manifest = read_manifest(root)
        for name, entry in manifest["files"].items():
            file = root / _safe_name(name, root)
            if not file.is_file() or file.is_symlink():
                raise ArtifactError(f"{file}: missing; copy or compile the artifact again")
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise ArtifactError(
                    f"{file}: {size} bytes, the manifest says {entry['bytes']}; copy or compile the artifact again"
                )
            if verify and _sha256(file) != entry["sha256"]:
                raise ArtifactError(f"{file}: damaged (SHA-256 differs from the manifest); copy or compile the artifact again")
        return cls(root, manifest)

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.manifest["name"])

    @property
    def arch(self) -> str:
        """Architecture the code is for."""
        return str(self.manifest["target"]["arch"])

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.path / "lib" / "libmodel.so"

    @property
    def runner(self) -> Path:
        """The statically linked program."""
        return self.path / "bin" / "bevel-run"

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.path / "weights.bin"

    @property
    def states(self) -> dict[str, str]:
        """The inputs that a run leaves the next, and the outputs they take."""
        return {str(state["input"]): str(state["output"]) for state in self.manifest["states"]}

    def check_inputs(self, names: Iterable[str]) -> None:
        """Check that every input is among `names`, states excepted, and nothing else.

        Raises:
            UsageError: names what is given and what the model takes.
        """
        given, known = set(names), {str(tensor["name"]) for tensor in self.manifest["inputs"]}
        if not known - self.states.keys() <= given <= known:
            optional = f"; optional, because kept from run to run: {sorted(self.states)}" if self.states else ""
            raise UsageError(f"inputs {sorted(given)} given, {self.name!r} takes {sorted(known)}{optional}")

    @property
    def graph(self) -> Path | None:
        """The serialised graph, compressed, where the artifact holds it."""
        return self.path / GRAPH_FILE if GRAPH_FILE in self.manifest["files"] else None

    def extents(self, dims: Mapping[str, int]) -> dict[str, int]:
        """The extent of every dimension: those of `dims`, the largest for the others.

        Raises:
            UsageError: the artifact has no such dimension, or the extent is outside its bounds.
        """
        bounds = {str(dim["name"]): (int(dim["lo"]), int(dim["hi"])) for dim in self.manifest["dims"]}
        for name, extent in dims.items():
            if name not in bounds:
                known = ", ".join(bounds) or "none: compile it with --dim NAME=LO:HI"
                raise UsageError(f"--dim {name}={extent}: the dimensions of {self.name} are {known}")
            lo, hi = bounds[name]
            if not lo <= extent <= hi:
                raise UsageError(f"--dim {name}={extent}: {self.name} was compiled for {lo}..{hi}")
        return {name: dims.get(name, hi) for name, (_, hi) in bounds.items()}

    def input_shapes(self, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs at the extents `dims`; see `extents`."""
        values = self.extents(dims)
        return {
            str(tensor["name"]): tuple(
                values[name] if name else int(extent) for extent, name in zip(tensor["shape"], tensor["dims"], strict=True)
            )
            for tensor in self.manifest["inputs"]
        }

    def graph_bytes(self) -> bytes:
        """The serialised graph (`bevel.ir.serialize.loads`).

        Raises:
            ArtifactError: the artifact holds none, or it is damaged.
        """
        if self.graph is None:
            raise ArtifactError(f"{self.path}: holds no graph to compile from; compile the original model")
        try:
            return unpack_graph(self.graph.read_bytes(), self.weights.read_bytes()[HEADER_BYTES:])
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.graph}: cannot be unpacked ({error}); copy or compile the artifact again") from error

    def golden(self) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """The self-test's inputs and expected outputs, by tensor name, in the stored dtypes.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        cases = []
        for case in range(int(self.manifest["golden_cases"])):
            sides = []
            for kind, key in (("in", "inputs"), ("out", "outputs")):
                names = [str(tensor["name"]) for tensor in self.manifest[key]]
                files = [self.path / "selftest" / f"{case}.{kind}.{index}.npy" for index in range(len(names))]
                try:
                    sides.append({name: np.load(file, allow_pickle=False) for name, file in zip(names, files, strict=True)})
                    if kind == "in":
                        for tensor in self.manifest[key]:
                            if not any(tensor["dims"]):
                                sides[-1][tensor["name"]] = _unfolded(sides[-1][tensor["name"]], tensor["shape"])
                except (OSError, ValueError) as error:
                    raise ArtifactError(f"{self.path}: self-test case {case} cannot be read ({error}); copy it again") from error
            cases.append((sides[0], sides[1]))
        return cases

    def update(self, files: Mapping[str, bytes] | None = None, **fields: Any) -> Artifact:
        """Add `files` (a report) and manifest `fields` (plan, quality) to the artifact; return it reopened.

        Raises:
            UsageError: a field that the writer owns, or an unsafe file name.
        """
        _refuse_owned(fields)
        manifest = {**self.manifest, **fields, "files": dict(self.manifest["files"])}
        for name, data in (files or {}).items():
            if name in _WRITTEN:
                raise UsageError(f"{name} belongs to the artifact writer")
            _put(self.path, name, data)
            manifest["files"][name] = _entry(self.path / name)
        partial = self.path / f".{MANIFEST}.tmp"
        partial.write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(partial, self.path / MANIFEST)
        return Artifact(self.path, manifest)


_WRITTEN = CORE_FILES | {GRAPH_FILE, MANIFEST}
_OWNED = frozenset(
    {
        "format",
        "format_version",
        "name",
        "target",
        "graph_hash",
        "level",
        "layers",
        "dims",
        "states",
        "inputs",
        "outputs",
        "files",
        "golden_cases",
    }
)


def write_artifact(
    path: str | Path,
    schedule: Schedule,
    objects: Mapping[str, bytes],
    *,
    golden: Golden,
    provenance: Mapping[str, Any],
    graph_bytes: bytes | None = None,
    graph_codes: Sequence[CodeSpan] = (),
    integer_only: bool = False,
    float_islands: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    fields: Mapping[str, Any] | None = None,
    toolchain: Toolchain | None = None,
) -> Artifact:
    """Link `schedule` with kernel `objects` (symbol -> relocatable ELF) and write the artifact directory `path`.

    The directory appears whole or not at all. An artifact already there is replaced; anything else there is left alone.

    Args:
        path: where to write; by convention ends in ".bevel".
        schedule: what to run.
        objects: machine code of every kernel of the schedule.
        golden: self-test cases: ({input name: array}, {output name: array}) in the stored dtypes and shapes, of any extents
            within the bounds. At least one.
        provenance: how the artifact came about (versions, command, source model), as JSON.
        graph_bytes: the serialised graph `schedule.graph_hash` belongs to.
        graph_codes: where `graph_bytes` has codes of fewer than 8 bits.
        integer_only: the graph has no float operator.
        float_islands: layers computed in float.
        files: further files, by relative name (report.html).
        fields: further manifest fields (plan, quality).
        toolchain: None finds one for the target.

    Raises:
        ArtifactError: something that is not an artifact is in the way.
        UsageError: golden data does not fit the model, or `path` cannot be written.
        ToolchainError: no compiler, or it failed.
        ValueError: the schedule breaks its contract.
    """
    root = Path(path).absolute()
    compiled = [k.symbol for k in schedule.kernels if not custom.is_custom(k)]
    check_schedule(schedule, {*objects, *(k.symbol for k in schedule.kernels if custom.is_custom(k))})
    cases = [_golden_files(schedule, case, inputs, outputs) for case, (inputs, outputs) in enumerate(golden)]
    _refuse_owned(fields or {})
    if not cases:
        raise UsageError("an artifact needs at least one golden case: without it no device can prove that it computes the same")
    if root.exists():
        read_manifest(root)
    tools = toolchain or find_toolchain(schedule.target.arch)
    with replacing(root) as work:
        for folder in ("lib", "bin", "include", "selftest"):
            (work / folder).mkdir()
        linked = link(tools, model_c(schedule), {s: objects[s] for s in compiled}, work / "lib", custom.sources(schedule.kernels))
        linked.runner.rename(work / "bin" / "bevel-run")
        contents: dict[str, bytes] = {
            "include/model.h": model_h(schedule).encode(),
            "example.c": (C_DIR / "example.c").read_bytes(),
            "weights.bin": weights_image(schedule),
        }
        if graph_bytes is not None:
            contents[GRAPH_FILE] = pack_graph(graph_bytes, schedule.stored, graph_codes)
        for case in cases:
            contents.update(case)
        for name in files or {}:
            if name in contents or name in _WRITTEN:
                raise UsageError(f"{name} belongs to the artifact writer")
        for name, data in {**contents, **(files or {})}.items():
            _put(work, name, data)
        names = sorted(p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file())
        entries = {name: _entry(work / name) for name in names}
        manifest = _manifest(schedule, entries, len(cases), tools, linked.runner_linkage)
        manifest |= {"integer_only": integer_only, "float_islands": list(float_islands), "provenance": dict(provenance)}
        manifest |= fields or {}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return Artifact.open(root, verify=False)


def _manifest(schedule: Schedule, entries: dict[str, Any], cases: int, tools: Toolchain, linkage: str) -> dict[str, Any]:
    target = schedule.target
    generators = {kernel.symbol: kernel.generator for kernel in schedule.kernels}
    library, weights = entries["lib/libmodel.so"]["bytes"], entries["weights.bin"]["bytes"]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": schedule.name,
        "target": {
            "name": target.name,
            "arch": target.arch,
            "cpu": target.cpu,
            "triple": target.triple,
            "features": sorted(target.features),
            "required_features": required_features(schedule),
        },
        "graph_hash": schedule.graph_hash,
        "level": schedule.level,
        "dims": [{"name": dim.name, "lo": dim.lo, "hi": dim.hi} for dim in schedule.dims],
        "states": [
            {"input": schedule.inputs[index].name, "output": schedule.outputs[output].name} for index, output in schedule.states
        ],
        "inputs": [_describe(tensor) for tensor in schedule.inputs],
        "outputs": [_describe(tensor) for tensor in schedule.outputs],
        "layers": [_layer(step, generators) for step in schedule.steps],
        "arena_bytes": schedule.arena_bytes,
        "scratch_bytes": schedule.scratch_bytes,
        "bytes": {"library": library, "weights": weights, "total": library + weights},
        "toolchain": tools.description,
        "runner": linkage,
        "runtime": runtime_digest(),
        "golden_cases": cases,
        "files": entries,
    }


def _layer(step: Step | Cascade, generators: Mapping[str, str]) -> dict[str, Any]:
    """What reports know of a step; a cascade also lists its `members`."""
    fields = {"name": step.layer, "op": step.op, "bits": step.bits, "macs": step.macs, "bytes": step.bytes}
    if isinstance(step, Step):
        return fields | {"kernel": generators[step.symbol], "symbol": step.symbol}
    members = [_layer(member, generators) for member in step.members]
    return fields | {key: "+".join(member[key] for member in members) for key in ("kernel", "symbol")} | {"members": members}


def _refuse_owned(fields: Mapping[str, Any]) -> None:
    owned = _OWNED & fields.keys()
    if owned:
        raise UsageError(f"manifest fields {', '.join(sorted(owned))} belong to the artifact writer")


def _describe(tensor: IoTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dims": [name or "" for name in tensor.dims] or [""] * len(tensor.shape),
        "dtype": tensor.dtype,
        "scale": tensor.scale,
        "zero_point": tensor.zero_point,
    }


def _fits(tensor: IoTensor, shape: tuple[int, ...], chosen: dict[str, int]) -> bool:
    """Whether `shape` is one that `tensor` can take with the run-time extents `chosen`, to which it adds its own."""
    if len(shape) != len(tensor.shape):
        return False
    names = tensor.dims or (None,) * len(shape)
    return all(
        extent == bound if name is None else extent <= bound and chosen.setdefault(name, extent) == extent
        for extent, bound, name in zip(shape, tensor.shape, names, strict=True)
    )


def _golden_files(schedule: Schedule, case: int, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, bytes]:
    """The .npy files of one self-test case."""
    result = {}
    chosen: dict[str, int] = {}
    for kind, tensors, arrays in (("in", schedule.inputs, inputs), ("out", schedule.outputs, outputs)):
        names = {tensor.name for tensor in tensors}
        if names != arrays.keys():
            raise UsageError(f"golden case {case}: {kind}puts are {sorted(arrays)}, the model's are {sorted(names)}")
        for index, tensor in enumerate(tensors):
            array = np.asarray(arrays[tensor.name])
            if not _fits(tensor, array.shape, chosen) or array.dtype != np.dtype(tensor.dtype):
                raise UsageError(
                    f"golden case {case}: {tensor.name!r} is {array.dtype}{list(array.shape)}, "
                    f"expected {tensor.dtype}{list(tensor.shape)}"
                )
            stored = _folded(array) if kind == "in" and not any(tensor.dims) else array
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(stored, order="C"), allow_pickle=False)
            result[f"selftest/{case}.{kind}.{index}.npy"] = buffer.getvalue()
    return result


def _folded(array: Array) -> Array:
    """One element for each block of equal ones, where a large `array` consists of such blocks, powers of two long."""
    if array.nbytes <= LARGE_INPUT_BYTES:
        return array
    for axis in range(array.ndim):
        pairs = np.moveaxis(array, axis, 0)
        while len(pairs) and len(pairs) % 2 == 0 and np.array_equal(pairs[::2], pairs[1::2]):
            pairs = pairs[::2]
        array = np.moveaxis(pairs, 0, axis)
    return array


def _unfolded(array: Array, shape: Sequence[int]) -> Array:
    """`array` of the full `shape` again.

    Raises:
        ValueError: its shape does not divide that one.
    """
    if array.shape == tuple(shape):
        return array
    blocks = [extent // max(stored, 1) for extent, stored in zip(shape, array.shape, strict=False)]
    if array.ndim != len(shape) or [b * n for b, n in zip(blocks, array.shape, strict=True)] != list(shape):
        raise ValueError(f"an input has shape {array.shape}, expected {tuple(shape)} or one that divides it")
    if prod(shape) * array.itemsize > _MOST_INPUT_BYTES:
        raise ValueError(f"an input of shape {tuple(shape)} is too large")
    for axis, count in enumerate(blocks):
        array = np.repeat(array, count, axis)
    return array


@contextlib.contextmanager
def replacing(root: Path) -> Iterator[Path]:
    """A new directory beside `root` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        ArtifactError: something that is not an artifact is in the way.
        UsageError: `root` cannot be written.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".tmp", dir=root.parent))
    except OSError as error:
        raise UsageError(f"{root}: cannot be written ({error}); choose another place") from error
    old = work.with_suffix(".old")
    try:
        work.chmod(0o755)
        yield work
        if root.exists():
            read_manifest(root)
            root.rename(old)
        work.rename(root)
    except OSError as error:
        raise UsageError(f"{root}: cannot be written ({error}); free some space or choose another place") from error
    finally:
        if old.exists() and not root.exists():
            old.rename(root)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def _safe_name(name: str, root: Path) -> PurePosixPath:
    """`name` as a relative path that stays inside the artifact."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name or "\\" in name:
        raise ArtifactError(f"{root}: unsafe file name {name!r}; this artifact is damaged or hostile")
    return path


def _put(root: Path, name: str, data: bytes) -> None:
    file = root / _safe_name(name, root)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
