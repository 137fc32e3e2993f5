"""What the engines are compared on: shipped models, models of a folder, and single layers of the shapes that matter.

Every subject comes with inputs of a fixed size. Shipped models take real images; photographs and sentences would change the times
of none of the others, so they take noise in the range of normalized images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.identity.identity import ROOT, real_inputs
from bevel.frontend.onnx_file import read_onnx
from examples.prepare_cifar10 import IMAGES, decode

Array = npt.NDArray[Any]
SHIPPED = ("resnet8_cifar10_float", "resnet20_cifar10", "kws_dscnn_float")
# Samples for every quantizer, bevel's and the engines' own.
CALIBRATION = 64
# Extents of symbolic dimensions that are not a batch.
EXTENTS = {"seq": 128, "sequence_length": 1}
# GEMMs of M rows, K deep, N wide: convolutions of ResNet-18 and MobileNetV2, a transformer's layer, matrix by vector.
GEMMS = {
    "rn_l1": (3136, 576, 64), "rn_l2": (784, 1152, 128), "rn_l3": (196, 2304, 256), "rn_l4": (49, 4608, 512),
    "mb_b": (196, 384, 96), "mb_c": (49, 960, 320), "gemm_16x768x768": (16, 768, 768),
    "gemv_2048": (1, 2048, 2048), "gemv_4096": (1, 4096, 4096),
}  # fmt: skip
# Depthwise convolutions: channels, height and width, kernel, stride.
DEPTHWISE = {"dw_144_56_s1": (144, 56, 3, 1), "dw_144_56_s2": (144, 56, 3, 2), "dw_672_14_k5": (672, 14, 5, 1)}


@dataclass(frozen=True)
class Subject:
    """A model with its inputs.

    Attributes:
        name: in tables.
        model: ONNX file.
        inputs: one sample.
        calibration: samples, stacked.
        dims: extents of symbolic dimensions.
    """

    name: str
    model: Path
    inputs: Mapping[str, Array]
    calibration: Mapping[str, Array]
    dims: Mapping[str, int]


def shipped() -> Iterator[Subject]:
    """The models of this repository on real inputs."""
    images, _ = decode(IMAGES, CALIBRATION)
    for name in SHIPPED:
        path = ROOT / "models" / f"{name}.onnx"
        (value,) = read_onnx(path).model.graph.inputs
        samples = real_inputs(name, images)
        yield Subject(name, path, {str(value.name): samples[:1]}, {str(value.name): samples}, {})


def of_folder(folder: Path, only: Collection[str] = ()) -> Iterator[Subject]:
    """The ONNX files of a folder, or those named, whose symbolic dimensions are the batch or named in EXTENTS."""
    for path in sorted(folder.glob("*.onnx")):
        if (not only or path.stem in only) and (subject := with_noise(path)) is not None:
            yield subject


def with_noise(path: Path) -> Subject | None:
    """A model on noise; None when an extent is not known."""
    rng = np.random.default_rng(0)
    dims: dict[str, int] = {}
    calibration: dict[str, Array] = {}
    for value in read_onnx(path).model.graph.inputs:
        shape = []
        for axis, extent in enumerate(value.shape or ()):
            if isinstance(extent, int):
                shape.append(extent)
                continue
            name = str(extent.value)
            if name in EXTENTS:
                dims[name] = EXTENTS[name]
            elif axis > 0:
                return None
            shape.append(EXTENTS.get(name, 1))
        kind = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        whole = [CALIBRATION, *shape]
        noise = rng.standard_normal(whole) if kind.kind == "f" else rng.integers(0, 2, whole)
        calibration[str(value.name)] = noise.astype(kind)
    return Subject(path.stem, path, {name: array[0] for name, array in calibration.items()}, calibration, dims)


def layers(folder: Path) -> Iterator[Subject]:
    """Models of one layer each, written into `folder`."""
    rng = np.random.default_rng(0)
    for name, (rows, depth, width) in GEMMS.items():
        # A GEMM of many rows is a 1x1 convolution over as many positions, which every engine has; of few, a linear layer.
        spatial = name.startswith(("rn", "mb"))
        weight = rng.standard_normal((width, depth, 1, 1) if spatial else (depth, width)).astype(np.float32) / depth**0.5
        side = round(rows**0.5)
        shape = [1, depth, side, side] if spatial else [rows, depth]
        node = helper.make_node("Conv" if spatial else "MatMul", ["x", "w"], ["y"])
        yield _one(folder, name, node, shape, weight)
    for name, (channels, side, kernel, stride) in DEPTHWISE.items():
        weight = rng.standard_normal((channels, 1, kernel, kernel)).astype(np.float32) / kernel
        settings = {"group": channels, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2}
        yield _one(folder, name, helper.make_node("Conv", ["x", "w"], ["y"], **settings), [1, channels, side, side], weight)


def _one(folder: Path, name: str, node: onnx.NodeProto, shape: list[int], weight: Array) -> Subject:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], name, inputs, outputs, [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / f"{name}.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    subject = with_noise(path)
    if subject is None:
        raise ValueError(f"{path} has symbolic dimensions")
    return subject
