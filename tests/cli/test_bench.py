"""`bevel bench`: peers, and what the command prints and writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bevel.compiler import Options, compile_model
from bevel.devices.measurements import Block, Session
from bevel.devices.profile import load_profile
from bevel.devices.resolve import emulator_command
from bevel.devices.store import Store
from bevel.errors import ToolchainError
from tests.cli.conftest import KWS, KWS_INPUT, Bevel, images, save


def test_peers_on_a_float_model(small: Path, tmp_path: Path, bevel: Bevel) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'bevel[peers]'")
    data = save(tmp_path / "d.npz", images(16))
    compile_model(small, tmp_path / "m.bevel", Options("host", "8", data))
    peers = ["--against", "onnxruntime, onnxruntime-int8", "--model", small, "--calib", data]
    result = bevel("bench", "m.bevel", *peers, "--processes", 2, "--json")
    assert result.code == 0, result
    assert list(result.json["peers"]) == ["onnxruntime", "onnxruntime-int8"]
    for peer in result.json["peers"].values():
        assert peer["ratio"] > 0
        assert peer["latency_ms"]["cpu"] > 0
        assert peer["error"] < 0.5
        assert peer["version"]
        assert not peer["computes_something_else"]
    assert result.json["error"] < 0.5
    held = bevel("bench", "m.bevel", *peers, "--isa", "avx2")
    assert held.code == 2
    assert "nothing holds" in held.err or "compile it with --device x86-64-avx2" in held.err


def test_a_quantized_model_is_not_quantized_again(kws: Path, tmp_path: Path, bevel: Bevel) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'bevel[peers]'")
    data = save(tmp_path / "d.npz", {KWS_INPUT: np.zeros((2, 49, 10, 1), np.int8)})
    result = bevel("bench", kws, "--against", "onnxruntime-int8", "--model", KWS, "--calib", data)
    assert result.code == 2
    assert "quantized already" in result.err


@pytest.mark.qemu
def test_emulated_times_are_marked(tmp_path: Path, bevel: Bevel) -> None:
    try:
        emulator_command(load_profile("raspberry-pi-4"))
    except ToolchainError as error:
        pytest.skip(str(error))
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-user is not installed")
    compile_model(KWS, tmp_path / "m.bevel", Options("raspberry-pi-4"))
    result = bevel("bench", "m.bevel", "--json")
    assert result.code == 0, result
    assert result.json["provenance"] == "emulated"
    assert "say nothing about the device" in bevel("bench", "m.bevel").out
    refused = bevel("bench", "m.bevel", "--against", "onnxruntime", "--model", KWS)
    assert refused.code == 2
    assert "this machine only" in refused.err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


BRIEF = ("--processes", 1, "--blocks", 2, "--time-limit", 1)


def test_what_was_measured_is_in_the_history(kws: Path, tmp_path: Path, home: Path, bevel: Bevel) -> None:
    """A bench and a profile, listed newest first, found by name and path, and carried to another store."""
    assert "nothing measured yet" in bevel("devices", "history").out
    measured = bevel("bench", kws, *BRIEF, "--cold", "--json").json
    assert measured["cache"] == "cold"
    bevel("profile", kws, "--runs", 3)
    sessions = bevel("devices", "history", "--json").json["sessions"]
    assert [session["purpose"] for session in sessions] == ["profile", "bench"]
    assert sessions[1]["latency_ms"]["median"] == pytest.approx(measured["latency_ms"]["median"])
    assert sessions[1]["settings"]["cold"] is True
    assert bevel("devices", "history", "host", "--artifact", kws, "--json").json["total"] == 2
    assert bevel("devices", "history", "--artifact", sessions[0]["artifact"][:12], "--json").json["total"] == 2
    assert bevel("devices", "history", "nobody", "--json").json["total"] == 0
    assert "1 older" in bevel("devices", "history", "--limit", 1).out
    assert bevel("devices", "history", "export", "all.jsonl", "--json").json["exported"] == 2
    assert bevel("devices", "history", "import", "all.jsonl", "--json").json["imported"]["sessions"] == 0
    home.rename(tmp_path / "old")
    assert bevel("devices", "history", "import", "all.jsonl", "--json").json["imported"]["sessions"] == 2
    assert bevel("devices", "history", "--json").json["sessions"] == sessions


@pytest.mark.parametrize("words", [("export",), ("import", "a", "b"), ("a", "b")])
def test_history_that_cannot_be_meant(words: tuple[str, ...], home: Path, bevel: Bevel) -> None:
    result = bevel("devices", "history", *words)
    assert result.code == 2
    assert "expected" in result.err


def test_a_damaged_store_is_named_before_anything_is_measured(kws: Path, home: Path, bevel: Bevel) -> None:
    home.mkdir()
    (home / "store.sqlite").write_bytes(b"no database, but long enough to look like one" * 100)
    for command in (("bench", kws, *BRIEF), ("devices", "history")):
        result = bevel(*command)
        assert result.code == 4
        assert "store.sqlite: damaged" in result.err


def test_an_interrupted_bench_goes_on(kws: Path, home: Path, bevel: Bevel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the third block: the message says what is kept, and the same command goes on."""
    take = Store.add_block
    seen: list[Block] = []

    def interrupt(self: Store, session: Session, block: Block) -> None:
        if len(seen) == 3:
            raise KeyboardInterrupt
        take(self, session, block)
        seen.append(block)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_block", interrupt)
        stopped = bevel("bench", kws, *BRIEF[:2], "--blocks", 8)
    assert stopped.code == 130
    assert "3 finished blocks are kept" in stopped.err
    again = bevel("bench", kws, *BRIEF[:2], "--blocks", 8, "--json")
    assert again.json["resumed"] == 3
    assert "3 blocks of 1 processes" in again.err
    assert bevel("bench", kws, *BRIEF[:2], "--blocks", 8, "--json").json["resumed"] == 0


def test_watch_draws_what_it_saw(kws: Path, tmp_path: Path, home: Path, bevel: Bevel) -> None:
    result = bevel("bench", kws, "--watch", 0.02, "--json")
    assert result.code == 0, result
    drawing = tmp_path / result.json["plot"]
    root = ElementTree.parse(drawing).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines[0].attrib["points"].split()) == len(result.json["watch"]["points"])
    assert json.loads((tmp_path / result.json["data"]).read_text())["points"] == result.json["watch"]["points"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pin", "one"), "expected auto, none, or CPUs"),
        (("--pin", "0", "--threads", 2), "2 threads need as many CPUs"),
        (("--plot", "x.svg"), "--watch MINUTES"),
        (("--watch", 1, "--plot", "x.png"), "expected a file NAME.svg"),
        (("--against", "onnxruntime", "--cold"), "peers are measured warm"),
    ],
)
def test_options_that_cannot_be_meant(options: tuple[object, ...], message: str, kws: Path, bevel: Bevel) -> None:
    result = bevel("bench", kws, *options)
    assert result.code == 2
    assert message in result.err


def test_a_pinned_process_says_so(kws: Path, home: Path, bevel: Bevel) -> None:
    assert bevel("bench", kws, *BRIEF, "--pin", "0", "--json").json["conditions"]["pinned"] == [0]
    assert bevel("bench", kws, *BRIEF, "--pin", "none", "--json").json["conditions"]["pinned"] == []
