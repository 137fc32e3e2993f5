"""Tunes a model from nothing and compares the result with the static choice, in turn, on the device.

    python -m benchmarks.tuning.run --model FILE [--calib DATA | --bits fp32] --mode fast [--mode full] [--write FILE.md]

Stores and caches are its own and empty at the beginning: the seconds count import, quantization, compilers and measuring.
Then processes of all artifacts run in turn, and ratios are taken within each turn. A row of the table is a distinct problem.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.tuning.ship import machine
from bevel.compiler import Options, compile_model
from bevel.devices.conditions import choose_cpus, sample
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.runtime.artifact import Artifact
from bevel.runtime.manifest import kernel_calls
from bevel.tuning.options import Tuning


@dataclass(frozen=True)
class Tuned:
    """A model compiled with one mode.

    Attributes:
        mode: of the tuner.
        artifact: the result.
        seconds: compilation took, tuning included.
    """

    mode: str
    artifact: Artifact
    seconds: float


def say(stage: str, done: int, total: int) -> None:
    """One line a step of the tuner."""
    if stage == "tune":
        print(f"  {done} of {total} problems", file=sys.stderr, flush=True)


def compile_with(model: Path, options: Options, modes: Sequence[str], budget: float | None, folder: Path) -> list[Tuned]:
    """The artifacts of all modes, in this order."""
    found = []
    for mode in modes:
        print(f"{model.stem} --tune={mode}", file=sys.stderr, flush=True)
        chosen = Options(**{**vars(options), "tuning": Tuning(mode, budget)})
        artifact, seconds = compile_model(model, folder / f"{model.stem}-{mode}.bevel", chosen, say)
        found.append(Tuned(mode, artifact, seconds))
    return found


def interleave(tuned: Sequence[Tuned], device: str, rounds: int) -> list[list[float]]:
    """CPU milliseconds of a call, which other programs disturb least, of `rounds` processes of each artifact, run in turn."""
    times: list[list[float]] = [[] for _ in tuned]
    with resolve_transport(load_profile(device)) as transport, transport.lock("comparing tuned models"):
        runners = [DeviceRunner(one.artifact, transport) for one in tuned]
        options = BenchOptions(blocks=10, warmup_ms=100, pin=choose_cpus(sample(transport).cpus, 1))
        for turn in range(rounds):
            order = list(range(len(runners)))
            for index in order if turn % 2 == 0 else order[::-1]:
                lines: list[dict[str, float]] = []
                # Artifacts of one graph share a folder on the device.
                runners[index].install()
                runners[index].bench(options, lines.append)  # type: ignore[arg-type]
                times[index].append(float(np.median([line["cpu_ns"] for line in lines if "block" in line])) / 1e6)
    return times


def table(tuned: Sequence[Tuned], times: Sequence[Sequence[float]], note: str) -> list[str]:
    """Markdown: whole models, then problems."""
    lines = [note, "", "| mode | compile s | CPU ms | time of off / its time | quartiles |", "|---|---|---|---|---|"]
    for one, found in zip(tuned, times, strict=True):
        ratios = np.array(times[0]) / np.array(found)
        low, high = np.percentile(ratios, [25, 75])
        lines.append(
            f"| {one.mode} | {one.seconds:.0f} | {np.median(found):.4g} | {np.median(ratios):.3f} | {low:.3f} to {high:.3f} |"
        )
    best = tuned[-1].artifact.manifest
    kernels = best["tuning"]["kernels"]
    lines += ["", "| layers | first of them | kernel | tile | us | gain | of | MMACs |", "|---|---|---|---|---|---|---|---|"]
    layers: dict[str, list[dict[str, object]]] = {}
    for call in (call for layer in best["layers"] for call in kernel_calls(layer)):
        layers.setdefault(call["symbol"], []).append(call)
    for symbol, of in layers.items():
        row = kernels[symbol]
        if row["chosen"] == "static":
            continue
        macs = sum(int(str(layer["macs"])) for layer in of) / 1e6
        cells = (len(of), of[0]["name"], of[0]["kernel"], row["tile"], row["us"], row["gain"], row["candidates"], f"{macs:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--bits", default="8")
    parser.add_argument("--device", default="host")
    parser.add_argument("--mode", action="append", choices=("cached", "fast", "full"))
    parser.add_argument("--budget", type=float)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", type=Path, help="append the table to this file")
    parser.add_argument("--keep", type=Path, help="folder for artifacts, cache and store that lasts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bevel-tuning-") as temporary:
        folder = args.keep or Path(temporary)
        os.environ["BEVEL_HOME"], os.environ["BEVEL_CACHE_DIR"] = str(folder / "home"), str(folder / "cache")
        options = Options(args.device, args.bits, args.calib)
        begin = time.monotonic()
        tuned = compile_with(args.model, options, ["off", *(args.mode or ["fast"])], args.budget, folder)
        times = interleave(tuned, args.device, args.rounds)
        load = os.getloadavg()[1]
        note = (
            f"### {args.model.stem}, {args.bits} on {args.device}\n\n{datetime.now(UTC):%Y-%m-%d}, {machine()}, load "
            f"{load:.1f}, {args.rounds} processes of each in turn, {time.monotonic() - begin:.0f} s in all."
        )
        lines = table(tuned, times, note)
    print("\n".join(lines))
    if args.write is not None:
        with args.write.open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, "", ""]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
