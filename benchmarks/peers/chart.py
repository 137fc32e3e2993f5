"""The chart of a comparison: for every model and precision one bar per engine, its time as a multiple of bevel's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_LEFT, _WIDTH, _RIGHT, _BAR, _GAP, _TOP = 190, 620, 70, 13, 16, 70
_COLORS = {
    "onnxruntime": "#3b7dd8", "openvino": "#7a4fd0", "litert": "#e08a2e", "ncnn": "#3f9e6b", "mnn": "#c2413b", "torch": "#8a8a8a",
}  # fmt: skip
_STYLE = """
svg { color-scheme: light dark; background: light-dark(#fff, #1b1b1b); color: light-dark(#222, #ddd); }
text { font: 12px sans-serif; fill: currentColor; } .axis { stroke: currentColor; stroke-opacity: .25; }
.even { stroke: currentColor; stroke-width: 1.5; }
"""


def draw(ratios: Mapping[str, Sequence[tuple[str, float]]], title: str) -> str:
    """An SVG of ratios on a logarithmic axis.

    Args:
        ratios: label of a model -> (engine, peer time / bevel time).
        title: above it.
    """
    values = [ratio for bars in ratios.values() for _, ratio in bars]
    low, high = min([0.9, *values]), max([2.0, *values])
    span = math.log(high / low)

    def x(value: float) -> float:
        return _LEFT + _WIDTH * math.log(value / low) / span

    height = _TOP + sum(len(bars) * _BAR + _GAP for bars in ratios.values()) + 10
    parts: list[str] = []
    for tick in (t for t in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low <= t <= high):
        kind = "even" if tick == 1 else "axis"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP - 8}" y2="{height - 10}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{_TOP - 14}" text-anchor="middle">{tick:g}</text>')
    top = float(_TOP)
    for label, bars in ratios.items():
        parts.append(f'<text x="{_LEFT - 10}" y="{top + len(bars) * _BAR / 2 + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        for engine, ratio in bars:
            left, right = sorted((x(1.0), x(ratio)))
            color = _COLORS.get(engine.removesuffix("-int8"), "#555555")
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1):.1f}" height="{_BAR - 2}" fill="{color}"/>'
                f'<text x="{right + 4:.1f}" y="{top + _BAR - 3:.1f}" font-size="11">{escape(engine)} {ratio:.2f}</text>'
            )
            top += _BAR
        top += _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 2 * _RIGHT} {height}" role="img">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>'
        f'<text x="{_LEFT}" y="38">time / bevel&#8217;s time: right of 1, bevel is faster</text>{"".join(parts)}</svg>\n'
    )
