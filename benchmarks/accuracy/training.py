"""What training gains at few bits: ResNet-20 on CIFAR-10, trained within given minutes of one core of this machine.

    python -m benchmarks.accuracy.training --data DIR [--cases "w2a8, 5"] [--threads 1] [--seeds 0] [--scale 1.0] [--write]

--data holds cifar10_{train,test}_jpeg.npz as benchmarks/accuracy/integer.py reads them. Each case trains in a process of its own
by `bevel quantize`; CPU seconds are those of that process, all threads together: import, calibration, GPTQ, training and writing.
The result is compiled for this machine, and the accuracy is the artifact's. --scale shortens every budget, to try the benchmark
itself. With --keep, trained models stay in DIR and are not trained again: --train-only leaves judging them to another run, which
may be on another machine. --write replaces training.md beside this file.
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
        return ", ".join((self.bits, f"{self.minutes:g}", *(" ".join(self.options),) * bool(self.options)))


# Minutes that imports and writing take besides, and the share by which a step may turn out dearer than the first ones were.
MARGIN = 0.2
DEARER = 0.08
FLIP = ("--augment", "flip")
BOTH = (*FLIP, "--augment", "crop")
CASES = (
    Case("w2a8", 5.0, FLIP),
    Case("w1.58a8", 5.0, FLIP),
    Case("w2a2", 5.0, FLIP),
    Case("w2a2", 20.0, BOTH),
    Case("w2a2", 60.0, BOTH),
)


def train(case: Case, folder: Path, data: Path, threads: int, seed: int, scale: float) -> Path:
    """The trained model of a case, which brings what it took with it as .json."""
    output = folder / f"{case.name} seed {seed}.ir".replace(", ", "_").replace(" ", "_")
    if output.exists():
        return output
    minutes = scale * case.minutes * (1 - DEARER) - MARGIN * min(1.0, scale)
    command = [sys.executable, "-m", "bevel", "quantize", str(MODEL), "--bits", case.bits, "--json", "--seed", str(seed)]
    command += ["--train", str(data), "--minutes", f"{minutes:.3f}", "--threads", str(threads), *case.options, "-o", str(output)]
    few = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    before = _cpu_seconds()
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **few}).stdout)
    facts = {"cpu_seconds": _cpu_seconds() - before, "steps": done["steps"], "threads": threads, "seed": seed}
    output.with_suffix(".json").write_text(json.dumps(facts))
    return output


def judge(case: Case, trained: Path, folder: Path, test: Path) -> str:
    """The case's line."""
    facts = json.loads(trained.with_suffix(".json").read_text())
    artifact, _ = compile_model(trained, folder / "trained.bevel", Options("host"))
    with resolve_transport(load_profile("host")) as transport:
        result = evaluate(artifact, transport, test)
    return (
        f"| {case.bits} | {' '.join(case.options)} | {case.minutes:g} | {facts['cpu_seconds'] / 60:.1f} | {facts['threads']} | "
        f"{facts['seed']} | {facts['steps']} | {result.n} | {100 * result.value:.2f} % |"
    )


def _cpu_seconds() -> float:
    """Of processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", help="Only the lines that begin so.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies every budget.")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="Where trained models are, or go.")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    lines = [
        "# Accuracy of few bits after training",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        f"ResNet-20, fp32 88.10 %; {TRAINING_IMAGES} training images; first and last layer and the stream 8 bits.",
        "`python -m benchmarks.accuracy.training --data DIR --write`",
        "",
        "| bits | options | CPU minutes allowed | used | threads | seed | steps | images | top-1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keep = args.keep or folder
        keep.mkdir(parents=True, exist_ok=True)
        parts = {"train": TRAINING_IMAGES} if args.train_only else {"train": TRAINING_IMAGES, "test": args.images}
        for part, count in parts.items():
            rgb, label = images(args.data / f"cifar10_{part}_jpeg.npz", count)
            np.savez(folder / f"{part}.npz", image=normalized(rgb), label=label)
        for case in CASES:
            for seed in args.seeds if not args.cases or case.name.startswith(tuple(args.cases)) else ():
                trained = train(case, keep, folder / "train.npz", args.threads, seed, args.scale)
                if not args.train_only:
                    lines.append(judge(case, trained, folder, folder / "test.npz"))
                    print(lines[-1], flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
