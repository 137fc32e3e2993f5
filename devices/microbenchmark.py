"""The program bevel sends to measure a device: compiled here from `probe_c/`, run there, its JSON read.

In: an open `Transport`. Out: what the CPU says of itself (`CpuFacts`) and what was measured on one of its cores (`Measured`).
The program is one static file for each architecture and chooses its loops at run time by what the CPU has.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevel.backends.objects import cache_dir
from bevel.devices.errors import RemoteFailed
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError
from bevel.ir.protocols import Cache
from bevel.runtime.toolchain import find_toolchain

_SOURCES = Path(__file__).with_name("probe_c")
_OPTIONS = ("-std=gnu11", "-O2", "-Wall", "-D_FILE_OFFSET_BITS=64")
_COMPILE_LIMIT_S = 900  # zig builds its C library on first use
_LIMIT_S = 120  # 3 s on a fast machine, 10 s on a small board; more where other programs disturb
# Measured for reports, but no peak of a profile: bevel's kernels do not multiply with them.
_UNUSED = {"smmla", "vpmaddwd, vpaddd zmm"}
# Instructions that need a feature which a profile may leave out, though the CPU has it.
_NEEDS = {"tdpbusd": "amx_int8", "vpdpbusd ymm": "avx_vnni", "vpdpbusd zmm": "avx512_vnni", "sdot": "dotprod"}


@dataclass(frozen=True)
class CpuFacts:
    """What the CPU and the kernel tell a program.

    Attributes:
        features: ISA features that the CPU has and the kernel lets programs use, bevel's and others.
        cpus: CPUs that programs of this user may run on.
        midr: main ID register by CPU, on ARM where programs may read it.
        clock: "gettime_ns", "resolution_ns" of the system's clock; "counter_ns", "counter_mhz" of the CPU's counter, where it
            has one.
        cycles: "allowed" when this user may count CPU cycles, else why not.
    """

    features: frozenset[str]
    cpus: tuple[int, ...]
    midr: Mapping[int, int]
    clock: Mapping[str, float]
    cycles: str


@dataclass(frozen=True)
class Rate:
    """What a loop of one instruction reached on one core.

    Attributes:
        kind: "fp32", "fp16", "int8" (multiply-accumulates), "popcount" (bytes counted), "table" (bytes looked up), or "read".
        instruction: which; for "read" level and instruction.
        value: 1e9 per second.
        spread: from the 10th to the 90th percentile of the accepted repetitions, relative to their median.
        ghz: clock of the core around it; 0 where it changed.
        accepted: repetitions it stands on; others were disturbed.
    """

    kind: str
    instruction: str
    value: float
    spread: float
    ghz: float
    accepted: int

    @property
    def per_cycle(self) -> float | None:
        """`value` in operations a cycle, None where the clock is not known."""
        return self.value / self.ghz if self.ghz else None


@dataclass(frozen=True)
class Measured:
    """Figures of one core.

    Attributes:
        cpu: number of the core.
        ghz: its clock.
        rates: peaks by instruction.
        reads: streaming reads by level ("l1" to "dram"), 1e9 bytes per second.
        launch_ns: cost of a call of a kernel that does next to nothing.
        latencies_ns: dependent loads by working set in KiB; empty where the system names the caches.
    """

    cpu: int
    ghz: float
    rates: tuple[Rate, ...]
    reads: Mapping[str, Rate]
    launch_ns: float
    latencies_ns: Mapping[int, float]

    def best(self, kind: str, features: frozenset[str]) -> Rate | None:
        """The fastest loop of a kind that bevel's kernels stand on, given the features a profile claims; None without any."""
        rates = (rate for rate in self.rates if rate.kind == kind and rate.value > 0 and rate.instruction not in _UNUSED)
        usable = [rate for rate in rates if _NEEDS.get(rate.instruction) in {None, *features}]
        return max(usable, key=lambda rate: rate.value, default=None)


# Operations a cycle that the makers name. ARM: the cores' Software Optimization Guides. x86: Intel's for Sapphire Rapids, which a
# core with AMX is or follows; every core with AVX2 since Haswell and Zen 2 has two 256-bit multiply-adds.
_A76 = {"fmla 4s": 8, "fmla 8h": 16, "sdot": 32, "cnt 16b": 32, "tbl 16b, one register": 32}
_X1 = {"fmla 4s": 16, "fmla 8h": 32, "sdot": 64, "cnt 16b": 64}
_THEORY: Mapping[str, Mapping[str, float]] = {
    "avx2": {"vfmadd231ps ymm": 16},
    "amx_int8": {
        "mulps, addps xmm": 6,
        "vfmadd231ps ymm": 16,
        "vfmadd231ps zmm": 32,
        "pmaddwd, paddd xmm": 12,
        "vpmaddwd, vpaddd ymm": 24,
        "vpmaddwd, vpaddd zmm": 32,
        "vpdpbusd ymm": 64,
        "vpdpbusd zmm": 128,
        "tdpbusd": 1024,
        "popcnt r64": 8,
        "vpopcntq zmm": 64,
        "pshufb xmm": 32,
        "vpshufb ymm": 64,
        "vpshufb zmm": 64,
        "vpermb zmm": 64,
        "l1: vmovaps zmm": 128,
        "l2: vmovaps zmm": 64,
    },
    "cortex-a53": {"fmla 4s": 4},
    "cortex-a55": {"fmla 4s": 4},
    "cortex-a72": {"fmla 4s": 4},
    "cortex-a76": _A76,
    "neoverse-n1": _A76,
    "cortex-a77": _A76,
    "cortex-a78": _A76,
    "cortex-a78ae": _A76,
    "cortex-x1": _X1,
    "neoverse-v1": _X1,
}


def theory(rate: Rate, core: str, features: frozenset[str]) -> float | None:
    """Operations a cycle that the core's maker names for this loop; None where bevel knows none."""
    names = [core, *(feature for feature in ("amx_int8", "avx2") if feature in features)]
    return next((_THEORY[name][rate.instruction] for name in names if rate.instruction in _THEORY.get(name, {})), None)


def build_program(arch: str) -> Path:
    """The measuring program for `arch`, from the cache or compiled into it.

    Raises:
        ToolchainError: no compiler, or it failed.
    """
    toolchain = find_toolchain(arch)
    digest = hashlib.sha256(repr((toolchain.description, toolchain.static, _OPTIONS)).encode())
    sources = sorted(_SOURCES.glob("*.[ch]"))
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    program = cache_dir() / "probe" / digest.hexdigest()[:24] / "bevel-probe"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=program.parent)
    os.close(handle)
    files = [str(source) for source in sources if source.suffix == ".c"]
    try:
        command = [*toolchain.static, *_OPTIONS, "-static", "-s", *files, "-o", partial]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_LIMIT_S, check=False)
        if done.returncode != 0:
            raise ToolchainError(f"{toolchain.description} cannot compile the measuring program:\n{done.stderr.strip()[-4000:]}")
        Path(partial).chmod(0o755)
        os.replace(partial, program)
    except FileNotFoundError as error:
        raise ToolchainError(f"{toolchain.static[0]}: not found ({error}); reinstall the C compiler") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{toolchain.description} did not compile the measuring program in {_COMPILE_LIMIT_S} s") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return program


@dataclass(frozen=True)
class Program:
    """The measuring program on an open device; `install` sends it."""

    transport: Transport

    @classmethod
    def install(cls, transport: Transport) -> Program:
        """Build the program for the device's architecture and send it.

        Raises:
            DeviceError, ToolchainError: it cannot be compiled or sent.
        """
        transport.upload(build_program(transport.info.arch), "probe/bevel-probe")
        return cls(transport)

    def facts(self) -> CpuFacts:
        """What the CPU says; takes no time to speak of."""
        answer = self._run("facts")
        return CpuFacts(
            features=frozenset(answer["features"]),
            cpus=tuple(answer["cpus"]),
            midr={int(cpu): int(value, 16) for cpu, value in answer["midr"].items()},
            clock=answer["clock"],
            cycles=answer["cycles"],
        )

    def latencies(self, cpu: int, largest_kib: int) -> dict[int, float]:
        """Nanoseconds of a dependent load by working set in KiB, two sizes an octave."""
        answer = self._run("--cpu", str(cpu), f"latency={largest_kib}")
        return {int(point["kib"]): float(point["ns"]) for point in answer["latency"]}

    def measure(self, cpu: int, caches: Sequence[Cache], memory_kib: int) -> Measured:
        """Peaks, streaming reads and the cost of a call, on one core.

        Args:
            cpu: number of the core.
            caches: as one core sees them; working sets are chosen by them.
            memory_kib: memory a new program can have.
        """
        sizes = read_sizes(caches, memory_kib)
        levels = [f"{level}={size}" for level, size in sizes.items()]
        answer = self._run("--cpu", str(cpu), "peaks", "launch", "read", *levels)
        rates = tuple(_rate(entry, entry["kind"], entry["instruction"], entry["gops"]) for entry in answer["peaks"])
        reads = {e["level"]: _rate(e, "read", f"{e['level']}: {e['instruction']}", e["gbs"]) for e in answer["read"]}
        clocks = [rate.ghz for rate in (*rates, *reads.values()) if rate.ghz]
        return Measured(cpu, max(clocks, default=0.0), rates, reads, float(answer["launch"]["ns"]), {})

    def _run(self, *arguments: str) -> dict[str, Any]:
        result = self.transport.run(["./bevel-probe", *arguments], cwd="probe", timeout_s=_LIMIT_S)
        try:
            answer = json.loads(result.stdout)
        except ValueError as error:
            why = result.stderr.decode(errors="replace").strip() or f"status {result.exit_status}, {error}"
            remedy = "Run the command again; see `dmesg` on the device"
            raise RemoteFailed(self.transport.label, f"the measuring program failed ({why})", remedy) from error
        assert isinstance(answer, dict)
        return answer


def _rate(entry: Mapping[str, Any], kind: str, instruction: str, value: float) -> Rate:
    return Rate(kind, instruction, float(value), float(entry["spread"]), float(entry["ghz"]), int(entry["accepted"]))


def read_sizes(caches: Sequence[Cache], memory_kib: int) -> dict[str, int]:
    """Bytes to stream through for each level: half a cache, and of memory four times the last one, 64 MiB to 1 GiB.

    A level is left out where its half is no larger than the cache before it, memory where a quarter of what is free would not do.
    """
    sizes: dict[str, int] = {}
    before = 0
    for cache in caches:
        # A share of a last-level cache is what a core of many gets.
        size = min(cache.bytes // 2, 32 * 1024**2)
        if size > before:
            sizes[f"l{cache.level}"] = size // 1024 * 1024
        before = cache.bytes
    last = max((cache.bytes for cache in caches), default=0)
    memory = min(max(4 * last, 64 * 1024**2), memory_kib * 1024 // 4, 1024**3)
    sizes["dram"] = max(memory, 8 * 1024**2) // 1024 * 1024
    return sizes


def caches_from_latencies(latencies: Mapping[int, float], line: int = 64) -> tuple[Cache, ...]:
    """Data caches as steps of the latency curve show them: a level ends where the latency leaves its plateau for the next.

    The last plateau is memory. Sizes are those of the working sets tried, two an octave: exact for caches of such sizes.
    """
    sizes = sorted(latencies)
    caches: list[Cache] = []
    start = 0
    while start < len(sizes) and len(caches) < 3:
        plateau = latencies[sizes[start]]
        leave = next((i for i in range(start, len(sizes)) if latencies[sizes[i]] > 1.4 * plateau), None)
        if leave is None:
            break
        # The next plateau begins where the curve is flat again; a size half way up still fits this level for the most part.
        settle = next(
            (i for i in range(leave, len(sizes) - 1) if latencies[sizes[i + 1]] < 1.15 * latencies[sizes[i]]), len(sizes) - 1
        )
        middle = (plateau * latencies[sizes[settle]]) ** 0.5
        end = max(i for i in range(start, settle + 1) if latencies[sizes[i]] <= middle)
        caches.append(Cache(len(caches) + 1, sizes[end] * 1024, line))
        start = settle
    return tuple(caches)
