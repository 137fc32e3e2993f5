"""The way of someone with a new board: add it, compile for it, bench there; on the emulated board, by the command line alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.cli import main
from bevel.devices.board import EmulatedBoard
from bevel.devices.profile import Ssh

# Already quantized, so it compiles without calibration data.
KWS = Path(__file__).resolve().parents[2] / "models" / "kws_dscnn_int8_qdq.onnx"
Bevel = Callable[..., dict[str, Any]]


@pytest.fixture
def bevel(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bevel:
    """Run `bevel ARGS --json` for a user without any device of his own; fails unless it succeeds."""
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> dict[str, Any]:
        with pytest.raises(SystemExit) as leave:
            main([*map(str, args), "--json"])
        out, err = capfd.readouterr()
        assert leave.value.code == 0, err
        document = json.loads(out)
        assert isinstance(document, dict)
        return document

    return run


def address(board: EmulatedBoard) -> Ssh:
    assert board.profile.ssh is not None
    return board.profile.ssh


@pytest.mark.ssh
@pytest.mark.qemu
def test_from_an_address_to_a_bench_table(board: EmulatedBoard, bevel: Bevel, capfd: pytest.CaptureFixture[str]) -> None:
    """`-s` shows the seconds of each step."""
    ssh = address(board)
    steps: dict[str, float] = {}

    def timed(step: str, *args: object) -> dict[str, Any]:
        begin = time.monotonic()
        document = bevel(*args)
        steps[step] = time.monotonic() - begin
        return document

    keys = ("--identity", ssh.identity, "--known-hosts", ssh.known_hosts, "--workdir", ssh.workdir)
    added = timed("add", "devices", "add", f"{ssh.user}@{ssh.host}:{ssh.port}", "--name", "new-pi", *keys)
    timed("compile", "compile", KWS, "--device", "new-pi", "-o", "kws.bevel")
    bench = timed("bench", "bench", "kws.bevel")
    with capfd.disabled():
        each = ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items())
        print(f"\nseconds to the first number: {sum(steps.values()):.1f} ({each})")
    assert added["emulated"] is True
    assert added["rates"] == []
    assert bench["provenance"] == "emulated"
    profile = added["profile"]
    assert (profile["cpu"], profile["features"]) == ("cortex-a72", ["neon"])
    assert profile["peaks"]["provenance"] == "static"


@pytest.mark.ssh
@pytest.mark.qemu
def test_every_verb_takes_the_added_device(board: EmulatedBoard, bevel: Bevel, tmp_path: Path) -> None:
    ssh = address(board)
    keys = ("--identity", ssh.identity, "--known-hosts", ssh.known_hosts, "--workdir", ssh.workdir)
    bevel("devices", "add", f"{ssh.user}@{ssh.host}:{ssh.port}", "--name", "new-pi", "--quick", *keys)
    np.savez(tmp_path / "data.npz", input_1=np.zeros((2, 49, 10, 1), np.float32), label=np.zeros(2, np.int64))
    bevel("compile", KWS, "--device", "raspberry-pi-4", "-o", "kws.bevel")
    assert bevel("run", "kws.bevel", "--selftest", "--device", "new-pi")["emulated"] is True
    assert bevel("eval", "kws.bevel", "--data", "data.npz", "--device", "new-pi")["n"] == 2
    assert bevel("profile", "kws.bevel", "--runs", 1, "--device", "new-pi")["provenance"] == "emulated"
    assert bevel("cost", KWS.with_name("resnet8_cifar10_float.onnx"), "--device", "new-pi")["device"] == "new-pi"
    assert bevel("devices", "check", "new-pi")["name"] == "new-pi"
    assert bevel("devices", "remove", "new-pi")["removed"] == "new-pi"


@pytest.mark.ssh
@pytest.mark.qemu
def test_add_accepts_no_unknown_key_and_replaces_nothing_unasked(
    board: EmulatedBoard, bevel: Bevel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ssh = address(board)
    (tmp_path / "nobody").write_text("")
    target, keys = f"{ssh.user}@{ssh.host}:{ssh.port}", ("--identity", ssh.identity, "--workdir", ssh.workdir)

    def refused(code: int, *args: object) -> str:
        with pytest.raises(SystemExit) as leave:
            main(["devices", "add", *map(str, args), "--json"])
        assert leave.value.code == code
        return str(json.loads(capfd.readouterr().out)["error"]["message"])

    message = refused(4, target, "--name", "new-pi", "--known-hosts", tmp_path / "nobody", *keys)
    assert f"`ssh -i {ssh.identity} -o UserKnownHostsFile={tmp_path}/nobody -p {ssh.port} {ssh.user}@{ssh.host} true`" in message
    assert (tmp_path / "nobody").read_text() == ""
    assert "--force" in refused(2, target, "--name", "raspberry-pi-4", *keys)
    assert "cannot be saved" in refused(2, target, "--name", "host", *keys)
    assert "--adb" in refused(2)
    assert not (tmp_path / "home" / "devices").exists()
    known = ("--known-hosts", ssh.known_hosts, "--quick", *keys)
    bevel("devices", "add", target, "--name", "new-pi", *known)
    assert "your own" in refused(2, target, "--name", "new-pi", *known)
    assert bevel("devices", "add", target, "--name", "new-pi", "--force", *known)["file"].endswith("new-pi.toml")
