"""Predicted against measured time of each layer, on logarithmic axes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from bevel.devices.cost import take_prediction
from bevel.report.findings import Findings
from bevel.report.layers import FAR
from bevel.report.markup import label, note, short_name, svg, text, ticks

_LEFT, _TOP, _SIDE, _FOOT = 62.0, 12.0, 440.0, 44.0
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# A layer, its predicted and its measured time in microseconds.
Point = tuple[Mapping[str, Any], float, float]


def prediction(manifest: Mapping[str, Any], findings: Findings) -> str:
    """The scatter, and how good the predictions were; nothing without both times, or with emulated ones."""
    times = findings.layer_ms(manifest)
    if findings.profile.get("provenance") == "emulated":
        return ""
    predicted = dict(findings.predicted_ms)
    points: list[Point] = []
    for layer, ms in zip(manifest["layers"], times, strict=False):
        guess = take_prediction(predicted, layer)
        if guess and ms > 0:
            points.append((layer, guess * 1e3, ms * 1e3))
    if not points:
        return ""
    return f"{_judgement(points)}<div class=pair>{_scatter(points)}{_by_kernel(points)}</div>"


def _judgement(points: list[Point]) -> str:
    ratios = [measured / guess for _, guess, measured in points]
    within = sum(FAR[0] <= ratio <= FAR[1] for ratio in ratios)
    whole = sum(p[2] for p in points) / sum(p[1] for p in points)
    return note(
        f"Measured / predicted: {whole:.2f} over all of these layers, median {statistics.median(ratios):.2f}; {within} of "
        f"{len(points)} layers lie within the stated {FAR[0]:g}x to {FAR[1]:g}x (shaded)."
        "<br><span class='key'></span>convolutions and products (round)<span class='key b'></span>all other layers (square)"
    )


def _scatter(points: list[Point]) -> str:
    edges = _round_edges([t for p in points for t in p[1:]])
    low, high = edges[0], edges[-1]

    def at(us: float) -> float:
        return _SIDE * (math.log(us) - math.log(low)) / (math.log(high) - math.log(low))

    right, bottom = _LEFT + _SIDE, _TOP + _SIDE
    marks = []
    # What the stated interval allows, cut where the axes end.
    corners = [(low, low), (low / FAR[0], low), (high, high * FAR[0]), (high, high), (high / FAR[1], high), (low, low * FAR[1])]
    shape = " ".join(f"{_LEFT + at(x):.1f},{bottom - at(y):.1f}" for x, y in corners)
    marks.append(f"<polygon class=band points='{shape}'/>")
    for edge in edges:
        x, y = _LEFT + at(edge), bottom - at(edge)
        marks.append(f"<line class=grid x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP:.0f}' y2='{bottom:.0f}'/>")
        marks.append(f"<line class=grid x1='{_LEFT:.0f}' x2='{right:.0f}' y1='{y:.1f}' y2='{y:.1f}'/>")
        marks += [label(x, bottom + 15, f"{edge:g}", "middle"), label(_LEFT - 6, y + 4, f"{edge:g}", "end")]
    marks.append(f"<line class=even x1='{_LEFT:.0f}' y1='{bottom:.0f}' x2='{right:.0f}' y2='{_TOP:.0f}'/>")
    for layer, guess, measured in points:
        x, y = _LEFT + at(guess), bottom - at(measured)
        told = f"{short_name(layer['name'])}: predicted {guess:.3g} us, measured {measured:.3g} us ({measured / guess:.2f}x)"
        tip = f"<title>{text(told)}</title>"
        if any(op in layer["op"] for op in _WEIGHTED):
            marks.append(f"<circle class='dot a' cx='{x:.1f}' cy='{y:.1f}' r='4.5'>{tip}</circle>")
        else:
            marks.append(f"<rect class='dot b' x='{x - 3.6:.1f}' y='{y - 3.6:.1f}' width='7.2' height='7.2'>{tip}</rect>")
    middle = _TOP + _SIDE / 2
    marks.append(label(_LEFT + _SIDE / 2, bottom + 35, "predicted us", "middle", "dim"))
    marks.append(f"<g transform='rotate(-90 14 {middle:.0f})'>{label(14, middle, 'measured us', 'middle', 'dim')}</g>")
    return svg(
        right + 14, bottom + _FOOT, "Measured time of each layer over its predicted time, in microseconds", marks, kind="square"
    )


def _by_kernel(points: list[Point]) -> str:
    """Two bars for each kernel: what it takes in all its layers, measured and predicted."""
    sums: dict[str, list[float]] = {}
    for layer, guess, measured in points:
        both = sums.setdefault(layer["kernel"], [0.0, 0.0])
        both[0] += measured
        both[1] += guess
    top = 1.02 * max(max(both) for both in sums.values())
    left, width, row = 172.0, 250.0, 46.0
    bottom = _TOP + row * len(sums)
    marks = []
    for tick in ticks(top, 4):
        x = left + width * tick / top
        marks.append(f"<line class=grid x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP:.0f}' y2='{bottom:.0f}'/>")
        marks.append(label(x, bottom + 15, f"{tick:g}", "middle"))
    for index, (kernel, both) in enumerate(sorted(sums.items(), key=lambda item: -item[1][0])):
        y = _TOP + row * index
        marks.append(label(left - 8, y + row / 2 + 4, kernel, "end"))
        for us, kind, name, at in zip(both, "ca", ("measured", "predicted"), (5.0, 22.0), strict=True):
            box = f"x='{left:.0f}' y='{y + at:.1f}' width='{width * us / top:.1f}' height='15'"
            marks.append(f"<rect class='dot {kind}' {box}><title>{text(f'{kernel}: {us:.4g} us {name}')}</title></rect>")
            marks.append(label(left + 4, y + at + 11, f"{us:.4g}", kind="in"))
    marks.append(label((left + width) / 2, bottom + 33, "us over all layers: measured above, predicted below", "middle", "dim"))
    return svg(left + width + 24, bottom + 42, "Time of each kernel, measured and predicted", marks, kind="square")


def _round_edges(times: list[float]) -> list[float]:
    """Numbers 1, 2 and 5 times powers of ten that enclose all times; at least two."""
    powers = range(math.floor(math.log10(min(times))), math.ceil(math.log10(max(times))) + 1)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= min(times))
    last = next(i for i, step in enumerate(steps) if step >= max(times) and i > first)
    return steps[first : last + 1]
