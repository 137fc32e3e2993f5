"""Figures in docs are drawn from the numbers that their benchmarks keep."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.low_bit.chart import draw

ROOT = Path(__file__).resolve().parents[2]


def test_speed_against_bits_is_the_record_drawn() -> None:
    record = json.loads((ROOT / "benchmarks" / "low_bit" / "speed.json").read_text())
    assert [entry["how"].startswith("measured") for entry in record.values()] == [True, True, False, False]
    assert all("not measured" in entry["how"] for entry in record.values() if not entry["how"].startswith("measured"))
    message = "run: python -m benchmarks.low_bit.speed --draw"
    assert (ROOT / "docs" / "speed_against_bits.svg").read_text() == draw(record), message
