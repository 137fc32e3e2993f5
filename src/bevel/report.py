"""The HTML report of an artifact: one self-contained file, no script library, no external resource, light and dark.

In: the artifact's manifest and, where they exist, measurements (`Findings`). Out: report.html inside the artifact.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bevel.runtime.artifact import Artifact

NAME = "report.html"
_MAX_BARS = 60

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { cursor: pointer; } td.n, th.n { text-align: right; overflow-wrap: normal; }
svg { width: 100%; height: auto; background: var(--soft); }
rect { fill: var(--bar); opacity: .6; } svg text { font: 10px sans-serif; fill: currentColor; }
code { font-size: .85em; overflow-wrap: anywhere; } .note { opacity: .75; }
"""

# Sorting by a click on a column head; the report reads the same without it.
_SCRIPT = """
document.querySelectorAll('th').forEach(th => th.onclick = () => {
  const body = th.closest('table').tBodies[0], i = th.cellIndex, sign = th.dataset.sign = -(th.dataset.sign || -1);
  const key = r => { const t = r.cells[i].textContent; return isNaN(t) ? t : +t; };
  [...body.rows].sort((a, b) => key(a) > key(b) ? sign : -sign).forEach(r => body.append(r));
});
"""


@dataclass(frozen=True)
class Findings:
    """Measurements to show beside what the manifest says.

    Attributes:
        device: label of the device they were taken on.
        provenance: "measured" or "emulated".
        latency_ms: {"median", "p10", "ci95"}.
        layer_ms: time of each layer, in the manifest's order.
        predicted_ms: whole-model prediction of the cost model.
        peers: name -> peer time / bevel time.
        accuracy: lines for people.
    """

    device: str = ""
    provenance: str = ""
    latency_ms: Mapping[str, Any] = field(default_factory=dict)
    layer_ms: Sequence[float] = ()
    predicted_ms: float | None = None
    peers: Mapping[str, float] = field(default_factory=dict)
    accuracy: Sequence[str] = ()


def write_report(artifact: Artifact, findings: Findings | None = None) -> Artifact:
    """Write (or replace) report.html inside `artifact` and enter it in the manifest."""
    return artifact.update({NAME: render(artifact.manifest, findings or Findings()).encode()})


def render(manifest: Mapping[str, Any], findings: Findings) -> str:
    """The report as HTML text."""
    title = f"{manifest['name']} for {manifest['target']['name']}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        _summary(manifest, findings),
        "<h2>Layers</h2>",
        _layers(manifest, findings),
        "<h2>Arena over the steps</h2>",
        _memory(manifest),
        "<h2>Provenance</h2>",
        f"<pre><code>{_text(json.dumps(manifest['provenance'], indent=1))}</code></pre>",
        f"<p class=note>graph <code>{_text(manifest['graph_hash'])}</code>; linked with {_text(manifest['toolchain'])}</p>",
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{_text(title)}</title><style>{_STYLE}</style><body>{''.join(parts)}<script>{_SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _summary(manifest: Mapping[str, Any], findings: Findings) -> str:
    size = manifest["bytes"]
    layers = manifest["layers"]
    generic = [layer for layer in layers if layer["kernel"].startswith("generic")]
    rows = [
        ("arithmetic", "integer only" if manifest["integer_only"] else f"{manifest['level']} graph"),
        ("float islands", ", ".join(manifest["float_islands"]) or "none"),
        ("library", f"{size['library']:,} bytes"),
        ("weights", f"{size['weights']:,} bytes"),
        ("arena", f"{manifest['arena_bytes']:,} bytes"),
        ("MACs", f"{sum(layer['macs'] for layer in layers):,}"),
        ("generic kernels", f"{len(generic)} of {len(layers)} layers{_generic_share(generic, layers, findings)}"),
    ]
    if findings.latency_ms:
        lo, hi = findings.latency_ms["ci95"]
        what = f"{findings.latency_ms['median']:.4g} ms median, 95 % interval {lo:.4g} to {hi:.4g} ({findings.provenance})"
        rows.append((f"latency on {findings.device}", what))
    if findings.predicted_ms is not None:
        rows.append(("predicted", f"{findings.predicted_ms:.4g} ms (static roofline)"))
    rows += [(f"against {name}", f"{ratio:.2f} times as fast") for name, ratio in findings.peers.items()]
    rows += [("accuracy", line) for line in findings.accuracy]
    return "<table><tbody>" + "".join(f"<tr><td>{_text(k)}<td>{_text(v)}" for k, v in rows) + "</tbody></table>"


def _generic_share(generic: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]], findings: Findings) -> str:
    """Their share of the measured time where there is one."""
    if len(findings.layer_ms) != len(layers):
        return ""
    total = sum(findings.layer_ms) or 1.0
    slow = sum(ms for layer, ms in zip(layers, findings.layer_ms, strict=True) if layer in generic)
    return f", {100 * slow / total:.1f} % of the time"


def _layers(manifest: Mapping[str, Any], findings: Findings) -> str:
    timed = len(findings.layer_ms) == len(manifest["layers"])
    head = ["layer", "op", "kernel", "bits", "MACs", *(["us", "GMAC/s"] if timed else [])]
    numeric = {"MACs", "us", "GMAC/s"}
    cells = []
    for index, layer in enumerate(manifest["layers"]):
        row = [layer["name"], layer["op"], layer["kernel"], layer["bits"], layer["macs"]]
        if timed:
            ms = findings.layer_ms[index]
            row += [f"{ms * 1e3:.2f}", f"{layer['macs'] / max(ms, 1e-9) / 1e6:.1f}"]
        cells.append("<tr>" + "".join(f"<td{' class=n' if head[i] in numeric else ''}>{_text(c)}" for i, c in enumerate(row)))
    heads = "".join(f"<th{' class=n' if name in numeric else ''}>{name}" for name in head)
    return f"<table><thead><tr>{heads}</thead><tbody>{''.join(cells)}</tbody></table>"


def _memory(manifest: Mapping[str, Any]) -> str:
    """One rectangle per arena tensor: steps across, bytes up."""
    tensors = sorted(manifest.get("memory", ()), key=lambda t: -int(t["nbytes"]))[:_MAX_BARS]
    if not tensors:
        return "<p class=note>no arena tensors</p>"
    width, height = 900.0, 260.0
    steps = max(int(t["last"]) for t in tensors) + 1
    arena = max(int(t["offset"]) + int(t["nbytes"]) for t in tensors)
    bars = []
    for t in tensors:
        x, w = width * t["first"] / steps, width * (t["last"] - t["first"] + 1) / steps
        y, h = height * t["offset"] / arena, max(1.0, height * t["nbytes"] / arena)
        tip = f"{t['name']}: {t['nbytes']:,} bytes at {t['offset']:,}, steps {t['first']} to {t['last']}"
        box = f"x='{x:.1f}' y='{height - y - h:.1f}' width='{w:.1f}' height='{h:.1f}'"
        bars.append(f"<rect {box}><title>{_text(tip)}</title></rect>")
    label = f"<text x='4' y='12'>{arena:,} bytes</text><text x='{width - 60:.0f}' y='{height - 4:.0f}'>{steps} steps</text>"
    return f"<svg viewBox='0 0 {width:.0f} {height:.0f}' role=img>{''.join(bars)}{label}</svg>"
