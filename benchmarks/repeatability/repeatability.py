"""Whether a measured number can be trusted: do sessions agree, is a busy machine noticed, do intervals hold?

    python -m benchmarks.repeatability.repeatability [--quick] [--write]

ResNet-20, int8, on this machine by the protocol of docs/measuring.md, into a store of its own. Needs a quiet machine and about
ten minutes. `--quick` proves the mechanics in about one. `--write` replaces repeatability.md beside this file.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.identity.identity import ROOT, real_inputs
from bevel.benchmarking.protocol import Effort, Measurement, Protocol
from bevel.compiler import Options, compile_model
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.devices.store import Store
from bevel.devices.transport import Transport
from bevel.runtime.artifact import Artifact
from examples.prepare_cifar10 import IMAGES, decode

RESULTS = Path(__file__).with_suffix(".md")
MODEL = "resnet20_cifar10"
CALIBRATION = 128
# What is asked of the protocol.
WITHIN, COVERED = 0.03, 0.85


@dataclass(frozen=True)
class Bench:
    """Measures one artifact here, each time anew."""

    artifact: Artifact
    transport: Transport
    store: Store

    def session(self, threads: int = 1) -> Measurement:
        """One session, as `bevel bench` makes it."""
        runner = DeviceRunner(self.artifact, self.transport, threads)
        return Protocol(runner, self.store, "host", BenchOptions(), fresh=True).run(Effort())

    def profile(self, runs: int) -> tuple[float, float]:
        """Sum of layers over the whole run, and the share that timers added."""
        answer = DeviceRunner(self.artifact, self.transport).profile(runs=runs)
        layers = sum(layer["ns"]["mean"] for layer in answer["layers"])
        return layers / answer["whole_ns"], answer["overhead"]


def build(folder: Path) -> Artifact:
    """ResNet-20, int8, for this machine."""
    images, _ = decode(IMAGES, CALIBRATION)
    calibration = folder / "calibration.npz"
    np.savez(calibration, image=real_inputs(MODEL, images))
    return compile_model(ROOT / "models" / f"{MODEL}.onnx", folder / f"{MODEL}.bevel", Options("host", "8", calibration))[0]


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Programs that do nothing but use a CPU."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in running:
            hog.kill()
            hog.wait()


def row(name: str, found: Measurement) -> str:
    """One session as a row of the table."""
    latency = found.latency
    processes = len({block.process for block in found.blocks})
    rejected = ", ".join(f"{count} {reason}" for reason, count in found.conditions["rejected"].items()) or "0"
    interval = f"{latency.interval.lo * 1e3:.2f} to {latency.interval.hi * 1e3:.2f}"
    return (
        f"| {name} | {latency.median * 1e3:.2f} | {interval} | {processes} | "
        f"{len(found.blocks)} | {rejected} | {found.why_unstable or 'stable'} |"
    )


def spread(medians: Sequence[float]) -> float:
    """How far the greatest is above the least."""
    return max(medians) / min(medians) - 1


def coverage(sessions: Sequence[Measurement]) -> tuple[int, int, float]:
    """Intervals that hold the next session's median, of how many, and the share of all later medians that intervals hold."""
    usable = [found.latency for found in sessions if found.why_unstable is None]
    held = [
        [now.interval.lo <= later.median <= now.interval.hi for later in usable[index + 1 :]]
        for index, now in enumerate(usable[:-1])
    ]
    every = [hit for hits in held for hit in hits]
    return sum(hits[0] for hits in held), len(held), float(np.mean(every)) if every else 0.0


def verdict(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def main() -> int:
    """Measure, print and, when asked to, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few sessions, no pauses")
    parser.add_argument("--trials", type=int, help="pairs of sessions (40; 3 with --quick)")
    parser.add_argument("--pause", type=float, help="seconds between sessions (5; 0 with --quick)")
    parser.add_argument("--hogs", type=int, default=1, help="programs that use a CPU beside the busy session")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    runs = 2 if args.quick else 5
    trials = args.trials or (3 if args.quick else 40)
    pause = args.pause if args.pause is not None else (0.0 if args.quick else 5.0)
    lines = [
        "# Repeatability of bevel bench",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {load_profile('host').description}, Linux {platform.release()}, "
        f"bevel {version('bevel')}, TVM {version('apache-tvm')}.",
        f"`python -m benchmarks.repeatability.repeatability --write`: {MODEL}, int8, 1 thread; microseconds.",
        "",
        "| session | median | 95 % prediction | processes | blocks | rejected | |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    profile = load_profile("host")
    with (
        tempfile.TemporaryDirectory(prefix="bevel-repeat-") as scratch,
        Store.open(Path(scratch) / "store.sqlite") as store,
        resolve_transport(profile) as transport,
    ):
        bench = Bench(build(Path(scratch)), transport, store)
        five = []
        for index in range(runs):
            five.append(bench.session())
            say(row(f"run {index + 1}", five[-1]))
            time.sleep(pause)
        with hogs(args.hogs):
            time.sleep(1)
            busy = bench.session()
            say(row(f"beside {args.hogs} CPU hog{'s' * (args.hogs > 1)}", busy))
        sessions = []
        for index in range(trials + 1):
            time.sleep(pause)
            sessions.append(bench.session())
            print(row(f"trial {index}", sessions[-1]), flush=True)
        ratio, overhead = bench.profile(200)
    accepted = [found.latency.median for found in five if found.why_unstable is None]
    medians = [found.latency.median * 1e3 for found in sessions]
    halves = [(found.latency.interval.hi / found.latency.interval.lo) ** 0.5 - 1 for found in sessions]
    hits, pairs, later = coverage(sessions)
    agree = len(accepted) >= 2 and spread(accepted) <= WITHIN
    covered = pairs > 0 and hits / pairs >= COVERED
    say("")
    within = f"{100 * spread(accepted):.2f} % apart" if accepted else "none stable"
    say(f"* Sessions agree: {len(accepted)} of {runs} runs stable, {within} (asked for: {100 * WITHIN:.0f} %): {verdict(agree)}.")
    say(f"* A busy machine is noticed: {busy.why_unstable or 'not marked'}: {verdict(busy.why_unstable is not None)}.")
    say(
        f"* Intervals hold: {hits} of {pairs} hold the next session's median (asked for: {100 * COVERED:.0f} %), "
        f"{100 * later:.0f} % of all later medians: {verdict(covered)}. {trials + 1} sessions {pause:g} s apart, "
        f"{sum(found.why_unstable is not None for found in sessions)} unstable and left out; medians {min(medians):.2f} to "
        f"{max(medians):.2f}, intervals ±{100 * float(np.median(halves)):.1f} % (median)."
    )
    profiled = abs(ratio - 1) <= 0.05 and overhead <= 0.01
    say(f"* Layers add up: {100 * ratio:.1f} % of the whole run; timers took {100 * overhead:.2f} %: {verdict(profiled)}.")
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if agree and covered and busy.why_unstable is not None and profiled else 1


if __name__ == "__main__":
    raise SystemExit(main())
