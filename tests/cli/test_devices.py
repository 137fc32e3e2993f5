"""`bevel devices`: its subcommands, and the short form that takes a device where a subcommand could stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bevel.devices.profile import Ssh, load_profile, save_profile
from tests.cli.conftest import Bevel


@pytest.fixture(autouse=True)
def bevel_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_without_a_subcommand_it_lists(bevel: Bevel) -> None:
    document = bevel("devices", "--json").json
    assert document == bevel("devices", "list", "--json").json
    assert [device["name"] for device in document["devices"]][:2] == ["host", "armv7-a7"]


@pytest.mark.parametrize("form", ["raspberry-pi-4 --json", "--json raspberry-pi-4", "--json show raspberry-pi-4"])
def test_a_name_alone_is_shown(form: str, bevel: Bevel) -> None:
    assert bevel("devices", *form.split()).json == bevel("devices", "show", "raspberry-pi-4", "--json").json


def test_check_has_two_spellings(bevel: Bevel) -> None:
    checked = bevel("devices", "check", "host", "--json").json
    assert checked == bevel("devices", "host", "--check", "--json").json
    assert checked["check"]["label"] == "this machine"
    assert set(checked["features"]) <= set(checked["check"]["features"])


def test_several_are_checked_at_once_and_each_gets_its_answer(bevel: Bevel) -> None:
    save_profile(replace(load_profile("raspberry-pi-4"), name="gone-pi", ssh=Ssh("127.0.0.1", "pi", 1)))
    found = bevel("devices", "check", "host", "gone-pi", "--json")
    assert found.code == 4
    here, gone = found.json["devices"]
    assert here["check"]["label"] == "this machine"
    assert gone["name"] == "gone-pi"
    assert "127.0.0.1:1" in gone["error"]["message"]
    assert [device["name"] for device in bevel("devices", "check", "--all", "--json").json["devices"]] == ["gone-pi"]
    assert bevel("devices", "check").code == bevel("devices", "check", "host", "--all").code == 2


def test_remove_takes_own_profiles_only(bevel: Bevel, bevel_home: Path) -> None:
    mine = save_profile(replace(load_profile("raspberry-pi-4"), name="kitchen-pi", ssh=Ssh("board.local", "pi")))
    assert bevel("devices", "remove", "kitchen-pi", "--json").json == {"removed": "kitchen-pi", "file": str(mine)}
    assert not mine.exists()
    refused = bevel("devices", "remove", "raspberry-pi-4")
    assert refused.code == 2
    assert "ships with bevel" in refused.err
