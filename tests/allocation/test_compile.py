"""`bevel compile --bits auto-lowbit`: what it says, and that the plan it saves compiles to the same artifact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bevel.cli import main
from bevel.compiler import Options, compile_model
from bevel.ir.plan import load_plan
from bevel.runtime.artifact import Artifact
from bevel.tuning.options import Tuning
from bevel.tuning.tuner import Tuner
from tests.allocation.networks import write

DEVICE = "x86-64-avx2"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))


def compiled(capfd: pytest.CaptureFixture[str], *args: object) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as leave:
        main(["compile", *map(str, args)])
    out, err = capfd.readouterr()
    assert leave.value.code == 0, err
    return out


def test_the_saved_plan_compiles_to_the_same_artifact(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = write(tmp_path)
    plan, auto = tmp_path / "plan.json", tmp_path / "auto.bevel"
    given = (model, "--device", DEVICE, "--calib", data)
    document = json.loads(compiled(capfd, *given, "--bits", "auto-lowbit:w2a2", "-o", auto, "--save-plan", plan, "--json"))
    layers = {layer["value"]: layer for layer in document["allocation"]["layers"]}
    assert layers["wide1"]["chosen"]["bits"] == "w2a2"
    wide = [layer for layer in document["layers"] if "wide" in layer["name"] and "IntConv" in layer["op"]]
    assert wide
    assert all(set(layer["bits"].split("+")) <= {"w2a2", "w1.58a2"} for layer in wide)
    saved = load_plan(plan)
    assert not saved.allow
    assert str(saved.bits_of("wide1")) == "w2a2"
    manifest = Artifact.open(auto).manifest
    assert manifest["provenance"]["plan"] == json.loads(plan.read_text())
    assert manifest["allocation"] == document["allocation"]

    again, _ = compile_model(model, tmp_path / "again.bevel", Options(DEVICE, calibration=data, plan=saved))
    assert again.manifest["graph_hash"] == manifest["graph_hash"]
    assert [layer["symbol"] for layer in again.manifest["layers"]] == [layer["symbol"] for layer in manifest["layers"]]
    assert "allocation" not in again.manifest

    text = compiled(capfd, *given, "--bits", "auto-lowbit:w2a2", "-o", auto)
    assert "the first and the last layer keep 8 bits unless the plan names them" in text
    assert "chosen among w8a8, w2a2" in text
    page = (auto / "report.html").read_text()
    assert "Bits weighed" in page
    assert "unless the plan names them" in page


def test_what_is_weighed_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All precisions of a layer stand together; what is known is not asked for; other measurements make another artifact."""
    model, data = write(tmp_path)
    asked: list[list[str]] = []

    def measure(tuner: Tuner, _profile: Any, missing: Sequence[Sequence[Any]], *_: Any) -> bool:
        asked.append([repr(found[0].problem) for found in missing])
        return False

    monkeypatch.setattr(Tuner, "measure_candidates", measure)
    options = Options(DEVICE, "auto-lowbit", calibration=data, tuning=Tuning("fast", 60))
    compile_model(model, tmp_path / "a.bevel", options)
    weighing, compiling = asked
    assert len(weighing) == len(set(weighing))
    assert any("weight_bits=4" in text for text in weighing)
    assert any("weight_bits" not in text for text in weighing)
    # A network's depthwise layer has no kernel of few bits: nothing to compare.
    assert not any("groups=64" in text for text in weighing)
    assert any("groups=64" in text for text in compiling)
