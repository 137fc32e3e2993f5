"""`--plan`: what the passes support is applied layer by layer, everything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import KWS, Bevel, images, save

Refused = Callable[..., str]


def write_plan(folder: Path, **fields: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps({"bevel_plan": 1, **fields}))
    return path


@pytest.fixture
def command(small: Path, tmp_path: Path) -> list[object]:
    data = save(tmp_path / "d.npz", images())
    return ["compile", small, "--device", "host", "--calib", data, "-o", "out.bevel"]


def bits_of(document: Any) -> dict[str, str]:
    return {layer["op"].partition("+")[0]: layer["bits"] for layer in document["layers"]}


def test_without_exceptions_everything_is_integer(command: list[object], tmp_path: Path, bevel: Bevel) -> None:
    result = bevel(*command, "--plan", write_plan(tmp_path), "--json")
    assert result.code == 0, result
    assert result.json["integer_only"] is True


def test_a_layer_kept_in_float_becomes_an_island(command: list[object], tmp_path: Path, bevel: Bevel) -> None:
    result = bevel(*command, "--plan", write_plan(tmp_path, layers={"y": {"bits": "fp32"}}), "--json")
    assert result.code == 0, result
    assert result.json["integer_only"] is False
    assert any("dense" in island or island == "y" for island in result.json["float_islands"])
    bits = bits_of(result.json)
    assert bits["Gemm"] == "fp32"
    assert bits["IntConv"] == "w8a8"
    manifest = json.loads((tmp_path / "out.bevel" / "manifest.json").read_text())
    assert manifest["provenance"]["plan"]["layers"] == {"y": {"bits": "fp32"}}
    assert bevel("run", "out.bevel", "--selftest").code == 0


def test_layers_of_few_bits(command: list[object], tmp_path: Path, bevel: Bevel) -> None:
    """The ends of a small model are all of it, so the plan names them; what was asked is in the manifest and in the text."""
    plan = write_plan(tmp_path, bits="w4a8", layers={"c": {"bits": "w2a4", "scales": "minmax"}, "y": {"bits": "w3a8"}})
    result = bevel(*command, "--plan", plan, "--json")
    assert result.code == 0, result
    assert result.json["integer_only"] is True
    found = bits_of(result.json)
    assert (found["IntConv"], found["IntGemm"]) == ("w2a4", "w3a8")
    text = bevel(*command, "--plan", plan)
    assert "1 layers of w2a4 run " in text.out
    assert bevel("run", "out.bevel", "--selftest").code == 0
    retargeted = bevel("compile", "out.bevel", "--device", "raspberry-pi-4", "-o", "pi.bevel", "--json")
    assert bits_of(retargeted.json) == found
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out.bevel", "pi.bevel")]
    assert manifests[0]["graph_hash"] == manifests[1]["graph_hash"]


def test_bits_without_a_plan_keep_the_ends(command: list[object], bevel: Bevel) -> None:
    result = bevel(*command, "--bits", "w2a2", "--weight-scales", "mse", "--json")
    assert result.code == 0, result
    assert {layer["bits"] for layer in result.json["layers"]} <= {"w8a8", "int32"}


def test_a_float_plan_with_one_integer_layer(command: list[object], tmp_path: Path, bevel: Bevel) -> None:
    result = bevel(
        *command, "--plan", write_plan(tmp_path, bits="fp32", layers={"c": {"bits": "8"}, "r": {"bits": "8"}}), "--json"
    )
    assert result.code == 0, result
    bits = bits_of(result.json)
    assert bits["IntConv"] == "w8a8"
    assert bits["Gemm"] == "fp32"


def test_a_float_plan_is_a_float_artifact(small: Path, tmp_path: Path, bevel: Bevel) -> None:
    result = bevel("compile", small, "--device", "host", "--plan", write_plan(tmp_path, bits="fp32"), "--json")
    assert result.code == 0, result
    assert {layer["bits"] for layer in result.json["layers"]} == {"fp32"}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown layer": ({"layers": {"yy": {"bits": "fp32"}}}, "did you mean 'y'"),
    "unknown field": ({"bit": "8"}, "did you mean 'bits'"),
    "bits to come": ({"layers": {"c": {"bits": "w4a32"}}}, "w4a32"),
    "bits of what has no weights": ({"layers": {"r": {"bits": "w4a8"}}}, "'r' has no weights"),
    "no such table": ({"layers": {"c": {"bits": "w3a8", "levels": "nf4"}}}, "16 levels of 4 bits"),
    "pruning to come": ({"layers": {"c": {"kept_channels": [0, 1]}}}, "'c'"),
    "sparsity to come": ({"layers": {"c": {"sparsity": "2:4"}}}, "2:4"),
    "dropping to come": ({"layers": {"r": {"dropped": True}}}, "drop"),
    "another model": ({"model": "0" * 64}, "sha256"),
    "calibration to come": ({"calibration": "guess"}, "guess"),
    "version": ({"bevel_plan": 2}, "bevel_plan"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_no_pass_implements_is_refused(kind: str, command: list[object], tmp_path: Path, refused: Refused) -> None:
    fields, part = BAD[kind]
    assert part in refused(2, *command, "--plan", write_plan(tmp_path, **fields))


def test_damaged_plan(command: list[object], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "plan.json").write_text("{")
    assert "plan.json" in refused(2, *command, "--plan", tmp_path / "plan.json")


def test_a_quantized_model_takes_no_float_layers(tmp_path: Path, refused: Refused) -> None:
    plan = write_plan(tmp_path, bits="fp32")
    assert "quantized" in refused(2, "compile", KWS, "--device", "host", "--plan", plan)
