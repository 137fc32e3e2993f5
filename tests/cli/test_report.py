"""report.html: one well-formed, self-contained page that shows what is known and survives hostile names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bevel.report import Findings, render, short_name
from bevel.runtime.artifact import Artifact

LONG = ";".join(f"model/block_{i}/conv2d_{i}/BiasAdd/ReadVariableOp/resource" for i in range(20)) + ";model/last/Conv2D"


@pytest.fixture
def manifest(kws: Path) -> dict[str, Any]:
    return dict(Artifact.open(kws).manifest)


def findings(manifest: dict[str, Any]) -> Findings:
    layers = manifest["layers"]
    return Findings(
        device="board",
        provenance="measured",
        latency_ms={"median": 1.5, "p10": 1.4, "ci95": [1.4, 1.6]},
        layer_ms=[0.001 * (i + 1) for i in range(len(layers))],
        predicted_ms={layers[1]["name"]: 0.25},
        peers={"onnxruntime": 2.5},
        accuracy=["top-1 90.00 %"],
    )


class Page(HTMLParser):
    """Texts by tag, and every attribute that could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.fetches: list[str] = []
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetches += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href") or tag in ("link", "img")]
        self.titles += [value or "" for name, value in attrs if name == "title"]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data


def test_page_is_self_contained(manifest: dict[str, Any]) -> None:
    text = render(manifest, findings(manifest))
    assert Page(text).fetches == []
    assert not re.search(r"https?://|@import|url\(", text)


def test_measurements_are_shown(manifest: dict[str, Any]) -> None:
    text = render(manifest, findings(manifest))
    cells = Page(text).cells
    assert cells[:6] == ["#", "layer", "us", "share", "predicted us", "Gop/s"]
    assert "250.00" in cells, "the predicted layer"
    assert f"{0.001 * len(manifest['layers']) * 1e3:.2f}" in cells, "the last layer's time"
    for part in ("1.5 ms", "2.50x", "top-1 90.00 %", "integer only", manifest["graph_hash"]):
        assert part in text


def test_without_measurements_nothing_is_invented(manifest: dict[str, Any]) -> None:
    page = Page(render(manifest, Findings()))
    assert page.cells[:3] == ["#", "layer", "op"]
    assert "us" not in page.cells


def test_emulated_latency_says_so(manifest: dict[str, Any]) -> None:
    emulated = Findings(device="board", provenance="emulated", latency_ms={"median": 1.0, "ci95": [1.0, 1.0]})
    assert "says nothing about the device" in render(manifest, emulated)


def test_long_and_hostile_names(manifest: dict[str, Any]) -> None:
    hostile = "<script>alert(1)</script>'\"&"
    layers = [{**manifest["layers"][0], "name": LONG}, {**manifest["layers"][1], "name": hostile}]
    text = render({**manifest, "layers": layers, "name": hostile}, Findings())
    page = Page(text)
    assert page.tags.count("script") == 1, "only the report's own"
    assert LONG in page.titles, "the whole name shows on hover"
    assert hostile in page.titles
    assert max(len(cell) for cell in page.cells) <= 48, "no cell is wide enough to overflow the page"
    assert short_name(LONG) == "model/last/Conv2D"


def test_arena_drawing_has_every_tensor(manifest: dict[str, Any]) -> None:
    text = render(manifest, Findings())
    assert text.count("<rect") == len(manifest["memory"])
    assert "no arena tensors" in render({**manifest, "memory": []}, Findings())
