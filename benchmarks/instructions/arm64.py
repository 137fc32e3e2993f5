"""A Debian for arm64 in bevel's cache whose Python runs other engines under qemu-user.

In: an engine and an emulated core. Out: the command line that runs that engine's Python here. Debian packages are unpacked, not
installed, and wheels for aarch64 go into a folder of their own for each engine, in the versions of `bevel.benchmarking.peers`.
Engines choose their kernels by what the system says of the processor: qemu answers for the auxiliary vector and the
identification registers, but files would be this machine's, so each core has a /proc/cpuinfo and a /sys/devices/system/cpu of
its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bevel.backends.objects import cache_dir
from bevel.benchmarking.peers.engines import Engine
from bevel.devices.boards.packages import download, exclusive, read_package
from bevel.errors import ToolchainError

_PACKAGES = ("python3", "libstdc++6", "libgomp1")
# The file system of Debian 12 and later is merged: these are links to what lies below usr.
_MERGED = ("bin", "lib", "sbin")
# Wheels by the oldest C library they run with; Debian 12 has 2.36.
_OLDEST, _NEWEST = 17, 36
# Boards with these cores have four.
_CORES = 4


@dataclass(frozen=True)
class Core:
    """A processor core as Linux describes it.

    Attributes:
        cpu: as qemu names it.
        part, variant, revision: of its identification register; ARM's.
        features: those that /proc/cpuinfo names.
    """

    cpu: str
    part: int
    variant: int
    revision: int
    features: str

    @property
    def cpuinfo(self) -> str:
        """The text of /proc/cpuinfo of a board with such cores."""
        fields = (
            f"BogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: {self.variant:#x}\nCPU part\t: {self.part:#x}\nCPU revision\t: {self.revision}\n"
        )
        return "\n".join(f"processor\t: {index}\n{fields}" for index in range(_CORES))


# What Raspberry Pi 4 and 5 print.
CORES: Mapping[str, Core] = {
    core.cpu: core
    for core in (
        Core("cortex-a72", 0xD08, 0, 3, "fp asimd evtstrm crc32 cpuid"),
        Core(
            "cortex-a76",
            0xD0B,
            4,
            1,
            "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        ),
    )
}


def python_command(engine: Engine, cpu: str) -> tuple[list[str], list[str]]:
    """The emulator's command line with what `engine` needs around it, and the command that starts its Python; made on first use.

    Raises:
        ToolchainError: qemu-user, apt or pip is missing or has no network, or there is no wheel for aarch64.
    """
    qemu = shutil.which("qemu-aarch64")
    if qemu is None:
        raise ToolchainError("qemu-aarch64 runs other engines as on a board; install it: apt-get install qemu-user")
    debian = made("debian", _PACKAGES, _unpack)
    python = next((debian / "usr" / "bin").glob("python3.[0-9]*"))
    packages = (*engine.packages, python.name)
    site = made(f"{engine.name}-{engine.version}", packages, lambda folder: _install(engine, python.name, folder))
    root = made(cpu, (CORES[cpu].cpuinfo, debian.name), lambda folder: _view(debian, CORES[cpu], folder))
    # One thread, and the same order of every hash table in every run.
    settings = {"PYTHONPATH": str(site), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    emulator = [qemu, "-cpu", cpu, "-L", str(root)]
    for name, value in settings.items():
        emulator += ["-E", f"{name}={value}"]
    return emulator, [str(root / "usr" / "bin" / python.name)]


def made(name: str, contents: Sequence[str], make: Callable[[Path], None]) -> Path:
    """A folder of the cache, whole or not at all.

    Args:
        name: of the folder.
        contents: what decides what is in it; another one is made for others.
        make: fills an empty folder.
    """
    parent = cache_dir() / "arm64"
    folder = parent / f"{name}-{hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]}"
    with exclusive(parent / "lock"):
        if not folder.exists():
            work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
            try:
                make(work)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def _unpack(folder: Path) -> None:
    for package in download("arm64", _PACKAGES, (), cache_dir() / "boards" / "apt-arm64"):
        for name, file in read_package(package):
            path = folder / ("usr" if name.partition("/")[0] in _MERGED else "") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.mode & 0o170000 == 0o120000:
                path.unlink(missing_ok=True)
                path.symlink_to(os.fsdecode(file.data))
            else:
                path.write_bytes(file.data)
                path.chmod(file.mode & 0o777)


def _install(engine: Engine, python: str, folder: Path) -> None:
    """Unpack an engine's wheels and those they need."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(_OLDEST, _NEWEST + 1)] + ["manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python.removeprefix("python"), "--target", str(folder)]
    for platform in platforms:
        command += ["--platform", platform]
    done = subprocess.run([*command, *engine.packages], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ToolchainError(
            f"{engine.name} {engine.version} has no wheels for aarch64 and {python}, or pip reached no index: "
            f"{lines[-1] if lines else done.stderr.strip()[-400:]}"
        )


def _view(debian: Path, core: Core, folder: Path) -> None:
    """The same Debian with another processor."""
    (folder / "usr").symlink_to(debian / "usr")
    for name in _MERGED:
        (folder / name).symlink_to(f"usr/{name}")
    files = {"proc/cpuinfo": core.cpuinfo} | {
        f"sys/devices/system/cpu/{name}": f"0-{_CORES - 1}\n" for name in ("possible", "present", "online")
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
