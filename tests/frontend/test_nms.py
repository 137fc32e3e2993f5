"""NonMaxSuppression with padded rows: ONNX's cases, onnxruntime on random boxes, chains that exporters write, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.conformance.node_cases import NodeCase, load_cases
from bevel.compiler import load_graph
from bevel.errors import UnsupportedOp
from bevel.ir.interp import run
from bevel.ir.serialize import dumps, loads
from bevel.passes.canonicalize import canonicalize
from tests.frontend.onnx_files import Array, imported, model_of, save

PADS = {"pad_nms": True}


def ends_padded(rows: Array, wanted: Array) -> None:
    """Assert that `rows` begin with `wanted` and go on with -1."""
    assert rows.dtype == wanted.dtype == np.int64
    np.testing.assert_array_equal(rows[: len(wanted)], wanted)
    assert (rows[len(wanted) :] == -1).all()


def onnx_cases() -> list[NodeCase]:
    return [case for case in load_cases() if case.op == "NonMaxSuppression"]


def fixed(case: NodeCase) -> onnx.ModelProto:
    """The model with everything but boxes and scores stored in it."""
    assert case.inputs is not None
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    names = [i.name for i in model.graph.input]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in zip(names[2:], case.inputs[2:], strict=True))
    del model.graph.input[2:]
    return model


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_onnx_cases(tmp_path: Path) -> None:
    cases = onnx_cases()
    assert len(cases) >= 10
    for case in cases:
        assert case.inputs is not None
        assert case.outputs is not None
        graph = canonicalize(imported(tmp_path, fixed(case), **PADS))
        boxes, scores, most, *_ = case.inputs
        (rows,) = run(graph, {"boxes": boxes, "scores": scores}).values()
        assert rows.shape == (scores.shape[0] * scores.shape[1] * min(int(most[0]), boxes.shape[1]), 3)
        ends_padded(rows, case.outputs[0])


def suppression(
    boxes: Array, scores: Array, most: int, iou: float | None, score: float | None, center: bool = False
) -> onnx.ModelProto:
    constants = {"most": np.array([most], np.int64)}
    constants |= {n: np.array([t], np.float32) for n, t in (("iou", iou), ("score", score)) if t is not None}
    names = ["boxes", "scores", "most", *(n if n in constants else "" for n in ("iou", "score"))]
    node = helper.make_node("NonMaxSuppression", names, ["y"], center_point_box=int(center))
    shapes = {"boxes": boxes.shape, "scores": scores.shape}
    return model_of([node], shapes, ["y"], constants, out_elem=TensorProto.INT64)


def random_case(seed: int) -> tuple[Array, Array, onnx.ModelProto]:
    """Boxes that often overlap, scores that are often equal."""
    rng = np.random.default_rng(seed)
    images, classes, count = (int(n) for n in rng.integers(1, (4, 5, 80)))
    boxes = rng.uniform(0, 5, (images, count, 4)).astype(np.float32)
    scores = np.round(rng.uniform(0, 1, (images, classes, count)), 2).astype(np.float32)
    iou = None if seed % 5 == 4 else float(np.float32(rng.uniform(0, 1)))
    score = None if seed % 3 == 2 else float(np.float32(rng.uniform(0, 1)))
    most = int(rng.choice([1, 5, 100, 2**63 - 1]))
    return boxes, scores, suppression(boxes, scores, most, iou, score, center=bool(seed % 2))


def test_random_boxes_are_selected_as_onnxruntime_does(tmp_path: Path) -> None:
    empty = 0
    for seed in range(120):
        boxes, scores, model = random_case(seed)
        graph = imported(tmp_path, model, **PADS)
        feeds = {"boxes": boxes, "scores": scores}
        session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
        (wanted,) = session.run(None, feeds)
        rows = run(graph, feeds)["y"]
        ends_padded(rows, wanted)
        empty += len(rows) - len(wanted)
    assert empty > 1000


def test_a_graph_with_padded_rows_is_saved_and_loaded(tmp_path: Path) -> None:
    boxes, scores, model = random_case(2)
    graph = imported(tmp_path, model, **PADS)
    again = loads(dumps(graph), "again")
    assert again.nodes[0].attrs == graph.nodes[0].attrs
    np.testing.assert_array_equal(
        run(again, {"boxes": boxes, "scores": scores})["y"], run(graph, {"boxes": boxes, "scores": scores})["y"]
    )


# What exporters write behind the operator ------------------------------------------------------------------------------

COUNT, CLASSES, MOST = 60, 3, 7
RNG = np.random.default_rng(4)
BOXES = RNG.uniform(0, 5, (1, COUNT, 4)).astype(np.float32)
SCORES = RNG.uniform(0, 1, (1, CLASSES, COUNT)).astype(np.float32)


def detector(*tail: onnx.NodeProto, **constants: Any) -> onnx.ModelProto:
    """The operator, and `tail` from its result `selected` to y."""
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["selected"])
    stored = {"most": np.array([MOST]), "iou": np.float32([0.4]), "least": np.float32([0.92])}
    stored |= {name: np.asarray(value) for name, value in constants.items()}
    return model_of([node, *tail], {"boxes": BOXES.shape, "scores": SCORES.shape}, ["y"], stored, opset=13)


def node(op: str, operands: str, result: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, operands.split(), [result], **attributes)


# torchvision: the box indices as a list, cut to the best.
TORCHVISION = detector(
    node("Gather", "selected two", "column", axis=1),
    node("Squeeze", "column one", "kept"),
    node("Slice", "kept zero limit", "cut"),
    node("Gather", "boxes cut", "picked", axis=1),
    node("Identity", "picked", "y"),
    two=[2], one=[1], zero=[0], limit=[100],
)  # fmt: skip
# YOLO exports: image, class and box as columns, boxes and scores looked up by them, joined.
YOLO = detector(
    node("Slice", "selected two three one", "column"),
    node("Squeeze", "column one", "index"),
    node("Squeeze", "boxes zero", "plain"),
    node("Gather", "plain index", "corners"),
    node("GatherND", "scores selected", "values"),
    node("Unsqueeze", "values one", "confidences"),
    node("Slice", "selected one two one", "labels"),
    node("Cast", "labels", "classes", to=TensorProto.FLOAT),
    node("Concat", "corners confidences classes", "y", axis=1),
    zero=[0], one=[1], two=[2], three=[3],
)  # fmt: skip
# tf2onnx: narrow indices, the image and the box of each row, as many results as there are rows.
TENSORFLOW = detector(
    node("Cast", "selected", "narrow", to=TensorProto.INT32),
    node("Gather", "narrow ends", "short", axis=1),
    node("Cast", "short", "pairs", to=TensorProto.INT64),
    node("GatherND", "boxes pairs", "corners"),
    node("Shape", "selected", "shape"),
    node("Slice", "shape zero one", "count"),
    node("Concat", "count four", "target", axis=0),
    node("Reshape", "corners target", "y"),
    zero=[0], one=[1], four=[4], ends=[0, 2],
)  # fmt: skip
CHAINS = {"torchvision": (TORCHVISION, 1), "yolo": (YOLO, 0), "tensorflow": (TENSORFLOW, 0)}


@pytest.mark.parametrize("name", CHAINS)
def test_what_exporters_write_behind_it(name: str, tmp_path: Path) -> None:
    """The first rows are onnxruntime's; rows behind them are those of the last image, class and box."""
    model, axis = CHAINS[name]
    path = save(tmp_path / "m.onnx", model)
    graph = canonicalize(load_graph(path, pad_nms=True))
    feeds = {"boxes": BOXES, "scores": SCORES}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, feeds)
    got = run(graph, feeds)["y"]
    count = wanted.shape[axis]
    assert got.shape == (*wanted.shape[:axis], CLASSES * MOST, *wanted.shape[axis + 1 :])
    assert 0 < count < CLASSES * MOST
    np.testing.assert_array_equal(np.take(got, range(count), axis), wanted)
    rest = np.take(got, range(count, CLASSES * MOST), axis)[..., :4]
    np.testing.assert_array_equal(rest, np.broadcast_to(BOXES[0, -1], rest.shape))


# Refusals ---------------------------------------------------------------------------------------------------------------


def test_without_the_option_it_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=r"--pad-nms.* make boxes 'boxes' and scores 'scores' outputs"):
        imported(tmp_path, suppression(BOXES, SCORES, 3, 0.5, None))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (suppression(BOXES, SCORES, 3, 1.5, None), "iou_threshold 1.5"),
        (suppression(BOXES, SCORES, 3, 0.5, float("nan")), r"score_threshold \[nan\]"),
        (suppression(BOXES, SCORES[:, :, 1:], 3, 0.5, None), r"expected \[images, classes, boxes\]"),
        (suppression(BOXES[0], SCORES, 3, 0.5, None), r"expected \[images, boxes, 4\]"),
    ],
)
def test_refusals_say_what_is_wrong(model: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=message):
        imported(tmp_path, model, **PADS)


def test_the_number_of_rows_must_be_known(tmp_path: Path) -> None:
    model = suppression(BOXES, SCORES, 3, 0.5, None)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "images"
    with pytest.raises(UnsupportedOp, match=r"while dimension 'images' is open.*--dim images=N"):
        imported(tmp_path, model, **PADS)
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("most", TensorProto.INT64, [1]))
    model.graph.node[0].input[3] = ""
    with pytest.raises(UnsupportedOp, match="a constant max_output_boxes_per_class"):
        imported(tmp_path, model, **PADS)


def test_what_selects_nothing_is_empty(tmp_path: Path) -> None:
    feeds = {"boxes": BOXES, "scores": SCORES}
    assert run(imported(tmp_path, suppression(BOXES, SCORES, 0, 0.5, None), **PADS), feeds)["y"].shape == (0, 3)
