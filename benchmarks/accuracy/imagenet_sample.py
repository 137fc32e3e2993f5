"""What 8 bits cost on ImageNet classifiers: bevel's artifacts and onnxruntime's static quantization, same data, same images.

    python -m benchmarks.accuracy.imagenet_sample --models DIR --data FILE.npz [--method METHOD ...] [--write]

--models holds efficientnet_lite0.onnx and mobilenet_v2.onnx: float models of `image` [1, 3, 224, 224] and `logits` [1, 1000].
--data holds RGB images of 256 x 256: `jpeg` (bytes), `offset` (image i is bytes offset[i]..offset[i+1]), `label`. The first
CALIBRATION images calibrate, the others judge. Each model gets its own preprocessing: a centre crop of 224, its normalization.
bevel's integers run as the compiled artifact of this machine, whose bytes are the interpreter's (tests/e2e).

Columns: top-1 drop from the float model with its paired standard error; flips, images whose choice changed; SQNR of the logits,
10 log10(sum ref^2 / sum (ref - q)^2); the difference in top-1 from the other engine's best row with its paired standard error.
"""

from __future__ import annotations

import argparse
import io
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from bevel.compiler import Options, compile_model
from bevel.runtime.host import HostModel

Array = npt.NDArray[Any]
RESULTS = Path(__file__).with_suffix(".md")
CALIBRATION = 100
SIZE = 224
INPUT = "image"
MEAN = np.asarray([0.485, 0.456, 0.406], np.float32)
STD = np.asarray([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Model:
    """A classifier: its file and how it takes RGB bytes."""

    name: str
    file: str
    normalize: Callable[[Array], Array]


MODELS = (
    Model("EfficientNet-Lite0", "efficientnet_lite0.onnx", lambda rgb: (rgb - np.float32(127)) / np.float32(128)),
    Model("MobileNetV2", "mobilenet_v2.onnx", lambda rgb: (rgb / np.float32(255) - MEAN) / STD),
)


@dataclass(frozen=True)
class Outcome:
    """Logits [images, classes] of one way to quantize."""

    engine: str
    settings: str
    logits: Array


def images(path: Path) -> tuple[Array, Array]:
    """RGB uint8 [N, 224, 224, 3], centre crops, and labels."""
    with np.load(path) as stored:
        jpeg, offset, label = stored["jpeg"], stored["offset"], stored["label"].astype(np.int64)
    result = np.empty((len(label), SIZE, SIZE, 3), np.uint8)
    for i in range(len(label)):
        image = Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())).convert("RGB")
        left, top = ((extent - SIZE) // 2 for extent in image.size)
        result[i] = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
    return result, label


def samples(model: Model, rgb: Array) -> Iterator[Array]:
    """float32 [1, 3, 224, 224] of each image."""
    for image in rgb:
        yield np.ascontiguousarray(model.normalize(image.astype(np.float32)).transpose(2, 0, 1)[None])


def onnxruntime_logits(path: Path, model: Model, rgb: Array) -> Array:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT: x})[0] for x in samples(model, rgb)])


def bevel_logits(path: Path, model: Model, rgb: Array, calibration: Path, settings: str, folder: Path) -> Array:
    """Logits of the artifact for this machine. `settings` is METHOD, and after commas "no BC", "gptq" and bits, as "w4a8"."""
    method, *others = settings.split(", ")
    bits = next((word for word in others if word.startswith("w")), "8")
    options = Options(
        "host",
        bits,
        calibration,
        CALIBRATION,
        method,
        bias_correction="no BC" not in others,
        rounding="gptq" if "gptq" in others else "nearest",
    )
    artifact, _ = compile_model(path, folder / "model.bevel", options)
    if not artifact.manifest["integer_only"]:
        raise SystemExit(f"{path}: not integer only: {artifact.manifest['float_islands']}")
    found = []
    with HostModel(artifact) as host:
        for x in samples(model, rgb):
            host.set_input_float(INPUT, x)
            host.run()
            found.append(next(iter(host.outputs_float().values())))
    return np.concatenate(found)


# bevel's methods, the default first; "no BC" is without bias correction.
SETTINGS = (
    "percentile",
    "percentile, no BC",
    "percentile:99.999",
    "mse",
    "minmax",
    "minmax, no BC",
    "moving-average",
    "entropy",
)
# What onnxruntime's users choose between; weights per channel, QDQ, pre-processed, always.
ORT_SETTINGS: dict[str, dict[str, Any]] = {
    "minmax": {"calibrate_method": CalibrationMethod.MinMax},
    "percentile 99.999": {"calibrate_method": CalibrationMethod.Percentile},
    "percentile 99.99": {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.99}},
    "entropy": {"calibrate_method": CalibrationMethod.Entropy},
}


def onnxruntime_int8(path: Path, model: Model, calibration: Array, settings: str, folder: Path) -> Path:
    """A statically quantized copy of the model."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = samples(model, calibration)

        def get_next(self) -> dict[str, Array] | None:
            x = next(self.samples, None)
            return None if x is None else {INPUT: x}

    prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(str(path), str(prepared))
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **ORT_SETTINGS[settings],
    )
    return quantized


def paired(a: Array, b: Array) -> str:
    """Mean of the differences of two arrays of hits, and its standard error, in percentage points."""
    difference = a.astype(np.float64) - b
    return f"{100 * difference.mean():+.2f} +- {100 * difference.std(ddof=1) / np.sqrt(len(difference)):.2f}"


def table(model: Model, label: Array, reference: Array, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Rows in Markdown."""
    hits = reference.argmax(axis=1) == label
    yield f"| {model.name} | float | | {100 * hits.mean():.2f} | | | | |"
    right = {id(o): o.logits.argmax(axis=1) == label for o in outcomes}
    for o in outcomes:
        others = [right[id(other)] for other in outcomes if other.engine != o.engine]
        versus = paired(right[id(o)], max(others, key=lambda h: int(h.sum()))) if others else ""
        flips = (o.logits.argmax(axis=1) != reference.argmax(axis=1)).mean()
        error = ((o.logits - reference).astype(np.float64) ** 2).sum()
        sqnr = 10 * np.log10((reference.astype(np.float64) ** 2).sum() / error)
        yield (
            f"| {model.name} | {o.engine} | {o.settings} | {100 * right[id(o)].mean():.2f} | {paired(right[id(o)], hits)} "
            f"| {100 * flips:.2f} % | {sqnr:.1f} | {versus} |"
        )


def outcomes(args: argparse.Namespace, model: Model, rgb: Array) -> Iterator[Outcome]:
    """All ways to quantize `model`."""
    path = args.models / model.file
    judged = rgb[CALIBRATION:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "calibration"
        data.mkdir()
        np.save(data / f"{INPUT}.npy", np.concatenate(list(samples(model, rgb[:CALIBRATION]))))
        for settings in args.method:
            yield Outcome("bevel", settings, bevel_logits(path, model, judged, data, settings, folder))
        for settings in ORT_SETTINGS if args.peer else ():
            quantized = onnxruntime_int8(path, model, rgb[:CALIBRATION], settings, folder)
            yield Outcome("onnxruntime", settings, onnxruntime_logits(quantized, model, judged))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--method", action="append", help='bevel\'s method, repeatable, for example "percentile, w4a8, gptq"; default: all'
    )
    parser.add_argument("--only", help="name of one model")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave onnxruntime out")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    args.method = args.method or SETTINGS
    rgb, label = images(args.data)
    lines = [
        "# ImageNet classifiers at 8 bits",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, numpy {np.__version__}, onnxruntime {ort.__version__}; "
        f"{CALIBRATION} images calibrate, {len(label) - CALIBRATION} others judge; one image for each class.",
        "`python -m benchmarks.accuracy.imagenet_sample --models DIR --data FILE.npz --write`",
        "",
        "| model | engine | method | top-1 % | against float | flips | SQNR dB | against the other engine's best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for model in MODELS:
        if args.only in (None, model.name):
            reference = onnxruntime_logits(args.models / model.file, model, rgb[CALIBRATION:])
            for line in table(model, label[CALIBRATION:], reference, list(outcomes(args, model, rgb))):
                lines.append(line)
                print(line, flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
