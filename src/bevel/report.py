"""The HTML report of an artifact: one self-contained file, no script library, no external resource, light and dark.

In: the artifact's manifest and, where they exist, measurements (`Findings`). Out: report.html inside the artifact.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bevel.errors import UsageError
from bevel.runtime.artifact import Artifact

NAME = "report.html"
# Rectangles of the arena drawing; the smallest tensors beyond them would not be seen.
_MAX_BARS = 200
_NAME_COLUMNS = 48

_STYLE = """
:root { color-scheme: light dark; --line: #8883; --bar: #3b7dd8; --share: #3b7dd855; --soft: #8881; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tiles div { background: var(--soft); border-radius: .4rem; padding: .5rem .8rem; overflow-wrap: anywhere; }
.tiles b { display: block; font-size: 1.15rem; } .tiles span, .note { opacity: .75; font-size: .87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .82rem; }
th, td { text-align: left; padding: .2rem .45rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { cursor: pointer; user-select: none; } td.n, th.n { text-align: right; }
td.name { max-width: 17rem; overflow: hidden; text-overflow: ellipsis; }
td.share { min-width: 4.5rem;
  background: linear-gradient(var(--share), var(--share)) no-repeat left center / calc(var(--w) * 1%) 70%; }
svg { width: 100%; height: auto; background: var(--soft); }
rect { fill: var(--bar); opacity: .55; stroke: var(--bar); stroke-width: .5; } rect:hover { opacity: 1; }
svg text { font: 11px sans-serif; fill: currentColor; } svg line { stroke: var(--line); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""

# Sorting by a click on a column head; the report reads the same without it.
_SCRIPT = """
document.querySelectorAll('th').forEach(th => th.onclick = () => {
  const body = th.closest('table').tBodies[0], i = th.cellIndex, sign = th.dataset.sign = -(th.dataset.sign || 1);
  const key = r => { const t = r.cells[i].dataset.sort ?? r.cells[i].textContent; return isNaN(t) || t === '' ? t : +t; };
  const less = (x, y) => typeof x === typeof y ? x < y : typeof x === 'string';
  [...body.rows].sort((a, b) => less(key(a), key(b)) ? -sign : less(key(b), key(a)) ? sign : 0).forEach(r => body.append(r));
});
"""


def short_name(layer: str) -> str:
    """A layer name that fits a table: exporters join module paths with semicolons; the last says most."""
    last = layer.rsplit(";", 1)[-1]
    return last if len(last) <= _NAME_COLUMNS else "..." + last[3 - _NAME_COLUMNS :]


@dataclass(frozen=True)
class Findings:
    """Measurements to show beside what the manifest says.

    Attributes:
        device: label of the device they were taken on.
        provenance: "measured" or "emulated".
        latency_ms: {"median", "p10", "ci95"}.
        layer_ms: time of each layer, in the manifest's order.
        predicted_ms: prediction of the cost model by layer name; layers that fusion left no step of their
            own count in the sum.
        peers: name -> peer time / bevel time.
        accuracy: lines for people.
    """

    device: str = ""
    provenance: str = ""
    latency_ms: Mapping[str, Any] = field(default_factory=dict)
    layer_ms: Sequence[float] = ()
    predicted_ms: Mapping[str, float] = field(default_factory=dict)
    peers: Mapping[str, float] = field(default_factory=dict)
    accuracy: Sequence[str] = ()


def write_report(artifact: Artifact, findings: Findings | None = None) -> Artifact:
    """Write (or replace) report.html inside `artifact` and enter it in the manifest."""
    return artifact.update({NAME: render(artifact.manifest, findings or Findings()).encode()})


def write_ranges(artifact: Artifact, path: Path) -> None:
    """Write the manifest's `ranges` as JSON: a list of {name, observed, chosen, scale, zero_point, clipped}; docs/calibration.md.

    Raises:
        UsageError: the file cannot be written.
    """
    rows = artifact.manifest.get("ranges", [])
    try:
        path.write_text(json.dumps({"model": artifact.name, "ranges": rows}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error


def render(manifest: Mapping[str, Any], findings: Findings) -> str:
    """The report as HTML text."""
    title = f"{manifest['name']} for {manifest['target']['name']}"
    target = manifest["target"]
    cpu = f"{target['arch']}, {target['cpu']}, {' '.join(target['features'])}"
    parts = [
        f"<h1>{_text(title)}</h1><p class=note>{_text(cpu)}</p>",
        _summary(manifest, findings),
        f"<h2>Layers</h2>{_note(manifest, findings)}",
        _layers(manifest, findings),
        "<h2>Arena over the steps</h2>",
        _memory(manifest),
        _islands(manifest),
        _ranges(manifest),
        "<h2>Provenance</h2>",
        f"<pre>{_text(json.dumps(manifest['provenance'], indent=1))}</pre>",
        f"<p class=note>graph <code>{_text(manifest['graph_hash'])}</code><br>linked with {_text(manifest['toolchain'])}, "
        f"runner {_text(manifest['runner'])}</p>",
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
    tiles: list[tuple[str, str, str]] = []
    if findings.latency_ms:
        lo, hi = findings.latency_ms["ci95"]
        emulated = "; emulated, says nothing about the device" if findings.provenance == "emulated" else ""
        detail = f"median on {findings.device}, 95 % interval {lo:.4g} to {hi:.4g}{emulated}"
        tiles.append(("latency", f"{findings.latency_ms['median']:.4g} ms", detail))
    if findings.predicted_ms:
        tiles.append(("predicted latency", f"{sum(findings.predicted_ms.values()):.4g} ms", "static roofline, 0.5x to 2x"))
    tiles += [(f"against {name}", f"{ratio:.2f}x", "its time / bevel's, one run") for name, ratio in findings.peers.items()]
    tiles += [("accuracy", line, "") for line in findings.accuracy]
    islands = ", ".join(map(short_name, manifest["float_islands"])) or "no float islands"
    tiles += [
        (f"extent {dim['name']}", f"{dim['lo']} to {dim['hi']}", "chosen at run time; work and arena are those of the largest")
        for dim in manifest["dims"]
    ]
    tiles += [("state", f"{s['input']} = {s['output']}", "kept between runs") for s in manifest["states"]]
    tiles += [
        ("arithmetic", "integer only" if manifest["integer_only"] else f"{manifest['level']} graph", islands),
        ("library and weights", f"{size['total'] / 1024:.1f} KiB", f"{size['library']:,} + {size['weights']:,} bytes"),
        ("arena", f"{manifest['arena_bytes'] / 1024:.1f} KiB", "activations and scratch, all there is at run time"),
        ("work", f"{sum(layer['macs'] for layer in layers) / 1e6:.2f} M", f"operations in {len(layers)} steps"),
        (
            "generic kernels",
            f"{len(generic)} of {len(layers)}",
            f"layers without a tuned kernel{_generic_share(layers, findings)}",
        ),
    ]
    cells = (f"<div><span>{_text(k)}</span><b>{_text(v)}</b><span>{_text(note)}</span></div>" for k, v, note in tiles)
    return f"<div class=tiles>{''.join(cells)}</div>"


def _timed(manifest: Mapping[str, Any], findings: Findings) -> bool:
    return len(findings.layer_ms) == len(manifest["layers"])


def _note(manifest: Mapping[str, Any], findings: Findings) -> str:
    hint = "Click a column head to sort; rest on a name to see it in full."
    if not _timed(manifest, findings):
        return f"<p class=note>{hint} No layer times here: <code>bevel profile</code> measures them.</p>"
    total = f"Sum of the layer timers {sum(findings.layer_ms) * 1e3:.4g} us ({_text(findings.provenance)})."
    return f"<p class=note>{hint} {total}</p>"


def _generic_share(layers: Sequence[Mapping[str, Any]], findings: Findings) -> str:
    """Their share of the measured time where there is one."""
    if len(findings.layer_ms) != len(layers):
        return ""
    total = sum(findings.layer_ms) or 1.0
    slow = sum(ms for layer, ms in zip(layers, findings.layer_ms, strict=True) if layer["kernel"].startswith("generic"))
    return f", {100 * slow / total:.1f} % of the time"


def _layers(manifest: Mapping[str, Any], findings: Findings) -> str:
    timed = _timed(manifest, findings)
    head = ["#", "layer"]
    head += ["us", "share"] if timed else []
    head += ["predicted us"] if findings.predicted_ms else []
    head += ["Gop/s"] if timed else []
    head += ["op", "kernel", "bits", "operations"]
    total = sum(findings.layer_ms) or 1.0
    predicted = dict(findings.predicted_ms)
    rows = []
    for index, layer in enumerate(manifest["layers"]):
        name = layer["name"]
        cells = [
            _number(index),
            f"<td class=name title='{_text(name)}' data-sort='{_text(name)}'>{_text(short_name(name))}",
        ]
        ms = findings.layer_ms[index] if timed else 0.0
        if timed:
            share = 100 * ms / total
            cells += [
                _number(ms, f"{ms * 1e3:.2f}"),
                f"<td class=share data-sort='{share}' style='--w:{share:.1f}'>{share:.1f} %",
            ]
        if findings.predicted_ms:
            # Steps that share a layer (a boundary conversion) show its prediction once.
            guess = predicted.pop(name, None)
            cells.append(_number(guess if guess is not None else -1, f"{guess * 1e3:.2f}" if guess is not None else "-"))
        if timed:
            rate = layer["macs"] / max(ms, 1e-9) / 1e6
            cells.append(_number(rate, f"{rate:.1f}" if layer["macs"] else "-"))
        cells += [f"<td>{_text(layer[key])}" for key in ("op", "kernel", "bits")]
        cells.append(_number(layer["macs"], f"{layer['macs']:,}"))
        rows.append("<tr>" + "".join(cells))
    text = {"layer", "op", "kernel", "bits", "share"}
    heads = "".join(f"<th{'' if name in text else ' class=n'}>{_text(name)}" for name in head)
    return _table(heads, rows)


def _islands(manifest: Mapping[str, Any]) -> str:
    """Float layers of an integer graph with their reasons and shares of the work; nothing where there are none."""
    rows = []
    for layer in manifest.get("islands", ()):
        cells = [f"<td class=name title='{_text(layer['layer'])}'>{_text(short_name(layer['layer']))}"]
        cells += [f"<td>{_text(layer[key])}" for key in ("op", "reason")]
        cells += [_number(layer[key], f"{100 * layer[key]:.1f} %") for key in ("macs_share", "bytes_share")]
        rows.append("<tr>" + "".join(cells))
    if not rows:
        return ""
    head = "<th>layer<th>op<th>reason<th class=n>of the operations<th class=n>of the bytes moved"
    note = "<p class=note>Byte identity between devices ends behind a float layer.</p>"
    return f"<h2>Float islands</h2>{note}{_table(head, rows)}"


def _ranges(manifest: Mapping[str, Any]) -> str:
    """What calibration saw of each value and chose for it; nothing for models that were not calibrated here."""
    rows = []
    for value in manifest.get("ranges", ()):
        cells = [f"<td class=name title='{_text(value['name'])}'>{_text(short_name(value['name']))}"]
        cells += [_number(end, f"{end:.5g}") for key in ("observed", "chosen") for end in value[key]]
        cells += [_number(value["scale"], f"{value['scale']:.5g}"), _number(value["zero_point"])]
        cells.append(_number(value["clipped"], f"{100 * value['clipped']:.3g} %"))
        rows.append("<tr>" + "".join(cells))
    if not rows:
        return ""
    heads = ("seen from", "to", "type from", "to", "scale", "zero point", "clipped")
    head = "<th>value" + "".join(f"<th class=n>{name}" for name in heads)
    note = "<p class=note>Values that take over the type of another are left out. Clipped: share of the calibration data.</p>"
    return f"<h2>Calibrated ranges</h2>{note}{_table(head, rows)}"


def _table(head: str, rows: Sequence[str]) -> str:
    return f"<div class=scroll><table><thead><tr>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def _number(value: float, shown: str | None = None) -> str:
    return f"<td class=n data-sort='{value}'>{_text(value if shown is None else shown)}"


def _memory(manifest: Mapping[str, Any]) -> str:
    """One rectangle per arena tensor: steps across, bytes up."""
    tensors = sorted(manifest.get("memory", ()), key=lambda t: -int(t["nbytes"]))[:_MAX_BARS]
    if not tensors:
        return "<p class=note>no arena tensors</p>"
    left, width, height, foot = 70.0, 830.0, 260.0, 22.0
    steps = max(int(t["last"]) for t in tensors) + 1
    arena = max(int(t["offset"]) + int(t["nbytes"]) for t in tensors)
    marks = []
    for quarter in range(5):
        y = height - height * quarter / 4
        marks.append(f"<line x1='{left:.0f}' x2='{left + width:.0f}' y1='{y:.1f}' y2='{y:.1f}'/>")
        marks.append(f"<text x='{left - 6:.0f}' y='{max(y, 11):.1f}' text-anchor='end'>{arena * quarter / 4096:.1f} KiB</text>")
    for step in range(0, steps, max(1, steps // 12)):
        x = left + width * (step + 0.5) / steps
        marks += [f"<text x='{x:.1f}' y='{height + 15:.0f}' text-anchor='middle'>{step}</text>"]
    bars = []
    for t in tensors:
        x, w = left + width * t["first"] / steps, width * (t["last"] - t["first"] + 1) / steps
        y, h = height * t["offset"] / arena, max(1.0, height * t["nbytes"] / arena)
        tip = f"{t['name']}: {t['nbytes']:,} bytes at {t['offset']:,}, steps {t['first']} to {t['last']}"
        box = f"x='{x:.1f}' y='{height - y - h:.1f}' width='{w:.1f}' height='{h:.1f}'"
        bars.append(f"<rect {box}><title>{_text(tip)}</title></rect>")
    drawing = f"<svg viewBox='0 0 {left + width:.0f} {height + foot:.0f}' role=img>{''.join(marks)}{''.join(bars)}</svg>"
    return (
        f"{drawing}<p class=note>Each rectangle is one tensor: the steps it lives, and its bytes. Rest on one to see which.</p>"
    )
