"""Resampling, borders, cuts and indices as models write them, against onnxruntime; and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bevel.errors import UnsupportedOp
from bevel.ir.interp import run
from bevel.ir.types import F32
from tests.frontend.onnx_files import agrees, imported, model_of

RNG = np.random.default_rng(3)
IMAGE = RNG.standard_normal((2, 3, 5, 6)).astype(np.float32)
CROP = np.array([0.1, -0.2, 0.8, 1.3], np.float32)
TWICE = np.array([2, 2], np.float32)


def one(op: str, operands: list[str], constants: dict[str, Any], opset: int = 19, **attributes: Any) -> onnx.ModelProto:
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    shapes = {"x": IMAGE.shape}
    return model_of([helper.make_node(op, ["x", *operands], ["y"], **attributes)], shapes, ["y"], arrays, opset=opset)


def resize(attributes: dict[str, Any], **constants: Any) -> onnx.ModelProto:
    names = [name if name in constants else "" for name in ("roi", "scales", "sizes")]
    return one("Resize", names, constants, axes=[2, 3], **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("how", ["half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric"])
@pytest.mark.parametrize("sizes", [(10, 12), (1, 9), (3, 1), (4, 7)])
def test_resize_to_sizes(mode: str, how: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    if (mode, how, sizes) == ("nearest", "half_pixel_symmetric", (3, 1)):
        pytest.skip("row 1 is read at exactly 2, which onnxruntime's float32 puts just below")
    model = resize({"mode": mode, "coordinate_transformation_mode": how, "nearest_mode": "floor"}, sizes=sizes)
    agrees(tmp_path, model, {"x": IMAGE}, rtol=2e-5)


@pytest.mark.parametrize("scales", [(2.0, 3.0), (0.6, 0.5), (1.0, 1.7), (1 / 3, 4 / 3)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_by_scales(mode: str, scales: tuple[float, float], tmp_path: Path) -> None:
    model = resize({"mode": mode}, scales=np.array(scales, np.float32))
    agrees(tmp_path, model, {"x": IMAGE}, rtol=2e-5)


def test_a_crop_beyond_the_image_is_padded(tmp_path: Path) -> None:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.5}
    graph = agrees(tmp_path, resize(attributes, roi=CROP, sizes=(6, 9)), {"x": IMAGE})
    assert [n.op for n in graph.nodes] == ["Resize", "Pad"]


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_the_aspect_ratio_is_kept(policy: str, tmp_path: Path) -> None:
    agrees(tmp_path, resize({"mode": "linear", "keep_aspect_ratio_policy": policy}, sizes=(8, 8)), {"x": IMAGE})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_of_opset_9(mode: str, tmp_path: Path) -> None:
    agrees(tmp_path, one("Upsample", ["s"], {"s": np.array([1, 1, 2, 3], np.float32)}, opset=9, mode=mode), {"x": IMAGE})


def test_a_symbolic_batch_is_resized(tmp_path: Path) -> None:
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", axes=[2, 3])
    graph = imported(tmp_path, model_of([node], {"x": ("n", 3, 5, 6)}, ["y"], {"s": TWICE}, opset=19))
    assert run(graph, {"x": IMAGE})["y"].shape == (2, 3, 10, 12)


CALLS = {
    "reflect": one("Pad", ["p"], {"p": [0, 0, 2, 1, 0, 0, 3, 2]}, mode="reflect"),
    "edge and cut": one("Pad", ["p"], {"p": [0, 0, -2, 1, 0, 0, 3, -2]}, mode="edge"),
    "wrap some axes": one("Pad", ["p", "", "a"], {"p": [2, 1], "a": [-1]}, mode="wrap"),
    "pad of opset 10": one("Pad", [], {}, opset=10, pads=[0, 1, 0, 0, 0, 0, 2, 0], value=-1.5),
    "slice of opset 9": one("Slice", [], {}, opset=9, starts=[1, -4], ends=[9, -1], axes=[1, 3]),
    "slice backwards": one("Slice", ["s", "e", "a", "t"], {"s": [-1, 4], "e": [-99, 0], "a": [1, 2], "t": [-1, -2]}),
    "gather": one("Gather", ["i"], {"i": [[2, 0], [-1, 1]]}, axis=1),
    "gather a run": one("Gather", ["i"], {"i": [1, 2]}, axis=1),
    "gather one": one("Gather", ["i"], {"i": -1}, axis=3),
    "compress": one("Compress", ["c"], {"c": [True, False, True]}, axis=1),
    "compress all": one("Compress", ["c"], {"c": [False, True, True, False, True]}),
    "tile": one("Tile", ["r"], {"r": [1, 2, 1, 3]}),
    "expand": one("Expand", ["s"], {"s": [4, 2, 3, 5, 6]}),
    "expand inside": one("Expand", ["s"], {"s": [1, 6]}),
    "trilu": one("Trilu", ["k"], {"k": -1}, upper=0),
    "reverse": one("ReverseSequence", ["n"], {"n": [1, 3]}, batch_axis=0, time_axis=1),
    "center": one("CenterCropPad", ["s"], {"s": [3, 9]}, axes=[2, 3]),
}


@pytest.mark.parametrize("name", CALLS)
def test_agrees_with_onnxruntime(name: str, tmp_path: Path) -> None:
    agrees(tmp_path, CALLS[name], {"x": IMAGE})


def test_a_slice_of_nothing_is_empty(tmp_path: Path) -> None:
    model = one("Slice", ["s", "e", "a", "t"], {"s": [1], "e": [3], "a": [2], "t": [-1]})
    assert run(imported(tmp_path, model), {"x": IMAGE})["y"].shape == (2, 3, 0, 6)


def test_col2im_adds_overlapping_blocks(tmp_path: Path) -> None:
    node = helper.make_node("Col2Im", ["x", "i", "b"], ["y"], strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2])
    x = RNG.standard_normal((2, 12, 12)).astype(np.float32)
    model = model_of([node], {"x": x.shape}, ["y"], {"i": np.array([4, 4]), "b": np.array([2, 2])}, opset=18)
    agrees(tmp_path, model, {"x": x})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_of_runtime_indices(axis: int, tmp_path: Path) -> None:
    node = helper.make_node("OneHot", ["x", "d", "v"], ["y"], axis=axis)
    constants = {"d": np.array(4), "v": np.array([-1.5, 2.5], np.float32)}
    model = model_of([node], {"x": (3, 5)}, ["y"], constants, elem=TensorProto.INT64)
    agrees(tmp_path, model, {"x": RNG.integers(-4, 4, (3, 5))})


def test_an_embedding_takes_runtime_ids(tmp_path: Path) -> None:
    table = RNG.standard_normal((11, 4)).astype(np.float32)
    model = model_of([helper.make_node("Gather", ["t", "x"], ["y"])], {"x": (2, 3)}, ["y"], {"t": table}, elem=TensorProto.INT64)
    graph = agrees(tmp_path, model, {"x": RNG.integers(-11, 11, (2, 3))})
    assert graph.nodes[0].op == "Gather"
    assert graph.nodes[0].inputs[0].type.elem == F32


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one("Resize", ["", "s"], {"s": np.array([1, 1, 0, 2], np.float32)}), r"\(Resize, opset 19\): scale 0\.0 of axis 2"),
        (resize({"mode": "area"}, sizes=(4, 4)), "mode='area'"),
        (resize({"coordinate_transformation_mode": "other"}, sizes=(4, 4)), "coordinate_transformation_mode='other'"),
        (one("Pad", ["p"], {"p": [1] * 8}, mode="mirror"), "mode='mirror'"),
        (one("Gather", ["i"], {"i": [9]}, axis=1), r"indices 9\.\.9 of extent 3"),
        (one("Slice", ["s", "e", "a", "t"], {"s": [0], "e": [9], "a": [1], "t": [0]}), "a step other than 0"),
        (one("NonZero", [], {}), "depends on the data"),
        (one("Unique", [], {}), "depends on the data"),
        (one("SplitToSequence", [], {}), "a sequence of tensors"),
        (one("ScatterND", ["i", "x"], {"i": [[0]]}, reduction="other"), "reduction 'other'"),
    ],
)
def test_refusals_say_what_is_missing(model: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=message):
        imported(tmp_path, model)
