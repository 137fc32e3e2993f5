"""What training gains at few bits: ResNet-20 on CIFAR-10, trained within given minutes on one core of this machine.

    python -m benchmarks.accuracy.training --data DIR [--cases w2a8 w2a2] [--scale 1.0] [--images 10000] [--write]

--data holds cifar10_{train,test}_jpeg.npz as benchmarks/accuracy/integer.py reads them. Each case trains in a process of its own
by `bevel quantize`; CPU seconds are those of that process: import, calibration, GPTQ, training and writing. The result is
compiled for this machine, and the accuracy is the artifact's. --scale shortens every budget, to try the benchmark itself. --write
replaces training.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.accuracy.integer import images, normalized
from bevel.compiler import Options, compile_model
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.evaluation import evaluate

RESULTS = Path(__file__).with_suffix(".md")
MODEL = Path(__file__).resolve().parents[2] / "models" / "resnet20_cifar10.onnx"
TRAINING_IMAGES = 50_000


@dataclass(frozen=True)
class Case:
    """One line: bits, CPU minutes that may be used, and further options."""

    bits: str
    minutes: float
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As --cases spells it."""
        return " ".join((self.bits, *self.options))


# Minutes that imports and writing take besides, and that the speed may turn out lower than that of the first steps.
MARGIN = 0.3
CASES = (
    Case("w2a8", 5.0),
    Case("w1.58a8", 5.0),
    Case("w2a2", 20.0, ("--augment", "flip")),
    Case("w2a2", 60.0, ("--augment", "flip", "--augment", "crop")),
)


def measure(case: Case, folder: Path, scale: float) -> str:
    """The case's line."""
    output = folder / "trained.ir"
    minutes = scale * case.minutes - MARGIN * min(1.0, scale)
    command = [sys.executable, "-m", "bevel", "quantize", str(MODEL), "--bits", case.bits, "--json"]
    command += ["--train", str(folder / "train.npz"), "--minutes", f"{minutes:.3f}", *case.options, "-o", str(output)]
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    before = _cpu_seconds()
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **one}).stdout)
    spent = _cpu_seconds() - before
    artifact, _ = compile_model(output, folder / "trained.bevel", Options("host"))
    with resolve_transport(load_profile("host")) as transport:
        result = evaluate(artifact, transport, folder / "test.npz")
    return f"| {case.name} | {case.minutes:g} | {spent:.0f} | {done['steps']} | {result.n} | {100 * result.value:.2f} % |"


def _cpu_seconds() -> float:
    """Of processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", help="Only the lines that begin so.")
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies every budget.")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    lines = [
        "# Accuracy of few bits after training",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, one of {os.cpu_count()} cores, Python {platform.python_version()}.",
        f"ResNet-20, fp32 88.10 %; {TRAINING_IMAGES} training images; first and last layer and the stream 8 bits.",
        "`python -m benchmarks.accuracy.training --data DIR --write`",
        "",
        "| bits and options | CPU minutes allowed | CPU seconds used | steps | images | top-1 |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, count in (("train", TRAINING_IMAGES), ("test", args.images)):
            rgb, label = images(args.data / f"cifar10_{part}_jpeg.npz", count)
            np.savez(folder / f"{part}.npz", image=normalized(rgb), label=label)
        for case in CASES:
            if not args.cases or case.name.startswith(tuple(args.cases)):
                lines.append(measure(case, folder, args.scale))
                print(lines[-1], flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
