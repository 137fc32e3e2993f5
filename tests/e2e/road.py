"""Real models with real inputs, and their graphs prepared once, for the end-to-end tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.compiler import Options, bind, load_graph, prepare
from bevel.ir.graph import Graph, Level

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
PROFILES = ("x86-64", "x86-64-avx2", "x86-64-avx512-vnni", "raspberry-pi-4", "raspberry-pi-5")
CALIBRATION_IMAGES = 64


@cache
def cifar(model: str) -> dict[str, Array]:
    """Preprocessed test images and labels for "resnet8" or "resnet20"."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data.npz"
        script = str(ROOT / "examples" / "prepare_cifar10.py")
        subprocess.run([sys.executable, script, "--for", model, "-o", str(out)], check=True)
        with np.load(out) as arrays:
            return {name: arrays[name] for name in arrays.files}


def spectrograms(count: int) -> Array:
    """Inputs shaped and scaled like MFCC features: smooth over time, decaying over coefficients, plus noise. [n, 49, 10, 1]."""
    rng = np.random.default_rng(7)
    smooth = np.cumsum(rng.standard_normal((count, 49, 10)), axis=1) / 4
    envelope = 20.0 * np.exp(-np.arange(10) / 3.0)
    return ((smooth + 0.3 * rng.standard_normal(smooth.shape)) * envelope)[..., None].astype(np.float32)


@dataclass(frozen=True)
class Model:
    """A model file with inputs to run it on: float arrays, sample axis first."""

    name: str
    path: Path
    inputs: dict[str, Array]

    def take(self, count: int) -> dict[str, Array]:
        return {name: array[:count] for name, array in self.inputs.items()}


def real_model(name: str) -> Model:
    """One of the models that ship with bevel, with real inputs."""
    path = MODELS / f"{name}.onnx"
    graph = load_graph(path)
    (value,) = graph.inputs
    if name.startswith("kws"):
        return Model(name, path, {value.name: spectrograms(256)})
    data = cifar("resnet20" if name.startswith("resnet20") else "resnet8")
    images = next(array for key, array in data.items() if key != "label")
    return Model(name, path, {value.name: images.astype(np.float32)})


@cache
def graph_of(name: str, bits: str) -> tuple[Graph, Graph]:
    """The prepared graph of a model: with its symbolic batch for the interpreter, and bound to batch 1 for compilation."""
    model = real_model(name)
    calibration = None
    if bits == "8" and load_graph(model.path).level is Level.FLOAT:
        folder = Path(tempfile.mkdtemp(prefix="bevel-calibration-"))
        calibration = folder / "calibration.npz"
        np.savez(calibration, **model.take(CALIBRATION_IMAGES))
        try:
            graph = prepare(load_graph(model.path), Options("host", bits, calibration))
        finally:
            shutil.rmtree(folder)
    else:
        graph = prepare(load_graph(model.path), Options("host", bits))
    return graph, bind(graph, {})
