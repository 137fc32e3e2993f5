"""What fewer than 8 bits cost in accuracy: ResNet-20 on CIFAR-10, measured on compiled artifacts of this machine.

    python -m benchmarks.accuracy.low_bit --data DIR [--images 10000] [--plans NAME ...] [--write]

--data holds cifar10_{train,test}_jpeg.npz as benchmarks/accuracy/integer.py reads them; 256 training images calibrate. Artifacts
compute the same on every device, so this machine's stand for all. --write replaces low_bit.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.accuracy.integer import CALIBRATION_IMAGES, images, normalized
from bevel.compiler import Options, compile_model
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.evaluation import evaluate
from bevel.ir.plan import W8A8, CompressionPlan, parse_bits

RESULTS = Path(__file__).with_suffix(".md")
MODEL = Path(__file__).resolve().parents[2] / "models" / "resnet20_cifar10.onnx"


@dataclass(frozen=True)
class Case:
    """One line of the table: a plan, and whether biases are corrected."""

    plan: CompressionPlan
    bias_correction: bool = True
    note: str = ""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", ", ".join(filter(None, (str(self.plan.bits), self.note))))


def _plan(bits: str, **fields: object) -> CompressionPlan:
    return CompressionPlan(**{"bits": parse_bits(bits), **fields})  # type: ignore[arg-type]


CASES = (
    Case(CompressionPlan(bits=W8A8)),
    Case(_plan("w4a8", granularity="tensor", scales="minmax"), False, "one scale for the tensor, biases as they are"),
    Case(_plan("w4a8", scales="minmax"), False, "biases as they are"),
    Case(_plan("w4a8", scales="minmax")),
    Case(_plan("w4a8", scales="mse"), note="mse"),
    Case(_plan("w4a8", levels="nf4"), note="nf4"),
    Case(_plan("w4a8", levels="kmeans"), note="kmeans"),
    Case(_plan("w4a8", levels="powers"), note="powers"),
    Case(_plan("w4a8", granularity="group32"), note="groups of 32"),
    Case(_plan("w4a8", rounding="gptq"), note="gptq"),
    Case(_plan("w4a8", rounding="gptq", granularity="group32"), note="groups of 32, gptq"),
    Case(_plan("w4a4")),
    Case(_plan("w4a4", rounding="gptq"), note="gptq"),
    Case(_plan("w4a4", stream=4), note="a stream of 4 bits"),
    Case(_plan("w4a4", stream=4, rounding="gptq"), note="a stream of 4 bits, gptq"),
    Case(_plan("w3a8")),
    Case(_plan("w3a8", levels="kmeans"), note="kmeans"),
    Case(_plan("w3a8", granularity="group32"), note="groups of 32"),
    Case(_plan("w3a8", rounding="gptq"), note="gptq"),
    Case(_plan("w3a8", rounding="gptq", granularity="group32"), note="groups of 32, gptq"),
    Case(_plan("w3a3")),
    Case(_plan("w3a3", rounding="gptq"), note="gptq"),
    Case(_plan("w2a8")),
    Case(_plan("w2a8", granularity="group32"), note="groups of 32"),
    Case(_plan("w2a8", rounding="gptq"), note="gptq"),
    Case(_plan("w2a8", rounding="gptq", granularity="group32"), note="groups of 32, gptq"),
    Case(_plan("w1.58a8")),
    Case(_plan("w1.58a8", rounding="gptq"), note="gptq"),
    Case(_plan("w2a2")),
    Case(_plan("w2a2", rounding="gptq"), note="gptq"),
)


def measure(case: Case, folder: Path, count: int) -> str:
    """The case's line."""
    options = Options("host", calibration=folder / "calibration.npz", plan=case.plan, bias_correction=case.bias_correction)
    artifact, _ = compile_model(MODEL, folder / "resnet20.bevel", options)
    with resolve_transport(load_profile("host")) as transport:
        result = evaluate(artifact, transport, folder / "test.npz", limit=count)
    return f"| {case.name} | {case.plan.stream} | {result.n} | {100 * result.value:.2f} % |"


def main() -> None:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--plans", nargs="*", help="Only the lines that begin so.")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    lines = [
        "# Accuracy of few bits",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {os.cpu_count()} cores (shared), Python {platform.python_version()}, "
        f"numpy {np.__version__}.",
        f"ResNet-20, fp32 88.10 %; {CALIBRATION_IMAGES} training images calibrate; weights rounded to nearest, or by gptq; 8",
        "bits in the first and the last layer.",
        "`python -m benchmarks.accuracy.low_bit --data DIR --write`",
        "",
        "| plan | stream | images | top-1 |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rgb, label = images(args.data / "cifar10_test_jpeg.npz", args.images)
        np.savez(folder / "test.npz", image=normalized(rgb), label=label)
        known, _ = images(args.data / "cifar10_train_jpeg.npz", CALIBRATION_IMAGES)
        np.savez(folder / "calibration.npz", image=normalized(known))
        for case in CASES:
            if not args.plans or case.name.startswith(tuple(args.plans)):
                lines.append(measure(case, folder, args.images))
                print(lines[-1], flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
