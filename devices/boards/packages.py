"""Debian packages of a foreign architecture, fetched with apt and read without installing them.

In: an architecture and package names. Out: paths of .deb files with all they depend on, and the files in them. apt works in a
folder of its own below bevel's cache (lists, downloads, an empty package state), so neither root nor `dpkg --add-architecture`
is needed and the machine's own packages are not touched. apt verifies every download against the signed hashes of its lists.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bevel.errors import ToolchainError

_APT_TIMEOUT_S = 600
_NEEDED = {"apt-get": "apt", "dpkg-deb": "dpkg"}


@dataclass(frozen=True)
class File:
    """One file of a package.

    Attributes:
        mode: type and permission bits as in `stat`.
        data: contents; for a symbolic link, what it points to.
    """

    mode: int
    data: bytes


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock, so that two processes do not build the same thing into the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def download(arch: str, names: Sequence[str], left_out: Sequence[str], folder: Path) -> list[Path]:
    """Fetch packages and their dependencies.

    Args:
        arch: as Debian spells it, such as "arm64".
        names: packages wanted.
        left_out: beginnings of names of dependencies that are not fetched: what only installation scripts need.
        folder: where apt's lists and the downloads stay for the next time.

    Returns:
        .deb files in order of their names.

    Raises:
        ToolchainError: apt is missing, or this machine's package sources do not offer a package for `arch`.
    """
    for program, package in _NEEDED.items():
        if shutil.which(program) is None:
            raise ToolchainError(
                f"building the image of an emulated board needs {program}, from Debian's package {package}: "
                "use a Debian machine, or the board `fast`, which needs no image"
            )
    options = _apt_options(arch, folder)
    _apt([*options, "update"], folder, arch)
    answer = _apt([*options, "install", "--print-uris", "--yes", "--no-install-recommends", *names], folder, arch)
    # Lines of the form 'URI' NAME_VERSION_ARCH.deb SIZE HASH.
    files = [line.split()[1] for line in answer.splitlines() if line.startswith("'")]
    wanted = sorted(name for name in files if not name.startswith(tuple(left_out)))
    packages = folder / "packages"
    missing = [name.partition("_")[0] for name in wanted if not (packages / name).exists()]
    if missing:
        _apt([*options, "download", *missing], packages, arch)
    return [packages / name for name in wanted]


def _apt_options(arch: str, folder: Path) -> list[str]:
    """Options of apt for another architecture and folders of ours; makes those folders."""
    for name in ("lists/partial", "cache/archives/partial", "state", "packages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    status = folder / "state" / "status"
    status.touch()
    settings = {
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "Dir::State": folder / "state",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": status,
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "Acquire::http::Timeout": 30,
        "Acquire::https::Timeout": 30,
        # apt run by root would download as a user who may not write here.
        "APT::Sandbox::User": "",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _apt(arguments: list[str], cwd: Path, arch: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["apt-get", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=_APT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"apt-get did not finish within {_APT_TIMEOUT_S} s; check the network and try again") from error
    if done.returncode != 0:
        # The first one tells; the same error for every other package would bury the remedy.
        message = next((line for line in done.stderr.splitlines() if line.startswith("E:")), done.stderr.strip()[-400:])
        raise ToolchainError(
            f"apt-get cannot fetch packages for {arch}: {message or 'no message'}. The package sources of this machine must be "
            f"reachable and offer {arch}, as Debian's do; the board `fast` needs none"
        )
    return done.stdout


def read_package(path: Path) -> Iterator[tuple[str, File]]:
    """Regular files and symbolic links of a .deb: path without leading slash, and file.

    Raises:
        ToolchainError: the file is not a package.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                found: dict[str, File] = {}
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.issym():
                        found[name] = File(0o120777, member.linkname.encode())
                    elif member.islnk():
                        found[name] = found[member.linkname.removeprefix("./")]
                    elif member.isfile():
                        stream = archive.extractfile(member)
                        assert stream is not None
                        found[name] = File(0o100000 | member.mode & 0o7777, stream.read())
        except tarfile.TarError as error:
            raise ToolchainError(f"{path} is damaged ({error}); remove it and try again") from error
    yield from found.items()
