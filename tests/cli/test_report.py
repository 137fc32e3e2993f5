"""report.html: one well-formed, self-contained page that shows what is known and survives hostile names."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bevel.report import Findings, render, short_name
from bevel.report.accuracy import paired_error
from bevel.report.findings import load_findings
from bevel.runtime.artifact import Artifact
from tests.cli.conftest import Bevel

LONG = ";".join(f"model/block_{i}/conv2d_{i}/BiasAdd/ReadVariableOp/resource" for i in range(20)) + ";model/last/Conv2D"


@pytest.fixture
def manifest(kws: Path) -> dict[str, Any]:
    return dict(Artifact.open(kws).manifest)


def findings(manifest: dict[str, Any]) -> Findings:
    layers = manifest["layers"]
    return Findings(
        predicted_ms={layers[1]["name"]: 0.25, layers[2]["name"]: 0.003},
        bench={
            "device": "board",
            "provenance": "measured",
            "threads": 2,
            "latency_ms": {"median": 1.5, "p10": 1.4, "ci95": [1.4, 1.6]},
            "interval": {"lo": 1.44, "hi": 1.56, "kind": "prediction"},
            "unstable": True,
            "why_unstable": "<processes> disagree",
            "peers": {"onnxruntime": {"latency_ms": {"median": 3.75, "ci95": [3.5, 4.0]}, "ratio": 2.5}},
            "conditions": {
                "governor": "performance",
                "khz": 1500000,
                "temperature_c": 61.4,
                "canary_spread": 0.012,
                "pinned": [2, 3],
                "load": 0.25,
                "rejected": {"switches": 4, "canary": 1},
            },
            "energy_mj": 2.25,
        },
        profile={
            "device": "board",
            "provenance": "measured",
            "layers": [{"name": layer["name"], "ms": 0.001 * (i + 1)} for i, layer in enumerate(layers)],
        },
        evaluation={"metric": "top1", "value": 0.9, "n": 400, "baseline": {"value": 0.92}, "agreement": 0.95, "device": "board"},
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
        if self.cells and self.tags[-1] in ("td", "th", "button"):
            self.cells[-1] += data


def test_page_is_self_contained(manifest: dict[str, Any]) -> None:
    text = render(manifest, findings(manifest))
    assert Page(text).fetches == []
    assert not re.search(r"https?://|@import|url\(", text)


def test_measurements_are_shown(manifest: dict[str, Any]) -> None:
    text = render(manifest, findings(manifest))
    cells = Page(text).cells
    heads = ["#", "layer", "us", "share", "predicted us", "ratio", "Gop/s"]
    assert cells[: len(heads)] == heads
    assert "250.00" in cells, "the predicted layer"
    assert cells.count("0.01") == 1, "its ratio: 2 us measured, 250 predicted"
    assert f"{0.001 * len(manifest['layers']) * 1e3:.2f}" in cells, "the last layer's time"
    for part in ("1.5 ms", "2.50x", "90.00 %", "integer only", manifest["graph_hash"]):
        assert part in text


def test_conditions_are_shown_and_absent_ones_left_out(manifest: dict[str, Any]) -> None:
    known = findings(manifest)
    text = render(manifest, known)
    for part in ("performance", "1.50 GHz", "61 °C", "1.2 %", "CPU 2, 3", "4 switches, 1 canary", "±4.0 %", "2.25 mJ"):
        assert part in text
    assert "unstable</b>: &lt;processes&gt; disagree" in text
    bare = {key: known.bench[key] for key in ("device", "provenance", "latency_ms")}
    text = render(manifest, Findings(bench=bare | {"conditions": {"governor": None, "khz": None, "temperature_c": None}}))
    for part in ("governor", "GHz", "temperature", "unstable", "None"):
        assert part not in text.split("<main>")[1].split("<script>")[0].split("Provenance")[0]


def test_change_of_accuracy_has_the_error_of_paired_samples(manifest: dict[str, Any]) -> None:
    """Independent errors of the two would be 2.0 points; 20 of 400 samples on which they differ bound it to 1.1."""
    assert paired_error(-0.02, 0.95, 400) == pytest.approx(((0.05 - 0.02**2) / 400) ** 0.5)
    assert paired_error(0.0, None, 400) is None
    cells = Page(render(manifest, findings(manifest))).cells
    at = cells.index("change")
    assert cells[at + 1 : at + 3] == ["-2.00 points", "1.11 points"]


def test_prediction_drawing_has_every_layer_with_both_times(manifest: dict[str, Any]) -> None:
    text = render(manifest, findings(manifest))
    drawing, bars = text.split("Predicted against measured")[1].split("</svg>")[:2]
    assert drawing.count("<title>") == 3, "the drawing's own, and two layers with a prediction"
    assert "1 of 2 layers lie within" in text
    kernels = {layer["kernel"] for layer in manifest["layers"][1:3]}
    assert bars.count("<title>") == 1 + 2 * len(kernels)


def test_without_measurements_nothing_is_invented(manifest: dict[str, Any]) -> None:
    text = render(manifest, Findings())
    page = Page(text)
    assert page.cells[:3] == ["#", "layer", "op"]
    assert "us" not in page.cells
    for title in (">Latency<", ">Accuracy<", ">Predicted against measured<"):
        assert title not in text


def test_profile_of_another_artifact_is_not_shown(manifest: dict[str, Any]) -> None:
    layers = [{"name": f"other {i}", "ms": 1.0} for i in range(len(manifest["layers"]))]
    assert "us" not in Page(render(manifest, Findings(profile={"layers": layers}))).cells


def test_emulated_times_say_so(manifest: dict[str, Any]) -> None:
    known = findings(manifest)
    emulated = Findings(
        predicted_ms=known.predicted_ms,
        bench={**known.bench, "provenance": "emulated"},
        profile={**known.profile, "provenance": "emulated"},
    )
    text = render(manifest, emulated)
    assert "they say nothing about the device" in text
    assert ">Predicted against measured<" not in text, "nothing to compare with"


def test_flow_has_the_numbers_of_this_compile(manifest: dict[str, Any]) -> None:
    flow = render(manifest, Findings()).split("<ol class=flow>")[1].split("</ol>")[0]
    different = len({layer["symbol"] for layer in manifest["layers"]})
    for part in ("kws_dscnn_int8_qdq.onnx", f"{different} different", f"{len(manifest['layers'])} steps", "nodes imported"):
        assert part in flow


def test_compile_predicts_and_verbs_add_what_they_measure(kws: Path, bevel: Bevel, tmp_path: Path) -> None:
    copy = tmp_path / "kws.bevel"
    shutil.copytree(kws, copy)
    predicted = load_findings(Artifact.open(copy)).predicted_ms
    layers = [layer["name"] for layer in Artifact.open(copy).manifest["layers"]]
    assert predicted
    assert set(predicted) <= set(layers)
    assert ">Latency<" not in (copy / "report.html").read_text()
    assert bevel("profile", copy, "--runs", 3, "--report").code == 0
    assert bevel("bench", copy, "--processes", 1, "--blocks", 2, "--time-limit", 1, "--report").code == 0
    text = (copy / "report.html").read_text()
    assert ">Latency<" in text
    assert ">Predicted against measured<" in text
    assert str(tmp_path) not in text + json.dumps(Artifact.open(copy).manifest), "artifacts travel"
    assert bevel("run", copy, "--selftest").code == 0, "it is still whole"
    refused = bevel("bench", copy, "--watch", 1, "--report")
    assert refused.code == 2
    assert "--report" in refused.err


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
    assert text.count("<rect class=bar") == len(manifest["memory"])
    assert "no arena tensors" in render({**manifest, "memory": []}, Findings())
