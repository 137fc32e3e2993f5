"""From an ONNX file to an artifact: resampling and borders through tables, blocks, runtime indices, run-time extents."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bevel
from bevel.runtime.host import HostModel
from tests.frontend.onnx_files import model_of

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the peer; install the extra `peers`")
RNG = np.random.default_rng(2)


def decoder() -> onnx.ModelProto:
    """Features, upsampled three ways, joined, mirrored at the border, convolved and rearranged."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["f"]),
        node("Resize", ["f", "", "twice"], ["linear"], mode="linear"),
        node("Resize", ["f", "", "twice"], ["near"], mode="nearest", coordinate_transformation_mode="asymmetric"),
        node("Concat", ["linear", "near"], ["joined"], axis=1),
        node("Pad", ["joined", "pads"], ["padded"], mode="reflect"),
        node("Conv", ["padded", "w2"], ["c"], kernel_shape=[3, 3]),
        node("DepthToSpace", ["c"], ["d"], blocksize=2, mode="CRD"),
        node("Gather", ["c", "order"], ["y"], axis=1),
        node("Slice", ["d", "last", "least", "axis", "last"], ["z"]),
    ]
    constants = {
        "w1": RNG.standard_normal((8, 3, 1, 1)).astype(np.float32),
        "w2": RNG.standard_normal((8, 16, 3, 3)).astype(np.float32) / 12,
        "twice": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "order": np.array([5, 0, 0, 7]),
        "last": np.array([-1]),
        "least": np.array([-1000]),
        "axis": np.array([3]),
    }
    return model_of(nodes, {"x": (1, 3, 6, 10)}, ["y", "z"], constants, opset=18)


@pytest.mark.parametrize("bits", ["fp32", "8"])
def test_a_decoder_runs_as_the_interpreter_says(bits: str, tmp_path: Path) -> None:
    """The self-test compares golden vectors of the interpreter: bit for bit where the graph is integer."""
    onnx.save(decoder(), tmp_path / "m.onnx")
    samples = RNG.standard_normal((8, 3, 6, 10)).astype(np.float32)
    calibration = {"x": samples} if bits == "8" else None
    artifact = bevel.compile(tmp_path / "m.onnx", bits=bits, calibration=calibration, output=tmp_path / "m.bevel")
    assert artifact.manifest["integer_only"] == (bits == "8")
    subprocess.run([tmp_path / "m.bevel" / "bin" / "bevel-run", "--selftest"], check=True, capture_output=True)
    if bits == "8":
        return
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    with HostModel(artifact) as model:
        model.set_inputs({"x": samples[:1]})
        model.run()
        for name, want in zip(("y", "z"), session.run(None, {"x": samples[:1]}), strict=True):
            np.testing.assert_allclose(model.outputs()[name], want, rtol=1e-4, atol=1e-5)


def test_rows_looked_up_by_as_many_ids_as_there_are(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("Mul", ["rows", "rows"], ["y"])]
    table = RNG.standard_normal((50, 12)).astype(np.float32)
    onnx.save(model_of(nodes, {"ids": (1, "seq")}, ["y"], {"table": table}, elem=TensorProto.INT64), tmp_path / "m.onnx")
    artifact = bevel.compile(tmp_path / "m.onnx", bits="fp32", dims={"seq": (1, 9)}, output=tmp_path / "m.bevel")
    with HostModel(artifact) as model:
        for length in (9, 1, 4):
            ids = RNG.integers(-50, 50, (1, length))
            model.set_inputs({"ids": ids})
            model.run()
            np.testing.assert_array_equal(model.outputs()["y"], table[ids] ** 2)
