"""`bevel devices emulate`: what it refuses before anything starts. That boards work is shown in tests/devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevel.devices.profile import load_profile, save_profile
from tests.cli.conftest import Bevel


def test_unknown_board_lists_those_there_are(bevel: Bevel) -> None:
    result = bevel("devices", "emulate", "system-72")
    assert result.code == 2
    assert "Did you mean system-a72? Known: fast, armv7, system-a53, system-a72, system-a76" in result.err


def test_name_of_another_device_is_not_taken(bevel: Bevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile of a board that runs, or was killed, is not written over: others may be using it."""
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path))
    taken = save_profile(load_profile("raspberry-pi-4"), tmp_path / "devices" / "fast.toml")
    before = taken.read_bytes()
    result = bevel("devices", "emulate", "fast")
    assert result.code == 2
    assert "bevel devices remove fast" in result.err
    assert taken.read_bytes() == before


def test_whole_machines_are_of_one_architecture(bevel: Bevel) -> None:
    result = bevel("devices", "emulate", "system-a72", "--of", "armv7-a7")
    assert result.code == 2
    assert "armv7-a7 is armv7" in result.err
