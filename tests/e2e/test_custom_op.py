"""A user's operator travels the whole road: imported, interpreted by its reference, computed by its C function, on two CPUs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bevel
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.errors import BevelError, CheckFailed, ToolchainError, UnsupportedOp, UsageError
from bevel.ir.interp import run
from bevel.ir.ops.custom import load_custom_op
from bevel.ir.serialize import loads

PYTHON = """
import numpy as np
from bevel.ir.types import I64, TensorType

def infer(attributes, inputs):
    x = inputs[0]
    return [x, TensorType((len(attributes["weights"]),), I64)]

def reference(attributes, x, offset):
    total = sum(attributes["weights"])
    y = x * np.float32(attributes["scale"] * total) + offset
    return y.astype(np.float32), np.array([x.size * w for w in attributes["weights"]], np.int64)
"""
C = """
#include "bevel_custom.h"
#include <math.h>

int32_t Mix(const bevel_custom_call *call)
{
    const float *x = call->inputs[0].data, *offset = call->inputs[1].data;
    float *y = call->outputs[0].data;
    int64_t *counts = call->outputs[1].data;
    const bevel_custom_attribute *weights = bevel_custom_find(call, "weights"), *mode = bevel_custom_find(call, "mode");
    int64_t n = bevel_custom_count(&call->inputs[0]), total = 0;
    if (!weights || !mode || strcmp(mode->text, "plain") != 0 || bevel_custom_integer(call, "absent", 7) != 7)
        return 1;
    for (size_t i = 0; i < weights->count; i++) {
        total += weights->integers[i];
        counts[i] = n * weights->integers[i];
    }
    float factor = (float)(bevel_custom_number(call, "scale", 0) * (double)total);
    for (int64_t i = 0; i < n; i++)
        y[i] = fmaf(x[i], factor, offset[i % call->inputs[1].shape[0]]);
    return 0;
}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A model Conv -> Mix -> Relu with the files of its custom operator; Mix reads what the convolution laid out as NHWC."""
    (tmp_path / "mix.py").write_text(PYTHON)
    (tmp_path / "mix.c").write_text(C)
    rng = np.random.default_rng(5)
    weights = onnx.numpy_helper.from_array(rng.standard_normal((6, 3, 3, 3)).astype(np.float32), "w")
    offset = onnx.numpy_helper.from_array(np.array([0.5, -1.0, 2.0, 0.0], np.float32), "offset")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node(
            "Mix", ["c", "offset"], ["m", "counts"], domain="my.domain", scale=0.25, weights=[1, 2, 5], mode="plain", name="mixer"
        ),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 7, 6])
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("counts", TensorProto.INT64, None),
    ]
    graph = helper.make_graph(nodes, "custom", [x], outputs, [weights, offset])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), tmp_path / "model.onnx")
    return tmp_path


@pytest.mark.parametrize("device", ["host", pytest.param("raspberry-pi-4", marks=pytest.mark.qemu)])
def test_runs_the_c_function_and_agrees_with_the_reference(files: Path, device: str) -> None:
    if device != "host" and not shutil.which("qemu-aarch64"):
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
    spec = f"my.domain.Mix={files / 'mix.c'}"
    artifact = bevel.compile(files / "model.onnx", device=device, bits="fp32", output=files / "m.bevel", custom_ops=[spec])
    assert any(layer["kernel"] == "custom" and layer["name"] == "mixer" for layer in artifact.manifest["layers"])
    x = np.linspace(-1, 1, 126, dtype=np.float32).reshape(1, 3, 7, 6)
    with resolve_transport(load_profile(device)) as transport:
        runner = DeviceRunner(artifact, transport)
        runner.selftest()
        results = runner.run({"x": x})
    expected = run(loads(artifact.graph_bytes()), {"x": x})
    np.testing.assert_array_equal(results["counts"], [120, 240, 600])
    assert np.abs(results["y"] - expected["y"]).max() <= 1e-5 * np.abs(expected["y"]).max()
    assert results["y"].std() > 0


def test_a_model_whose_operator_was_not_given_is_refused_with_the_option(files: Path) -> None:
    model = onnx.load(files / "model.onnx")
    model.graph.node[1].domain = "other"
    model.opset_import.append(helper.make_opsetid("other", 1))
    onnx.save(model, files / "other.onnx")
    with pytest.raises(UnsupportedOp, match=r"mixer.*domain 'other'.*--custom-op other\.Mix=FILE\.c"):
        bevel.compile(files / "other.onnx", bits="fp32", output=files / "m.bevel")
    assert not (files / "m.bevel").exists()


def test_a_c_function_that_computes_something_else_is_found_by_the_self_test(files: Path) -> None:
    (files / "mix.c").write_text(C.replace("counts[i] = n *", "counts[i] = 1 + n *"))
    spec = f"my.domain.Mix={files / 'mix.c'}"
    artifact = bevel.compile(files / "model.onnx", bits="fp32", output=files / "m.bevel", custom_ops=[spec])
    with resolve_transport(load_profile("host")) as transport, pytest.raises(CheckFailed):
        DeviceRunner(artifact, transport).selftest()


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda d: (d / "mix.c").write_text("int32_t Mix("), ToolchainError, "mix.c"),
        (
            lambda d: (d / "mix.py").write_text("def infer(a, i): return 3\ndef reference(a, x): return x"),
            UnsupportedOp,
            "TensorType",
        ),
        (lambda d: (d / "mix.py").write_text("import nonesuch"), UsageError, "nonesuch"),
        (lambda d: (d / "mix.py").write_text("x = 1"), UsageError, "must define infer"),
        (lambda d: (d / "mix.py").unlink(), UsageError, "no such file"),
    ],
)
def test_faulty_files_are_named(files: Path, edit: object, error: type[BevelError], message: str) -> None:
    edit(files)  # type: ignore[operator]
    spec = f"my.domain.Mix={files / 'mix.c'}"
    with pytest.raises(error, match=message):
        bevel.compile(files / "model.onnx", bits="fp32", output=files / "m.bevel", custom_ops=[spec])
    assert not (files / "m.bevel").exists()


@pytest.mark.parametrize("spec", ["Swirl=a.c", "my.Swirl", "my.Swirl=", "ai.onnx.Conv=a.c"])
def test_malformed_specifications_show_an_example(spec: str) -> None:
    with pytest.raises(UsageError, match=r"mydomain\.Swirl=swirl\.c"):
        load_custom_op(spec)
