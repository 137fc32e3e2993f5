"""How much faster two threads run an artifact than one, on this machine.

    python -m benchmarks.latency.threads ARTIFACT ... [--rounds 40] [--write]

One thread and two take turns in one process; a ratio is taken in every round. --write replaces threads.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import date
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from bevel.runtime.host import HostModel

RESULTS = Path(__file__).with_suffix(".md")
# Calls of a block.
CALLS = 5


def milliseconds(model: HostModel) -> float:
    """A call of `model`, over a block; one more goes before."""
    model.run()
    begin = time.perf_counter()
    for _ in range(CALLS):
        model.run()
    return (time.perf_counter() - begin) / CALLS * 1e3


def row(artifact: Path, rounds: int) -> str:
    """A line of the table."""
    rng = np.random.default_rng(0)
    models = [HostModel(artifact, threads) for threads in (1, 2)]
    for model in models:
        for tensor in model.inputs:
            noise = (
                rng.standard_normal(tensor.array.shape)
                if tensor.array.dtype.kind == "f"
                else rng.integers(0, 100, tensor.array.shape)
            )
            tensor.array[...] = noise.astype(tensor.array.dtype)
        for _ in range(CALLS):
            model.run()
    times = [[milliseconds(model) for model in models] for _ in range(rounds)]
    ratios = [one / two for one, two in times]
    low, middle, high = quantiles(ratios, n=4)
    one, two = (median(column) for column in zip(*times, strict=True))
    return f"| {artifact.stem} | {one:.3f} | {two:.3f} | **{middle:.2f}** | {low:.2f} to {high:.2f} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    lines = [
        "# Two threads beside one",
        "",
        f"{date.today()}, this machine, {os.cpu_count()} cores, load {load:.1f} at the start; {args.rounds} rounds in turn.",
        "`python -m benchmarks.latency.threads ARTIFACT ... --write`. Medians; quartiles of the rounds' ratios.",
        "",
        "| artifact | one thread, ms | two, ms | ratio | quartiles |",
        "|---|---|---|---|---|",
    ]
    for artifact in args.artifacts:
        lines.append(row(artifact, args.rounds))
        print(lines[-1], flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
