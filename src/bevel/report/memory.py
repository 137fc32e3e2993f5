"""The arena over the steps: which bytes hold what, when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevel.report.markup import kib, label, note, short_name, svg, text, ticks

# Rectangles of the drawing; the smallest tensors beyond them would not be seen.
_MAX_BARS = 200
_LEFT, _TOP, _WIDTH, _HEIGHT, _FOOT = 74.0, 10.0, 816.0, 280.0, 40.0
_CHARACTER = 5.2  # width of a letter in a rectangle


def memory(manifest: Mapping[str, Any]) -> str:
    """One rectangle per arena tensor, steps across and bytes up, and a line of the bytes that live at each step."""
    every = manifest.get("memory", ())
    if not every:
        return note("no arena tensors")
    steps = max(int(t["last"]) for t in every) + 1
    arena = max(int(t["offset"]) + int(t["nbytes"]) for t in every)
    live = [sum(int(t["nbytes"]) for t in every if t["first"] <= step <= t["last"]) for step in range(steps)]
    bottom, scale = _TOP + _HEIGHT, _HEIGHT / arena

    marks = []
    for size in ticks(arena / 1024):
        y = bottom - 1024 * size * scale
        marks.append(f"<line class=grid x1='{_LEFT:.0f}' x2='{_LEFT + _WIDTH:.0f}' y1='{y:.1f}' y2='{y:.1f}'/>")
        marks.append(label(_LEFT - 6, y + 4, f"{size:g} KiB", "end"))
    every_few = range(0, steps, max(1, -(-steps // 16)))
    marks += [label(_LEFT + _WIDTH * (step + 0.5) / steps, bottom + 15, step, "middle") for step in every_few]
    marks.append(label(_LEFT + _WIDTH / 2, bottom + 33, "step", "middle", "dim"))
    for t in sorted(every, key=lambda t: -int(t["nbytes"]))[:_MAX_BARS]:
        x, w = _LEFT + _WIDTH * t["first"] / steps, _WIDTH * (t["last"] - t["first"] + 1) / steps
        h = max(1.0, t["nbytes"] * scale)
        y = bottom - t["offset"] * scale - h
        tip = f"{t['name']}: {t['nbytes']:,} bytes at {t['offset']:,}, steps {t['first']} to {t['last']}"
        marks.append(
            f"<rect class=bar x='{x:.1f}' y='{y:.1f}' width='{w:.1f}' height='{h:.1f}'><title>{text(tip)}</title></rect>"
        )
        name = short_name(t["name"])
        if h >= 11 and w >= _CHARACTER * len(name) + 6:
            marks.append(label(x + 3, y + 9, name, kind="in"))
    points = []
    for step, size in enumerate(live):
        y = bottom - size * scale
        points += [f"{_LEFT + _WIDTH * step / steps:.1f},{y:.1f}", f"{_LEFT + _WIDTH * (step + 1) / steps:.1f},{y:.1f}"]
    marks.append(f"<polyline class=live points='{' '.join(points)}'/>")
    peak = max(range(steps), key=live.__getitem__)
    hidden = f" The {_MAX_BARS} largest of {len(every)} tensors are drawn." if len(every) > _MAX_BARS else ""
    return svg(_LEFT + _WIDTH + 8, bottom + _FOOT, "The arena: bytes up, steps across", marks) + note(
        f"Each rectangle is one tensor: the steps it lives, and its bytes. The line is what lives at each step: at most "
        f"{kib(live[peak])}, in step {peak} ({text(short_name(_step_name(manifest, peak)))}); the tensors' places take "
        f"{kib(arena)}.{hidden} Rest on a rectangle to see which it is."
    )


def _step_name(manifest: Mapping[str, Any], step: int) -> str:
    layers = manifest["layers"]
    return str(layers[step]["name"]) if step < len(layers) else "the outputs"
