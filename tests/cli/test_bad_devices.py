"""Devices, toolchains and artifacts that cannot serve: named errors with the documented exit code, nothing left behind."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.devices import errors
from bevel.devices.host import detect_host
from bevel.devices.profile import Ssh, load_profile, save_profile
from bevel.runtime.manifest import FORMAT_VERSION
from tests.cli.conftest import KWS, ROOT, Bevel, save_model

Refused = Callable[..., str]
# A profile whose code this machine cannot run.
FOREIGN = "raspberry-pi-4" if detect_host().arch == "x86_64" else "x86-64"


@pytest.fixture
def copy(kws: Path, tmp_path: Path) -> Path:
    """An artifact that a test may damage."""
    return Path(shutil.copytree(kws, tmp_path / "copy.bevel"))


@pytest.mark.parametrize("verb", ["compile", "cost", "run", "bench", "profile", "devices"])
def test_unknown_device_lists_the_known_ones(verb: str, kws: Path, small: Path, refused: Refused) -> None:
    what = {"compile": [small], "cost": [small], "devices": []}.get(verb, [kws])
    device = ["rasberry-pi-4"] if verb == "devices" else ["--device", "rasberry-pi-4"]
    more = ["--selftest"] if verb == "run" else []
    message = refused(2, verb, *what, *device, *more)
    assert "Did you mean raspberry-pi-4?" in message


def test_damaged_profile_names_the_key(tmp_path: Path, small: Path, refused: Refused) -> None:
    path = save_profile(replace(load_profile("raspberry-pi-4"), name="board"), tmp_path / "board.toml")
    path.write_text(path.read_text().replace("cores = 4", "cores = -4"))
    message = refused(2, "cost", small, "--device", path)
    assert "cores" in message
    assert "board.toml" in message


@pytest.mark.parametrize("verb", ["run", "bench", "profile", "eval"])
def test_unreachable_board_is_named(verb: str, kws: Path, tmp_path: Path, refused: Refused) -> None:
    """Nothing listens on the port of this board's address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    board = replace(load_profile(FOREIGN), name="board", ssh=Ssh("127.0.0.1", "nobody", port))
    profile = save_profile(board, tmp_path / "board.toml")
    data = tmp_path / "data.npz"
    np.savez(data, input_1=np.zeros((1, 49, 10, 1), np.float32), label=np.zeros(1, np.int64))
    more: dict[str, list[object]] = {"run": ["--selftest"], "eval": ["--data", data]}
    message = refused(4, verb, kws, "--device", profile, *more.get(verb, []))
    assert f"127.0.0.1:{port}" in message


def test_missing_c_compiler_says_what_to_install(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "apt install gcc" in refused(4, "compile", KWS, "--device", "host")
    assert "cross" in refused(4, "compile", KWS, "--device", FOREIGN)


def test_missing_emulator_says_what_to_install(kws: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bevel.devices.resolve.shutil.which", lambda _program: None)
    assert "qemu-user" in refused(4, "run", kws, "--selftest", "--device", FOREIGN)


def test_artifact_of_another_architecture_is_refused(kws: Path, refused: Refused) -> None:
    if not shutil.which("qemu-aarch64"):
        pytest.skip("qemu-user is not installed")
    message = refused(4, "run", kws, "--selftest", "--device", "raspberry-pi-4")
    assert "x86_64" in message
    assert "aarch64" in message


def test_missing_artifact(refused: Refused) -> None:
    for verb in ("run", "bench", "profile"):
        assert "no.bevel" in refused(3, verb, "no.bevel", *(["--selftest"] if verb == "run" else []))


@pytest.mark.parametrize("file", ["weights.bin", "lib/libmodel.so", "bin/bevel-run", "selftest/0.in.0.npy", "graph.ir.zst"])
def test_damaged_artifact_names_the_file(file: str, copy: Path, refused: Refused) -> None:
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    assert file in refused(3, "run", copy, "--selftest")


def test_truncated_and_missing_files_are_named(copy: Path, refused: Refused) -> None:
    (copy / "weights.bin").write_bytes((copy / "weights.bin").read_bytes()[:-1])
    assert "weights.bin" in refused(3, "bench", copy)
    (copy / "weights.bin").unlink()
    assert "weights.bin" in refused(3, "profile", copy)
    (copy / "manifest.json").write_text("{")
    assert "manifest.json" in refused(3, "profile", copy)


def test_artifact_of_another_format_version(copy: Path, refused: Refused) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 99'))
    assert "99" in refused(3, "run", copy, "--selftest")


def test_output_never_replaces_what_is_no_artifact(small: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("text")
    for output in ("precious", "file"):
        message = refused(2, "compile", small, "--device", "host", "--bits", "fp32", "-o", output)
        assert "not an artifact" in message
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("output", ["/proc/no/model.bevel", "small.onnx/model.bevel"])
def test_output_that_cannot_be_written(output: str, small: Path, refused: Refused) -> None:
    assert "cannot be written" in refused(2, "compile", small, "--device", "host", "--bits", "fp32", "-o", output)


def test_an_artifact_is_replaced_whole(tmp_path: Path, bevel: Bevel) -> None:
    first, second = save_model(tmp_path / "a.onnx"), save_model(tmp_path / "b.onnx", weight=0.25)
    for model in (first, second):
        result = bevel("compile", model, "--device", "host", "--bits", "fp32", "-o", "out.bevel", "--json")
        assert result.code == 0, result
    assert bevel("run", "out.bevel", "--selftest").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "out.bevel"]


def test_an_artifact_is_never_compiled_onto_itself_by_default(kws: Path, tmp_path: Path, bevel: Bevel) -> None:
    shutil.copytree(kws, tmp_path / "kws.bevel")
    assert bevel("compile", "kws.bevel", "--device", "x86-64").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kws-x86-64.bevel", "kws.bevel"]


def test_unwritable_cache_names_the_variable(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEVEL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "BEVEL_CACHE_DIR" in refused(2, "compile", KWS, "--device", "host")


def test_a_failed_link_leaves_nothing(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """A C compiler that answers --version and then fails."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cc", "ar"):
        (tools / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit\necho no space >&2; exit 1\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert "no space" in refused(4, "compile", KWS, "--device", "host")


def test_the_documented_ssh_table_is_read_and_every_error_is_explained(tmp_path: Path) -> None:
    """docs/devices.md: its [ssh] example, all options switched on, is a valid profile; its table names every error class."""
    text = (ROOT / "docs" / "devices.md").read_text()
    example = text[text.index("[ssh]\n") :].partition("```")[0].replace("\n# ", "\n")
    path = save_profile(replace(load_profile("raspberry-pi-4"), name="kitchen-pi"), tmp_path / "kitchen-pi.toml")
    path.write_text(path.read_text() + "\n" + example)
    ssh = load_profile(path).ssh
    assert ssh is not None
    assert (ssh.host, ssh.user, ssh.port, ssh.workdir) == ("192.168.1.7", "pi", 22, ".cache/bevel")
    assert ssh.identity == "~/.ssh/id_pi"
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.BoardError) and value is not errors.BoardError:
            assert f"`{name}`" in text, f"docs/devices.md does not explain {name}"
