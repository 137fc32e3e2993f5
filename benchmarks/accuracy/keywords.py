"""DS-CNN on speech: keywords spoken by a synthesizer, as cepstra, through the integer graph and onnxruntime.

    python -m benchmarks.accuracy.keywords [--write]

Needs espeak-ng (apt-get install espeak-ng). Every keyword of the model is spoken by several voices at several speeds and pitches.
Features follow the model's training set-up (MLPerf Tiny): 16 kHz, 30 ms windows every 20 ms, 40 mel bands of 20 to 4000 Hz, 10
cepstral coefficients, one second. --write replaces keywords.md beside this file.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import wave
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bevel.compiler import Options, load_graph, prepare
from bevel.ir import interp
from bevel.ir.types import Quant

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".md")
WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-gb+f4", "en-us+m3")
SPEEDS, PITCHES = (120, 150, 180), (30, 50, 70)
RATE, WINDOW, STRIDE, FFT, FRAMES, MELS, COEFFICIENTS = 16_000, 480, 320, 512, 49, 40, 10


def speak(word: str, voice: str, speed: int, pitch: int) -> Array:
    """One second of float samples at 16 kHz, the word in the middle."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(data)) as sound:
        rate = sound.getframerate()
        samples = np.frombuffer(sound.readframes(min(sound.getnframes(), 10 * rate)), np.int16).astype(np.float64) / 32768
    times = np.arange(int(len(samples) * RATE / rate)) / RATE
    samples = np.interp(times, np.arange(len(samples)) / rate, samples)[:RATE]
    before = (RATE - len(samples)) // 2
    return np.pad(samples, (before, RATE - len(samples) - before))


def mel_bands() -> Array:
    """Triangular filters [FFT / 2 + 1, MELS]."""

    def mel(hertz: Array | float) -> Any:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(20.0), mel(4000.0), MELS + 2)
    bins = mel(np.arange(FFT // 2 + 1) * RATE / FFT)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def cepstra(samples: Array) -> Array:
    """float32 [49, 10, 1]."""
    frames = np.stack([samples[i * STRIDE : i * STRIDE + WINDOW] for i in range(FRAMES)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    spectrum = np.abs(np.fft.rfft(frames * window, FFT, axis=1))
    logs = np.log(spectrum @ mel_bands() + 1e-6)
    k, n = np.arange(COEFFICIENTS)[:, None], np.arange(MELS)
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * MELS)) * np.sqrt(2.0 / MELS)
    return (logs @ basis.T)[..., None].astype(np.float32)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        print("espeak-ng is not installed: apt-get install espeak-ng", file=sys.stderr)
        return 4
    features = np.stack([cepstra(speak(*setting)) for setting in product(WORDS, VOICES, SPEEDS, PITCHES)])
    path = ROOT / "models" / "kws_dscnn_int8_qdq.onnx"
    graph = prepare(load_graph(path), Options("host"))
    (value,) = graph.inputs
    assert isinstance(value.type.elem, Quant)
    codes = value.type.elem.quantize(features)
    (ours,) = interp.run(graph, {value.name: codes}).values()
    reference = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {value.name: codes})[0]
    floats = ort.InferenceSession(str(ROOT / "models" / "kws_dscnn_float.onnx"), providers=["CPUExecutionProvider"])
    real = floats.run(None, {floats.get_inputs()[0].name: features})[0]
    agree, close = (ours.argmax(1) == reference.argmax(1)).mean(), (ours.argmax(1) == real.argmax(1)).mean()
    lines = [
        "# DS-CNN on synthesized speech",
        "",
        f"{date.today().isoformat()}, onnxruntime {version('onnxruntime')}. `python -m benchmarks.accuracy.keywords --write`",
        "",
        "| spoken words | voices, speeds, pitches | distinct choices | agreement with onnxruntime | with the float model |",
        "|---|---|---|---|---|",
        f"| {len(features)} | {len(VOICES)}, {len(SPEEDS)}, {len(PITCHES)} | {len(np.unique(ours.argmax(1)))} "
        f"| {100 * agree:.2f} % | {100 * close:.2f} % |",
    ]
    print("\n".join(lines))
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
