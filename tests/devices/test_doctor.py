"""`bevel doctor`: what is missing is named with its remedy, and only what is required fails the command."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bevel.cli import main
from bevel.devices import doctor
from bevel.devices.board import EmulatedBoard
from bevel.devices.doctor import Check, check_device, check_host, satisfies
from bevel.devices.facts import SCRIPT
from bevel.devices.profile import load_profile, save_profile
from bevel.devices.resolve import resolve_transport


@pytest.fixture(autouse=True)
def bevel_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))


@pytest.fixture
def quick_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM's answer without importing it, which takes seconds."""
    monkeypatch.setattr(doctor, "_ASK_TVM", """print('["0.27", ["x86_64", "aarch64", "arm"]]')""")


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks), "names are unique"
    return found


def bevel(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as leave:
        main([*args, "--json"])
    assert isinstance(leave.value.code, int)
    return leave.value.code, json.loads(capfd.readouterr().out)


def test_a_machine_that_runs_bevel_has_all_that_is_required(capfd: pytest.CaptureFixture[str]) -> None:
    code, document = bevel(capfd, "doctor")
    assert (code, document["ok"]) == (0, True)
    checks = {check["name"]: check for check in document["checks"]}
    assert set(checks["TVM"]) == {"name", "ok", "required", "found", "purpose", "remedy"}
    assert checks["TVM"]["found"] == importlib.metadata.version("apache-tvm")
    assert {"package numpy", "TVM for aarch64", "qemu-system-aarch64", "sshd", "adb", "nvcc", "cache"} <= set(checks)
    assert all(check["remedy"] == "" for check in checks.values() if check["ok"])


@pytest.mark.usefixtures("quick_tvm")
def test_missing_programs_come_with_the_line_that_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    checks = by_name(list(check_host()))
    missing = {name: check.remedy for name, check in checks.items() if not check.ok}
    assert missing["adb"] == "apt-get install adb"
    assert missing["qemu-system-aarch64"] == "apt-get install qemu-system-arm"
    assert "bevel[cross]" in missing["C compiler for armv7"]
    required = {name for name, check in checks.items() if check.required and not check.ok}
    assert required == {f"C compiler for {load_profile('host').arch}"}


@pytest.mark.usefixtures("quick_tvm")
def test_a_required_tool_that_is_missing_exits_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    code, document = bevel(capfd, "doctor")
    assert (code, document["ok"]) == (4, False)


def test_a_tvm_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ASK_TVM", "import os; os.abort()")
    tvm = by_name(list(check_host()))["TVM"]
    assert (tvm.ok, tvm.required) == (False, True)
    assert "apache-tvm" in tvm.remedy


@pytest.mark.usefixtures("quick_tvm")
def test_a_package_of_several_extras_is_one_row(monkeypatch: pytest.MonkeyPatch, quick_tvm: None) -> None:
    names = ['numpy<1; extra == "peers"', 'numpy>=0.5; extra == "export"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: names)
    row = by_name(list(check_host()))["package numpy"]
    assert not row.ok
    assert not row.required
    assert "needs <1,>=0.5" in row.found
    assert "bevel[peers]" in row.remedy


def test_an_old_package_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1" if name == "asyncssh" else real(name))
    check = by_name(list(check_host()))["package asyncssh"]
    assert not check.ok
    assert "0.1, needs >=" in check.found


@pytest.mark.parametrize(
    ("version", "conditions", "met"),
    [
        ("1.2.3", ">=1.2", True),
        ("1.2", ">=1.2.1", False),
        ("2.0", ">=1.1,<2", False),
        ("1.9.7", "<2,>=1.1", True),
        ("0.27.0.post1", "==0.27.0.post1", True),
        ("0.28.0", "==0.27.0.post1", False),
        ("5", "", True),
    ],
)
def test_versions(version: str, conditions: str, met: bool) -> None:
    assert satisfies(version, conditions) == met


def test_this_machine_as_a_device(capfd: pytest.CaptureFixture[str]) -> None:
    code, document = bevel(capfd, "doctor", "--device", "host")
    assert (code, document["subject"]) == (0, "this machine")


def facts_script(tmp_path: Path, files: dict[str, str]) -> str:
    """The facts script, looking at a tree with these files instead of the device's root."""
    for name, content in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return SCRIPT.replace('cd -- "$1"', f"cd -- {tmp_path / 'tree'}")


def test_what_spoils_measurements_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = "sys/devices/system/cpu/"
    files = {
        f"{cpu}online": "0\n",
        f"{cpu}cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
        f"{cpu}cpufreq/policy0/scaling_governor": "powersave\n",
        f"{cpu}cpufreq/policy0/scaling_available_governors": "performance powersave\n",
        f"{cpu}cpufreq/policy0/scaling_max_freq": "1500000\n",
        "sys/class/thermal/thermal_zone0/temp": "84000\n",
        "proc/sys/kernel/perf_event_paranoid": "3\n",
    }
    monkeypatch.setattr("bevel.devices.facts.SCRIPT", facts_script(tmp_path, files))
    host = load_profile("host")
    with resolve_transport(host) as transport:
        checks = by_name(list(check_device(transport, host)))
    assert checks["governor"].remedy.startswith("echo performance")
    assert checks["clock"].found == "capped at 1.5 of 2.4 GHz"
    assert not checks["temperature"].ok
    assert not checks["performance counters"].ok
    assert not any(check.required and not check.ok for check in checks.values())


@pytest.mark.ssh
@pytest.mark.qemu
def test_a_profile_that_claims_too_much_fails(board: EmulatedBoard, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    claims = replace(board.profile, name="board", features=board.profile.features | {"dotprod"})
    code, document = bevel(capfd, "doctor", "--device", str(save_profile(claims, tmp_path / "board.toml")))
    failed = [check for check in document["checks"] if not check["ok"] and check["required"]]
    assert code == 4
    assert [check["name"] for check in failed] == ["instruction set"]
    assert "lacks dotprod" in failed[0]["found"]
    assert document["checks"][0]["found"].endswith("emulated by qemu-aarch64: results hold, times mean nothing")
