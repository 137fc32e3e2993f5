"""Probes a device and writes its profile: what it says of itself, what the CPU admits to, and what one of its cores reaches.

In: an open `Transport`. Out: `Probe`, and from it the `Profile` that compilation and the cost model read. Under an emulator facts
are taken and times are not: the figures then come from the shipped profile that fits best, provenance `static`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace

from bevel.devices.facts import Facts, governor_advice, own_kernel, read_facts
from bevel.devices.host import (
    class_profile,
    common_cpu,
    cpu_features,
    llvm_attrs,
    llvm_cpu,
    scale_peaks,
)
from bevel.devices.microbenchmark import CpuFacts, Measured, Program, Rate, caches_from_latencies
from bevel.devices.profile import ARCHES, FEATURES, Adb, Figure, Peaks, Profile, Ssh, list_profiles, load_profile
from bevel.devices.remote import BoardInfo
from bevel.devices.transport import Transport
from bevel.errors import UsageError
from bevel.ir.protocols import Cache, Target

_LOCK_WAIT_S = 120
# A working set large enough to leave every cache of a machine whose system names none: boards of the class have 4 MiB at most.
_LARGEST_KIB = 32 * 1024
# Spreads above this say that other programs were at work.
_WIDE = 0.1


@dataclass(frozen=True)
class Probe:
    """What was found on one device.

    Attributes:
        label: what messages call the device.
        info: what the transport found.
        facts: what the system says.
        cpu: what the CPU and kernel tell a program.
        features: ISA features of profiles that both /proc/cpuinfo and the program see.
        disagreements: features that one of the two sees alone, with who sees them.
        caches: data caches, nearest first; empty where neither sysfs nor times show them.
        caches_from: "sysfs", "latency" or "" where there are none.
        measured: figures of one core of the fastest kind; None under an emulator and for a quick probe.
        date: of the probe, ISO 8601.
    """

    label: str
    info: BoardInfo
    facts: Facts
    cpu: CpuFacts
    features: frozenset[str]
    disagreements: tuple[str, ...]
    caches: tuple[Cache, ...]
    caches_from: str
    measured: Measured | None
    date: str

    @property
    def own_kernel(self) -> bool:
        """False when programs run under qemu-user: what the kernel says is then said of another machine."""
        return own_kernel(self.info.emulator)

    @property
    def fastest(self) -> str:
        """Kind of the fastest cores; empty where unknown."""
        return self.facts.core_kinds[0].name if self.facts.core_kinds else ""

    @property
    def advice(self) -> tuple[str, ...]:
        """What makes measurements on this device better, or is odd about it; each one sentence."""
        found = [f"{text}: the smaller set counts" for text in self.disagreements]
        if self.own_kernel and (command := governor_advice(self.facts.governors)):
            found.append(f"clocks follow the load; before measuring, on the device: {command}")
        if self.measured and (wide := [rate for rate in self.measured.rates if rate.spread > _WIDE or rate.accepted < 3]):
            names = ", ".join(rate.instruction for rate in wide)
            found.append(f"other programs or changing clocks disturbed {names}; probe again on an idle device")
        hot = {zone: value for zone, value in self.facts.temperatures_c.items() if value > 75}
        found += [f"{zone} is at {value:.0f} degrees Celsius; let the device cool down" for zone, value in hot.items()]
        return tuple(found)


def probe_device(transport: Transport, *, quick: bool = False, say: Callable[[str], None] | None = None) -> Probe:
    """Probe an open device.

    Args:
        transport: open.
        quick: leave measurements out.
        say: called with one line for each step.

    Raises:
        UsageError: bevel has no kernels for the architecture.
        DeviceError: a named subclass: noexec, lost connection, a program that fails.
        ToolchainError: the measuring program cannot be compiled here.
    """
    say = say or (lambda _line: None)
    info = transport.info
    if info.arch not in ARCHES:
        raise UsageError(
            f"{transport.label} is {info.arch or 'of an unknown architecture'}; bevel compiles for {', '.join(ARCHES)}"
        )
    transport.preflight(Target("the probe", info.arch, frozenset(), "", ""))
    say(f"building the measuring program for {info.arch} and sending it")
    program = Program.install(transport)
    cpu = program.facts()
    facts = read_facts(transport, cpu.midr)
    # Under qemu-user cpuinfo is what the board's shell shows, and empty where that shell is this machine's own.
    shown = cpu_features(info.cpuinfo, info.arch) if info.cpuinfo.strip() else info.features
    caches, measured = facts.caches, None
    if not (quick or transport.emulated):
        core = _core(facts, cpu)
        with transport.lock("probe", _LOCK_WAIT_S, say):
            latencies: dict[int, float] = {}
            if not caches:
                say("measuring latencies, since the system does not name its caches")
                latencies = program.latencies(core, _LARGEST_KIB)
                caches = caches_from_latencies(latencies)
            say(f"measuring core {core}")
            measured = replace(program.measure(core, caches, info.memory_available_kib), latencies_ns=latencies)
    return Probe(
        label=transport.label,
        info=info,
        facts=facts,
        cpu=cpu,
        features=shown & cpu.features & FEATURES,
        disagreements=_disagreements(shown, cpu.features & FEATURES),
        caches=caches,
        caches_from="sysfs" if facts.caches else "latency" if caches else "",
        measured=measured,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _core(facts: Facts, cpu: CpuFacts) -> int:
    """The core to measure: the last of the fastest kind (the first has interrupts to serve) that programs may run on."""
    for kind in facts.core_kinds:
        if usable := [number for number in kind.cpus if number in cpu.cpus]:
            return usable[-1]
    return cpu.cpus[-1] if cpu.cpus else 0


def _disagreements(shown: frozenset[str], told: frozenset[str]) -> tuple[str, ...]:
    found = []
    if shown - told:
        found.append(f"/proc/cpuinfo shows {', '.join(sorted(shown - told))}, which programs are not told of")
    if told - shown:
        found.append(f"programs are told of {', '.join(sorted(told - shown))}, which /proc/cpuinfo does not show")
    return tuple(found)


def profile_from_probe(probe: Probe, name: str, ssh: Ssh | None, adb: Adb | None = None) -> Profile:
    """The device's profile.

    The LLVM CPU has the smallest instruction set of the machine's cores, `cores` counts those of the fastest kind, and figures
    are `measured` where they were.

    Raises:
        UsageError: the features are below what bevel has kernels for.
    """
    info, facts = probe.info, probe.facts
    base = _nearest(probe)
    names = [kind.name for kind in facts.core_kinds]
    cpu = llvm_cpu(info.cpuinfo, info.arch) if info.arch == "x86_64" else common_cpu(names, "sve" in probe.cpu.features)
    clock, peaks = _peaks(probe, base)
    count = facts.core_kinds[0].count if facts.core_kinds else base.cores
    return Profile(
        name=name,
        description=_description(probe, cpu, clock),
        arch=info.arch,
        cpu=cpu,
        triple=base.triple,
        attrs=llvm_attrs(info.arch, probe.features),
        features=probe.features,
        cores=count,
        clock_ghz=clock,
        caches=probe.caches or base.caches,
        memory_mib=max(1, info.memory_kib // 1024) if probe.own_kernel else base.memory_mib,
        peaks=peaks,
        ssh=ssh,
        adb=adb,
        qemu_cpu=base.qemu_cpu if base.cpu == cpu and base.features >= probe.features else None,
        core_kinds=facts.core_kinds,
        kernel=info.kernel if probe.own_kernel else None,
        libc=(info.libc or None) if probe.own_kernel else None,
        probed=probe.date,
    )


def _nearest(probe: Probe) -> Profile:
    """The shipped profile whose figures describe the device best: of the same core, else the richest its features cover."""
    shipped = [load_profile(known) for known in list_profiles() if known != "host"]
    same = [p for p in shipped if p.arch == probe.info.arch and p.cpu == probe.fastest and p.probed is None]
    return same[0] if same else class_profile(probe.info.arch, probe.features)


def _description(probe: Probe, cpu: str, clock: float) -> str:
    kinds = " + ".join(f"{kind.count} x {kind.name or cpu}" for kind in probe.facts.core_kinds) or cpu
    emulator = probe.info.emulator.split()[:1]
    pace = f", emulated by {emulator[0].rpartition('/')[2]}" if emulator else f" at {clock:.3g} GHz"
    return (f"{probe.facts.model}: " if probe.facts.model else "") + kinds + pace


def _peaks(probe: Probe, base: Profile) -> tuple[float, Peaks]:
    """Clock and figures: measured ones, else those of `base` at the device's clock."""
    measured = probe.measured
    if measured is None:
        known = probe.facts.core_kinds[0].max_ghz if probe.facts.core_kinds else None
        clock = known or base.clock_ghz
        return clock, scale_peaks(base.peaks, base, clock)

    def figure(rate: Rate | None, otherwise: Figure | None) -> Figure | None:
        if rate is None or rate.value <= 0:
            return None if otherwise is None else Figure(otherwise.value, "static", f"{base.name}: {otherwise.source}")
        pace = f"{rate.per_cycle:.3g} a cycle at {rate.ghz:.3g} GHz, " if rate.per_cycle else ""
        return Figure(float(f"{rate.value:.4g}"), "measured", f"{rate.instruction} loop, {pace}spread {100 * rate.spread:.1f} %")

    def certain(rate: Rate | None, otherwise: Figure) -> Figure:
        found = figure(rate, otherwise)
        assert found is not None
        return found

    reads = {level: found for level, rate in measured.reads.items() if (found := figure(rate, None)) is not None}
    fallback = {level: certain(None, base.peaks.bandwidth_gbs[level]) for level in ("l1", "dram") if level not in reads}
    order = [level for level in ("l1", "l2", "l3", "dram") if level in reads or level in fallback]
    launch = Figure(
        float(f"{measured.launch_ns * 1e-3:.3g}"), "measured", "call of a small loop nest after other code and branches"
    )
    return float(f"{measured.ghz:.3g}") or base.clock_ghz, Peaks(
        fp32_gmacs=certain(measured.best("fp32", probe.features), base.peaks.fp32_gmacs),
        int8_gmacs=certain(measured.best("int8", probe.features), base.peaks.int8_gmacs),
        launch_us=launch if measured.launch_ns > 0 else replace(base.peaks.launch_us, provenance="static"),
        bandwidth_gbs={level: reads.get(level) or fallback[level] for level in order},
        popcount_gbytes=figure(measured.best("popcount", probe.features), None),
        table_gbytes=figure(measured.best("table", probe.features), None),
    )
