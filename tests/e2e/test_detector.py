"""A detector with NonMaxSuppression inside, from the ONNX file to devices: padded rows, and boxes looked up by them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bevel
from bevel.cli import main
from bevel.compiler import Options, bind, load_graph, prepare
from bevel.errors import UnsupportedOp
from bevel.ir import interp
from bevel.runtime.artifact import Artifact
from tests.e2e.test_road import require_way_to, run_on

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the peer; install the extra `peers`")

Array = npt.NDArray[Any]
SIZE, ANCHORS, CLASSES, MOST, SAMPLES = 16, 3, 4, 6, 3
CELLS = (SIZE // 2) ** 2
BOXES, ROWS = CELLS * ANCHORS, CLASSES * MOST
LAST = "selected"
DEVICES = ["host", pytest.param("raspberry-pi-4", marks=pytest.mark.qemu)]


def detector(path: Path) -> Path:
    """A convolution, a head that gives offsets from anchors and scores, the selection, and what exporters look up by it."""
    rng = np.random.default_rng(8)
    wide = ANCHORS * (4 + CLASSES)
    places = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(CELLS, 1, 2) + 0.5
    reach = np.array([0.8, 1.5, 2.5]).reshape(ANCHORS, 1)
    anchors = np.concatenate([places - reach, places + reach], -1).reshape(1, BOXES, 4)
    constants = {
        "w": rng.normal(size=(8, 3, 3, 3)) / 5,
        "head.w": rng.normal(size=(wide, 8, 1, 1)) / 2,
        "head.b": np.tile([0.0] * 4 + [-1.5] * CLASSES, ANCHORS),
        "anchors": anchors,
        "iou": [0.45],
        "least": [0.8],
    }
    whole = {
        "most": [MOST], "flat": [1, BOXES, 4 + CLASSES], "split": [4, CLASSES],
        "zero": [0], "one": [1], "two": [2], "three": [3],
    }  # fmt: skip
    nodes = [
        _node("Conv", "x w", "c", strides=[2, 2], pads=[1] * 4),
        _node("Relu", "c", "f"),
        _node("Conv", "f head.w head.b", "head.raw"),
        _node("Transpose", "head.raw", "head.nhwc", perm=[0, 2, 3, 1]),
        _node("Reshape", "head.nhwc flat", "head.rows"),
        _node("Split", "head.rows split", "head.offsets head.logits", axis=2),
        _node("Add", "head.offsets anchors", "head.boxes"),
        _node("Sigmoid", "head.logits", "head.confidence"),
        _node("Transpose", "head.confidence", "head.scores", perm=[0, 2, 1]),
        _node("NonMaxSuppression", "head.boxes head.scores most iou least", LAST),
        _node("Slice", f"{LAST} two three one", "column"),
        _node("Squeeze", "column one", "index"),
        _node("Squeeze", "head.boxes zero", "plain"),
        _node("Gather", "plain index", "boxes"),
        _node("GatherND", f"head.scores {LAST}", "scores"),
    ]
    stored = [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in constants.items()]
    stored += [numpy_helper.from_array(np.asarray(a, np.int64), n) for n, a in whole.items()]
    types = {LAST: TensorProto.INT64, "boxes": TensorProto.FLOAT, "scores": TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(n, t, None) for n, t in types.items()],
        stored,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def _node(op: str, operands: str, results: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, operands.split(), results.split(), results.split()[0], **attributes)


def images(count: int) -> Array:
    noise = np.random.default_rng(3).normal(size=(count, 3, SIZE, SIZE))
    return np.cumsum(noise, axis=-1).astype(np.float32) / 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector(tmp_path_factory.mktemp("detector") / "detector.onnx")


def by_onnxruntime(model: Path, batch: Array) -> list[Sequence[Array]]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return [session.run([LAST, "boxes", "scores"], {"x": image[None]}) for image in batch]


def check_layers(artifact: Artifact) -> None:
    (layer,) = (layer for layer in artifact.manifest["layers"] if layer["op"] == "NonMaxSuppression")
    assert layer["kernel"].startswith("generic")
    (rows,) = (t for t in artifact.manifest["outputs"] if t["name"] == LAST)
    assert rows["shape"] == [ROWS, 3]


@pytest.mark.parametrize("device", DEVICES)
def test_finds_what_onnxruntime_finds(device: str, model: Path, tmp_path: Path) -> None:
    require_way_to(device)
    artifact = bevel.compile(model, device=device, bits="fp32", output=tmp_path / "d.bevel", pad_nms=True)
    check_layers(artifact)
    batch = images(SAMPLES)
    found = run_on(artifact, device, {"x": batch})
    counts = []
    for sample, (rows, boxes, scores) in enumerate(by_onnxruntime(model, batch)):
        own = found[LAST][sample].reshape(ROWS, 3)
        np.testing.assert_array_equal(own[: len(rows)], rows)
        assert (own[len(rows) :] == -1).all()
        np.testing.assert_allclose(found["boxes"][sample].reshape(ROWS, 4)[: len(rows)], boxes, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["scores"][sample].reshape(ROWS)[: len(rows)], scores, rtol=1e-4, atol=1e-5)
        counts.append(len(rows))
    assert 0 < min(counts) < ROWS
    assert len(set(counts)) > 1


@pytest.mark.parametrize("keep", [(), ("head*",)], ids=["codes", "float head"])
@pytest.mark.parametrize("device", DEVICES)
def test_eight_bits_with_an_island(device: str, keep: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    """The selection is a float island; its rows are those of the interpreter on the same integer graph."""
    require_way_to(device)
    np.savez(tmp_path / "calibration.npz", x=images(32))
    options = {"bits": "8", "float_outputs": True, "keep_float": keep, "pad_nms": True}
    artifact = bevel.compile(
        model, device=device, calibration=tmp_path / "calibration.npz", output=tmp_path / "d.bevel", **options
    )
    check_layers(artifact)
    islands = {island["op"] for island in artifact.manifest["islands"]}
    assert "NonMaxSuppression" in islands
    assert ("Conv" in islands) == bool(keep)
    graph = prepare(
        load_graph(model, pad_nms=True),
        Options(device, calibration=tmp_path / "calibration.npz", float_outputs=True, keep_float=keep, pad_nms=True),
    )
    graph, batch = bind(graph, {}), images(SAMPLES)
    found = run_on(artifact, device, {"x": batch})
    for sample, image in enumerate(batch):
        wanted = interp.run(graph, {"x": image[None]})
        np.testing.assert_array_equal(found[LAST][sample].reshape(ROWS, 3), wanted[LAST])
        assert (wanted[LAST][0] >= 0).all()
        np.testing.assert_allclose(found["boxes"][sample].reshape(ROWS, 4), wanted["boxes"], rtol=1e-4, atol=1e-5)
    kept = by_onnxruntime(model, batch)
    if keep:
        # In float the head selects nearly what the float model does: most of its rows are there.
        ours = [{tuple(row) for row in found[LAST][i].reshape(ROWS, 3).tolist()} for i in range(SAMPLES)]
        hits = sum(tuple(row) in ours[i] for i in range(SAMPLES) for row in kept[i][0].tolist())
        assert hits >= 0.5 * sum(len(rows) for rows, _, _ in kept)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run `bevel ARGS --json`: exit code and document."""

    def run(*args: object) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave:
            main([*map(str, args), "--json"])
        return int(leave.value.code or 0), json.loads(capfd.readouterr().out)

    return run


def test_the_command_line(command: Callable[..., tuple[int, dict[str, Any]]], model: Path, tmp_path: Path) -> None:
    """The option reaches the importer, and decides the cache's key."""
    compiling = "compile", model, "--device", "host", "--bits", "fp32", "-o", tmp_path / "d.bevel"
    code, made = command(*compiling, "--pad-nms")
    assert code == 0
    assert "NonMaxSuppression" in [layer["op"] for layer in made["layers"]]
    # The artifact is in the cache by now: only its key can tell that this was asked for otherwise.
    code, refused = command(*compiling)
    assert code == 3
    assert "--pad-nms" in refused["error"]["message"]
    cost = "cost", model, "--device", "raspberry-pi-4"
    assert command(*cost)[0] == 3
    assert command(*cost, "--pad-nms")[0] == 0


def test_a_baseline_is_padded_as_the_artifact_is(
    command: Callable[..., tuple[int, dict[str, Any]]], model: Path, tmp_path: Path
) -> None:
    artifact = bevel.compile(model, bits="fp32", output=tmp_path / "d.bevel", pad_nms=True)
    np.savez(tmp_path / "data.npz", x=images(SAMPLES))
    code, result = command("eval", artifact.path, "--data", tmp_path / "data.npz", "--baseline", model)
    assert code == 0
    assert result["agreement"] == 1.0


def test_the_interface_in_python_refuses_without_the_option(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match="pad_nms=True"):
        bevel.compile(model, bits="fp32", output=tmp_path / "d.bevel")
