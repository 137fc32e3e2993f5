"""The figure: a panel for each device class, GMAC/s against bits on a logarithmic axis, with lines for int8 and fp32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

# Of a panel, its margins, and what is between two of them.
_WIDTH, _HEIGHT, _LEFT, _TOP, _FOOT, _GAP = 400, 210, 52, 62, 62, 26
_INT8, _FLOAT = "w8a8", "fp32"
_STYLE = """
svg { color-scheme: light dark; background: light-dark(#fff, #1b1b1b); color: light-dark(#222, #ddd); }
text { font: 12px sans-serif; fill: currentColor; } .small { font-size: 11px; }
.axis { stroke: currentColor; stroke-opacity: .2; }
.int8 { stroke: #3b7dd8; stroke-width: 1.5; } .fp32 { stroke: #c2413b; stroke-width: 1.5; stroke-dasharray: 5 4; }
.few { fill: #3f9e6b; } .none { fill: #8a8a8a; } .int8-text { fill: #3b7dd8; } .fp32-text { fill: #c2413b; }
"""
# Few bits that gain less than this are drawn as no gain.
_GAIN = 1.05


def draw(record: Mapping[str, Mapping[str, Any]]) -> str:
    """An SVG of the record that `speed.py` keeps: title, how, and gmacs by form of every device."""
    panels = [_panel(entry, index) for index, entry in enumerate(record.values())]
    rows = -(-len(panels) // 2)
    width, height = 2 * _WIDTH + _GAP, 56 + rows * (_TOP + _HEIGHT + _FOOT)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>Speed against bits, by device class</title><style>{_STYLE}</style>"
        f'<text x="{_LEFT}" y="20" font-weight="bold">Speed of 3x3 convolutions against bits (GMAC/s, one thread)</text>'
        f'<text x="{_LEFT}" y="38" class="small">Bars: weights of N bits, activations of M, with the gain over int8; green from '
        f"{_GAIN:.2f} on. Lines: int8 (blue), fp32 (red, dashed).</text>{''.join(panels)}</svg>\n"
    )


def _panel(entry: Mapping[str, Any], index: int) -> str:
    """One device class."""
    speeds: Mapping[str, float] = entry["gmacs"]
    forms = [form for form in speeds if form not in (_INT8, _FLOAT)]
    x0, y0 = index % 2 * (_WIDTH + _GAP) + _LEFT, 56 + index // 2 * (_TOP + _HEIGHT + _FOOT) + _TOP
    low, high = min(speeds.values()) / 1.3, max(speeds.values()) * 1.25
    inner = _WIDTH - _LEFT

    def y(value: float) -> float:
        return y0 + _HEIGHT * (1 - math.log(value / low) / math.log(high / low))

    parts = [
        f'<text x="{x0}" y="{y0 - 34}" font-weight="bold">{escape(entry["title"])}</text>',
        f'<text x="{x0}" y="{y0 - 18}" class="small">{escape(entry["how"])}</text>',
    ]
    for tick in (t * 10**e for e in range(-1, 5) for t in (1, 2, 5)):
        if low <= tick <= high:
            parts.append(f'<line class="axis" x1="{x0}" x2="{x0 + inner}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            parts.append(f'<text x="{x0 - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    step = inner / max(len(forms), 1)
    for number, form in enumerate(forms):
        gain, top = speeds[form] / speeds[_INT8], y(speeds[form])
        left, middle = x0 + (number + 0.18) * step, x0 + (number + 0.5) * step
        kind = "few" if gain >= _GAIN else "none"
        parts += [
            f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{0.64 * step:.1f}" height="{y0 + _HEIGHT - top:.1f}">'
            f"<title>{form}: {speeds[form]:.1f} GMAC/s</title></rect>",
            f'<text x="{middle:.1f}" y="{top - 4:.1f}" text-anchor="middle" class="small">{gain:.2f}</text>',
            f'<text x="{middle:.1f}" y="{y0 + _HEIGHT + 16}" text-anchor="middle">{form}</text>',
        ]
    for row, (form, kind) in enumerate(((_INT8, "int8"), (_FLOAT, "fp32"))):
        at, right = y(speeds[form]), x0 + inner
        parts += [
            f'<line class="{kind}" x1="{x0}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>',
            f'<text x="{right}" y="{y0 + _HEIGHT + 34 + 14 * row}" text-anchor="end" class="small {kind}-text">{kind} '
            f"{speeds[form]:.3g} GMAC/s</text>",
        ]
    return "".join(parts)
