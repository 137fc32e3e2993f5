"""The frame around every verb: defects, Ctrl-C, closed pipes, tracebacks on request only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Bevel, images, save, save_model


def test_a_defect_is_reported_as_one(bevel: Bevel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("bevel.cli.ops.op_table", broken)
    result = bevel("ops", "--json")
    assert result.code == 70
    assert result.json["error"]["kind"] == "KeyError"
    assert "defect in bevel" in result.err
    assert "--verbose" in result.err
    assert "Traceback" in bevel("ops", "--verbose").err


@pytest.mark.parametrize(
    ("error", "part"),
    [(OSError(28, "No space left on device", "/tmp/x"), "/tmp/x: No space left"), (MemoryError(), "memory")],
)
def test_a_full_disk_or_memory_is_no_defect(error: Exception, part: str, bevel: Bevel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr("bevel.cli.ops.op_table", broken)
    result = bevel("ops", "--json")
    assert result.code == 4
    assert part in result.json["error"]["message"]


def test_verbose_shows_the_traceback_of_a_refusal(bevel: Bevel) -> None:
    result = bevel("cost", "no.onnx", "--device", "host", "--verbose")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.strip().splitlines()[-1].startswith("error: no.onnx")


def test_help_and_version_succeed(bevel: Bevel) -> None:
    assert bevel("--version").out.startswith("bevel")
    for verb in ("compile", "quantize", "run", "bench", "profile", "eval", "cost", "devices", "doctor", "ops"):
        result = bevel(verb, "--help")
        assert result.code == 0
        assert f"bevel {verb}" in result.out, "every verb's help shows an example"


def test_ctrl_c_while_a_test_hook_runs(bevel: Bevel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bevel.cli.ops.op_table", interrupted)
    result = bevel("ops")
    assert result.code == 130
    assert "interrupted" in result.err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_closed_pipe_is_silent(form: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-m", "bevel", "ops", *form], stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_compilation_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """A signal in the middle of the work: its exit code, no artifact, no temporary directory, no child."""
    model = save_model(tmp_path / "m.onnx")
    data = save(tmp_path / "d.npz", images(64))
    # A C compiler that blocks tells this test when the compilation is in its middle.
    tools, started = tmp_path / "tools", tmp_path / "started"
    tools.mkdir()
    script = f'#!/bin/sh\n[ "$1" = --version ] && echo slow 1.0 && exit\necho $$ >{started}\nexec sleep 60\n'
    for name in ("cc", "ar"):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    temporary, cache = tmp_path / "tmp", tmp_path / "cache"
    temporary.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{tools}:/usr/bin:/bin",
        "TMPDIR": str(temporary),
        "BEVEL_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-m", "bevel", "compile", str(model), "--device", "host", "--calib", str(data), "--json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while not (started.exists() and started.read_text()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        # A terminal's Ctrl-C reaches the whole process group.
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert json.loads(out)["error"]["exit_code"] == 130
    assert not (tmp_path / "m.bevel").exists()
    assert list(temporary.iterdir()) == []
    assert list((cache / "artifacts").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
