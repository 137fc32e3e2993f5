"""A mobile network of every device profile: inverted residuals, squeeze and excitation, hard swish, padded and strided windows.

Proved: calibrated to 8 bits it has integer operators only, and its artifact gives the interpreter's bytes on every shipped
profile that runs here or is emulated; in front of attention a model is cut where the benchmark says it cuts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.compiler import Options, bind, build, load_graph, prepare
from bevel.devices.profile import load_profile
from bevel.errors import UsageError
from bevel.ir import interp
from bevel.ir.graph import Graph
from tests.e2e.road import PROFILES
from tests.e2e.test_road import MORE_PROFILES, require_way_to, run_on

# Compiled with the generators of another profile in the list, for another CPU.
SAME_KERNELS = ("raspberry-pi-3", "jetson-orin", "pixel-phone")
SIZE, WIDTH, EXPANDED, CLASSES, SAMPLES = 17, 12, 36, 10, 3


class Net:
    """Nodes and weights of an ONNX graph as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, npt.NDArray[Any]] = {"three": np.float32([3]), "sixth": np.float32([1 / 6])}
        self.rng = np.random.default_rng(11)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def conv(self, x: str, ic: int, oc: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        """A padded convolution with weights that keep the scale of what they read."""
        fan = ic // groups * kernel * kernel
        w, b = f"w{len(self.nodes)}", f"b{len(self.nodes)}"
        self.weights[w] = (self.rng.normal(size=(oc, ic // groups, kernel, kernel)) * np.sqrt(2 / fan)).astype(np.float32)
        self.weights[b] = (self.rng.normal(size=oc) / 4).astype(np.float32)
        return self.add("Conv", x, w, b, pads=[kernel // 2] * 4, strides=[stride] * 2, group=groups)

    def hard_swish(self, x: str) -> str:
        """As exporters without the operator spell it."""
        self.weights |= {"low": np.float32(0), "high": np.float32(6)}
        gate = self.add("Clip", self.add("Add", x, "three"), "low", "high")
        return self.add("Mul", self.add("Mul", x, gate), "sixth")

    def excited(self, x: str, channels: int) -> str:
        """Squeeze and excitation."""
        squeezed = self.add("Relu", self.conv(self.add("GlobalAveragePool", x), channels, 8, 1))
        return self.add("Mul", x, self.add("HardSigmoid", self.conv(squeezed, 8, channels, 1), alpha=1 / 6, beta=0.5))

    def inverted(self, x: str, kernel: int) -> str:
        """Expand, filter, excite, project, add."""
        wide = self.hard_swish(self.conv(x, WIDTH, EXPANDED, 1))
        deep = self.hard_swish(self.conv(wide, EXPANDED, EXPANDED, kernel, groups=EXPANDED))
        return self.add("Add", x, self.conv(self.excited(deep, EXPANDED), EXPANDED, WIDTH, 1))

    def save(self, path: Path, y: str, shape: list[int]) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "mobile",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.weights.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path


@pytest.fixture(scope="module")
def images() -> npt.NDArray[Any]:
    rng = np.random.default_rng(1)
    return np.cumsum(rng.normal(size=(24 + SAMPLES, 1, 3, SIZE, SIZE)), axis=-1).astype(np.float32) / 4


@pytest.fixture(scope="module")
def graph(images: npt.NDArray[Any], tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The integer graph, calibrated on all images but the last."""
    folder = tmp_path_factory.mktemp("mobile")
    net = Net()
    x = net.hard_swish(net.conv("x", 3, WIDTH, 3, stride=2))
    x = net.inverted(x, 5)
    x = net.add("Relu", net.conv(x, WIDTH, WIDTH, 3, stride=2, groups=WIDTH))
    net.weights["head"] = net.rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    pooled = net.add("ReduceMean", x, axes=[2, 3], keepdims=0)
    path = net.save(folder / "mobile.onnx", net.add("Gemm", pooled, "head"), [1, CLASSES])
    np.savez(folder / "calibration.npz", x=images[:-SAMPLES, 0])
    return bind(prepare(load_graph(path), Options("host", calibration=folder / "calibration.npz")), {})


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SAME_KERNELS else [])
        for name in ("host", *PROFILES, *MORE_PROFILES)
    ],
)
def test_the_same_bytes_on_every_profile(profile: str, graph: Graph, images: npt.NDArray[Any], tmp_path: Path) -> None:
    require_way_to(profile)
    judged = images[-SAMPLES:]
    (output,) = graph.outputs
    reference = np.concatenate([interp.run(graph, {"x": image})[output.name] for image in judged])
    artifact = build(graph, load_profile(profile), tmp_path / "mobile.bevel", Options(profile))
    assert artifact.manifest["integer_only"] is True
    assert artifact.manifest["float_islands"] == []
    (found,) = run_on(artifact, profile, {"x": judged}).values()
    np.testing.assert_array_equal(found.reshape(reference.shape), reference)
    assert len(np.unique(reference, axis=0)) == SAMPLES


def test_the_cut_in_front_of_attention(tmp_path: Path) -> None:
    """Behind the last value that carries everything: not inside a residual, not behind the product of activations."""
    pytest.importorskip("onnxruntime", reason="the benchmark compares with onnxruntime: pip install 'bevel[peers]'")
    from benchmarks.breadth.int8 import in_front_of_attention

    net = Net()
    stem = net.conv("x", 3, WIDTH, 3, stride=2)
    cut = net.add("Add", stem, net.add("Relu", stem))
    net.weights["flat"] = np.array([1, WIDTH, -1])
    flat = net.add("Reshape", cut, "flat")
    left, right = net.add("Relu", flat), net.add("Transpose", flat, perm=[0, 2, 1])
    path = net.save(tmp_path / "attention.onnx", net.add("MatMul", left, right), [1, WIDTH, WIDTH])
    assert in_front_of_attention(load_graph(path)) == flat
    plain = net.save(tmp_path / "plain.onnx", cut, [1, WIDTH, 9, 9])
    with pytest.raises(UsageError, match="no attention"):
        in_front_of_attention(load_graph(plain))
