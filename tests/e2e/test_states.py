"""States from an ONNX file to a running artifact: ten runs that keep their state equal ten runs that are handed it.

Proved for a recurrent network in fp32 (here and on an emulated aarch64), and bit for bit for a streaming convolutional
network of 8 bits whose states come from a Slice of a Concat, an Add and a Softmax: calibration gives every state the type of its
output. Also: artifacts keep their states when they are compiled again, the cache tells states apart, and the command line says
what is wrong with a pair.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bevel
from bevel.cli import main
from bevel.compiler import Options, compile_model, load_graph, prepare
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.errors import UsageError
from bevel.ir import interp
from bevel.ir.graph import Graph, Level
from bevel.ir.text import parse_graph, print_graph
from bevel.ir.types import F32, Quant
from bevel.runtime.artifact import Artifact
from bevel.runtime.host import HostModel

Array = npt.NDArray[Any]
Frames = list[dict[str, Array]]
RUNS = 10
RECURRENT = {"h": "hn", "c": "cn"}
STREAMING = {"past": "past_next", "sum": "sum_next", "share": "share_next"}


def save(
    folder: Path, name: str, nodes: list[Any], ins: dict[str, list[Any]], outs: dict[str, list[Any]], weights: dict[str, Any]
) -> Path:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in ins.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def recurrent(folder: Path) -> Path:
    """An LSTM cell with a classifier, in the shape of voice activity detectors; the batch is symbolic."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["all", "hn", "cn"], hidden_size=12),
        node("Relu", ["hn"], ["active"]),
        node("Reshape", ["active", "flat"], ["row"]),
        node("Gemm", ["row", "v"], ["score"]),
        node("Sigmoid", ["score"], ["p"]),
    ]
    weights = {name: rng.normal(size=shape).astype(np.float32) / 3 for name, shape in (("w", (1, 48, 6)), ("r", (1, 48, 12)))}
    weights |= {"b": rng.normal(size=(1, 96)).astype(np.float32) / 3, "v": rng.normal(size=(12, 2)).astype(np.float32)}
    ins = {"x": [1, 1, 6], "h": [1, 1, 12], "c": [1, 1, 12]}
    outs = {"p": [1, 2], "hn": [1, 1, 12], "cn": [1, 1, 12]}
    return save(folder, "recurrent", nodes, ins, outs, weights | {"flat": np.array([1, 12])})


def streaming(folder: Path) -> Path:
    """A convolution over the last frames, a leaky sum of its results and a distribution that follows it; symbolic batch."""
    rng = np.random.default_rng(1)
    node = helper.make_node
    nodes = [
        node("Concat", ["past", "x"], ["window"], axis=2),
        node("Slice", ["window", "four", "six", "two"], ["past_next"]),
        node("Conv", ["window", "k", "kb"], ["conv"], kernel_shape=[3], pads=[0, 0]),
        node("Relu", ["conv"], ["active"]),
        node("Conv", ["sum", "decay"], ["decayed"], kernel_shape=[1]),
        node("Add", ["decayed", "active"], ["sum_next"]),
        node("Add", ["share", "sum_next"], ["mixed"]),
        node("Softmax", ["mixed"], ["share_next"], axis=2),
        node("GlobalAveragePool", ["sum_next"], ["y"]),
    ]
    weights: dict[str, Any] = {"four": np.array([4]), "six": np.array([6]), "two": np.array([2])}
    weights |= {"k": rng.normal(size=(5, 3, 3)).astype(np.float32) / 2, "kb": rng.normal(size=5).astype(np.float32)}
    weights["decay"] = (np.eye(5) / 2).astype(np.float32)[..., None]
    ins = {"x": ["n", 3, 4], "past": ["n", 3, 2], "sum": ["n", 5, 4], "share": ["n", 5, 4]}
    outs = {"y": ["n", 5, 1], "past_next": ["n", 3, 2], "sum_next": ["n", 5, 4], "share_next": ["n", 5, 4]}
    return save(folder, "streaming", nodes, ins, outs, weights)


def frames(name: str, count: int = RUNS, seed: int = 0) -> list[Array]:
    shape = (1, 1, 6) if name == "recurrent" else (1, 3, 4)
    return list(np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32))


def by_hand(graph: Graph, states: dict[str, str], given: list[Array]) -> Frames:
    """Outputs of each run of the interpreter, states handed on from real zeros."""
    kept = {v.name: np.full(v.type.static_shape, _zero(v.type.elem), v.type.dtype) for v in graph.inputs if v.name in states}
    found = []
    for x in given:
        outputs = interp.run(graph, {"x": x, **kept})
        kept = {name: outputs[output] for name, output in states.items()}
        found.append(outputs)
    return found


def _zero(elem: object) -> int:
    return elem.zero_point[0] if isinstance(elem, Quant) else 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"recurrent": recurrent(folder), "streaming": streaming(folder)}


@pytest.fixture(scope="module")
def recorded(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration data of the streaming network: frames, and the states it had when they came."""
    graph = load_graph(models["streaming"], {"n": 1})
    given = frames("streaming", 60, seed=3)
    rows: dict[str, list[Array]] = {"x": given}
    outputs = by_hand(graph, STREAMING, given)
    for name, output in STREAMING.items():
        rows[name] = [np.zeros_like(outputs[0][output]), *(o[output] for o in outputs[:-1])]
    file = tmp_path_factory.mktemp("recorded") / "frames.npz"
    np.savez(file, **{name: np.concatenate(arrays) for name, arrays in rows.items()})
    return file


@pytest.fixture(scope="module")
def fp32(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp("fp32") / "recurrent.bevel"
    return compile_model(models["recurrent"], output, Options("host", "fp32", states=RECURRENT))[0]


@pytest.fixture(scope="module")
def int8(models: dict[str, Path], recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp("int8") / "streaming.bevel"
    return compile_model(models["streaming"], output, Options("host", "8", recorded, states=STREAMING))[0]


def close(found: dict[str, Array], expected: dict[str, Array], tolerance: float) -> None:
    for name, array in expected.items():
        error = np.abs(found[name].reshape(array.shape) - array).max() / max(np.abs(array).max(), 1e-3)
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("threads", [1, 2])
def test_float_states_inside_and_by_hand(fp32: Artifact, models: dict[str, Path], threads: int) -> None:
    """Artifact with its state inside, artifact handed its states, and interpreter agree; a reset starts the same stream again."""
    given = frames("recurrent")
    expected = by_hand(load_graph(models["recurrent"]), RECURRENT, given)
    with HostModel(fp32, threads) as inside, HostModel(fp32, threads) as handed:
        for _ in range(2):
            kept = {name: np.zeros((1, 1, 12), np.float32) for name in RECURRENT}
            inside.reset_state()
            for x, wanted in zip(given, expected, strict=True):
                inside.set_inputs({"x": x})
                inside.run()
                handed.set_inputs({"x": x, **kept})
                handed.run()
                kept = {name: handed.outputs()[output].copy() for name, output in RECURRENT.items()}
                close(inside.outputs(), wanted, 1e-5)
                for name, array in handed.outputs().items():
                    np.testing.assert_array_equal(inside.outputs()[name], array)


@pytest.mark.parametrize("threads", [1, 2])
def test_integer_states_bit_for_bit(int8: Artifact, threads: int) -> None:
    graph = load_graph(int8.path)
    assert graph.level is Level.INTEGER
    assert graph.states == STREAMING
    x = next(v for v in graph.inputs if v.name == "x")
    given = [interp.boundary_codes(x, frame) for frame in frames("streaming")]
    expected = by_hand(graph, STREAMING, given)
    assert any((expected[-1][name] != expected[0][name]).any() for name in expected[0])
    with HostModel(int8, threads) as model:
        for codes, wanted in zip(given, expected, strict=True):
            model.set_inputs({"x": codes})
            model.run()
            for name, array in wanted.items():
                np.testing.assert_array_equal(model.outputs()[name], array, err_msg=name)


def test_integer_states_follow_the_float_network(int8: Artifact, models: dict[str, Path]) -> None:
    """The codes mean what they should: after ten runs the outputs are those of the float network, to a few steps."""
    given = frames("streaming", seed=3)
    wanted = by_hand(load_graph(models["streaming"], {"n": 1}), STREAMING, given)
    with HostModel(int8) as model:
        for x, expected in zip(given, wanted, strict=True):
            model.set_inputs_float({"x": x})
            model.run()
            close(model.outputs_float(), expected, 0.06)


def test_states_have_the_types_of_their_outputs(int8: Artifact) -> None:
    """One range for both ends: nothing is converted between runs, nor between the kept frames and the window they join."""
    graph = load_graph(int8.path)
    types = {v.name: v.type for v in (*graph.inputs, *graph.outputs)}
    for name, output in STREAMING.items():
        assert isinstance(types[name].elem, Quant)
        assert types[name] == types[output]
    assert graph.value("window").type.elem == types["past"].elem
    assert len([n for n in graph.nodes if n.op == "Requantize" and n.inputs[0].name == "past"]) == 0


@pytest.mark.qemu
@pytest.mark.parametrize("bits", ["fp32", "8"])
def test_aarch64(bits: str, models: dict[str, Path], int8: Artifact, tmp_path: Path) -> None:
    """On an emulated board: golden cases, a stream in one batch, and its start again in each run with --reset-state."""
    name, states = ("recurrent", RECURRENT) if bits == "fp32" else ("streaming", STREAMING)
    options = Options("raspberry-pi-4", bits, states=states if bits == "fp32" else {})
    artifact, _ = compile_model(models[name] if bits == "fp32" else int8.path, tmp_path / "arm.bevel", options)
    assert artifact.states == states
    graph = load_graph(artifact.path)
    given = frames(name)
    if bits == "8":
        x = next(v for v in graph.inputs if v.name == "x")
        given = [interp.boundary_codes(x, frame) for frame in given]
    with resolve_transport(load_profile("raspberry-pi-4")) as transport:
        runner = DeviceRunner(artifact, transport, 2)
        assert runner.selftest()["cases"] == 2
        stream = runner.run({"x": np.stack(given)}, batch=True)
        anew = runner.run({"x": np.stack(given[:3])}, batch=True, reset_state=True)
    expected = by_hand(graph, states, given)
    alone = [by_hand(graph, states, [x])[0] for x in given[:3]]
    for found, wanted in ((stream, expected), (anew, alone)):
        for index, outputs in enumerate(wanted):
            for key, array in outputs.items():
                row = found[key][index].reshape(array.shape)
                if bits == "8":
                    np.testing.assert_array_equal(row, array)
                else:
                    close({key: row}, {key: array}, 1e-5)


def test_half_precision_keeps_states_in_single(models: dict[str, Path]) -> None:
    graph = prepare(load_graph(models["streaming"]), Options("host", "fp16", states=STREAMING))
    types = {v.name: v.type for v in (*graph.inputs, *graph.outputs)}
    assert all(types[name].elem == types[output].elem == F32 for name, output in STREAMING.items())
    assert parse_graph(print_graph(graph, inline_constants=10**6), {}).states == STREAMING


def test_the_cache_tells_states_apart(fp32: Artifact, models: dict[str, Path], tmp_path: Path) -> None:
    plain = bevel.compile(models["recurrent"], bits="fp32", output=tmp_path / "plain.bevel")
    again = bevel.compile(models["recurrent"], bits="fp32", output=tmp_path / "again.bevel", states=RECURRENT)
    assert plain.states == {}
    assert again.states == fp32.states == RECURRENT
    assert plain.manifest["graph_hash"] != again.manifest["graph_hash"]
    with HostModel(plain) as model, pytest.raises(UsageError, match="given"):
        model.set_inputs({"x": frames("recurrent")[0]})


def test_outputs_in_float_leave_states_codes(models: dict[str, Path], recorded: Path) -> None:
    options = Options("host", "8", recorded, states=STREAMING, float_outputs=True)
    graph = prepare(load_graph(models["streaming"]), options)
    kinds = {v.name: isinstance(v.type.elem, Quant) for v in graph.outputs}
    assert kinds == {"y": False, "past_next": True, "sum_next": True, "share_next": True}


@pytest.mark.parametrize("kept", [("sum_next",), ("share_next", "mixed"), ("window", "past_next"), ("decayed", "conv")])
def test_states_of_float_islands(kept: tuple[str, ...], models: dict[str, Path], recorded: Path) -> None:
    """Whichever end of a state a float island touches, both ends have one type."""
    graph = prepare(load_graph(models["streaming"]), Options("host", "8", recorded, states=STREAMING, keep_float=kept))
    types = {v.name: v.type for v in (*graph.inputs, *graph.outputs)}
    assert all(types[name] == types[output] for name, output in STREAMING.items())


Bevel = Callable[..., str]


@pytest.fixture
def refused(models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Bevel:
    """Compile the streaming network with options that are wrong; returns the message."""

    def run(*arguments: str) -> str:
        common = ["compile", str(models["streaming"]), "--device", "host", "--bits", "fp32", "-o", str(tmp_path / "no.bevel")]
        with pytest.raises(SystemExit) as leave:
            main([*common, *arguments, "--json"])
        assert leave.value.code == 2
        assert not (tmp_path / "no.bevel").exists()
        message = json.loads(capfd.readouterr().out)["error"]["message"]
        assert isinstance(message, str)
        return message

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["past"], "--state past: expected INPUT=OUTPUT"),
        (["=past_next"], "expected INPUT=OUTPUT"),
        (["later=past_next"], "'later' is no input of 'streaming'; its inputs are x, past, sum, share"),
        (["past=later"], "'later' is no output of 'streaming'; its outputs are y, past_next, sum_next, share_next"),
        (["past_next=past"], "'past_next' is no input"),
        (["past=past_next", "past=sum_next"], "input 'past' takes output 'past_next' already"),
        (["past=sum_next"], "input 'past' is f32[1,3,2] and output 'sum_next' f32[1,5,4]; both must be of one type"),
    ],
)
def test_pairs_that_cannot_be_meant(arguments: list[str], message: str, refused: Bevel) -> None:
    assert message in refused(*(part for pair in arguments for part in ("--state", pair)))


def test_a_state_has_one_size(refused: Bevel) -> None:
    message = refused("--state", "sum=sum_next", "--dim", "n=1:4")
    assert "the shape of a state is fixed; bind dimension 'n' with --dim n=N" in message


def test_two_states_may_take_one_output(models: dict[str, Path], tmp_path: Path) -> None:
    states = {"sum": "sum_next", "share": "sum_next"}
    artifact = bevel.compile(models["streaming"], bits="fp32", output=tmp_path / "twice.bevel", states=states)
    with HostModel(artifact) as model:
        model.set_inputs({"x": frames("streaming")[0], "past": np.ones((1, 3, 2), np.float32)})
        model.run()
        held = {tensor.name: tensor.array for tensor in model.inputs}
        np.testing.assert_array_equal(held["sum"], model.outputs()["sum_next"])
        np.testing.assert_array_equal(held["share"], model.outputs()["sum_next"])


def stepped(artifact: Artifact, states: dict[str, str], given: list[Array]) -> None:
    """Ten runs of an integer artifact equal ten of its graph that are handed their states."""
    graph = load_graph(artifact.path)
    assert graph.level is Level.INTEGER
    x = next(v for v in graph.inputs if v.name == "x")
    codes = [interp.boundary_codes(x, frame) if isinstance(x.type.elem, Quant) else frame for frame in given]
    with HostModel(artifact) as model:
        for frame, expected in zip(codes, by_hand(graph, states, codes), strict=True):
            model.set_inputs({"x": frame})
            model.run()
            for name, array in expected.items():
                np.testing.assert_array_equal(model.outputs()[name], array)


@pytest.mark.parametrize("bits", ["fp32", "8"])
def test_a_delay_line(bits: str, tmp_path: Path) -> None:
    """Outputs that are inputs: x becomes z1, z1 becomes z2, all of one type."""
    node = helper.make_node
    nodes = [
        node("Identity", ["x"], ["z1n"]),
        node("Identity", ["z1"], ["z2n"]),
        node("Add", ["x", "z1"], ["two"]),
        node("Add", ["two", "z2"], ["y"]),
    ]
    shape = [1, 8]
    path = save(tmp_path, "delay", nodes, dict.fromkeys(("x", "z1", "z2"), shape), dict.fromkeys(("y", "z1n", "z2n"), shape), {})
    given = [np.random.default_rng(i).normal(size=(1, 8)).astype(np.float32) for i in range(RUNS)]
    zero = np.zeros((1, 8), np.float32)
    data = {"x": given, "z1": [zero, *given[:-1]], "z2": [zero, zero, *given[:-2]]}
    calibration = {name: np.concatenate(arrays) for name, arrays in data.items()} if bits == "8" else None
    states = {"z1": "z1n", "z2": "z2n"}
    artifact = bevel.compile(path, bits=bits, calibration=calibration, output=tmp_path / "delay.bevel", states=states)
    if bits == "8":
        stepped(artifact, states, given)
        return
    with HostModel(artifact) as model:
        for index, x in enumerate(given):
            model.set_inputs({"x": x})
            model.run()
            expected = sum((given[i] for i in range(max(0, index - 2), index + 1)), zero)
            np.testing.assert_allclose(model.outputs()["y"], expected, atol=1e-6)


@pytest.mark.parametrize("codes", [np.int8, np.uint8])
@pytest.mark.parametrize("typed", ["both", "input", "output"])
def test_models_that_come_quantized(typed: str, codes: Callable[[int], Any], tmp_path: Path) -> None:
    """QDQ: an output of another type than its state is requantized to it; a type that one end lacks it gets."""
    node = helper.make_node
    weights: dict[str, Any] = {"zero": codes(0), "ten": codes(10), "xs": np.float32(0.02), "hs": np.float32(0.05)}
    weights |= {"os": np.float32(0.03), "half": np.float32(0.5)}

    def quantized(name: str, scale: str, zero: str) -> list[Any]:
        return [
            node("QuantizeLinear", [name, scale, zero], [f"{name}.q"]),
            node("DequantizeLinear", [f"{name}.q", scale, zero], [f"{name}.dq"]),
        ]

    nodes = quantized("x", "xs", "zero") + (quantized("h", "hs", "ten") if typed != "output" else [])
    nodes.append(node("Add", ["x.dq", "h.dq" if typed != "output" else "h"], ["sum"]))
    if typed != "input":
        nodes += quantized("sum", "os", "zero")
    nodes.append(node("Identity", ["sum.dq" if typed != "input" else "sum"], ["hn"]))
    path = save(tmp_path, f"qdq-{typed}", nodes, {"x": [1, 8], "h": [1, 8]}, {"hn": [1, 8]}, weights)
    artifact = bevel.compile(path, output=tmp_path / "qdq.bevel", states={"h": "hn"})
    given = [np.random.default_rng(i).normal(size=(1, 8)).astype(np.float32) / 4 for i in range(RUNS)]
    stepped(artifact, {"h": "hn"}, given)
    tensors = {
        t["name"]: (t["dtype"], t["scale"], t["zero_point"])
        for t in (*artifact.manifest["inputs"], *artifact.manifest["outputs"])
    }
    assert tensors["h"] == tensors["hn"]
    assert tensors["h"][0] == "int8"


@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_of_any_length(threads: int, tmp_path: Path) -> None:
    """Run-time extents leave states alone: a sum over a stream is the same however it is cut."""
    node = helper.make_node
    nodes = [node("ReduceSum", ["x", "axis"], ["part"], keepdims=0), node("Add", ["h", "part"], ["hn"])]
    path = save(tmp_path, "chunks", nodes, {"x": [1, "t", 6], "h": [1, 6]}, {"hn": [1, 6]}, {"axis": np.array([1])})
    artifact = bevel.compile(path, bits="fp32", dims={"t": (1, 9)}, output=tmp_path / "chunks.bevel", states={"h": "hn"})
    stream = np.random.default_rng(0).normal(size=(1, 20, 6)).astype(np.float32)
    with HostModel(artifact, threads) as model:
        for lengths in ((9, 1, 3, 7), (1,) * 20, (5, 8, 2, 5)):
            model.reset_state()
            for end, length in zip(np.cumsum(lengths), lengths, strict=True):
                model.set_inputs({"x": stream[:, end - length : end]})
                model.run()
            np.testing.assert_allclose(model.outputs()["hn"], stream.sum(axis=1), atol=1e-5)


def test_run_takes_a_bare_file_for_the_one_input_that_is_no_state(
    fp32: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", frames("recurrent")[0])
    with pytest.raises(SystemExit) as leave:
        main(["run", str(fp32.path), "--input", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npz"), "--json"])
    assert leave.value.code == 0
    assert json.loads(capfd.readouterr().out)["outputs"].keys() == {"p", "hn", "cn"}
    with HostModel(fp32) as model, np.load(tmp_path / "y.npz") as found:
        model.set_inputs({"x": frames("recurrent")[0]})
        model.run()
        np.testing.assert_array_equal(found["p"], model.outputs()["p"])
