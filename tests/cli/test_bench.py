"""`bevel bench`: repeated rounds, inputs of every type through every contestant, and what the command prints and writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bevel.benchmarking.worker import bevel_call, measure
from bevel.compiler import Options, compile_model
from bevel.data import save_arrays
from bevel.devices.profile import load_profile
from bevel.devices.resolve import emulator_command
from bevel.errors import ToolchainError
from bevel.runtime.host import HostModel
from tests.cli.conftest import KWS, KWS_INPUT, Bevel, images, save


class Machine:
    """Clocks of a machine on which a call costs a millisecond, and on which a neighbour takes the core during some calls."""

    def __init__(self, stolen: Callable[[int], bool]) -> None:
        self.calls, self.elapsed, self.used, self.stolen = 0, 0.0, 0.0, stolen

    def call(self) -> None:
        self.elapsed += 0.001 + 0.010 * self.stolen(self.calls)
        self.used += 0.001
        self.calls += 1

    def wall(self) -> float:
        return self.elapsed

    def cpu(self) -> float:
        return self.used


def test_disturbed_rounds_are_measured_again() -> None:
    machine = Machine(lambda call: call > 40 and call % 16 == 0)
    found = measure({"a": machine.call}, 10, single_thread=True, wall=machine.wall, cpu=machine.cpu)
    assert found.wall_ms["a"] == pytest.approx([1.0] * 10)
    assert found.cpu_ms["a"] == pytest.approx([1.0] * 10)
    assert found.disturbed == 0.0


def test_repetition_is_bounded_and_confessed() -> None:
    machine = Machine(lambda call: call > 40)
    found = measure({"a": machine.call}, 10, single_thread=True, wall=machine.wall, cpu=machine.cpu)
    assert len(found.wall_ms["a"]) == 10
    assert found.disturbed == 1.0
    assert machine.calls < 40 + 3 * 10 * 4 + 1


def test_with_several_threads_nothing_is_repeated() -> None:
    machine = Machine(lambda call: call > 40)
    found = measure({"a": machine.call}, 10, single_thread=False, wall=machine.wall, cpu=machine.cpu)
    assert found.disturbed == 0.0
    assert 40 < machine.calls <= 40 + 10 * 4


def test_contestants_are_interleaved() -> None:
    order: list[str] = []
    now = [0.0]

    def contestant(name: str) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            now[0] += 0.004

        return call

    measure({n: contestant(n) for n in "ab"}, 3, single_thread=True, wall=lambda: now[0], cpu=lambda: now[0])
    assert "".join(order[80:]) == "ababab"


def test_float_and_code_inputs_reach_the_model_alike(kws: Path, tmp_path: Path) -> None:
    """Reals are quantized by the runtime, codes are copied: the same bytes lie in the arena."""
    rng = np.random.default_rng(0)
    real = rng.standard_normal((1, 49, 10, 1)).astype(np.float32)
    with HostModel(kws) as model:
        model.set_inputs_float({KWS_INPUT: real})
        codes = model.inputs[0].array.copy()
        model.run()
        expected = {name: array.copy() for name, array in model.outputs().items()}
    for array in (real, codes):
        run = bevel_call(str(kws), 1, str(save_arrays(tmp_path / "x.npz", {KWS_INPUT: array})))
        run()
        bound: HostModel = run.__self__  # type: ignore[attr-defined]
        np.testing.assert_array_equal(bound.inputs[0].array, codes)
        for name, output in bound.outputs().items():
            np.testing.assert_array_equal(output, expected[name])


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
