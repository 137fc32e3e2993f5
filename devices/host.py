"""Detects instruction set, caches and clock of a Linux machine from the text of /proc/cpuinfo and from sysfs.

Serves both the `host` profile and the probe of a remote board, which sends its /proc/cpuinfo back as text.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bevel.devices.profile import Figure, Peaks, Profile, load_profile, user_directory
from bevel.errors import UsageError
from bevel.ir.protocols import Cache

# Linux's name of each ISA feature; every flag listed must be there.
_X86_FLAGS = {
    "sse2": {"sse2"},
    "avx2": {"avx2"},
    "fma": {"fma"},
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx512_vnni": {"avx512_vnni"},
    "avx512_vpopcntdq": {"avx512_vpopcntdq"},
    "avx_vnni": {"avx_vnni"},
    "amx_int8": {"amx_tile", "amx_int8"},
}
_ARM_FLAGS = {"neon": {"asimd"}, "fp16": {"fphp", "asimdhp"}, "dotprod": {"asimddp"}, "i8mm": {"i8mm"}}
_ARMV7_FLAGS = {"neon": {"neon"}, "vfpv4": {"vfpv4"}}
# LLVM's name of an ARM feature, where it is another.
_ARM_ATTRS = {"fp16": "+fullfp16", "vfpv4": "+vfp4"}

# LLVM CPU of an x86 machine: the first whose flags are all there. A CPU name lets LLVM emit everything that CPU has, and
# virtual machines hide flags one by one, so the flags beyond the obvious are asked for too.
_HASWELL = {"avx2", "fma", "bmi1", "bmi2", "movbe", "f16c", "abm", "popcnt", "sse4_2"}
_SKYLAKE = _HASWELL | _X86_FLAGS["avx512"] | {"adx", "rdseed", "clflushopt", "clwb", "pku", "aes", "pclmulqdq"}
_X86_CPUS = (
    ("cascadelake", _SKYLAKE | {"avx512_vnni"}),
    ("skylake-avx512", _SKYLAKE),
    ("haswell", _HASWELL),
)
# Kinds of ARM core by implementer and part of the main ID register, as LLVM's Host.cpp names them.
_ARM, _QUALCOMM = 0x41, 0x51
_ARM_CPUS = {
    (_ARM, 0xC07): "cortex-a7",
    (_ARM, 0xC09): "cortex-a9",
    (_ARM, 0xC0F): "cortex-a15",
    (_ARM, 0xD03): "cortex-a53",
    (_ARM, 0xD04): "cortex-a35",
    (_ARM, 0xD05): "cortex-a55",
    (_ARM, 0xD07): "cortex-a57",
    (_ARM, 0xD08): "cortex-a72",
    (_ARM, 0xD09): "cortex-a73",
    (_ARM, 0xD0A): "cortex-a75",
    (_ARM, 0xD0B): "cortex-a76",
    (_ARM, 0xD0C): "neoverse-n1",
    (_ARM, 0xD0D): "cortex-a77",
    (_ARM, 0xD40): "neoverse-v1",
    (_ARM, 0xD41): "cortex-a78",
    (_ARM, 0xD42): "cortex-a78ae",
    (_ARM, 0xD44): "cortex-x1",
    (_ARM, 0xD46): "cortex-a510",
    (_ARM, 0xD47): "cortex-a710",
    (_ARM, 0xD48): "cortex-x2",
    (_ARM, 0xD49): "neoverse-n2",
    (_ARM, 0xD4D): "cortex-a715",
    (_ARM, 0xD4E): "cortex-x3",
    (_ARM, 0xD4F): "neoverse-v2",
    (_ARM, 0xD80): "cortex-a520",
    (_ARM, 0xD81): "cortex-a720",
    (_ARM, 0xD82): "cortex-x4",
    (_QUALCOMM, 0x800): "cortex-a73",
    (_QUALCOMM, 0x801): "cortex-a73",
    (_QUALCOMM, 0x802): "cortex-a75",
    (_QUALCOMM, 0x803): "cortex-a75",
    (_QUALCOMM, 0x804): "cortex-a76",
    (_QUALCOMM, 0x805): "cortex-a76",
}
_ARMV7 = {"cortex-a7", "cortex-a9", "cortex-a15"}
_ARMV8_0 = {"cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73"}
_ARMV8_2 = {"cortex-a55", "cortex-a75", "cortex-a76", "neoverse-n1", "cortex-a77", "cortex-a78", "cortex-a78ae", "cortex-x1"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def arm_part(core: str) -> int | None:
    """Part number in the main ID register of Arm's core of that name; None when bevel does not know the core."""
    return next((part for (maker, part), name in _ARM_CPUS.items() if maker == _ARM and name == core), None)


def normalize_arch(machine: str) -> str:
    """Map `uname -m` to a profile's arch; what bevel does not know is returned unchanged."""
    machine = machine.strip()
    return "armv7" if machine.startswith("armv7") else _MACHINES.get(machine.lower(), machine)


def _flags(cpuinfo: str) -> set[str]:
    """Flags every core has: big.LITTLE cores may differ, and code may run on any."""
    lines = re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", cpuinfo, re.MULTILINE)
    return set.intersection(*(set(line.split()) for line in lines)) if lines else set()


def cpu_features(cpuinfo: str, arch: str) -> frozenset[str]:
    """ISA features named as in profiles, from the text of /proc/cpuinfo."""
    table = {"x86_64": _X86_FLAGS, "aarch64": _ARM_FLAGS, "armv7": _ARMV7_FLAGS}.get(arch, {})
    have = _flags(cpuinfo)
    return frozenset(feature for feature, flags in table.items() if flags <= have)


def llvm_cpu(cpuinfo: str, arch: str) -> str:
    """LLVM -mcpu name whose instruction set the machine has; "generic" or "x86-64" when none is known."""
    if arch == "x86_64":
        have = _flags(cpuinfo)
        return next((name for name, flags in _X86_CPUS if flags <= have), "x86-64")
    implementers = re.findall(r"^CPU implementer\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    ids = {(int(who, 0), int(part, 0)) for who, part in zip(implementers, parts, strict=False)}
    # With several kinds of core, the oldest part number is the smallest instruction set.
    return _ARM_CPUS.get(min(ids), "generic") if ids else "generic"


def core_name(midr: int) -> str:
    """Kind of an ARM core from its main ID register: LLVM's name, else implementer and part."""
    implementer, part = midr >> 24 & 0xFF, midr >> 4 & 0xFFF
    return _ARM_CPUS.get((implementer, part), f"arm-{implementer:#x}-{part:#x}")


def common_cpu(kinds: Sequence[str], sve: bool) -> str:
    """LLVM CPU for an ARM machine with these kinds of core: the first one's, unless another has an older instruction set.

    Args:
        kinds: names as `core_name` gives them, fastest kind first.
        sve: whether the operating system lets programs use scalable vectors, which LLVM expects of every ARMv9 core.
    """

    def age(kind: str) -> int:
        if kind not in _ARM_CPUS.values():
            return 0
        return 1 if kind in _ARMV7 else 2 if kind in _ARMV8_0 else 3 if kind in _ARMV8_2 else 4

    chosen = min(kinds, key=age, default="generic")
    if age(chosen) == 0:
        return "generic"
    return "cortex-a78" if age(chosen) == 4 and not sve else chosen


def llvm_attrs(arch: str, features: frozenset[str]) -> tuple[str, ...]:
    """LLVM target attributes of ISA features."""
    if arch != "x86_64":
        return tuple(_ARM_ATTRS.get(feature, f"+{feature}") for feature in sorted(features))
    # LLVM learns from the CPU name; features a masked CPU keeps, and AMX, are named one by one.
    llvm = {"avx512_vnni": ("+avx512vnni",), "avx_vnni": ("+avxvnni",), "amx_int8": ("+amx-tile", "+amx-int8")}
    llvm |= {"avx512_vpopcntdq": ("+avx512vpopcntdq",)}
    llvm |= {"avx512": ("+avx512f", "+avx512bw", "+avx512cd", "+avx512dq", "+avx512vl", "-prefer-256-bit")}
    return tuple(attr for feature in sorted(features) for attr in llvm.get(feature, (f"+{feature}",)))


def data_caches(sysfs: Path = Path("/sys")) -> tuple[Cache, ...]:
    """Data and unified caches core 0 reaches, nearest first, as sysfs reports them (empty where it does not)."""
    caches = []
    for index in (sysfs / "devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            names = ("type", "size", "level", "coherency_line_size")
            kind, size, level, line = ((index / name).read_text().strip() for name in names)
        except OSError:
            continue  # Some boards' kernels leave files out; kernels then tile for the smallest cache.
        match = re.fullmatch(r"(\d+)([KM]?)", size)
        if kind != "Instruction" and match is not None:
            caches.append(Cache(int(level), int(match[1]) * {"": 1, "K": 1024, "M": 1024**2}[match[2]], int(line) or 64))
    return tuple(sorted(caches, key=lambda cache: cache.level))


def _clock_ghz(cpuinfo: str, sysfs: Path) -> float | None:
    """Highest clock of core 0: cpufreq's limit, else what cpuinfo shows now."""
    try:
        return int((sysfs / "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text()) / 1e6
    except (OSError, ValueError):
        match = re.search(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)
        return float(match[1]) / 1e3 if match else None


def _memory_mib(meminfo: str, default: int) -> int:
    match = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(match[1]) // 1024 if match else default


def class_profile(arch: str, features: frozenset[str]) -> Profile:
    """The richest shipped profile this instruction set covers: whose figures describe it best."""
    names = {
        "x86_64": ("x86-64-amx", "x86-64-avx512-vpopcntdq", "x86-64-avx512-vnni", "x86-64-avx-vnni", "x86-64-avx2", "x86-64"),
        "aarch64": ("raspberry-pi-5", "raspberry-pi-4"),
        "armv7": ("armv7-a7",),
    }.get(arch, ())
    for profile in map(load_profile, names):
        if profile.features <= features:
            return profile
    raise UsageError(
        f"this machine is {arch} with features {', '.join(sorted(features)) or 'none'}; bevel compiles for x86_64 with SSE2"
        ", aarch64 with NEON and armv7 with NEON and VFPv4. Pass --device with the profile of the board you compile for"
    )


def scale_peaks(peaks: Peaks, source: Profile, ghz: float) -> Peaks:
    """Figures of `source` at another clock; DRAM does not follow the core's clock."""

    def scaled(figure: Figure, factor: float) -> Figure:
        origin = f"{source.name} at {source.clock_ghz:g} GHz ({figure.source}), scaled to {ghz:g} GHz"
        return Figure(figure.value * factor, "static", origin)

    ratio = ghz / source.clock_ghz
    return Peaks(
        fp32_gmacs=scaled(peaks.fp32_gmacs, ratio),
        int8_gmacs=scaled(peaks.int8_gmacs, ratio),
        launch_us=scaled(peaks.launch_us, 1 / ratio),
        bandwidth_gbs={level: scaled(figure, 1.0 if level == "dram" else ratio) for level, figure in peaks.bandwidth_gbs.items()},
    )


def figures_file(cpuinfo: str, arch: str) -> Path:
    """Where figures measured on this machine are kept; another machine, CPU or instruction set has another file."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    identity = (machine or platform.node(), model[1] if model else "", sorted(cpu_features(cpuinfo, arch)))
    return user_directory().parent / "hosts" / f"host-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}.toml"


def detect_host(proc: Path = Path("/proc"), sysfs: Path = Path("/sys"), machine: str | None = None) -> Profile:
    """Profile of the machine bevel runs on.

    Peak figures are those that `bevel devices probe host` measured here, else its class's, scaled to its clock.

    Args:
        proc: root of procfs.
        sysfs: root of sysfs.
        machine: what `uname -m` says; None asks.

    Raises:
        UsageError: not Linux, or a CPU bevel has no kernels for.
    """
    arch = normalize_arch(machine or platform.machine())
    try:
        cpuinfo = (proc / "cpuinfo").read_text()
        meminfo = (proc / "meminfo").read_text()
    except OSError as error:
        raise UsageError(
            f"cannot detect this machine: {error.filename}: {error.strerror}. Device 'host' needs Linux; "
            "pass --device with another profile"
        ) from error
    features = cpu_features(cpuinfo, arch)
    base = class_profile(arch, features)
    cpu = llvm_cpu(cpuinfo, arch)
    clock = _clock_ghz(cpuinfo, sysfs) or base.clock_ghz
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    host = replace(
        base,
        name="host",
        description=f"this machine: {name[1].strip() if name else cpu}, {os.cpu_count() or 1} cores at {clock:g} GHz",
        cpu=cpu,
        attrs=llvm_attrs(arch, features),
        features=features,
        cores=os.cpu_count() or 1,
        clock_ghz=clock,
        caches=data_caches(sysfs) or base.caches,
        memory_mib=_memory_mib(meminfo, base.memory_mib),
        peaks=scale_peaks(base.peaks, base, clock),
        qemu_cpu=None,
    )
    figures = figures_file(cpuinfo, arch)
    if not figures.exists():
        return host
    stored = load_profile(figures)
    return replace(
        host,
        clock_ghz=stored.clock_ghz,
        caches=data_caches(sysfs) or stored.caches,
        peaks=stored.peaks,
        core_kinds=stored.core_kinds,
        kernel=stored.kernel,
        libc=stored.libc,
        probed=stored.probed,
    )
