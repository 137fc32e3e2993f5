"""Steps that fail, and float models: what the integer model of conftest cannot show."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends.schedule import IoTensor, Kernel, Place, Step
from bevel.errors import DeviceError
from bevel.runtime.artifact import Artifact
from bevel.runtime.host import HostModel


@pytest.fixture(scope="module")
def failing(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model whose first step fails when the first input code is 255."""
    step = Step("guard", "Test", "bevel_k_fail", (Place("arena", 0), Place("arena", 2624)), 8)
    kernels = (*tiny.schedule.kernels, Kernel("bevel_k_fail", "generic:test", tiny.schedule.kernels[0].problem, {}))
    model = tiny.with_steps(step, *tiny.schedule.steps, kernels=kernels)
    return write_tiny(model, tmp_path_factory.mktemp("failing") / "failing.bevel")


@pytest.mark.parametrize("threads", [1, 4])
def test_kernel_error(failing: Artifact, tiny: Any, threads: int) -> None:
    """A kernel's error code reaches the caller, and the next run works again."""
    inputs = tiny.inputs()
    with HostModel(failing, threads=threads) as model:
        for code, fails in ((255, True), (3, False), (255, True), (7, False)):
            inputs["x"][0, 0, 0] = code
            model.set_inputs(inputs)
            if fails:
                with pytest.raises(DeviceError, match="kernel reported an error"):
                    model.run()
            else:
                model.run()
                np.testing.assert_array_equal(model.outputs()["max"], tiny.reference(inputs["x"])["max"])


@pytest.mark.parametrize("threads", [1, 4])
def test_scratch_is_private(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path, threads: int) -> None:
    """Every thread has its own aligned scratch: a kernel that writes, dawdles and reads back finds what it wrote."""
    step = Step("mine", "Test", "bevel_k_mine", (Place("arena", 0), Place("arena", 1024)), 64, 64)
    kernels = (*tiny.schedule.kernels, Kernel("bevel_k_mine", "generic:test", tiny.schedule.kernels[0].problem, {}))
    artifact = write_tiny(tiny.with_steps(step, *tiny.schedule.steps, kernels=kernels), tmp_path / "mine.bevel")
    with HostModel(artifact, threads=threads) as model:
        for _ in range(3):
            model.run()


@pytest.mark.parametrize("threads", [1, 3])
def test_stack_has_its_place(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path, threads: int) -> None:
    """Linux starts every stack somewhere else; what a kernel keeps there lies at one place of a page in every process and thread,
    or equal processes would not be equally fast."""
    schedule = replace(
        tiny.schedule,
        steps=(Step("place", "Test", "bevel_k_place", (Place("arena", 0), Place("arena", 1024)), 64),),
        kernels=(Kernel("bevel_k_place", "generic:test", tiny.schedule.kernels[0].problem, {}),),
        outputs=(IoTensor("place", (64,), "uint16", Place("arena", 1024)),),
    )
    unknown = {"place": np.zeros(64, np.uint16)}
    golden = [(tiny.inputs(), unknown)]
    artifact = write_tiny(replace(tiny, schedule=schedule), tmp_path / "place.bevel", golden=golden)
    np.save(tmp_path / "x.npy", tiny.inputs()["x"])
    found = set()
    for case in range(6):
        command = [artifact.runner, "--threads", str(threads), "--input", tmp_path / "x.npy", "--output", tmp_path / "y.bin"]
        subprocess.run(command, check=True, capture_output=True, env={"ROOM": "x" * 100 * case})
        found |= set(np.fromfile(tmp_path / "y.bin", np.uint16).tolist())
    assert len(found) == 1, found


@pytest.fixture(scope="module")
def halving(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """y = x / 2 in float32, and a constant output that lies among the weights."""
    schedule = replace(
        tiny.schedule,
        name="half",
        steps=(Step("half", "Mul", "bevel_k_half", (Place("arena", 0), Place("arena", 512)), 100),),
        kernels=(Kernel("bevel_k_half", "generic:test", tiny.schedule.kernels[0].problem, {}),),
        inputs=(IoTensor("a b", (100,), "float32", Place("arena", 0)),),
        outputs=(IoTensor("y", (100,), "float32", Place("arena", 512)), IoTensor("k", (3,), "int64", Place("weights", 64))),
        weights=bytes(64) + np.array([5, 6, 7]).tobytes() + bytes(64),
        level="float",
    )
    x = np.random.default_rng(0).normal(size=100).astype(np.float32)
    golden = [({"a b": x}, {"y": x / np.float32(2) * np.float32(1 + 3e-5), "k": np.array([5, 6, 7])})]
    return write_tiny(replace(tiny, schedule=schedule), tmp_path_factory.mktemp("half") / "half.bevel", golden=golden)


def test_float_model(halving: Artifact) -> None:
    """Float inputs pass through unconverted; constants are outputs too; the self-test tolerates 1e-4 of the largest output."""
    x = np.random.default_rng(1).normal(size=100).astype(np.float32)
    with HostModel(halving, threads=2) as model:
        model.set_inputs_float({"a b": x})
        model.run()
        np.testing.assert_array_equal(model.outputs()["y"], x / 2)
        np.testing.assert_array_equal(model.outputs()["k"], [5, 6, 7])
        assert not model.outputs()["k"].flags.writeable
    subprocess.run([halving.runner, "--selftest"], check=True, capture_output=True)


@pytest.mark.parametrize("value", [1.01, np.nan, np.inf])
def test_float_selftest_fails(halving: Artifact, tmp_path: Path, value: float) -> None:
    """A float output off by one per cent, NaN or infinity fails."""
    golden = halving.golden()[0][1]["y"].copy()
    golden[np.abs(golden).argmax()] *= value
    for file in (halving.path / "selftest").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    np.save(tmp_path / "0.out.0.npy", golden)
    done = subprocess.run([halving.runner, "--selftest", "--golden", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "output 'y'" in done.stderr
