"""`bevel bench`: peers, and what the command prints and writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bevel.compiler import Options, compile_model
from bevel.devices.profile import load_profile
from bevel.devices.resolve import emulator_command
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
