"""The report in a headless browser: tables sort by mouse and keyboard, nothing is fetched, no error, light and dark, any width.

Needs Chromium or Chrome; without one these tests are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.report import Findings, render
from bevel.runtime.artifact import Artifact

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
Look = Callable[..., "Seen"]


class Seen:
    """What one visit of the page left."""

    def __init__(self, dom: str, log: str, requests: list[str]) -> None:
        self.answer = dom.split("<output>")[-1].split("</output>")[0] if "<output>" in dom else ""
        self.dom = dom
        self.console = [line for line in log.splitlines() if "CONSOLE" in line]
        self.requests = requests


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser to look at the report with: apt-get install chromium")
    return found


@pytest.fixture
def report(kws: Path) -> str:
    """The page of an artifact with everything known."""
    manifest = Artifact.open(kws).manifest
    names = [layer["name"] for layer in manifest["layers"]]
    # Neither ascending nor descending, and with more digits than text would sort right.
    times = [0.001 * (7 * i % len(names) + 1) for i in range(len(names))]
    latency = {"median": 1.5, "ci95": [1.4, 1.6]}
    findings = Findings(
        predicted_ms={name: 0.004 * (i + 1) for i, name in enumerate(names[1:])},
        bench={"device": "board", "provenance": "measured", "latency_ms": latency, "conditions": {"governor": "performance"}},
        profile={"provenance": "measured", "layers": [{"name": n, "ms": t} for n, t in zip(names, times, strict=True)]},
        evaluation={"metric": "top1", "value": 0.9, "n": 400, "baseline": {"value": 0.92}, "agreement": 0.95},
    )
    return render(manifest, findings)


@pytest.fixture
def look(browser: str, tmp_path: Path) -> Look:
    """Open a page, run a script in it whose value goes into `answer`, and say what the browser saw."""

    def visit(page: str, script: str = "''", *options: str, image: Path | None = None) -> Seen:
        file, netlog = tmp_path / "report.html", tmp_path / "net.json"
        probe = (
            f"<script>document.body.append(Object.assign(document.createElement('output'), {{textContent: {script}}}))</script>"
        )
        file.write_text(page.replace("</body>", f"{probe}</body>"))
        aim = [f"--screenshot={image}"] if image else ["--dump-dom"]
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
        command += [f"--user-data-dir={tmp_path / 'browser'}", f"--log-net-log={netlog}", "--disable-background-networking"]
        done = subprocess.run([*command, *options, *aim, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return Seen(done.stdout, done.stderr, requests(netlog))

    return visit


def requests(netlog: Path) -> list[str]:
    """URLs that the page asked for, by the browser's own log; the browser's own errands go to other places than a page's."""
    text = netlog.read_text()
    urls = re.findall(r'"url":"([^"]*)"', text)
    return sorted({url for url in urls if not url.startswith("file:") and "google" not in url and "gvt1" not in url})


def pixels(image: Path) -> npt.NDArray[np.uint8]:
    """RGB of an 8-bit PNG without interlacing, as browsers write them."""
    data, at, body, width, height, channels = image.read_bytes(), 8, b"", 0, 0, 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunk)
            assert (depth, interlaced) == (8, 0)
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            body += chunk
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height, width, channels), np.uint8)
    above = np.zeros((width, channels), np.int32)
    for y, row in enumerate(rows):
        line, filtered = row[1:].reshape(width, channels).astype(np.int32), row[0]
        if filtered == 2:
            line = line + above & 255
        elif filtered:
            line = unfilter(int(filtered), line, above)
        out[y], above = line, line
    return out[..., :3]


def unfilter(kind: int, line: Any, above: Any) -> Any:
    """PNG filters that look to the left: Sub, Average, Paeth."""
    left, corner, result = np.zeros_like(line[0]), np.zeros_like(line[0]), np.empty_like(line)
    for x in range(len(line)):
        up = above[x]
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + up) // 2
        else:
            far = np.stack([np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)])
            guess = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], up, corner))
        left = result[x] = line[x] + guess & 255
        corner = up
    return result


# Value of every row in the column of a head, after what `act` does to that head's button.
COLUMN = """(() => {{
  const th = [...document.querySelectorAll('table.sortable th[scope=col]')].find(th => th.textContent === '{head}');
  const button = th.querySelector('button'); {act};
  const rows = [...th.closest('table').tBodies[0].rows];
  return JSON.stringify([th.getAttribute('aria-sort'), rows.map(row => row.cells[th.cellIndex].dataset.sort)]);
}})()"""


def column(look: Look, page: str, head: str, act: str) -> tuple[str, list[str]]:
    seen = look(page, COLUMN.format(head=head, act=act))
    assert seen.console == []
    order, values = json.loads(seen.answer.replace("&quot;", '"'))
    return order, values


def test_columns_sort_both_ways(look: Look, report: str) -> None:
    order, before = column(look, report, "us", "")
    assert order == "none"
    times = [float(value) for value in before]
    order, after = column(look, report, "us", "button.click()")
    assert (order, [float(value) for value in after]) == ("descending", sorted(times, reverse=True))
    order, after = column(look, report, "us", "button.click(); button.click()")
    assert (order, [float(value) for value in after]) == ("ascending", sorted(times))
    assert times not in (sorted(times), sorted(times, reverse=True)), "a page that does not sort would pass"


def test_what_has_no_value_sorts_last_either_way(look: Look, report: str) -> None:
    """The ratio of a layer without a prediction: the first step's."""
    for clicks in ("button.click()", "button.click(); button.click()"):
        _, values = column(look, report, "ratio", clicks)
        assert values[-1] == ""
        known = [float(value) for value in values[:-1]]
        assert known in (sorted(known), sorted(known, reverse=True))


def test_heads_are_buttons_a_keyboard_reaches(look: Look, report: str) -> None:
    """A focused button takes Enter and Space by itself; one head at a time says how it sorts."""
    script = """(() => {
      const buttons = [...document.querySelectorAll('table.sortable thead button')];
      buttons[0].focus(); const focused = document.activeElement === buttons[0];
      buttons[0].click(); buttons[1].click();
      const table = buttons[0].closest('table');
      return [focused, buttons.every(b => b.tabIndex === 0), table.querySelectorAll('th[aria-sort$=ending]').length,
        document.querySelectorAll('th:not([scope])').length, document.querySelectorAll('svg:not(:has(> title))').length].join();
    })()"""
    assert look(report, script).answer == "true,true,1,0,0"


@pytest.mark.parametrize("width", [400, 1280])
def test_page_is_as_wide_as_the_window(look: Look, report: str, width: int) -> None:
    """Wide tables and drawings scroll within their boxes. A window has a least width, so the page is looked at in a frame."""
    tell = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script>"
    inside = json.dumps(report.replace("</body>", f"{tell}</body>")).replace("</", r"<\/")
    script = f"""(() => {{
      const frame = document.createElement('iframe');
      frame.width = {width}; frame.srcdoc = {inside};
      addEventListener('message', e => document.querySelector('output').textContent = e.data);
      document.body.append(frame);
      return 'the frame did not load';
    }})()"""
    page = "<!doctype html><html><body></body></html>"
    assert look(page, script, "--virtual-time-budget=5000").answer == str(width)


@pytest.mark.parametrize(("options", "dark"), [((), False), (("--force-dark-mode",), True)])
def test_drawn_in_light_and_dark(look: Look, report: str, tmp_path: Path, options: tuple[str, ...], dark: bool) -> None:
    assert look(report, "matchMedia('(prefers-color-scheme: dark)').matches", *options).answer == str(dark).lower()
    image = tmp_path / "page.png"
    seen = look(report, "''", *options, "--window-size=600,500", image=image)
    assert (seen.console, seen.requests) == ([], [])
    colours = Counter(map(tuple, pixels(image).reshape(-1, 3).tolist()))
    (ground, count), total = colours.most_common(1)[0], sum(colours.values())
    assert (max(ground) < 64) if dark else (min(ground) > 192)
    assert len(colours) > 30, "text has edges in many shades"
    assert count < 0.97 * total, "the page is not blank"


def test_contrast_of_text(look: Look, report: str) -> None:
    """WCAG 2: at least 4.5:1 between every text and its ground, in both schemes."""
    script = """(() => {
      const rgb = c => c.match(/[\\d.]+/g).map(Number);
      const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      const light = c => { const [r, g, b] = rgb(c).slice(0, 3).map(linear);
        return .2126 * r + .7152 * g + .0722 * b; };
      let least = 99;
      for (const e of document.querySelectorAll('body *')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.closest('svg, script, output')) continue;
        let p = e; while (p && (rgb(getComputedStyle(p).backgroundColor)[3] ?? 1) === 0) p = p.parentElement;
        const ground = getComputedStyle(p ?? document.body).backgroundColor;
        const [a, b] = [light(getComputedStyle(e).color), light(ground)].sort((x, y) => y - x);
        least = Math.min(least, (a + .05) / (b + .05));
      }
      return least;
    })()"""
    for options in ((), ("--force-dark-mode",)):
        assert float(look(report, script, *options).answer) >= 4.5
