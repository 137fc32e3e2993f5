"""The way of this compile, model to device, with its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bevel.report.findings import Findings
from bevel.report.markup import duration, kib, note, text
from bevel.runtime.manifest import kernel_calls


def flow(manifest: Mapping[str, Any], findings: Findings) -> str:
    """Boxes from the model file to the device."""
    provenance, layers, target = manifest["provenance"], manifest["layers"], manifest["target"]
    steps = [
        ("model", provenance.get("model", manifest["name"]), _boundary(manifest)),
        _passes(provenance),
        _graph(manifest),
        _kernels(layers),
        (
            "artifact",
            kib(manifest["bytes"]["total"]),
            [f"arena {kib(manifest['arena_bytes'])}", f"runner {manifest['runner']}", f"{manifest['golden_cases']} golden cases"],
        ),
        ("device", target["name"], [f"{target['arch']}, {target['cpu']}", _time(findings)]),
    ]
    boxes = (
        f"<li><h3>{text(name)}</h3><b>{text(value)}</b>{'<br>'.join(text(line) for line in lines if line)}</li>"
        for name, value, lines in steps
    )
    return f"<ol class=flow>{''.join(boxes)}</ol>"


def _boundary(manifest: Mapping[str, Any]) -> list[str]:
    """Inputs and outputs; the first few."""
    lines = []
    for side, arrow in (("inputs", "in"), ("outputs", "out")):
        for tensor in manifest[side][:3]:
            shape = "x".join(str(extent) for extent in tensor["shape"])
            lines.append(f"{arrow} {tensor['name']}: {tensor['dtype']} {shape or 'scalar'}")
        if len(manifest[side]) > 3:
            lines.append(f"and {len(manifest[side]) - 3} more")
    return lines


def _passes(provenance: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    names = [item.partition("{")[0] for item in _split(provenance.get("pipeline") or "")]
    calibration = provenance.get("calibration") or {}
    lines = []
    if nodes := provenance.get("nodes"):
        lines.append(f"{nodes['imported']} nodes imported, {nodes['compiled']} compiled")
    if calibration.get("method"):
        lines.append(f"calibrated: {calibration['method']}, {calibration.get('samples', '?')} samples at most")
    return ("passes", str(len(names)), lines)


def _split(pipeline: str) -> list[str]:
    """Passes of a printed pipeline, at the commas outside braces."""
    parts, depth = [""], 0
    for letter in pipeline:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


def _graph(manifest: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    macs = sum(layer["macs"] for layer in manifest["layers"])
    islands = len(manifest["float_islands"])
    lines = [f"{macs / 1e6:.2f} M operations"]
    if manifest["level"] == "integer":
        lines.append("integer only" if manifest["integer_only"] else f"{islands} float layer{'s' * (islands != 1)}")
    return (f"{manifest['level']} graph", f"{len(manifest['layers'])} steps", lines)


def _kernels(layers: list[dict[str, Any]]) -> tuple[str, str, list[str]]:
    calls = [call for layer in layers for call in kernel_calls(layer)]
    kinds = Counter(call["kernel"] for call in calls)
    different = len({call["symbol"] for call in calls})
    return ("kernels", f"{different} different", [f"{name}: {count}" for name, count in kinds.most_common(5)])


def _time(findings: Findings) -> str:
    if findings.bench:
        kind = "emulated" if findings.bench.get("provenance") == "emulated" else "measured"
        return f"{findings.bench['latency_ms']['median']:.4g} ms {kind}"
    if findings.predicted_ms:
        return f"{duration(sum(findings.predicted_ms.values()))} predicted"
    return ""


def pipeline(manifest: Mapping[str, Any]) -> str:
    """The passes by name, for the foot of the flow."""
    printed = manifest["provenance"].get("pipeline")
    return note(f"Passes: <code>{text(', '.join(_split(printed)))}</code>") if printed else ""
