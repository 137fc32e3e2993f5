"""Cascades from an ONNX file to a running artifact: computed stripe by stripe, networks give the same bits as layer by layer.

Proved here, in fp32 and int8, for the host's kernels, AVX2's, and an emulated aarch64's, with one to three threads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.backends import cascade
from bevel.compiler import Options, bind, build, load_graph, prepare
from bevel.data import save_arrays
from bevel.devices.profile import Profile, load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.ir.protocols import Cache
from bevel.runtime.artifact import Artifact
from bevel.runtime.host import HostModel

SHAPE = (1, 5, 31, 27)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inverted residuals (Sandler et al. 2018) of ragged shapes: strides, 5x5 kernels, one-sided padding, a residual."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(x: str, ic: int, oc: int, kernel: int, stride: int = 1, groups: int = 1, *, clip: bool = True) -> str:
        name = f"c{len(nodes)}"
        shape = (oc, ic // groups, kernel, kernel)
        weight = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        weights.extend([numpy_helper.from_array(weight, f"{name}.w"), numpy_helper.from_array(weight[:, 0, 0, 0], f"{name}.b")])
        pads = [kernel // 2] * 4 if stride == 1 else [0, 0, kernel // 2, kernel // 2]
        settings = {"kernel_shape": [kernel] * 2, "pads": pads, "strides": [stride] * 2, "group": groups}
        nodes.append(helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [name], name, **settings))
        if clip:
            nodes.append(helper.make_node("Clip", [name, "zero", "six"], [f"{name}.a"], f"{name}.a"))
        return f"{name}.a" if clip else name

    stem = conv("x", 5, 24, 3)
    narrow = conv(conv(stem, 24, 24, 3, groups=24), 24, 16, 1, clip=False)
    wide = conv(conv(narrow, 16, 72, 1), 72, 72, 5, groups=72)
    nodes.append(helper.make_node("Add", [conv(wide, 72, 16, 1, clip=False), narrow], ["sum"], "sum"))
    last = conv(conv(conv("sum", 16, 40, 1), 40, 40, 3, 2, groups=40), 40, 9, 1, clip=False)
    limits = [numpy_helper.from_array(np.float32(v), n) for n, v in (("zero", 0), ("six", 6))]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "inverted", inputs, outputs, [*weights, *limits])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("inverted") / "inverted.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return path


def samples(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(1).standard_normal((count, *SHAPE[1:])).astype(np.float32)


def artifacts(model: Path, device: str, bits: str, folder: Path) -> tuple[Artifact, Artifact]:
    """The model with and without cascades, on a device whose caches are tiny: the same kernels either way."""
    calibration = save_arrays(folder / "calibration.npz", {"x": samples(8)})
    options = Options(device, bits, calibration if bits == "8" else None)
    graph = bind(prepare(load_graph(model), options), {})

    profile: Profile = replace(load_profile(device), caches=(Cache(1, 4096, 64), Cache(2, 8192, 64)))
    stripes = build(graph, profile, folder / "stripes.bevel", options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "LARGE_SHARE", math.inf)
        return stripes, build(graph, profile, folder / "layers.bevel", options)


def check_cascades(stripes: Artifact, layers: Artifact) -> None:
    sizes = [len(layer.get("members", ())) for layer in stripes.manifest["layers"]]
    assert max(sizes) >= 3, sizes
    assert not any("members" in layer for layer in layers.manifest["layers"])
    assert stripes.manifest["arena_bytes"] < layers.manifest["arena_bytes"]
    assert sum(layer["macs"] for layer in stripes.manifest["layers"]) == sum(x["macs"] for x in layers.manifest["layers"])


@pytest.mark.parametrize("bits", ["fp32", "8"])
@pytest.mark.parametrize("device", ["host", "x86-64-avx512-vnni", "x86-64-avx2"])
def test_stripes_compute_what_layers_compute(model: Path, device: str, bits: str, tmp_path: Path) -> None:
    stripes, layers = artifacts(model, device, bits, tmp_path)
    check_cascades(stripes, layers)
    with HostModel(layers) as reference:
        for threads in (1, 2, 3):
            with HostModel(stripes, threads) as opened:
                for sample in samples(3):
                    for one in (reference, opened):
                        one.set_inputs_float({"x": sample[None]})
                        one.run()
                    for name, array in reference.outputs().items():
                        assert np.ptp(array.astype(np.float64)) > 0
                        np.testing.assert_array_equal(opened.outputs()[name], array)


@pytest.mark.qemu
@pytest.mark.parametrize("bits", ["fp32", "8"])
@pytest.mark.parametrize("device", ["raspberry-pi-4", "raspberry-pi-5"])
def test_aarch64(model: Path, device: str, bits: str, tmp_path: Path) -> None:
    both = artifacts(model, device, bits, tmp_path)
    check_cascades(*both)
    with resolve_transport(load_profile(device)) as transport:
        stripes, layers = (DeviceRunner(artifact, transport, 2).run({"x": samples(1)}) for artifact in both)
    for name, array in layers.items():
        np.testing.assert_array_equal(stripes[name], array)
