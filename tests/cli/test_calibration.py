"""Calibration from the command line: methods, the report of ranges, islands with reasons."""

from __future__ import annotations

import json
from pathlib import Path

from bevel.report import Findings, render
from bevel.runtime.artifact import Artifact
from tests.cli.conftest import Bevel, images, save

KEYS = {"name", "observed", "chosen", "scale", "zero_point", "clipped"}


def test_ranges_are_written_kept_in_the_manifest_and_shown(bevel: Bevel, small: Path, tmp_path: Path) -> None:
    data = save(tmp_path / "d.npz", images())
    base = ["compile", small, "--device", "host", "--calib", data]
    result = bevel(*base, "--calib-method", "percentile:95", "--ranges", "ranges.json", "-o", "one.bevel", "--json")
    assert result.code == 0, result
    rows = json.loads(Path("ranges.json").read_text())["ranges"]
    assert rows
    assert all(set(row) == KEYS for row in rows)
    assert any(row["clipped"] > 0.01 for row in rows), "5 % lie outside of most"
    manifest = Artifact.open("one.bevel").manifest
    assert manifest["ranges"] == rows
    assert manifest["provenance"]["calibration"] == {"method": "percentile:95", "samples": 256, "bias_correction": True}
    page = render(manifest, Findings())
    assert "Calibrated ranges" in page
    assert all(row["name"] in page for row in rows)
    # Compiled again for another device, and with another method from the cache.
    assert bevel("compile", "one.bevel", "--device", "x86-64", "--ranges", "again.json", "-o", "two.bevel").code == 0
    assert json.loads(Path("again.json").read_text())["ranges"] == rows
    assert bevel(*base, "--method", "minmax", "--no-bias-correction", "--ranges", "full.json", "-o", "three.bevel").code == 0
    assert all(row["clipped"] == 0 for row in json.loads(Path("full.json").read_text())["ranges"])


def test_islands_have_reasons_and_shares(bevel: Bevel, small: Path, tmp_path: Path) -> None:
    data = save(tmp_path / "d.npz", images())
    args = ["compile", small, "--device", "host", "--calib", data, "--keep-float", "c", "-o", "island.bevel"]
    result = bevel(*args, "--json")
    assert result.code == 0, result
    kept = [i for i in result.json["islands"] if i["reason"] == "kept in float as asked"]
    assert [i["op"] for i in kept] == ["Conv"]
    assert 0 < kept[0]["macs_share"] <= 1
    assert "Float islands" in render(Artifact.open("island.bevel").manifest, Findings())
    assert "kept in float as asked" in bevel(*args).out
