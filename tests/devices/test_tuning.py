"""Tuning over SSH: kernels are measured on the device and remembered under its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bevel.compiler import Options, compile_model
from bevel.devices.profile import load_profile, save_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.devices.store import Store
from bevel.tuning.options import Tuning
from tests.devices.machine import Machine

MODEL = Path(__file__).resolve().parents[2] / "models" / "resnet8_cifar10_int8_qdq.onnx"


@pytest.mark.ssh
def test_kernels_are_measured_over_ssh(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))
    profile = replace(load_profile("host"), name="far", ssh=machine.ssh)
    save_profile(profile)
    artifact, _ = compile_model(MODEL, tmp_path / "m.bevel", Options("far", tuning=Tuning("fast")))
    tuning = artifact.manifest["tuning"]
    assert tuning["source"] == "measured"
    assert {kernel["on"] for kernel in tuning["kernels"].values() if kernel["chosen"] == "measured"} == {"far"}
    with resolve_transport(profile) as transport:
        DeviceRunner(artifact, transport).selftest()
        # Nothing stays behind.
        assert b"kernel-bench" not in transport.run(["find", ".", "-name", "kernel-bench"]).stdout
    with Store.open(read_only=True) as store:
        assert not store.devices("host")
        assert all(store.kernels(row) for row in store.devices("far"))
