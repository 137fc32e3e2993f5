"""An artifact as one file: NAME.bevel.tar.zst, byte-identical for identical artifacts, and safe to unpack from strangers."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import zstandard

from bevel.errors import ArtifactError
from bevel.runtime.artifact import Artifact
from bevel.runtime.manifest import MANIFEST

# A packed artifact that grows beyond this is hostile: the largest model of the field that fits a board is smaller.
MAX_UNPACKED_BYTES = 8 << 30
_MAX_FILES = 100_000


def pack(artifact: Artifact, path: str | Path) -> Path:
    """Write `artifact` to one .tar.zst file and return its path; the file appears whole or not at all."""
    out = Path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw, zstandard.ZstdCompressor(level=10).stream_writer(raw, closefd=False) as packed:
            with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for entry in sorted([MANIFEST, *artifact.manifest["files"]]):
                    _add(tar, artifact.path / entry, f"{artifact.path.name}/{entry}")
        partial.chmod(0o644)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def unpack(path: str | Path, into: str | Path) -> Artifact:
    """Unpack a .tar.zst into directory `into` and return the artifact, fully verified.

    Raises:
        ArtifactError: the file is damaged, holds links, devices or paths outside one top directory; its contents are not a valid
            artifact; or the directory it would make exists already. Nothing is left behind.
    """
    source, folder = Path(path), Path(into)
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".unpack.", dir=folder))
    try:
        try:
            with source.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as plain:
                with tarfile.open(fileobj=plain, mode="r|") as tar:
                    top = _extract(tar, work, source)
        except (OSError, tarfile.TarError, zstandard.ZstdError, EOFError, ValueError) as error:
            raise ArtifactError(f"{source}: cannot be unpacked ({error}); copy it again") from error
        Artifact.open(work / top)
        target = folder / top
        if target.exists():
            raise ArtifactError(f"{target}: exists already; remove it or unpack elsewhere")
        (work / top).rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Artifact.open(target, verify=False)


def _add(tar: tarfile.TarFile, file: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = file.stat().st_size
    info.mode = 0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644
    with file.open("rb") as stream:
        tar.addfile(info, stream)


def _extract(tar: tarfile.TarFile, work: Path, source: Path) -> str:
    """Extract regular files only, below one top directory, whose name is returned."""
    tops: set[str] = set()
    total = 0
    for count, member in enumerate(tar):
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or "\\" in member.name or not member.isreg():
            raise ArtifactError(
                f"{source}: holds {member.name!r}, which is not a plain file below one directory; not an artifact"
            )
        total += member.size
        if total > MAX_UNPACKED_BYTES or count > _MAX_FILES:
            raise ArtifactError(
                f"{source}: unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB or {_MAX_FILES} files; not an artifact"
            )
        tops.add(path.parts[0])
        file = work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = tar.extractfile(member)
        if stream is None:
            raise ArtifactError(f"{source}: {member.name!r} has no contents; not an artifact")
        with file.open("xb") as out:
            shutil.copyfileobj(stream, out)
        file.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
    if len(tops) != 1:
        raise ArtifactError(f"{source}: holds {len(tops)} top directories, expected one artifact")
    return tops.pop()
