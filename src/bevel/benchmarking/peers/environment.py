"""Environments of other engines: made on demand, whole or not at all, kept in bevel's cache.

In: a name and pinned requirements. Out: the Python of a virtual environment `cache_dir()/peers/NAME` that holds them. None of
bevel's own packages is touched. An environment is built beside its place and renamed when pip is done, so an interrupt leaves
nothing; pip keeps finished downloads in its own cache, so the next attempt goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bevel.backends.objects import cache_dir
from bevel.compiler import Say
from bevel.errors import ToolchainError, UsageError

_MARKER = "bevel-environment.json"
_NO_NETWORK = (
    "NewConnectionError", "Failed to establish a new connection", "Temporary failure in name resolution",
    "Network is unreachable", "ReadTimeoutError", "ProxyError", "ConnectTimeoutError", "SSLError",
)  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """A finished environment.

    Attributes:
        name: of the engine and its version.
        folder: where it is.
        packages: the requirements it was made for.
    """

    name: str
    folder: Path
    packages: tuple[str, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file() and not file.is_symlink())


def environments_dir() -> Path:
    """Where environments are kept."""
    return cache_dir() / "peers"


def list_environments() -> list[Environment]:
    """All finished environments."""
    root = environments_dir()
    found = [_finished(folder) for folder in sorted(root.iterdir()) if folder.name[0] != "."] if root.is_dir() else []
    return [environment for environment in found if environment is not None]


def ensure_environment(name: str, packages: Sequence[str], alone: Sequence[str] = (), say: Say | None = None) -> Environment:
    """The environment `name`, made now unless it is there with the same requirements.

    Args:
        name: of the folder.
        packages: pip requirements.
        alone: requirements installed without their dependencies.
        say: progress, one step for each package that pip takes up.

    Raises:
        ToolchainError: pip has no network, or there is no wheel for this Python; says which and what to do.
        UsageError: the cache cannot be written.
    """
    folder = environments_dir() / name
    wanted = (*packages, *alone)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder.parent} cannot be written ({error.strerror}); name another with BEVEL_CACHE_DIR") from error
    with _lock(folder.parent / f".{name}.lock"):
        there = _finished(folder)
        if there is not None and there.packages == wanted:
            return there
        # Under the lock every unfinished one of this name is a leftover of a process that was killed.
        for leftover in folder.parent.glob(f".{name}.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=folder.parent))
        try:
            _build(work, name, packages, alone, say)
            (work / _MARKER).write_text(json.dumps({"packages": wanted}))
            if folder.exists():
                shutil.rmtree(folder)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Environment(name, folder, wanted)


def clean_environ() -> dict[str, str]:
    """The process environment without what would lead another Python to bevel's own packages."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _finished(folder: Path) -> Environment | None:
    """What stands in a folder; None when it is no finished environment, or its Python is gone."""
    try:
        packages = json.loads((folder / _MARKER).read_text())["packages"]
    except (OSError, ValueError, KeyError):
        return None
    environment = Environment(folder.name, folder, tuple(packages))
    return environment if environment.python.exists() else None


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """One process at a time; the kernel frees it when the process ends, however it ends."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _build(work: Path, name: str, packages: Sequence[str], alone: Sequence[str], say: Say | None) -> None:
    # bevel's own pip can install elsewhere and saves a copy of itself, which takes longer than most engines.
    lent = importlib.util.find_spec("pip") is not None
    command = [sys.executable, "-m", "venv", *(["--without-pip"] if lent else []), str(work)]
    made = subprocess.run(command, capture_output=True, text=True, env=clean_environ(), check=False)
    if made.returncode != 0:
        raise ToolchainError(
            f"no environment for {name}: {_last(made.stdout + made.stderr)}; install python3-venv, "
            "or run bevel with a Python that has venv and ensurepip"
        )
    python = str(work / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python] if lent else [python, "-m", "pip"]
    pip += ["install", "--disable-pip-version-check", "--no-input"]
    if packages:
        _pip([*pip, *packages], name, say)
    if alone:
        _pip([*pip, "--no-deps", *alone], name, say)


def _pip(command: list[str], name: str, say: Say | None) -> None:
    """Run pip, a progress step for each package it looks at."""
    lines: list[str] = []
    seen = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environ()) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if say is not None and line.startswith(("Collecting ", "Installing collected")):
                    seen += 1
                    # How many will follow is not known before the last.
                    say(f"install {name}", seen, seen + line.startswith("Collecting "))
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise ToolchainError(_diagnosis(name, lines))


def _diagnosis(name: str, lines: list[str]) -> str:
    """Why pip failed, from what it printed."""
    text = "\n".join(lines)
    if any(symptom in text for symptom in _NO_NETWORK):
        return f"{name} cannot be installed: pip reached no package index; check the network, or set PIP_FIND_LINKS"
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing:
        where = f"Python {platform.python_version()} on {platform.machine()}"
        return f"{name} cannot be installed: there is no wheel of {missing[1]} for {where}; run bevel with another Python version"
    if "No space left on device" in text:
        return f"{name} cannot be installed: the disk is full; free some space, or name another place with BEVEL_CACHE_DIR"
    return f"{name} cannot be installed: {_last(text)}"


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("[notice]", "WARNING"))]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1].strip()
