"""Latency over minutes: does the device keep its speed when it gets warm?

In: a `DeviceRunner`. Out: one point for every block, as they come, and at the end a document and a self-contained drawing (SVG)
of latency, clock and temperature over time. Nothing is rejected: what disturbs a device in use is what one wants to see.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bevel.benchmarking.protocol import LOCK_WAIT_S, Note
from bevel.devices.runner import BenchOptions, DeviceRunner

# Short enough to see a governor step, long enough that hours stay readable.
BLOCK_MS = 500
_FIRST_BLOCKS = 2
# The first and the last share of the time that the slowdown compares.
_END_SHARE = 0.1


@dataclass(frozen=True)
class Point:
    """One block.

    Attributes:
        s: seconds since the first block.
        ms: a call's latency.
        mhz: clock of the measured core; None where the device does not tell.
        temperature_c: of the hottest zone.
        canary: the canary's time relative to its first: above 1, the core is slower than at the start.
    """

    s: float
    ms: float
    mhz: float | None
    temperature_c: float | None
    canary: float | None


@dataclass(frozen=True)
class Watched:
    """What was seen.

    Attributes:
        points: in time.
        throttled: how often the device says it throttled; None where it does not tell.
    """

    points: Sequence[Point]
    throttled: int | None

    @property
    def slowdown(self) -> float:
        """Median latency at the end over that at the start: above 1, the device lost speed."""
        ends = max(1, int(len(self.points) * _END_SHARE))
        times = [point.ms for point in self.points]
        return float(np.median(times[-ends:]) / np.median(times[:ends]))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        times = [point.ms for point in self.points]
        heat = [point.temperature_c for point in self.points if point.temperature_c is not None]
        return {
            "seconds": self.points[-1].s,
            "median_ms": float(np.median(times)),
            "worst_ms": max(times),
            "slowdown": self.slowdown,
            "throttled": self.throttled,
            "temperature_c": [min(heat), max(heat)] if heat else None,
            "points": [asdict(point) for point in self.points],
        }


class Watch:
    """Watches one artifact on one device.

    Args:
        runner: with an open transport.
        options: of the measuring process; its blocks are replaced.
        on_point: gets every point as it comes.
        note: gets one line for people when there is something to tell.
    """

    def __init__(
        self, runner: DeviceRunner, options: BenchOptions, on_point: Callable[[Point], None], note: Note | None = None
    ) -> None:
        self._runner, self._options, self._on_point = runner, options, on_point
        self._note = note or (lambda line: None)
        self._points: list[Point] = []
        self._throttled: int | None = None
        self._first_canary: float | None = None

    @property
    def seen(self) -> Watched | None:
        """What was seen so far; None before the first block. Holds after an interruption as well."""
        return Watched(self._points, self._throttled) if self._points else None

    def run(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> Watched:
        """Measure for `minutes`.

        Raises:
            DeviceError: the device failed; `seen` has what came before.
        """
        transport = self._runner.transport
        with transport.lock(f"watch of {self._runner.artifact.name}", LOCK_WAIT_S, self._note):
            self._runner.install()
            deadline = clock() + 60 * minutes
            start: float | None = None

            def take(line: dict[str, Any]) -> None:
                nonlocal start
                if "block" in line:
                    now = clock()
                    start = now if start is None else start
                    self._add(now - start, line)
                elif "end" in line:
                    self._throttled = line["throttled"]

            # A process is bounded in blocks, not in time, and blocks of slow models last longer: two show how long.
            while (left := deadline - clock()) > 0 or not self._points:
                blocks = max(1, round(1000 * left / self._block_ms())) if self._points else _FIRST_BLOCKS
                limit_s = 600 + 10 * max(left, 0)
                self._runner.bench(replace(self._options, blocks=blocks, block_ms=BLOCK_MS, limit_s=limit_s), take)
        return Watched(self._points, self._throttled)

    def _block_ms(self) -> float:
        """How long a block takes."""
        return max(BLOCK_MS, 1000 * self._points[-1].s / max(1, len(self._points) - 1))

    def _add(self, seconds: float, line: dict[str, Any]) -> None:
        canary = line["canary_ns"]
        self._first_canary = self._first_canary or canary
        point = Point(
            s=seconds,
            ms=line["wall_ns"] / 1e6,
            mhz=line["khz"] / 1e3 if line["khz"] is not None else None,
            temperature_c=line["mc"] / 1e3 if line["mc"] is not None else None,
            canary=canary / self._first_canary if canary and self._first_canary else None,
        )
        self._points.append(point)
        self._on_point(point)


_WIDTH, _HEIGHT, _LEFT, _GAP = 900, 150, 70, 44
_STYLE = """
svg { color-scheme: light dark; color: light-dark(#222, #ddd); background: light-dark(#fff, #1b1b1b); }
text { font-family: sans-serif; font-size: 12px; fill: currentColor; } .axis { stroke: currentColor; stroke-opacity: .35; }
polyline { fill: none; stroke-width: 1.5; }
"""
_COLORS = ("#3b7dd8", "#d8843b", "#c2413b")


def draw(watched: Watched, title: str) -> str:
    """A drawing (SVG) of latency, clock and temperature over time; what the device did not tell is left out.

    Without a clock the canary stands for it: the share of the first block's speed that is left.
    """
    points = watched.points
    series: list[tuple[str, list[float | None]]] = [("latency, ms", [point.ms for point in points])]
    if any(point.mhz is not None for point in points):
        series.append(("clock, MHz", [point.mhz for point in points]))
    else:
        series.append(("speed of the canary, %", [100 / point.canary if point.canary else None for point in points]))
    series.append(("temperature, °C", [point.temperature_c for point in points]))
    shown = [(name, values) for name, values in series if any(value is not None for value in values)]
    seconds = [point.s for point in points]
    panels = [
        _panel(name, seconds, values, _GAP + row * (_HEIGHT + _GAP), _COLORS[series.index((name, values))])
        for row, (name, values) in enumerate(shown)
    ]
    height = _GAP + len(shown) * (_HEIGHT + _GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {height + 10}" role="img">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>{"".join(panels)}</svg>\n'
    )


def _panel(name: str, seconds: Sequence[float], values: Sequence[float | None], top: float, color: str) -> str:
    """One quantity over time, its scale from the least to the greatest value."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    # A constant gets a band of its own size around it, so that noise does not look like drama.
    room = max((high - low) * 0.08, abs(high) * 0.01, 1e-9)
    low, high = low - room, high + room
    end = max(seconds[-1], 1e-9)
    bottom = top + _HEIGHT
    line = " ".join(
        f"{_LEFT + _WIDTH * second / end:.1f},{bottom - _HEIGHT * (value - low) / (high - low):.1f}"
        for second, value in zip(seconds, values, strict=True)
        if value is not None
    )
    marks = [
        f'<line class="axis" x1="{_LEFT}" y1="{y:.0f}" x2="{_LEFT + _WIDTH}" y2="{y:.0f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{level:.4g}</text>'
        for y, level in ((top, high), ((top + bottom) / 2, (low + high) / 2), (bottom, low))
    ]
    ticks = [
        f'<text x="{_LEFT + _WIDTH * share:.0f}" y="{bottom + 16:.0f}" text-anchor="middle">{_time(end * share, end)}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    return (
        f'<text x="{_LEFT}" y="{top - 6:.0f}">{escape(name)}</text>{"".join(marks)}{"".join(ticks)}'
        f'<polyline stroke="{color}" points="{line}"/>'
    )


def _time(seconds: float, end: float) -> str:
    """A moment in the unit that suits the whole."""
    return f"{seconds / 60:.1f} min" if end >= 120 else f"{seconds:.0f} s"


def save(watched: Watched, title: str, plot: Path) -> Path:
    """Write the drawing to `plot` and the document beside it, whose path it gives.

    Raises:
        OSError: a file cannot be written.
    """
    data = plot.with_suffix(".json")
    plot.write_text(draw(watched, title), encoding="utf-8")
    data.write_text(json.dumps({"title": title} | watched.document(), indent=1), encoding="utf-8")
    return data
