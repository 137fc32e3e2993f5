"""What integers cost in accuracy: INTEGER graphs in the interpreter against float and against onnxruntime.

    OPENBLAS_NUM_THREADS=1 python benchmarks/accuracy/integer.py --models DIR --data DIR [--images 10000] [--write]

--models holds resnet20_cifar10.onnx (float), resnet8_cifar10_int8_qdq.onnx and kws_dscnn_int8_qdq.onnx; --data holds
cifar10_{train,test}_jpeg.npz: `jpeg` (bytes), `offset` (image i is bytes offset[i]..offset[i+1]), `label`. ResNet-20 is
calibrated on 256 training images by the default method. The keyword model runs on synthetic cepstra: smooth random tracks with
added noise, in the range of its input type, because agreement needs inputs of its shape, not speech. --write replaces integer.md
beside this file.
One BLAS thread is fastest where other processes share the cores: two threads wait for each other in every small product.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from PIL import Image

from bevel.frontend.onnx import import_onnx
from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.ir.plan import DEFAULT_CALIBRATION
from bevel.ir.verify import is_integer_only
from bevel.passes.canonicalize import Canonicalize
from bevel.passes.pipeline import run_passes
from bevel.passes.quantize import Calibrate, ToInteger
from bevel.passes.quantize.observe import batches

Array = npt.NDArray[Any]
RESULTS = Path(__file__).with_suffix(".md")
# The data set's own normalization: ImageNet mean and standard deviation of RGB in 0..1.
MEAN = np.asarray([0.485, 0.456, 0.406], np.float32)
STD = np.asarray([0.229, 0.224, 0.225], np.float32)
CALIBRATION_IMAGES = 256
BATCH = 200
KEYWORD_INPUTS = 1000


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    images: int
    top1: str
    agreement: str
    equal_codes: str
    integer_only: bool
    ms_per_image: float

    def line(self) -> str:
        """The line in Markdown."""
        return (
            f"| {self.model} | {self.images} | {self.top1} | {self.agreement} | {self.equal_codes} | "
            f"{'yes' if self.integer_only else 'no'} | {self.ms_per_image:.1f} |"
        )


def images(path: Path, count: int) -> tuple[Array, Array]:
    """RGB uint8 [count, 32, 32, 3] and labels."""
    with np.load(path) as stored:
        jpeg, offset, label = stored["jpeg"], stored["offset"], stored["label"]
    count = min(count, len(label))
    decoded = [Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())).convert("RGB") for i in range(count)]
    return np.stack([np.asarray(image) for image in decoded]), label[:count].astype(np.int64)


def normalized(rgb: Array) -> Array:
    """float32 [N, 3, 32, 32] of RGB bytes."""
    return np.ascontiguousarray(((rgb.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2), dtype=np.float32)


def cepstra(count: int, scale: float, zero_point: int) -> Array:
    """int8 [count, 49, 10, 1]: 49 frames of 10 coefficients, each a smooth random track of falling strength, plus noise."""
    rng = np.random.default_rng(0)
    strength = np.geomspace(30, 4, 10)
    level = rng.normal(size=(count, 1, 10)) * strength + np.concatenate([[-40.0], np.zeros(9)])
    steps = rng.normal(size=(count, 53, 10)).cumsum(axis=1)
    smooth = sum(steps[:, i : i + 49] for i in range(5)) / 5
    real = level + smooth * strength * rng.uniform(0.05, 0.3, (count, 1, 1)) + rng.normal(size=(count, 49, 10)) * strength * 0.1
    return np.clip(np.rint(real / scale) + zero_point, -128, 127).astype(np.int8)[..., None]


def chunks(array: Array) -> Iterator[Array]:
    for i in range(0, len(array), BATCH):
        yield array[i : i + BATCH]


def interpreted(graph: Graph, array: Array, preprocess: Any = None) -> tuple[Array, float]:
    """The first output for all of `array`, and milliseconds for each element."""
    name, start = graph.inputs[0].name, time.perf_counter()
    parts = [run(graph, {name: preprocess(c) if preprocess else c})[graph.outputs[0].name] for c in chunks(array)]
    return np.concatenate(parts), 1e3 * (time.perf_counter() - start) / len(array)


def onnxruntime_outputs(path: Path, array: Array, preprocess: Any = None) -> Array:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: preprocess(c) if preprocess else c})[0] for c in chunks(array)])


def percent(share: Any) -> str:
    return f"{100 * float(share):.2f} %"


def float_model(models: Path, data: Path, count: int) -> Row:
    path = models / "resnet20_cifar10.onnx"
    graph = run_passes(import_onnx(path), (Canonicalize(),))
    calibration = {graph.inputs[0].name: normalized(images(data / "cifar10_train_jpeg.npz", CALIBRATION_IMAGES)[0])}
    integer = run_passes(graph, (Calibrate(DEFAULT_CALIBRATION, data=batches(graph, calibration)), ToInteger()))
    rgb, label = images(data / "cifar10_test_jpeg.npz", count)
    found, ms = interpreted(integer, rgb, normalized)
    expected = onnxruntime_outputs(path, rgb, normalized).argmax(axis=1)
    top1 = f"{percent((found.argmax(axis=1) == label).mean())} (fp32 {percent((expected == label).mean())})"
    agreement = percent((found.argmax(axis=1) == expected).mean())
    return Row(f"ResNet-20, {DEFAULT_CALIBRATION} W8A8", len(label), top1, agreement, "-", is_integer_only(integer), ms)


def imported_model(name: str, path: Path, array: Array, label: Array | None) -> Row:
    integer = run_passes(import_onnx(path), (Canonicalize(), ToInteger()))
    found, ms = interpreted(integer, array)
    expected = onnxruntime_outputs(path, array)
    agree = percent((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    top1 = "-"
    if label is not None:
        ours, theirs = ((codes.argmax(axis=1) == label).mean() for codes in (found, expected))
        top1 = f"{percent(ours)} (onnxruntime {percent(theirs)})"
    return Row(name, len(array), top1, agree, percent((found == expected).mean()), is_integer_only(integer), ms)


def rows(models: Path, data: Path, count: int) -> Iterator[Row]:
    yield float_model(models, data, count)
    rgb, label = images(data / "cifar10_test_jpeg.npz", count)
    codes = (rgb.astype(np.int16) - 128).astype(np.int8)
    yield imported_model("ResNet-8, imported QDQ", models / "resnet8_cifar10_int8_qdq.onnx", codes, label)
    path = models / "kws_dscnn_int8_qdq.onnx"
    elem: Any = import_onnx(path).inputs[0].type.elem
    keywords = cepstra(KEYWORD_INPUTS, elem.scale[0], elem.zero_point[0])
    yield imported_model("DS-CNN, imported QDQ", path, keywords, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    lines = [
        "# Accuracy of integer graphs",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {os.cpu_count()} cores (shared), Python {platform.python_version()}, "
        f"numpy {np.__version__}, onnxruntime {ort.__version__}.",
        "`OPENBLAS_NUM_THREADS=1 python benchmarks/accuracy/integer.py --models DIR --data DIR --write`",
        "",
        "| model | inputs | top-1 | top-1 agreement with onnxruntime | equal output codes | integer only | interpreter ms |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for row in rows(args.models, args.data, args.images):
        lines.append(row.line())
        print(row.line(), flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
