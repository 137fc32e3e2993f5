"""The first section: what one asks first, as tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevel.report.findings import Findings
from bevel.report.markup import duration, kib, short_name, text, tiles


def summary(manifest: Mapping[str, Any], findings: Findings) -> str:
    """Latency, accuracy, sizes and work."""
    layers, size = manifest["layers"], manifest["bytes"]
    items = _latency(findings)
    if findings.predicted_ms:
        items.append(("predicted latency", duration(sum(findings.predicted_ms.values())), "static roofline, 0.5x to 2x"))
    items += _accuracy(findings)
    islands = ", ".join(map(short_name, manifest["float_islands"])) or "no float islands"
    items += [
        (f"extent {dim['name']}", f"{dim['lo']} to {dim['hi']}", "chosen at run time; work and arena are those of the largest")
        for dim in manifest["dims"]
    ]
    items += [("state", f"{s['input']} = {s['output']}", "kept between runs") for s in manifest["states"]]
    items += [
        ("arithmetic", "integer only" if manifest["integer_only"] else f"{manifest['level']} graph", islands),
        ("library and weights", kib(size["total"]), f"{size['library']:,} + {size['weights']:,} bytes"),
        ("arena", kib(manifest["arena_bytes"]), "activations and scratch, all there is at run time"),
        ("work", f"{sum(layer['macs'] for layer in layers) / 1e6:.2f} M", f"operations in {len(layers)} steps"),
        _generic(manifest, findings),
    ]
    return _warning(findings) + tiles(items)


def _warning(findings: Findings) -> str:
    """What a reader must know before any number."""
    bench = findings.bench
    if bench.get("provenance") == "emulated" or findings.profile.get("provenance") == "emulated":
        return "<p class=warning>Times here were taken under emulation: they say nothing about the device.</p>"
    if bench.get("unstable"):
        why = bench.get("why_unstable") or "processes disagree"
        return f"<p class=warning>The latency is <b>unstable</b>: {text(why)}.</p>"
    return ""


def _latency(findings: Findings) -> list[tuple[str, str, str]]:
    bench = findings.bench
    if not bench:
        return []
    latency = bench["latency_ms"]
    lo, hi = latency["ci95"]
    emulated = "; emulated, says nothing about the device" if bench.get("provenance") == "emulated" else ""
    detail = f"median on {bench.get('device', 'the device')}, 95 % interval {lo:.4g} to {hi:.4g}{emulated}"
    items = [("latency", f"{latency['median']:.4g} ms", detail)]
    for name, peer in bench.get("peers", {}).items():
        items.append((f"against {name}", f"{peer['ratio']:.2f}x", "its time / bevel's, one run"))
    return items


def _accuracy(findings: Findings) -> list[tuple[str, str, str]]:
    found = findings.evaluation
    if not found:
        return []
    name = {"top1": "top-1 accuracy"}.get(found["metric"], found["metric"])
    base = found.get("baseline")
    detail = f"on {found['n']} samples"
    if base is not None:
        detail += f", baseline {100 * base['value']:.2f} %"
    return [(name, f"{100 * found['value']:.2f} %", detail)]


def _generic(manifest: Mapping[str, Any], findings: Findings) -> tuple[str, str, str]:
    """How many layers no tuned kernel serves, and their share of the time where it is measured."""
    layers = manifest["layers"]
    generic = [layer["kernel"].startswith("generic") for layer in layers]
    share = ""
    if times := findings.layer_ms(manifest):
        slow = sum(ms for ms, is_generic in zip(times, generic, strict=True) if is_generic)
        share = f", {100 * slow / (sum(times) or 1.0):.1f} % of the time"
    return ("generic kernels", f"{sum(generic)} of {len(layers)}", f"layers without a tuned kernel{share}")
