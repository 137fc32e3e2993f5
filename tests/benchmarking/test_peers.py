"""Other engines side by side: the line protocol, turns, environments made whole or not at all, and what goes wrong with each."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bevel.benchmarking.host import measure_host
from bevel.benchmarking.peers import process
from bevel.benchmarking.peers.contest import Contestant, measure, own_contestant, relative_difference, run_round
from bevel.benchmarking.peers.engines import CONTESTANTS, ENGINES
from bevel.benchmarking.peers.environment import clean_environ, ensure_environment, environments_dir, list_environments
from bevel.benchmarking.peers.preparation import find_peers, hold_to, reference_outputs
from bevel.benchmarking.peers.process import WorkerProcess
from bevel.compiler import Options, compile_model, load_graph
from bevel.data import save_arrays
from bevel.errors import ToolchainError, UsageError
from bevel.runtime.artifact import Artifact
from bevel.runtime.host import HostModel

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "resnet8_cifar10_float.onnx"
INPUT = "input_1"
FAKE = """
    import json, os, pathlib, sys, time
    import numpy as np

    def prepare(files, precision, shapes, samples, folder):
        print("engines may print")
        if precision == "int8":
            raise ValueError("operator Frobnicate is not there")
        (folder / "seen.json").write_text(json.dumps([files[0].name, shapes, len(samples), "bevel.errors" in sys.modules]))

    def load(folder, threads, inputs, outputs):
        log = open(folder.parent / "turns.log", "a")
        name = os.environ.get("FAKE_NAME", folder.name)

        def call():
            log.write(name)
            log.flush()
            if os.environ.get("FAKE_DIES"):
                os.kill(os.getpid(), 9)
            stop = time.perf_counter() + 0.0005
            while time.perf_counter() < stop:
                pass

        return call, lambda: [inputs["x"] * 2], {"version": "0", "isa": os.environ.get("FAKE_CAP", "all")}
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine called `fake` beside a copy of the worker."""
    package = tmp_path / "bevel" / "benchmarking" / "peers"
    (package / "adapters").mkdir(parents=True)
    shutil.copy(process.WORKER, package)
    (package / "adapters" / "__init__.py").touch()
    (package / "adapters" / "fake.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(process, "WORKER", package / "worker.py")
    return "fake"


def contestant(fake: str, folder: Path, name: str, **env: str) -> Contestant:
    folder.mkdir(exist_ok=True)
    inputs = {"x": np.arange(3, dtype=np.float32)}
    return Contestant(name, Path(sys.executable), fake, folder, inputs, ("y",), {"FAKE_NAME": name, **env}, capped=bool(env))


# The worker ------------------------------------------------------------------------------------------------------------


def test_a_worker_converts_loads_and_measures_on_command(fake: str, tmp_path: Path) -> None:
    data = save_arrays(tmp_path / "x.npz", {"x": np.ones(2, np.float32)})
    with WorkerProcess("fake", Path(sys.executable), fake) as worker:
        worker.ask("prepare", files=["m.onnx"], precision="fp32", shapes={"x": [2]}, samples=[], folder=str(tmp_path))
        assert json.loads((tmp_path / "seen.json").read_text()) == ["m.onnx", {"x": [2]}, 0, False], "bevel is not imported"
        loaded = worker.ask("load", folder=str(tmp_path), threads=1, inputs=str(data), outputs=["y"])
        assert loaded["loaded"]["version"] == "0"
        assert loaded["first_run_ns"] > 0
        assert worker.ask("warm", ms=2)["warm_ns"] >= 500_000, "a call of the fake engine takes half a millisecond"
        for index in range(2):
            block = worker.ask("block", calls=4)
            assert (block["block"], block["calls"]) == (index, 4)
            assert block["wall_ns"] >= 500_000
        before = (tmp_path.parent / "turns.log").stat().st_size
        worker.ask("block", calls=4)
        written = (tmp_path.parent / "turns.log").stat().st_size - before
        assert written == 5 * len(tmp_path.name), "an untimed call before the four timed ones"
        assert worker.ask("read", file=str(tmp_path / "y.npz")) == {"read": [[2]]}
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["arr_0"], [2, 2])


def test_what_an_engine_raises_is_the_message(fake: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ToolchainError, match=r"fake cannot take m\.onnx: ValueError: operator Frobnicate is not there"),
        WorkerProcess("fake cannot take m.onnx", Path(sys.executable), fake) as worker,
    ):
        worker.ask("prepare", files=["m.onnx"], precision="int8", shapes={}, samples=[], folder=str(tmp_path))


def test_a_killed_engine_is_named_with_its_signal(fake: str, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"dying: ended by signal 9"):
        run_round({"dying": contestant(fake, tmp_path / "a", "a", FAKE_DIES="1")}, 1, 3)


def test_no_worker_outlives_its_block(fake: str) -> None:
    with WorkerProcess("fake", Path(sys.executable), fake) as worker:
        child = worker._process
        assert child.poll() is None
    assert child.poll() == 0


# Turns -----------------------------------------------------------------------------------------------------------------


def test_only_one_contestant_runs_at_a_time(fake: str, tmp_path: Path) -> None:
    """Each call of an engine leaves its letter: after warming up, whole blocks alternate."""
    found = run_round({n: contestant(fake, tmp_path / n, n) for n in "ab"}, 1, 3)
    letters = (tmp_path / "turns.log").read_text()
    runs = [letters[0]] + [right for left, right in pairwise(letters) if left != right]
    assert "".join(runs).startswith("abab")
    assert len(runs) >= 2 * 3, "three rounds of both"
    assert {len(times) for times in found.measured.wall_ms.values()} == {3}
    np.testing.assert_array_equal(found.outputs["a"][0], [0, 2, 4])


def test_the_environment_of_a_cap_reaches_its_engine_alone(fake: str, tmp_path: Path) -> None:
    found = run_round(
        {"a": contestant(fake, tmp_path / "a", "a", FAKE_CAP="avx2"), "b": contestant(fake, tmp_path / "b", "b")}, 1, 1
    )
    assert {name: facts["isa"] for name, facts in found.facts.items()} == {"a": "avx2", "b": "all"}


class Machine:
    """A contestant whose call costs a millisecond, on a machine where a neighbour takes the core during some blocks."""

    def __init__(self, stolen: Callable[[int], bool]) -> None:
        self.blocks, self.stolen = 0, stolen

    def warm(self) -> float:
        return 0.001

    def block(self, calls: int) -> tuple[float, float]:
        self.blocks += 1
        return 1.0 + 0.1 * self.stolen(self.blocks), 1.0


def test_rounds_go_on_until_everybody_has_undisturbed_blocks() -> None:
    unlucky, lucky = Machine(lambda block: block % 2 == 0), Machine(lambda block: False)
    found = measure({"a": unlucky, "b": lucky}, 10, single_thread=True)
    assert found.wall_ms["a"] == found.cpu_ms["a"] == [1.0] * 10
    assert found.disturbed == {"a": 0.0, "b": 0.0}
    assert unlucky.blocks == lucky.blocks == 19, "nobody sits out"


def test_repetition_is_bounded_and_confessed() -> None:
    machine, lucky = Machine(lambda block: True), Machine(lambda block: False)
    found = measure({"a": machine, "b": lucky}, 10, single_thread=True)
    assert len(found.wall_ms["a"]) == len(found.wall_ms["b"]) == 10
    assert found.disturbed == {"a": 1.0, "b": 0.0}
    assert machine.blocks == 30


def test_with_several_threads_nothing_is_repeated() -> None:
    machine = Machine(lambda block: True)
    assert measure({"a": machine}, 10, single_thread=False).disturbed == {"a": 0.0}
    assert machine.blocks == 10


# Outputs ---------------------------------------------------------------------------------------------------------------


def test_difference_is_relative_to_the_largest_value() -> None:
    reference = [np.array([[1.0, -4.0]]), np.array([1.0])]
    assert relative_difference([np.array([1.0, -5.0]), np.array([1.0])], reference) == 0.25, "axes of extent 1 do not count"
    for wrong in ([np.array([1.0, np.nan])], [np.array([1.0])], [np.array([1.0, -4.0]), np.array([1.0, 1.0])]):
        assert math.isinf(relative_difference([*wrong], reference[: len(wrong)]))
    assert math.isinf(relative_difference(reference[:1], reference))


# Environments ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows, with version 1.0 of a package called frobengine, and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "frobengine-1.0.dist-info"
    with zipfile.ZipFile(folder / "frobengine-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("frobengine.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: frobengine\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("BEVEL_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def test_an_environment_is_made_once_and_knows_what_it_holds(wheels: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    made = ensure_environment("frob-1.0", ["frobengine==1.0"], say=lambda *step: steps.append(step))
    program = "import frobengine, sys; print(frobengine.answer, 'bevel' in sys.modules)"
    done = subprocess.run([made.python, "-c", program], capture_output=True, text=True, env=clean_environ(), check=True)
    assert done.stdout.split() == ["42", "False"]
    assert steps[0][0] == "install frob-1.0"
    stamp = made.folder.stat().st_mtime_ns
    shutil.rmtree(wheels)
    assert ensure_environment("frob-1.0", ["frobengine==1.0"]) == made
    assert made.folder.stat().st_mtime_ns == stamp
    (listed,) = list_environments()
    assert (listed.name, listed.packages) == ("frob-1.0", ("frobengine==1.0",))
    assert listed.bytes > 1000


def test_a_failed_installation_leaves_nothing_and_says_what_is_missing(wheels: Path) -> None:
    with pytest.raises(ToolchainError, match=r"frob-2.0 cannot be installed: there is no wheel of frobengine==2.0 for Python 3"):
        ensure_environment("frob-2.0", ["frobengine==2.0"])
    assert [entry.name for entry in environments_dir().iterdir()] == [".frob-2.0.lock"]
    assert list_environments() == []


def test_without_a_network_the_message_says_so(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    # Nothing listens there.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ToolchainError, match="pip reached no package index; check the network"):
        ensure_environment("frob-2.0", ["frobengine==2.0"])


def test_an_interrupted_installation_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches bevel and pip alike; a kill leaves a folder that the next installation removes."""
    program = "from bevel.benchmarking.peers.environment import ensure_environment as e; e('frob-1.0', ['frobengine==1.0'])"
    for sent, left in ((signal.SIGINT, 0), (signal.SIGKILL, 1)):
        child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while not list(environments_dir().glob(".frob-1.0.new-*/bin")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(child.pid, sent)
        child.wait()
        assert len(list(environments_dir().glob(".frob-1.0.new-*"))) == left
        assert list_environments() == []
    ensure_environment("frob-1.0", ["frobengine==1.0"])
    assert sorted(entry.name for entry in environments_dir().iterdir()) == [".frob-1.0.lock", "frob-1.0"]


def test_other_requirements_make_it_anew(wheels: Path) -> None:
    made = ensure_environment("frob", [])
    assert not list(made.folder.rglob("frobengine.py"))
    again = ensure_environment("frob", [], ["frobengine==1.0"])
    assert list(again.folder.rglob("frobengine.py"))


# The table and --against -----------------------------------------------------------------------------------------------


def test_every_engine_has_an_adapter_and_pinned_versions() -> None:
    adapters = Path(process.WORKER).with_name("adapters")
    for engine in ENGINES.values():
        assert (adapters / f"{engine.name}.py").is_file()
        assert engine.version, f"{engine.name}: its first package has no version"
        assert engine.tooled <= set(engine.precisions)
    assert {"onnxruntime", "onnxruntime-int8", "openvino-int8", "litert-int8", "ncnn", "mnn", "torch"} <= set(CONTESTANTS)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return compile_model(MODEL, tmp_path_factory.mktemp("a") / "m.bevel", Options("host", "fp32"))[0]


@pytest.fixture(scope="module")
def image() -> dict[str, np.ndarray]:
    return {INPUT: np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)}


def test_unknown_peers_and_missing_files_are_usage_errors(
    artifact: Artifact, image: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--against tensorrt: known peers are onnxruntime, onnxruntime-int8, openvino"):
        find_peers(["tensorrt"], MODEL, artifact, image, None)
    with pytest.raises(UsageError, match="give the model it should run, --model"):
        find_peers(["openvino"], None, artifact, image, None)
    with pytest.raises(UsageError, match="give its calibration data, --calib"):
        find_peers(["litert-int8"], MODEL, artifact, image, None)
    quantized = ROOT / "models" / "resnet8_cifar10_int8_qdq.onnx"
    data = save_arrays(tmp_path / "d.npz", {INPUT: np.repeat(image[INPUT], 4, 0)})
    with pytest.raises(UsageError, match="is quantized already; --against onnxruntime runs it as it is"):
        find_peers(["onnxruntime-int8"], quantized, artifact, image, data)


def test_an_instruction_set_holds_the_artifact_and_those_it_can() -> None:
    def needing(*features: str) -> Any:
        return SimpleNamespace(name="m", manifest={"target": {"required_features": list(features)}})

    names = ["onnxruntime", "openvino-int8", "torch"]
    assert hold_to(names, None, needing("amx_int8")) == (names, [])
    assert hold_to(names, "avx2", needing("avx2", "sse2")) == (["openvino-int8", "torch"], ["onnxruntime"])
    with pytest.raises(UsageError, match="--isa avx2: m needs amx_int8; compile it with --device x86-64-avx2"):
        hold_to(names, "avx2", needing("avx2", "amx_int8"))
    with pytest.raises(UsageError, match="nothing holds ncnn, mnn to it"):
        hold_to(["ncnn", "mnn"], "avx2", needing())
    caps = ENGINES["openvino"].caps["avx2"]
    assert caps == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_onnxruntime_in_both_precisions(
    artifact: Artifact, image: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'bevel[peers]'")
    monkeypatch.setenv("BEVEL_CACHE_DIR", str(tmp_path / "cache"))
    data = save_arrays(tmp_path / "d.npz", {INPUT: np.repeat(image[INPUT], 4, 0)})
    peers = find_peers(["onnxruntime", "onnxruntime-int8"], MODEL, artifact, image, data, isa="avx2")
    again = find_peers(["onnxruntime-int8"], MODEL, artifact, image, data)
    assert again["onnxruntime-int8"].folder == peers["onnxruntime-int8"].folder, "converted once"
    contest = measure_host(
        artifact, image, peers, threads=1, processes=1, rounds=2, reference=reference_outputs(MODEL, image, artifact), isa="avx2"
    )
    assert contest.errors["bevel"] < 1e-4
    assert contest.errors["onnxruntime"] < 1e-4
    assert 1e-4 < contest.errors["onnxruntime-int8"] < 0.5
    assert contest.strangers == ()
    assert contest.uncapped == ("onnxruntime", "onnxruntime-int8")
    assert contest.facts["onnxruntime"]["version"]
    assert all(ratio > 0 for ratio in contest.ratios.values())
    found = contest.document()["onnxruntime"]
    assert found["capped"] is False
    assert found["cpu_ratio"] > 0


def test_a_peer_that_computes_something_else_is_said_so(artifact: Artifact, image: dict[str, np.ndarray]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'bevel[peers]'")
    peers = find_peers(["onnxruntime"], MODEL, artifact, image, None)
    reference = [array + 1 for array in reference_outputs(MODEL, image, artifact) or ()]
    contest = measure_host(artifact, image, peers, threads=1, processes=1, rounds=1, reference=reference)
    assert contest.strangers == ("onnxruntime",)


def test_float_and_code_inputs_reach_the_artifact_alike(tmp_path: Path) -> None:
    """Reals are quantized by the runtime, codes are copied: the same outputs come back, as reals."""
    model = ROOT / "models" / "kws_dscnn_int8_qdq.onnx"
    quantized, _ = compile_model(model, tmp_path / "m.bevel", Options("host"))
    name = load_graph(model).inputs[0].name
    real = np.random.default_rng(0).standard_normal((1, 49, 10, 1)).astype(np.float32)
    with HostModel(quantized) as opened:
        opened.set_inputs_float({name: real})
        codes = opened.inputs[0].array.copy()
        opened.run()
        expected = opened.outputs_float()
    for array in (real, codes):
        own = own_contestant(quantized.path, {name: array}, tuple(expected))
        found = run_round({"bevel": own}, 1, 1).outputs["bevel"]
        np.testing.assert_array_equal(found[0], next(iter(expected.values())))
