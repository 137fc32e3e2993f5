"""States in the runtime: bevel_run's hand-over, bevel_state_reset, HostModel and bevel-run, on a model whose kernel is plain C.

x [1, 96] and s [1, 96] of uint8, s quantized with zero point 5 -> y = x + s, and seen = s. State s takes y: without reset, y sums
up all x so far. A first x of 255 makes the kernel fail.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.backends.kernel import NodeProblem
from bevel.backends.schedule import IoTensor, Kernel, Place, Schedule, Step
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.errors import ArtifactError, DeviceError, UsageError
from bevel.ir.protocols import Target
from bevel.runtime.artifact import Artifact, write_artifact
from bevel.runtime.codegen import C_DIR, check_schedule, model_c, model_h
from bevel.runtime.host import HostModel
from bevel.runtime.manifest import read_manifest
from bevel.runtime.toolchain import find_toolchain, host_arch

Array = npt.NDArray[np.uint8]

KERNEL_C = r"""
#include <stdint.h>
int32_t bevel_k_sum(const uint8_t *x, const uint8_t *s, uint8_t *y, uint8_t *seen, int32_t lo, int32_t hi, void *scratch) {
    for (int32_t i = lo; i < hi; i++) { y[i] = x[i] + s[i]; seen[i] = s[i]; }
    return x[0] == 255;
}
"""
SIZE, ZERO = 96, 5


def schedule() -> Schedule:
    places = [Place("arena", 128 * i) for i in range(4)]
    arch = host_arch()
    code = {"shape": (1, SIZE), "dtype": "uint8", "scale": 0.5}
    return Schedule(
        name="summing",
        target=Target(f"test-{arch}", arch, frozenset(), "generic", f"{arch}-linux-gnu"),
        steps=(Step("sum", "Sum", "bevel_k_sum", tuple(places), SIZE),),
        kernels=(Kernel("bevel_k_sum", "generic:test", NodeProblem("Test", None, (), ()), {}),),
        inputs=(IoTensor("x", place=places[0], **code), IoTensor("s", place=places[1], zero_point=ZERO, **code)),
        outputs=(IoTensor("y", place=places[2], zero_point=ZERO, **code), IoTensor("seen", place=places[3], **code)),
        arena_bytes=512,
        scratch_bytes=0,
        weights=bytes(64),
        graph_hash="ab" * 32,
        level="integer",
        states=((1, 0),),
    )


def frames(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 200, (count, 1, SIZE), dtype=np.uint8)


def after(given: Array, start: Array | int = ZERO) -> Array:
    """y of each run, in order."""
    return np.cumsum(given, axis=0, dtype=np.uint8) + np.asarray(start, np.uint8)


@pytest.fixture(scope="module")
def summing(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("summing")
    (folder / "k.c").write_text(KERNEL_C)
    command = [*find_toolchain(host_arch()).shared, "-O1", "-fPIC", "-c", "k.c", "-o", "k.o"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    golden = []
    for x, s in zip(frames(3), frames(3, seed=1), strict=True):
        golden.append(({"x": x, "s": s}, {"y": x + s, "seen": s}))
    objects = {"bevel_k_sum": (folder / "k.o").read_bytes()}
    return write_artifact(folder / "summing.bevel", schedule(), objects, golden=golden, provenance={"made by": "test"})


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_runs_hand_over(summing: Artifact, threads: int) -> None:
    """The first run reads real zeros, each later one the output before it; reset, and a state that is given, start anew."""
    given = frames(10)
    with HostModel(summing, threads) as model:
        for start in (ZERO, ZERO):
            for x, y in zip(given, after(given, start), strict=True):
                model.set_inputs({"x": x})
                model.run()
                np.testing.assert_array_equal(model.outputs()["y"], y)
            model.reset_state()
        chosen = frames(1, seed=9)[0]
        model.set_inputs({"x": given[0], "s": chosen})
        model.run()
        np.testing.assert_array_equal(model.outputs()["seen"], chosen)
        model.run()
        np.testing.assert_array_equal(model.outputs()["seen"], chosen + given[0])


def test_instances_have_states_of_their_own(summing: Artifact) -> None:
    ours, theirs = frames(4), frames(4, seed=5)
    with HostModel(summing) as one, HostModel(summing, 2) as other:
        for index in range(4):
            one.set_inputs({"x": ours[index]})
            other.set_inputs({"x": theirs[index]})
            one.run()
            other.run()
            if index == 1:
                other.reset_state()
        np.testing.assert_array_equal(one.outputs()["y"], after(ours)[-1])
        np.testing.assert_array_equal(other.outputs()["y"], after(theirs[2:])[-1])


def test_floats_and_profiles_carry_states(summing: Artifact) -> None:
    """set_inputs_float takes states as optional, too; a profiled run hands over like any other."""
    with HostModel(summing, 2) as model:
        model.set_inputs_float({"x": np.full((1, SIZE), 2.0, np.float32)})
        model.profile()
        model.run()
        np.testing.assert_array_equal(model.outputs_float()["y"], np.full((1, SIZE), 4.0, np.float32))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failed_run_leaves_states_alone(summing: Artifact, threads: int) -> None:
    given = frames(2)
    failing = given[1].copy()
    failing[0, 0] = 255
    with HostModel(summing, threads) as model:
        model.set_inputs({"x": given[0]})
        model.run()
        model.set_inputs({"x": failing})
        with pytest.raises(DeviceError, match="kernel"):
            model.run()
        model.set_inputs({"x": given[1]})
        model.run()
        np.testing.assert_array_equal(model.outputs()["y"], after(given)[-1])


def test_inputs_that_are_no_states_are_still_needed(summing: Artifact) -> None:
    message = r"inputs \['s'\] given, 'summing' takes \['s', 'x'\]; optional, because kept from run to run: \['s'\]"
    with HostModel(summing) as model:
        with pytest.raises(UsageError, match=message):
            model.set_inputs({"s": frames(1)[0]})
        with pytest.raises(UsageError, match="given"):
            model.set_inputs({"x": frames(1)[0], "t": frames(1)[0]})


def test_c_api(summing: Artifact) -> None:
    library = ctypes.CDLL(str(summing.library))
    library.bevel_state_at.restype = ctypes.POINTER(ctypes.c_uint32)
    assert library.bevel_num_states() == 1
    assert library.bevel_state_at(ctypes.c_size_t(0))[:2] == [1, 0]
    assert not library.bevel_state_at(ctypes.c_size_t(1))
    assert library.bevel_state_reset(None) == 1


def bevel_run(artifact: Artifact, *arguments: object, code: int = 0) -> Any:
    done = subprocess.run([artifact.runner, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stderr if code >= 2 else json.loads(done.stdout.splitlines()[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_runner(summing: Artifact, threads: int, tmp_path: Path) -> None:
    """Golden cases hold in a row; a batch is one stream unless reset; given states override sample by sample."""
    given, chosen = frames(6), frames(6, seed=2)
    np.save(tmp_path / "x.npy", given)
    np.save(tmp_path / "s.npy", chosen)
    assert bevel_run(summing, "--selftest", "--threads", threads)["cases"] == 3
    for arguments, expected in (
        ([], after(given)),
        (["--reset-state"], given + np.uint8(ZERO)),
        (["--input", f"s={tmp_path / 's.npy'}"], given + chosen),
    ):
        files = ["--input", f"x={tmp_path / 'x.npy'}", "--output", f"y={tmp_path / 'y.npy'}"]
        bevel_run(summing, "--batch", "--threads", threads, *files, *arguments)
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy").reshape(expected.shape), expected)


def test_runner_reports_states_and_missing_inputs(summing: Artifact, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", frames(1)[0])
    assert bevel_run(summing, "--info")["states"] == [{"input": "s", "output": "y"}]
    for mode in ("--bench", "--profile"):
        brief = (mode, "--runs", 3, "--blocks", 2, "--block-ms", 1, "--warmup-ms", 1)
        assert bevel_run(summing, *brief, "--input", f"x={tmp_path / 'x.npy'}")["input"] == "given"
        assert bevel_run(summing, *brief)["input"] == "selftest"
    assert "input 'x' is missing" in bevel_run(summing, "--input", f"s={tmp_path / 'x.npy'}", code=2)


def test_device_runner(summing: Artifact) -> None:
    given = frames(5)
    with resolve_transport(load_profile("host")) as transport:
        runner = DeviceRunner(summing, transport)
        np.testing.assert_array_equal(runner.run({"x": given}, batch=True)["y"], after(given)[:, 0])
        anew = runner.run({"x": given}, batch=True, reset_state=True)["y"]
        np.testing.assert_array_equal(anew, given[:, 0] + np.uint8(ZERO))
        with pytest.raises(UsageError, match="optional, because kept"):
            runner.run({"s": given}, batch=True)


def test_generated_code_has_no_warnings(tmp_path: Path) -> None:
    (tmp_path / "model.c").write_text(model_c(schedule()))
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-I", str(C_DIR), "-c", "model.c"]
    command = [*find_toolchain(host_arch()).shared, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_manifest_and_header_name_the_states(summing: Artifact) -> None:
    assert read_manifest(summing.path)["states"] == [{"input": "s", "output": "y"}]
    assert summing.states == {"s": "y"}
    assert "state 0: s takes the bytes of y after each run" in model_h(schedule())


@pytest.mark.parametrize("state", [{"input": "z", "output": "y"}, {"input": "s", "output": "z"}, {"input": "x", "output": 3}])
def test_manifests_with_other_states_are_refused(summing: Artifact, state: dict[str, object], tmp_path: Path) -> None:
    manifest = json.loads((summing.path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"states": [state]}))
    with pytest.raises(ArtifactError, match="state"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: replace(t, shape=(1, SIZE - 1)),
        lambda t: replace(t, dtype="int8"),
        lambda t: replace(t, zero_point=ZERO + 1),
        lambda t: replace(t, scale=0.25),
    ],
)
def test_schedules_whose_states_disagree(change: Callable[[IoTensor], IoTensor]) -> None:
    good = schedule()
    check_schedule(good)
    with pytest.raises(ValueError, match="expected one type of one size"):
        check_schedule(replace(good, inputs=(good.inputs[0], change(good.inputs[1]))))
