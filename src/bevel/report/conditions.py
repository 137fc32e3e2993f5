"""How the latency was measured: the interval, peers beside it, and the state of the device meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevel.report.findings import Findings
from bevel.report.markup import label, note, svg, text, ticks, tiles

_LEFT, _WIDTH, _ROW = 120.0, 400.0, 30.0


def conditions(findings: Findings) -> str:
    """Times with their intervals, then what the device was like; nothing without a bench."""
    bench = findings.bench
    if not bench:
        return ""
    items = [item for item in (*_protocol(bench), *_state(bench.get("conditions") or {})) if item[1]]
    return _times(bench) + (tiles(items) if items else "")


def _times(bench: Mapping[str, Any]) -> str:
    """One line a contestant: its median as a dot, the 95 % interval as a bar."""
    entries = [("bevel", bench["latency_ms"])]
    entries += [(name, peer["latency_ms"]) for name, peer in bench.get("peers", {}).items()]
    top = 1.08 * max(max(latency["ci95"][1], latency["median"]) for _, latency in entries)
    bottom = 8 + _ROW * len(entries)
    marks = []
    for tick in ticks(top, 4):
        x = _LEFT + _WIDTH * tick / top
        marks.append(f"<line class=grid x1='{x:.1f}' x2='{x:.1f}' y1='8' y2='{bottom:.0f}'/>")
        marks.append(label(x, bottom + 15, f"{tick:g}", "middle"))
    for index, (name, latency) in enumerate(entries):
        y = 8 + _ROW * (index + 0.5)
        lo, median, hi = (_LEFT + _WIDTH * ms / top for ms in (latency["ci95"][0], latency["median"], latency["ci95"][1]))
        kind = "a" if index == 0 else "b"
        told = f"{name}: median {latency['median']:.4g} ms, 95 % interval {latency['ci95'][0]:.4g} to {latency['ci95'][1]:.4g}"
        marks.append(label(_LEFT - 8, y + 4, name, "end"))
        marks.append(f"<line class={kind} x1='{lo:.1f}' x2='{hi:.1f}' y1='{y:.1f}' y2='{y:.1f}' stroke-width='3'/>")
        marks.append(f"<circle class={kind} cx='{median:.1f}' cy='{y:.1f}' r='4.5'><title>{text(told)}</title></circle>")
        marks.append(label(max(hi, median) + 9, y + 4, f"{latency['median']:.4g}", kind="dim"))
    marks.append(label(_LEFT + _WIDTH / 2, bottom + 31, "median and 95 % interval, ms", "middle", "dim"))
    drawing = svg(_LEFT + _WIDTH + 60, bottom + 38, "Latency with its 95 % interval", marks, kind="medium")
    words = [f"{bench.get('threads', 1)} thread{'s' * (bench.get('threads', 1) != 1)}"]
    words += [f"{name} = {extent}" for name, extent in (bench.get("dims") or {}).items()]
    words += [f"caches {bench['cache']}"] if bench.get("cache") else []
    return note(f"On {text(bench.get('device', 'the device'))}, {text(', '.join(words))}.") + drawing


def _protocol(bench: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How sure the median is, and what else was measured."""
    items = []
    interval = bench.get("interval")
    if interval:
        half = 100 * (interval["hi"] - interval["lo"]) / 2 / bench["latency_ms"]["median"]
        what = "where the median of a later bench falls" if interval.get("kind") == "prediction" else "spread of the blocks"
        items.append(("uncertainty", f"\u00b1{half:.1f} %", f"95 %: {what}"))
    if "unstable" in bench:
        items.append(("verdict", "unstable" if bench["unstable"] else "stable", bench.get("why_unstable") or "processes agree"))
    if bench.get("disturbed") is not None:
        items.append(("disturbed", f"{100 * bench['disturbed']:.0f} %", "share of the measurement that other programs touched"))
    if bench.get("rss_mib") is not None:
        items.append(("peak memory", f"{bench['rss_mib']:.1f} MiB", "of the whole process"))
    if bench.get("energy_mj") is not None:
        items.append(("energy", f"{bench['energy_mj']:.3g} mJ", "a call, by the device's counter"))
    if start := bench.get("start_ms"):
        items.append(
            ("cold start", f"{start['median']:.4g} ms", f"from starting the program to its first result, {start['n']} times")
        )
    return items


def _state(state: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The device while it was measured; what it does not tell is left out."""
    items = [("governor", str(state.get("governor") or ""), "of the CPU's clock")]
    if state.get("khz") is not None:
        items.append(("clock", f"{state['khz'] / 1e6:.2f} GHz", "of the first CPU measured on"))
    if state.get("temperature_c") is not None:
        items.append(("temperature", f"{state['temperature_c']:.0f} \u00b0C", "the hottest seen"))
    if state.get("canary_spread") is not None:
        items.append(("canary", f"{100 * state['canary_spread']:.1f} %", "spread of a fixed loop timed before each block"))
    if state.get("pinned"):
        items.append(("pinned to", f"CPU {', '.join(map(str, state['pinned']))}", "every thread has its own"))
    if state.get("load") is not None:
        items.append(("load", f"{state['load']:.2f}", "running processes before the bench"))
    if rejected := state.get("rejected"):
        why = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        items.append(("rejected blocks", str(sum(rejected.values())), why))
    return items
