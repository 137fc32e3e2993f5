"""Run-time extents from an ONNX file to a running artifact: a transformer block compiled once computes every sentence length.

Proved here, for seq in 1..40: the float artifact equals the interpreter within its tolerance, the integer one bit for bit, here
with one to three threads and under an emulated aarch64; golden cases cover the bounds; work, counted in units of parallel axes,
follows the length; the command line chooses lengths and refuses those outside the bounds; masks and position tables of symbolic
shape are computed by the artifact.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.backends.kernel import Extent
from bevel.backends.lower import lower
from bevel.cli import main
from bevel.compiler import Options, bind, compile_model, load_graph, prepare
from bevel.data import SampleFolder, inputs_of, open_data
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.errors import UnsupportedOp, UsageError
from bevel.evaluation import evaluate
from bevel.ir import interp
from bevel.ir.graph import Level
from bevel.runtime.artifact import Artifact
from bevel.runtime.host import HostModel

WIDTH, HEADS, BOUND = 24, 3, 40
LENGTHS = (BOUND, 1, 2, 3, 7, 16, 17, 31, 39, BOUND)
DIMS = {"seq": (1, BOUND)}


def block(folder: Path) -> Path:
    """An attention block with a padding mask, positions and a pooled output; all shapes are computed as exporters do."""
    rng = np.random.default_rng(3)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray[Any, Any]] = {
        name: (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in {"wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH), "wo": (WIDTH, WIDTH)}.items()
    }
    weights |= {
        "w1": rng.normal(size=(WIDTH, 40)).astype(np.float32) / 5,
        "w2": rng.normal(size=(40, WIDTH)).astype(np.float32) / 6,
    }
    weights |= {"b1": rng.normal(size=40).astype(np.float32), "positions": rng.normal(size=(1, 64, WIDTH)).astype(np.float32) / 3}
    weights |= {"heads": np.array([1, -1, HEADS, WIDTH // HEADS]), "joined": np.array([1, -1, WIDTH]), "one": np.array([1])}
    weights |= {
        "scale": np.float32(0.3),
        "low": np.float32(-1e4),
        "zero": np.array(0),
        "step": np.array(1),
        "start": np.array([0]),
    }
    weights |= {"none": np.float32(0), "ahead": np.array(2), "row": np.array([1, 1, 1, -1]), "column": np.array([1, 1, -1, 1])}

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    add("Shape", ["x"], "shape")
    add("Gather", ["shape", "one"], "length", axis=0)
    add("Squeeze", ["length"], "count")
    add("Slice", ["positions", "start", "length", "one"], "here")
    add("Add", ["x", "here"], "h")
    # A mask of symbolic shape: what lies more than two positions ahead is hidden.
    add("Range", ["zero", "count", "step"], "places")
    add("Reshape", ["places", "row"], "keys")
    add("Reshape", ["places", "column"], "queries")
    add("Add", ["queries", "ahead"], "reach")
    add("Greater", ["keys", "reach"], "hidden")
    add("Where", ["hidden", "low", "none"], "mask")
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        add("MatMul", ["h", f"w{name}"], name)
        add("Reshape", [name, "heads"], f"{name}.split")
        add("Transpose", [f"{name}.split"], f"{name}.heads", perm=perm)
    add("MatMul", ["q.heads", "k.heads"], "raw")
    add("Mul", ["raw", "scale"], "scaled")
    add("Add", ["scaled", "mask"], "masked")
    add("Softmax", ["masked"], "p", axis=-1)
    add("MatMul", ["p", "v.heads"], "context")
    add("Transpose", ["context"], "moved", perm=[0, 2, 1, 3])
    add("Reshape", ["moved", "joined"], "flat")
    add("MatMul", ["flat", "wo"], "projected")
    add("Add", ["projected", "h"], "residual")
    add("MatMul", ["residual", "w1"], "wide")
    add("Add", ["wide", "b1"], "biased")
    add("Relu", ["biased"], "active")
    add("MatMul", ["active", "w2"], "narrow")
    add("Add", ["narrow", "residual"], "y")
    add("ReduceMean", ["y"], "pooled", axes=[1], keepdims=0)
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "seq", WIDTH])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "seq", WIDTH]),
            helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, HEADS, "seq", "seq"]),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, WIDTH]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    path = folder / "block.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def sentence(length: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(length).normal(size=(1, length, WIDTH)).astype(np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return block(tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of many lengths, one file each."""
    folder = tmp_path_factory.mktemp("sentences")
    for index, length in enumerate((5, 40, 1, 17, 23, 8, 31, 12)):
        np.savez(folder / f"{index:03}.npz", **sentence(length))
    return folder


@pytest.fixture(scope="module")
def fp32(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return compile_model(model, tmp_path_factory.mktemp("fp32") / "block.bevel", Options("host", "fp32", dims=DIMS))[0]


@pytest.fixture(scope="module")
def int8(model: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    options = Options("host", "8", calibration, dims=DIMS)
    return compile_model(model, tmp_path_factory.mktemp("int8") / "block.bevel", options)[0]


def check_float(outputs: dict[str, Any], expected: dict[str, Any], length: int) -> None:
    for name, array in expected.items():
        error = np.abs(outputs[name] - array).max() / np.abs(array).max()
        assert outputs[name].shape == array.shape
        assert error <= 1e-5, f"{name} at {length}: {error}"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_float_artifact_at_every_length(fp32: Artifact, model: Path, threads: int) -> None:
    graph = load_graph(model, DIMS)
    with HostModel(fp32, threads) as opened:
        for length in LENGTHS:
            opened.set_inputs(sentence(length))
            opened.run()
            check_float(opened.outputs(), interp.run(graph, sentence(length)), length)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_integer_artifact_at_every_length_bit_for_bit(int8: Artifact, threads: int) -> None:
    graph = load_graph(int8.path)
    assert graph.level is Level.INTEGER
    with HostModel(int8, threads) as opened:
        for length in LENGTHS:
            opened.set_inputs_float(sentence(length))
            opened.run()
            for name, expected in interp.run(graph, sentence(length)).items():
                np.testing.assert_array_equal(opened.outputs()[name], expected, err_msg=f"{name} at {length}")


def test_results_do_not_depend_on_what_memory_holds(fp32: Artifact) -> None:
    """Every byte of the arena but the input is garbage before the run: NaN where it is read as float32."""
    with HostModel(fp32) as opened:
        opened.set_inputs(sentence(11))
        opened.run()
        clean = {name: array.copy() for name, array in opened.outputs().items()}
        nbytes = int(fp32.manifest["arena_bytes"])
        opened._arena[:nbytes] = 0xFF
        opened.set_inputs(sentence(11))
        opened.run()
        for name, array in opened.outputs().items():
            np.testing.assert_array_equal(array, clean[name])


@pytest.mark.qemu
@pytest.mark.parametrize("bits", ["fp32", "8"])
def test_aarch64(model: Path, int8: Artifact, bits: str, tmp_path: Path) -> None:
    """The artifact retargeted to an emulated board: the golden cases, and lengths that they do not have."""
    source = model if bits == "fp32" else int8.path
    options = Options("raspberry-pi-4", bits, dims=DIMS if bits == "fp32" else {})
    artifact, _ = compile_model(source, tmp_path / "arm.bevel", options)
    graph = load_graph(model, DIMS) if bits == "fp32" else load_graph(int8.path)
    with resolve_transport(load_profile("raspberry-pi-4")) as transport:
        runner = DeviceRunner(artifact, transport, 2)
        assert runner.selftest()["cases"] >= 2
        for length in (1, 7, 33):
            got, expected = runner.run(sentence(length)), interp.run(graph, sentence(length))
            if bits == "fp32":
                check_float(got, expected, length)
                continue
            for name, array in expected.items():
                np.testing.assert_array_equal(got[name], array, err_msg=f"{name} at {length}")


def test_golden_cases_cover_the_bounds(fp32: Artifact) -> None:
    lengths = [inputs["x"].shape[1] for inputs, _ in fp32.golden()]
    assert min(lengths) == 1
    assert max(lengths) == BOUND
    assert len(set(lengths)) >= 3


def test_the_report_names_the_bounds(fp32: Artifact) -> None:
    text = (fp32.path / "report.html").read_text()
    assert "extent seq" in text
    assert f"1 to {BOUND}" in text


def test_work_follows_the_length(model: Path) -> None:
    """Parallel units of all steps that have a run-time extent: at a quarter of the bound about a quarter of those at the bound.

    The quadratic steps have as many rows as the rest, each shorter, so they shrink faster than this counts.
    """
    graph = bind(prepare(load_graph(model, DIMS), Options("host", "fp32", dims=DIMS)), {})
    schedule = lower(graph, load_profile("x86-64-avx2").target())
    dynamic = [step.extent for step in schedule.steps if isinstance(step.extent, Extent)]
    inner = [step for step in schedule.steps if step.dims and not isinstance(step.extent, Extent)]
    fixed = [step for step in schedule.steps if not step.dims and not isinstance(step.extent, Extent)]
    assert len(dynamic) + len(inner) >= 0.9 * len(schedule.steps), [step.layer for step in fixed]
    for extent in dynamic:
        assert extent.at({"seq": BOUND}) == extent.most
        assert extent.at({"seq": BOUND // 4}) <= -(-extent.most // 4) + 1


def test_command_line(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--dim NAME=LO:HI compiles, run takes lengths from files, bench and profile take --dim; errors name what to do."""

    def bevel(*arguments: object, code: int = 0) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave:
            main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert leave.value.code == code, err
        return err if code else out

    artifact = tmp_path / "block.bevel"
    assert "--dim seq=LO:HI" in bevel("compile", model, "--device", "host", "--bits", "fp32", code=3)
    bevel("compile", model, "--device", "host", "--bits", "fp32", "--dim", f"seq=1:{BOUND}", "-o", artifact)
    np.save(tmp_path / "x.npy", sentence(9)["x"])
    answer = json.loads(bevel("run", artifact, "--input", tmp_path / "x.npy", "--selftest", "--json"))
    assert answer["outputs"]["p"]["shape"] == [1, HEADS, 9, 9]
    np.save(tmp_path / "long.npy", sentence(BOUND + 1)["x"])
    assert f"expected 1..{BOUND}" in bevel("run", artifact, "--input", tmp_path / "long.npy", code=2)
    answer = json.loads(bevel("profile", artifact, "--runs", 2, "--dim", "seq=3", "--json"))
    assert answer["dims"] == {"seq": 3}
    assert "compiled for 1..40" in bevel("profile", artifact, "--dim", "seq=41", code=2)
    assert "the dimensions of block are seq" in bevel("bench", artifact, "--dim", "width=3", code=2)
    for wrong in ("seq", "seq=0", "seq=4:2", "seq=1:2:3", "seq=a:b"):
        assert "NAME=LO:HI" in bevel("compile", model, "--dim", wrong, "--device", "host", "--bits", "fp32", code=2)


def test_run_on_the_device_of_an_artifact_with_lengths(fp32: Artifact) -> None:
    """The runner walks a batch of equal lengths, one run each."""
    graph_inputs = np.concatenate([sentence(6)["x"], sentence(6)["x"] + 1])
    done = subprocess.run([fp32.runner, "--info"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["dims"][0]["hi"] == BOUND
    with resolve_transport(load_profile("host")) as transport:
        many = DeviceRunner(fp32, transport).run({"x": graph_inputs[:, None]}, batch=True)
    with HostModel(fp32) as opened:
        for index, x in enumerate(graph_inputs):
            opened.set_inputs({"x": x[None]})
            opened.run()
            np.testing.assert_array_equal(many["y"][index], opened.outputs()["y"][0])


def test_a_table_shorter_than_the_bound_is_refused(model: Path) -> None:
    """64 positions are stored: a longer sentence has none."""
    with pytest.raises(UnsupportedOp, match=r"Slice"):
        load_graph(model, {"seq": (1, 65)})


def test_sample_folders(calibration: Path, model: Path, tmp_path: Path) -> None:
    """One file a sample, whatever its length; what does not fit is named with its file."""
    data = open_data(calibration, inputs_of(load_graph(model, DIMS)))
    assert isinstance(data, SampleFolder)
    assert [batch["x"].shape[1] for batch in data.batches(64, 4)] == [5, 40, 1, 17]
    specs = inputs_of(load_graph(model, DIMS))
    np.savez(tmp_path / "0.npz", x=np.zeros((1, 3, WIDTH + 1), np.float32))
    with pytest.raises(UsageError, match=r"0\.npz: 'x' is float32\[1, 3, 25\], expected numbers \[1, n, 24\]"):
        open_data(tmp_path, specs).sample(0)
    np.savez(tmp_path / "0.npz", y=np.zeros((1, 3, WIDTH), np.float32))
    with pytest.raises(UsageError, match=r"missing \['x'\]"):
        open_data(tmp_path, specs).sample(0)
    np.savez(tmp_path / "0.npz", **sentence(3), label=np.array(1))
    np.savez(tmp_path / "1.npz", **sentence(4))
    with pytest.raises(UsageError, match="1 of 2 samples have a 'label'"):
        open_data(tmp_path, specs)


def test_evaluation_over_sentences_of_many_lengths(fp32: Artifact, model: Path, calibration: Path) -> None:
    with resolve_transport(load_profile("host")) as transport:
        result = evaluate(fp32, transport, calibration, baseline=model)
    assert (result.metric, result.value, result.n) == ("agreement", 1.0, 8)


def test_batches_chosen_at_run_time(tmp_path: Path) -> None:
    """A convolutional network with a run-time batch: 1 to 3 images a run, each like a run of its own."""
    rng = np.random.default_rng(5)
    weights = {"w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "d": rng.normal(size=(8, 1, 3, 3)).astype(np.float32)}
    weights["p"] = rng.normal(size=(5, 8, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], "b"),
        helper.make_node("Conv", ["b", "d"], ["c"], "c", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Conv", ["c", "p"], ["e"], "e"),
        helper.make_node("GlobalAveragePool", ["e"], ["y"], "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "images",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "images.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    dims = {"batch": (1, 3)}
    artifact, _ = compile_model(path, tmp_path / "images.bevel", Options("host", "fp32", dims=dims))
    images = rng.normal(size=(3, 3, 9, 9)).astype(np.float32)
    reference = load_graph(path, dims)
    with HostModel(artifact, 2) as opened:
        for count in (3, 1, 2):
            opened.set_inputs({"x": images[:count]})
            opened.run()
            expected = interp.run(reference, {"x": images[:count]})["y"]
            np.testing.assert_allclose(opened.outputs()["y"], expected, rtol=1e-4, atol=1e-5)
