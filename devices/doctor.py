"""Looks for what is missing before it fails: tools and packages of this machine, and the state of a device.

In: this machine, or an open `Transport`. Out: `Check`s, each with what it is for and what to do. Nothing is installed or changed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bevel.backends.objects import cache_dir
from bevel.devices.errors import BoardError
from bevel.devices.facts import governor_advice, read_facts
from bevel.devices.profile import ARCHES, Profile
from bevel.devices.resolve import QEMU
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError
from bevel.runtime.toolchain import find_toolchain, host_arch

_TVM_LIMIT_S = 120
_LEAST_CACHE_MIB, _LEAST_DISK_MIB, _LEAST_MEMORY_MIB = 1024, 64, 32
_HOT_C = 75.0
# Asked in another process: a broken installation may end the one that imports it.
_ASK_TVM = (
    "import json, tvm; from tvm.target import codegen as c; print(json.dumps([tvm.__version__, list(c.llvm_get_targets())]))"
)
# LLVM's name of each architecture.
_LLVM = {"x86_64": "x86_64", "aarch64": "aarch64", "armv7": "arm"}
_GPU = "GPU kernels, which bevel has none of yet"
_PURPOSES = {
    "peers": "bevel bench --against onnxruntime",
    "export": "bevel export: torch and transformers models to ONNX",
    "cross": "compiling for boards of every architecture, statically linked",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        ok: whether it is there and in order.
        found: version, path or state.
        purpose: what it is for.
        remedy: command or advice; empty where nothing is to be done.
        required: without it bevel does nothing useful.
    """

    name: str
    ok: bool
    found: str
    purpose: str
    remedy: str = ""
    required: bool = False


def check_host() -> Iterator[Check]:
    """Everything bevel uses of this machine, what is required first."""
    yield Check("Python", True, sys.version.split()[0], "running bevel", "", True)
    yield from _packages()
    yield from _tvm()
    yield from _compilers()
    for arch in ARCHES:
        if arch != host_arch():
            purpose = f"running {arch} artifacts here, emulated"
            yield _program(QEMU[arch], purpose, "apt-get install qemu-user", QEMU[arch])
    yield from _optional_programs()
    yield from _state()


def _program(name: str, purpose: str, remedy: str, *spellings: str, places: Sequence[str] = ()) -> Check:
    """A program that may be missing, under any of its names, on PATH or in further places."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *places])
    found = next((where for spelling in spellings if (where := shutil.which(spelling, path=path))), None)
    return Check(name, found is not None, found or "missing", purpose, "" if found else remedy)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))[:3]


def satisfies(version: str, conditions: str) -> bool:
    """Whether a package's version meets conditions such as ">=1.1,<2"; only leading numbers count."""
    have = _numbers(version)
    for operator, wanted in re.findall(r"(>=|==|<=|<|>)\s*([\w.]+)", conditions):
        want = _numbers(wanted)
        mine = (have + (0,) * 3)[: len(want)]
        met = {">=": mine >= want, "==": mine == want, "<=": mine <= want, "<": mine < want, ">": mine > want}
        if not met[operator]:
            return False
    return True


def _packages() -> Iterator[Check]:
    """The packages bevel's own metadata names: plain ones are required, those of extras are not; those of its tests left out."""
    wanted: dict[str, list[tuple[str, str | None]]] = {}
    for line in importlib.metadata.requires("bevel") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*[\"'](\w+)[\"']", marker)
        if extra is None or extra[1] != "dev":
            name, conditions = re.findall(r"^([\w.-]+)\s*(.*)$", requirement.strip())[0]
            wanted.setdefault(name, []).append((conditions, extra[1] if extra else None))
    for name, reasons in wanted.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        conditions = ",".join(dict.fromkeys(condition for condition, _ in reasons if condition))
        ok = bool(version) and satisfies(version, conditions)
        found = (version or "missing") + ("" if ok else f", needs {conditions or 'any version'}")
        extras = [extra for _, extra in reasons if extra is not None]
        purpose = ", ".join(_PURPOSES.get(extra, extra) for extra in extras) or "every command"
        remedy = f"pip install 'bevel[{extras[0]}]'" if extras else f"pip install '{name}{conditions}'"
        yield Check(f"package {name}", ok, found, purpose, "" if ok else remedy, not extras)


def _tvm() -> Iterator[Check]:
    purpose, remedy = "generating kernels", "pip install --force-reinstall apache-tvm"
    try:
        command = [sys.executable, "-c", _ASK_TVM]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TVM_LIMIT_S, check=False)
        version, targets = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        yield Check("TVM", False, f"cannot be imported ({type(error).__name__})", purpose, remedy, True)
        return
    yield Check("TVM", True, version, purpose, "", True)
    for arch in ARCHES:
        there = _LLVM[arch] in targets
        found = "in TVM's LLVM" if there else "not in TVM's LLVM"
        yield Check(f"TVM for {arch}", there, found, f"kernels for {arch}", "" if there else remedy, True)
    there = "nvptx64" in targets
    yield Check(
        "TVM for NVIDIA", there, "in TVM's LLVM" if there else "not in TVM's LLVM", "GPU kernels, which bevel has none of yet"
    )


def _compilers() -> Iterator[Check]:
    for arch in ARCHES:
        mine = arch == host_arch()
        purpose = "linking artifacts for this machine" if mine else f"linking artifacts for {arch} boards"
        try:
            toolchain = find_toolchain(arch)
        except ToolchainError as error:
            yield Check(f"C compiler for {arch}", False, "missing", purpose, str(error).partition(": ")[2], mine)
        else:
            yield Check(f"C compiler for {arch}", True, toolchain.description, purpose, "", mine)


def _optional_programs() -> Iterator[Check]:
    qemu = "qemu-system-aarch64"
    yield _program(qemu, "whole emulated boards (bevel devices emulate system-a72)", "apt-get install qemu-system-arm", qemu)
    yield _program("sshd", "emulated boards", "apt-get install openssh-server", "sshd", places=("/usr/sbin", "/usr/local/sbin"))
    yield _program("ssh", "the first log-in to a board, by hand", "apt-get install openssh-client", "ssh")
    yield _program("adb", "Android devices", "apt-get install adb", "adb")
    browsers = ("chromium", "chromium-browser", "google-chrome")
    yield _program("chromium", "pictures of reports; any browser shows them", "apt-get install chromium", *browsers)
    yield _program(
        "nvcc",
        "GPU kernels, which bevel has none of yet",
        "install NVIDIA's CUDA toolkit",
        "nvcc",
        places=("/usr/local/cuda/bin",),
    )
    yield _program("objdump", "bevel profile --instructions", "apt-get install binutils", "llvm-objdump", "objdump")


def _state() -> Iterator[Check]:
    folder = cache_dir()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free // 1024**2
    writable = os.access(existing, os.W_OK)
    remedy = "" if writable and free >= _LEAST_CACHE_MIB else "free space there, or set BEVEL_CACHE_DIR"
    found = f"{free} MiB free in {folder}" if writable else f"{folder} cannot be written"
    yield Check("cache", not remedy, found, "compiled kernels and artifacts", remedy, not writable)
    paranoid = Path("/proc/sys/kernel/perf_event_paranoid")
    level = int(paranoid.read_text()) if paranoid.exists() else None
    ok = level is not None and level <= 2
    remedy = "" if ok or level is None else "sudo sysctl kernel.perf_event_paranoid=2"
    yield Check("performance counters", ok, f"perf_event_paranoid {level}", "counting cycles of one's own programs", remedy)


def check_device(transport: Transport, profile: Profile) -> Iterator[Check]:
    """The state of an open device: what keeps artifacts from running there, and what spoils measurements.

    Raises:
        ConnectionLost: the link dropped meanwhile.
    """
    info, target = transport.info, profile.target()
    kind = f"emulated by {info.emulator.split()[0]}: results hold, times mean nothing" if info.emulator else "a real machine"
    yield Check("connection", True, f"{transport.label}, {kind}", "everything", "", True)
    yield Check("programs it needs", True, "all there", "running and ending programs", "", True)
    yield _attempt(
        "instruction set",
        f"{info.arch}, {' '.join(sorted(info.features))}",
        "running artifacts",
        lambda: transport.preflight(target),
    )
    free = info.disk_free_kib // 1024
    yield Check(
        "disk",
        free >= _LEAST_DISK_MIB,
        f"{free} MiB free in {info.workdir}",
        "artifacts, a few MiB each",
        "" if free >= _LEAST_DISK_MIB else "free space there, or set workdir in the profile to another file system",
        True,
    )
    memory = info.memory_available_kib // 1024
    yield Check(
        "memory", memory >= 32, f"{memory} of {info.memory_kib // 1024} MiB available", "weights and activations", required=True
    )
    yield _attempt("lock", "free", "one measurement at a time", lambda: _try_lock(transport), required=False)
    facts = read_facts(transport)
    advice = governor_advice(facts.governors)
    names = ", ".join(sorted({governor.name for governor in facts.governors})) or "none visible"
    yield Check("governor", advice is None, names, "steady clocks while measuring", advice or "")
    caps = [g.cap_ghz for g in facts.governors if g.cap_ghz]
    best = max((kind.max_ghz for kind in facts.core_kinds if kind.max_ghz), default=None)
    capped = best is not None and bool(caps) and max(caps) < 0.99 * best
    if capped:
        yield Check(
            "clock", False, f"capped at {max(caps):g} of {best:g} GHz", "full speed", "raise scaling_max_freq on the device"
        )
    hottest = max(facts.temperatures_c.values(), default=None)
    heat = "no sensor visible" if hottest is None else f"{hottest:.0f} degrees Celsius"
    warm = hottest is not None and hottest > _HOT_C
    yield Check("temperature", not warm, heat, "clocks that are not throttled", "let it cool down, or add a fan" if warm else "")
    yield Check("energy", bool(facts.energy), ", ".join(facts.energy) or "no readable counter", "energy of a run")
    paranoid = facts.perf_event_paranoid
    allowed = paranoid is not None and paranoid <= 2
    yield Check("performance counters", allowed, f"perf_event_paranoid {paranoid}", "counting cycles of one's own programs")
    if profile.kernel and profile.kernel != info.kernel:
        changed = f"probed with Linux {profile.kernel}, now {info.kernel}"
        yield Check("profile", False, changed, "figures that hold", f"bevel devices probe {profile.name}")
    elif profile.probed:
        yield Check("profile", True, f"probed {profile.probed}", "figures that hold")


def _attempt(name: str, found: str, purpose: str, action: Callable[[], None], *, required: bool = True) -> Check:
    """A check that a named error of the device fails; the message says what was found and what to do."""
    try:
        action()
    except BoardError as error:
        return Check(name, False, str(error), purpose, "see what was found", required)
    return Check(name, True, found, purpose, "", required)


def _try_lock(transport: Transport) -> None:
    with transport.lock("doctor", 0):
        return
