"""`bevel.compile`: the Python form of the command line, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bevel
from bevel.errors import CalibrationError, UsageError
from bevel.ir.plan import FP32, CompressionPlan, LayerPlan
from bevel.runtime.host import HostModel
from tests.cli.conftest import KWS, images, save


def test_import_is_cheap() -> None:
    code = "import sys, bevel; print([m for m in ('numpy', 'onnx', 'tvm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    for name in bevel.__all__:
        assert getattr(bevel, name) is not None
    with pytest.raises(AttributeError, match="frobnicate"):
        bevel.frobnicate  # noqa: B018


def test_compile_runs_in_this_process(small: Path, tmp_path: Path) -> None:
    artifact = bevel.compile(small, calibration=images(16), output=tmp_path / "m.bevel")
    assert artifact.manifest["integer_only"] is True
    with HostModel(artifact) as model:
        model.set_inputs_float({"x": images()["x"][:1]})
        model.run()
        assert model.outputs_float()["y"].shape == (1, 4)


def test_data_and_plans_come_as_paths_or_objects(small: Path, tmp_path: Path) -> None:
    data = save(tmp_path / "d.npz", images(16))
    plan = CompressionPlan(layers={"y": LayerPlan(bits=FP32)})
    plan.save(tmp_path / "plan.json")
    first = bevel.compile(small, calibration=data, plan=plan, output=tmp_path / "a.bevel")
    second = bevel.compile(str(small), calibration=images(16), plan=tmp_path / "plan.json", output=str(tmp_path / "b.bevel"))
    assert first.manifest["graph_hash"] == second.manifest["graph_hash"]
    assert first.manifest["float_islands"]


def test_output_is_named_after_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bevel.compile(KWS).path == Path("kws_dscnn_int8_qdq.bevel")
    assert bevel.compile("kws_dscnn_int8_qdq.bevel", device="x86-64").path == Path("kws_dscnn_int8_qdq-x86-64.bevel")


def test_errors_are_bevels_own(small: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError):
        bevel.compile(small, output=tmp_path / "m.bevel")
    with pytest.raises(UsageError, match="list"):
        bevel.compile(small, calibration={"x": [1, 2]}, output=tmp_path / "m.bevel")  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="plan decides"):
        bevel.compile(small, plan=CompressionPlan(), bits="8", output=tmp_path / "m.bevel")
    with pytest.raises(CalibrationError, match="NaN"):
        bevel.compile(small, calibration={"x": np.full((4, 3, 8, 8), np.nan, np.float32)}, output=tmp_path / "m.bevel")
