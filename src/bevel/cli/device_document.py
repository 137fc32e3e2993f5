"""What `bevel devices` shows of profiles and probes: JSON documents and tables."""

from __future__ import annotations

from pathlib import Path

from bevel.cli.output import table
from bevel.devices.microbenchmark import Rate, theory
from bevel.devices.probe import Probe
from bevel.devices.profile import Profile


def address(profile: Profile) -> str | None:
    """How a device is reached, for people; None for one without an address."""
    if profile.adb is not None:
        return f"adb {profile.adb.serial}" if profile.adb.serial else "adb"
    return profile.ssh.address if profile.ssh is not None else None


def describe(profile: Profile) -> dict[str, object]:
    """A profile's JSON document."""
    peaks = profile.peaks
    return {
        "name": profile.name,
        "description": profile.description,
        "arch": profile.arch,
        "cpu": profile.cpu,
        "features": sorted(profile.features),
        "cores": profile.cores,
        "clock_ghz": profile.clock_ghz,
        "address": address(profile),
        "core_kinds": [{"name": kind.name, "cpus": list(kind.cpus), "max_ghz": kind.max_ghz} for kind in profile.core_kinds],
        "probed": profile.probed,
        "peaks": {
            "fp32_gmacs": peaks.fp32_gmacs.value,
            "int8_gmacs": peaks.int8_gmacs.value,
            "provenance": peaks.int8_gmacs.provenance,
            "bandwidth_gbs": {level: figure.value for level, figure in peaks.bandwidth_gbs.items()},
        },
    }


def _rows(probe: Probe) -> list[tuple[str, Rate, float | None]]:
    """Every measured rate with its unit and its share of what the core's maker names."""
    if probe.measured is None:
        return []
    units = {"fp32": "GMAC/s", "fp16": "GMAC/s", "int8": "GMAC/s", "popcount": "GB/s", "table": "GB/s", "read": "GB/s"}
    rows = []
    for rate in (*probe.measured.rates, *probe.measured.reads.values()):
        peak = theory(rate, probe.fastest, probe.features)
        share = rate.per_cycle / peak if peak and rate.per_cycle else None
        rows.append((units[rate.kind], rate, share))
    return rows


def probe_document(probe: Probe, profile: Profile, path: Path | None) -> dict[str, object]:
    """A probe's JSON document; `path` is where its profile was saved."""
    info, facts = probe.info, probe.facts
    return {
        "file": str(path) if path else None,
        "profile": describe(profile),
        "emulated": bool(info.emulator),
        "probed": probe.date,
        "model": facts.model,
        "kernel": info.kernel,
        "libc": info.libc,
        "boot_id": info.boot_id,
        "core_kinds": [{"name": k.name, "cpus": list(k.cpus), "max_ghz": k.max_ghz} for k in facts.core_kinds],
        "caches": [{"level": c.level, "kib": c.bytes // 1024, "line": c.line} for c in profile.caches],
        "caches_from": probe.caches_from,
        "memory_mib": info.memory_kib // 1024,
        "disk_free_mib": info.disk_free_kib // 1024,
        "clock": {**probe.cpu.clock, "sources": list(facts.clock_sources)},
        "counters": {"cycles": probe.cpu.cycles, "perf_event_paranoid": facts.perf_event_paranoid},
        "governors": [{"name": g.name, "cpus": g.cpus, "cap_ghz": g.cap_ghz} for g in facts.governors],
        "temperatures_c": dict(facts.temperatures_c),
        "energy": list(facts.energy),
        "disagreements": list(probe.disagreements),
        "advice": list(probe.advice),
        "launch_ns": probe.measured.launch_ns if probe.measured else None,
        "rates": [
            {
                "kind": rate.kind,
                "instruction": rate.instruction,
                "value": rate.value,
                "unit": unit,
                "per_cycle": rate.per_cycle,
                "of_theory": share,
                "spread": rate.spread,
                "ghz": rate.ghz or None,
            }
            for unit, rate, share in _rows(probe)
        ],
    }


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"


def probe_tables(probe: Probe, profile: Profile) -> list[object]:
    """What a person wants to see of a probe."""
    info, facts = probe.info, probe.facts
    kinds = ", ".join(
        f"{k.count} x {k.name or 'unknown'}" + (f" up to {k.max_ghz:g} GHz" if k.max_ghz else "") for k in facts.core_kinds
    )
    caches = ", ".join(f"L{c.level} {c.bytes // 1024} KiB" for c in profile.caches)
    origin = {"sysfs": "", "latency": " (from latencies)", "": f" (of the profile nearest, {profile.cpu})"}[probe.caches_from]
    elsewhere = "" if probe.own_kernel else ", of the machine that emulates"
    clock = probe.cpu.clock
    counter = f", counter {clock['counter_ns']:.0f} ns at {clock['counter_mhz']:.1f} MHz" if "counter_ns" in clock else ""
    rows: list[tuple[str, object]] = [
        ("device", profile.description),
        ("compiled for", f"{profile.arch}, LLVM {profile.cpu}, {' '.join(sorted(profile.features))}"),
        ("cores", kinds),
        ("caches", caches + origin),
        ("memory, disk", f"{info.memory_kib // 1024} MiB, {info.disk_free_kib // 1024} MiB free in {info.workdir}{elsewhere}"),
        ("system", f"Linux {info.kernel}, {info.libc or 'C library unknown'}{elsewhere}"),
        ("clock", f"clock_gettime {clock['gettime_ns']:.0f} ns{counter}, {', '.join(facts.clock_sources) or 'source unknown'}"),
        ("cycle counter", probe.cpu.cycles),
        ("governor", ", ".join(sorted({g.name for g in facts.governors})) or "none visible"),
        ("temperature", ", ".join(f"{zone} {value:.0f}" for zone, value in facts.temperatures_c.items()) or "no sensor visible"),
        ("energy", ", ".join(facts.energy) or "no counter visible"),
    ]
    text: list[object] = [table(f"{probe.label}", ("", ""), rows)]
    figures = _rows(probe)
    if figures:
        assert probe.measured is not None
        cells = [
            (r.kind, r.instruction, r.value, unit, r.per_cycle, _percent(share), f"{100 * r.spread:.1f} %")
            for unit, r, share in figures
        ]
        columns = ("", "loop", "rate", "unit", "per cycle", "of theory", "spread")
        text.append(table(f"one core at {probe.measured.ghz:.3g} GHz", columns, cells))
        text.append(f"call of a kernel: {probe.measured.launch_ns:.3g} ns")
    elif info.emulator:
        text.append("emulated: facts only; figures are those of the shipped profile nearest, not this device's")
    return [*text, *(f"note: {line}" for line in probe.advice)]
