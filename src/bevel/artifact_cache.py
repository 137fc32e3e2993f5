"""Finished artifacts, kept by the content of everything that went into them.

In: the model, device and options of a compilation. Out: a stem; with the measurements that chose the kernels, a key; and for a
key the artifact compiled before. Which measurements matter follows from the problems of the model, which are noted under the
stem. Entries never change once stored, appear whole or not at all, and are verified file by file whenever they are served, so a
damaged one is rebuilt. The folder is `cache_dir()/artifacts`; what has not been used for longest goes when the whole cache
outgrows `LIMIT_BYTES`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bevel.backends.objects import cache_dir
from bevel.errors import ArtifactError, UsageError
from bevel.ir.protocols import Target
from bevel.runtime.artifact import Artifact, replacing

# Artifacts of edge models take 0.2-30 MB each: room for hundreds of compilations.
LIMIT_BYTES = 2 << 30
# Entries younger than this may be in use by a compilation that is still running.
_KEEP_SECONDS = 24 * 3600.0


@cache
def source_digest() -> str:
    """Hash of all of bevel's own source, so that no cached artifact outlives a change of the compiler."""
    root = Path(__file__).resolve().parent
    folders = (root, *(f.resolve() for f in root.iterdir() if f.is_symlink()))
    digest = hashlib.sha256()
    for path in sorted(p for folder in folders for p in folder.rglob("*")):
        if path.suffix in (".py", ".c", ".h") and path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_key(model: Path, target: Target, toolchain: str, choices: Mapping[str, Any], calibration: Path | None) -> str:
    """Key of a compilation.

    Args:
        model: ONNX file (its external data counts), saved graph, or artifact (whose graph alone counts).
        target: the device, as code generation sees it.
        toolchain: description of the C compiler that links.
        choices: every other option, as JSON.
        calibration: data set file or directory.
    """
    described = {**dataclasses.asdict(target), "features": sorted(target.features)}
    document = json.dumps([source_digest(), described, toolchain, choices], sort_keys=True, default=list)
    digest = hashlib.sha256(document.encode())
    if model.is_dir():
        graph = Artifact.open(model, verify=False).graph
        _feed([graph] if graph is not None else [], digest)
    else:
        # Imported here: the frontend brings onnx along, and every verb imports this module.
        from bevel.frontend.external_files import external_files

        _feed([model, *external_files(model)], digest)
    if calibration is not None:
        files = [calibration]
        if calibration.is_dir():
            files = sorted(p for p in calibration.iterdir() if p.suffix in (".npy", ".npz"))
        _feed(files, digest)
    return digest.hexdigest()[:32]


def tuned_key(stem: str, heats: str) -> str:
    """Key of a compilation whose kernels were chosen by the measurements of that digest; empty: without any."""
    return hashlib.sha256(f"{stem} {heats}".encode()).hexdigest()[:32] if heats else stem


def remember(stem: str, modes: Iterable[str], problems: Mapping[str, int]) -> None:
    """Note what a compilation computes.

    Args:
        stem: of the compilation.
        modes: of tuning for which this holds.
        problems: how many kernels were measured of each problem, by its text.
    """
    folder = cache_dir() / "problems" / stem
    folder.mkdir(parents=True, exist_ok=True)
    for mode in modes:
        partial = folder / f".{mode}.{os.getpid()}"
        partial.write_text(json.dumps(problems))
        partial.replace(folder / f"{mode}.json")


def recall(stem: str, mode: str) -> dict[str, int] | None:
    """What `remember` noted; None when it did not."""
    try:
        found = json.loads((cache_dir() / "problems" / stem / f"{mode}.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None  # A cache that cannot be used is told by what writes to it.
    return found if isinstance(found, dict) else None


def fetch(key: str, output: Path) -> Artifact | None:
    """Put a verified copy of the artifact stored under `key` at `output`; None when there is none, or it was damaged.

    Raises:
        UsageError: `output` cannot be written.
    """
    entry = _folder() / key
    if not entry.is_dir():
        return None
    try:
        with replacing(output.absolute()) as work:
            shutil.copytree(entry, work, dirs_exist_ok=True)
            Artifact.open(work)
    except ArtifactError:
        _remove(entry)
        return None
    os.utime(entry)
    return Artifact.open(output, verify=False)


def staging(key: str) -> tempfile.TemporaryDirectory[str]:
    """A directory on the cache's file system to build an artifact in; gone after the `with` block."""
    folder = _folder()
    return tempfile.TemporaryDirectory(prefix=f".{key}.", dir=folder)


def store(artifact: Artifact, key: str) -> None:
    """Move an artifact from its staging directory into the cache; when another process was faster, its entry stays."""
    entry = _folder() / key
    try:
        artifact.path.rename(entry)
    except OSError:
        # The entry is there: rename does not replace a directory that holds files.
        if not entry.is_dir():
            raise
    prune()


def prune(limit: int = LIMIT_BYTES, keep_seconds: float = _KEEP_SECONDS) -> None:
    """Remove what has not been used for longest, in the whole cache, until it is at most `limit` bytes."""
    entries = []
    for kind in ("artifacts", "objects", "prepared", "problems", "runtime"):
        folder = cache_dir() / kind
        if folder.is_dir():
            entries += [(path.stat().st_mtime, _size(path), path) for path in folder.iterdir() if path.is_dir()]
    total = sum(size for _, size, _ in entries)
    now = time.time()
    for used, size, path in sorted(entries):
        if total <= limit or now - used < keep_seconds:
            break
        _remove(path)
        total -= size


def _folder() -> Path:
    folder = cache_dir() / "artifacts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: the cache cannot be written ({error.strerror}); name another folder with BEVEL_CACHE_DIR"
        ) from error
    return folder


def _remove(entry: Path) -> None:
    """Take an entry out of sight at once, then delete it."""
    hidden = entry.with_name(f".{entry.name}.{os.getpid()}.old")
    try:
        entry.rename(hidden)
    except FileNotFoundError:
        return  # Another process removed it.
    shutil.rmtree(hidden, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _feed(files: list[Path], digest: Any) -> None:
    """Names and contents of files; a missing one is reported by whoever opens it."""
    for file in files:
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
