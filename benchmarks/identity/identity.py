"""One integer graph, the same bytes everywhere: artifacts of every shipped device against the interpreter.

    python -m benchmarks.identity.identity [--data DIR] [--images 10000] [--emulated 200] [--write]

--data holds cifar10_test_jpeg.npz (`jpeg`, `offset`, `label`); without it the 512 images that ship with bevel are used. Profiles
this machine can run get all images, emulated ones the first --emulated. --write replaces identity.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.compiler import Options, bind, build, load_graph, prepare
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.ir import interp
from bevel.ir.graph import Graph, Level
from bevel.ir.plan import CompressionPlan, parse_bits
from examples.prepare_cifar10 import IMAGES, decode, normalized, raw_pixels

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".md")
PROFILES = (
    "x86-64",
    "x86-64-avx2",
    "x86-64-avx-vnni",
    "x86-64-avx512-vnni",
    "x86-64-avx512-vpopcntdq",
    "x86-64-amx",
    "host",
    "raspberry-pi-3",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "jetson-orin",
    "pixel-phone",
    "armv7-a7",
)
# Of 8 bits, or of those behind the name.
MODELS = (
    "resnet8_cifar10_float",
    "resnet8_cifar10_int8_qdq",
    "resnet20_cifar10",
    "resnet20_cifar10 w4a8",
    "resnet20_cifar10 w2a2",
    "resnet20_cifar10 w1a2",
    "kws_dscnn_float",
    "kws_dscnn_int8_qdq",
)
CALIBRATION = 256
BATCH = 200


def keyword_features(count: int) -> Array:
    """Cepstrum-shaped inputs [count, 49, 10, 1]: smooth over time, decaying over coefficients, plus noise."""
    rng = np.random.default_rng(7)
    smooth = np.cumsum(rng.standard_normal((count, 49, 10)), axis=1) / 4
    envelope = 20.0 * np.exp(-np.arange(10) / 3.0)
    return ((smooth + 0.3 * rng.standard_normal(smooth.shape)) * envelope)[..., None].astype(np.float32)


def real_inputs(model: str, images: Array) -> Array:
    """Float inputs of a model, sample axis first."""
    if model.startswith("kws"):
        return keyword_features(len(images))
    return normalized(images) if model.startswith("resnet20") else raw_pixels(images)


def integer_graph(model: str, inputs: Array) -> Graph:
    """The INTEGER graph of a model, float ones calibrated on the first samples."""
    stem, _, bits = model.partition(" ")
    graph = load_graph(ROOT / "models" / f"{stem}.onnx")
    if graph.level is not Level.FLOAT:
        return prepare(graph, Options("host"))
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration.npz"
        np.savez(calibration, **{graph.inputs[0].name: inputs[:CALIBRATION]})
        plan = CompressionPlan(bits=parse_bits(bits)) if bits else None
        return prepare(graph, Options("host", calibration=calibration, plan=plan))


def interpreted(graph: Graph, inputs: Array) -> Array:
    """Output codes for all inputs."""
    name, output = graph.inputs[0].name, graph.outputs[0].name
    return np.concatenate([interp.run(graph, {name: inputs[i : i + BATCH]})[output] for i in range(0, len(inputs), BATCH)])


def on_device(graph: Graph, profile: str, inputs: Array, emulated: int, folder: Path) -> tuple[Array, bool]:
    """Output codes of the artifact compiled for `profile`, and whether it was emulated."""
    artifact = build(bind(graph, {}), load_profile(profile), folder / f"{graph.name}-{profile}.bevel", Options(profile))
    name = artifact.manifest["inputs"][0]["name"]
    shape = artifact.manifest["inputs"][0]["shape"]
    with resolve_transport(load_profile(profile)) as transport:
        count = min(emulated, len(inputs)) if transport.emulated else len(inputs)
        runner = DeviceRunner(artifact, transport)
        parts = [
            next(iter(runner.run({name: batch.reshape(len(batch), *shape)}, batch=True).values()))
            for batch in (inputs[i : min(i + 1000, count)] for i in range(0, count, 1000))
        ]
        return np.concatenate(parts), transport.emulated


def main() -> int:
    """Print the table; exit 1 if any byte differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="directory of cifar10_test_jpeg.npz")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--emulated", type=int, default=200)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--profiles", nargs="*", default=PROFILES)
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    images, labels = decode(args.data / "cifar10_test_jpeg.npz" if args.data else IMAGES, args.images)
    lines = [
        "# The same bytes everywhere",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {os.cpu_count()} cores (shared), numpy {np.__version__}, "
        f"TVM {version('apache-tvm')}. `python -m benchmarks.identity.identity --data DIR --write`.",
        "Every output byte of every sample is compared with the interpreter's. Float models are calibrated on the first 256",
        "samples (benchmarks/accuracy calibrates on training images). Top-1 is the artifact's; keyword inputs are",
        "cepstrum-shaped noise without labels. Fewer than 8 bits are rounded to nearest, without training.",
        "",
        "| model | device | samples | differing bytes | top-1 | |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            inputs = real_inputs(model, images)
            start = time.monotonic()
            graph = integer_graph(model, inputs)
            reference = interpreted(graph, inputs)
            seconds = time.monotonic() - start
            for profile in args.profiles:
                found, emulated = on_device(graph, profile, inputs, args.emulated, Path(scratch))
                found = found.reshape(-1, *reference.shape[1:])
                differing = int((found != reference[: len(found)]).sum())
                wrong += differing
                top1 = "-" if model.startswith("kws") else f"{100 * (found.argmax(1) == labels[: len(found)]).mean():.2f} %"
                note = "emulated" if emulated else ""
                lines.append(f"| {model} | {profile} | {len(found)} | {differing} | {top1} | {note} |")
                print(lines[-1], flush=True)
            print(f"  ({model}: interpreter {seconds:.0f} s)", flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
