"""Whole models at 8 and at fewer bits: time, size of weights.bin, and layer by layer why few bits pay or not.

    python -m benchmarks.low_bit.end_to_end --model FILE ... [--device x86-64-avx2] [--tune fast] [--processes 7] [--write]

Every model is calibrated on noise, which changes no kernel, and compiled at 8 bits, at the bits of BITS, and with bits chosen
among them. Processes of all artifacts of a model run in turn, and ratios are taken within a turn. The stem and the classifier
keep 8 bits. --write replaces the part of end_to_end.md that is about the device.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.instructions.count import noise
from benchmarks.tuning.run import Tuned, interleave, say
from benchmarks.tuning.ship import machine
from bevel.compiler import Options, bind, compile_model, load_graph
from bevel.data import save_arrays
from bevel.tuning.options import Tuning

RESULTS = Path(__file__).with_suffix(".md")
BITS = ("w4a8", "w4a4", "w2a2")
AUTO = f"auto-lowbit:{','.join(BITS)}"


@dataclass(frozen=True)
class Measured:
    """A model at some precision.

    Attributes:
        tuned: the artifact.
        ms: CPU time of a call, one number a turn.
    """

    tuned: Tuned
    ms: Sequence[float]

    @property
    def weight_bytes(self) -> int:
        """Of weights.bin."""
        return int(self.tuned.artifact.manifest["bytes"]["weights"])


def measure(model: Path, device: str, tuning: Tuning, processes: int, folder: Path) -> list[Measured]:
    """The model at 8 bits, then at the others, measured in turn."""
    data = save_arrays(folder / f"{model.stem}.npz", noise(bind(load_graph(model), {})))
    found = []
    for bits in ("w8a8", *BITS, AUTO):
        options = Options(device, bits, data, samples=8, tuning=tuning)
        artifact, seconds = compile_model(model, folder / f"{model.stem}-{bits.partition(':')[0]}.bevel", options, say)
        found.append(Tuned(bits, artifact, seconds))
    return [Measured(one, times) for one, times in zip(found, interleave(found, device, processes), strict=True)]


def table(model: Path, found: Sequence[Measured]) -> list[str]:
    """Markdown: the model at every precision, beside 8 bits."""
    int8 = found[0]
    lines = [f"### {model.stem}", "", "| bits | CPU ms | time of w8a8 / its time | quartiles | weights.bin, KB | of w8a8's |"]
    lines.append("|---" * 6 + "|")
    for one in found:
        ratios = np.array(int8.ms) / np.array(one.ms)
        low, high = np.percentile(ratios, [25, 75])
        size, share = one.weight_bytes / 1e3, one.weight_bytes / int8.weight_bytes
        cells = (
            f"{np.median(one.ms):.4g}",
            f"**{np.median(ratios):.2f}**",
            f"{low:.2f} to {high:.2f}",
            f"{size:,.0f}",
            f"{share:.3f}",
        )
        lines.append(f"| {one.tuned.mode.replace(',', ', ')} | {' | '.join(cells)} |")
    return [*lines, ""]


def layers(chosen: Measured) -> list[str]:
    """Markdown: what was weighed of every layer where bits were chosen."""
    allocation: dict[str, Any] = chosen.tuned.artifact.manifest["allocation"]
    lines = ["| layer | at 8 bits, us | chosen | us | gain | others |", "|---" * 6 + "|"]
    for layer in allocation["layers"]:
        best, int8 = layer["chosen"], layer["int8"]
        others = "; ".join(f"{one['bits']} {_times(one)}: {one['reason']}" for one in layer["refused"])
        cells = (layer["layer"], _times(int8), best["bits"], _times(best), f"{layer['gain']:.2f}", others)
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _times(one: dict[str, Any]) -> str:
    """Measured (predicted) microseconds, and those of bringing the input to its bits."""
    measured, predicted = ("-" if us is None else f"{us:.4g}" for us in (one["measured_us"], one["predicted_us"]))
    converting = f" + {one['conversion_us']:.2g}" if one["conversion_us"] else ""
    return f"{measured} ({predicted}){converting}"


def replaced(device: str, lines: Sequence[str]) -> str:
    """The text of the results with the part about `device` replaced."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    parts[device] = "\n".join(["", *lines])
    head = (
        "# Models at fewer than 8 bits\n\n"
        "`python -m benchmarks.low_bit.end_to_end --model FILE ... --write`. One thread; stem, classifier and residual stream\n"
        "have 8 bits. Layers: microseconds measured by the tuner (predicted by the kernel's own estimate), + what bringing the\n"
        "input to its bits takes by estimate; `others` are the precisions that were not taken, and why.\n"
    )
    return head + "".join(f"\n## {name}\n{part.rstrip()}\n" for name, part in sorted(parts.items()))


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--device", default="x86-64-avx2")
    parser.add_argument("--tune", choices=("off", "cached", "fast", "full"), default="fast")
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="folder for artifacts that lasts")
    parser.add_argument("--write", action="store_true", help=f"replace the part of {RESULTS.name} about the device")
    args = parser.parse_args()
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bevel-low-bit-") as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model in args.model:
            found = measure(model, args.device, Tuning(args.tune), args.processes, folder)
            lines += [*table(model, found), *layers(found[-1])]
            print("\n".join(lines), flush=True)
    note = f"{date.today().isoformat()}, {machine()}; {args.processes} processes of each, in turn; --tune={args.tune}; load "
    lines = [f"{note}{os.getloadavg()[1]:.1f}.", "", *lines]
    if args.write:
        RESULTS.write_text(replaced(args.device, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
