"""Every engine side by side with bevel, in fp32 and int8, on this machine.

    python -m benchmarks.peers.compare [--models DIR] [--layers] [--only NAME ...] [--engines NAME ...] [--bits fp32 8]
                                       [--isa avx2] [--threads 1] [--processes 5] [--write]

Engines are installed when first used. All take turns in one run, a fresh process of each per repetition (docs/peers.md). An
engine that cannot take a model is a row that says why. --write replaces compare.md and compare.svg beside this file (with --isa,
--layers or several threads files of their own).
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from pathlib import Path

from benchmarks.peers.chart import draw
from benchmarks.peers.models import CALIBRATION, Subject, layers, of_folder, shipped
from bevel import __version__
from bevel.benchmarking.host import PROCESSES, Contest, measure_host
from bevel.benchmarking.peers.engines import CONTESTANTS, ENGINES, ISAS
from bevel.benchmarking.peers.preparation import find_peers, hold_to, reference_outputs
from bevel.benchmarking.statistics import Latency
from bevel.compiler import Options, compile_model
from bevel.data import save_arrays
from bevel.devices.profile import load_profile
from bevel.errors import BevelError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Finding:
    """One model in one precision.

    Attributes:
        label: of the model and the precision.
        contest: what was measured; None when bevel could not compile it.
        refused: engine -> why it has no row of figures.
    """

    label: str
    contest: Contest | None
    refused: dict[str, str]


def compare(subject: Subject, bits: str, names: Sequence[str], args: argparse.Namespace, folder: Path) -> Finding:
    """Compile, prepare every engine that can take the model, and measure."""
    label = f"{subject.name} {'int8' if bits == '8' else bits}"
    calibration = save_arrays(folder / "calibration.npz", subject.calibration)
    options = Options(
        f"x86-64-{args.isa}" if args.isa else "host", bits, calibration if bits == "8" else None, dims=dict(subject.dims)
    )
    try:
        artifact, _ = compile_model(subject.model, folder / f"{subject.name}-{bits}.bevel", options)
        kept, out = hold_to(names, args.isa, artifact)
    except BevelError as error:
        return Finding(label, None, {"bevel": str(error)})
    refused = dict.fromkeys(out, f"nothing holds it to {args.isa}")
    peers = {}
    for name in kept:
        try:
            peers |= find_peers([name], subject.model, artifact, subject.inputs, calibration, isa=args.isa)
        except BevelError as error:
            refused[name] = str(error).replace(f"{subject.model.parent}/", "")
    reference = reference_outputs(subject.model, subject.inputs, artifact)
    while True:
        try:
            contest = measure_host(
                artifact, subject.inputs, peers, threads=args.threads, processes=args.processes, reference=reference, isa=args.isa
            )
        except BevelError as error:
            # An engine that converted a model may still fail to run it; the message begins with its name.
            culprit = next((name for name in peers if str(error).startswith(f"{name}: ")), None)
            if culprit is None:
                raise
            refused[culprit] = str(error)
            del peers[culprit]
        else:
            return Finding(label, contest, refused)


def rows(finding: Finding) -> Iterator[str]:
    """Lines of the table."""
    contest = finding.contest
    if contest is not None:
        facts = contest.facts
        for name, latency in {"bevel": contest.ours, **contest.peers}.items():
            ratio = f"{contest.ratios[name]:.2f}" if name in contest.ratios else ""
            error = f"{contest.errors[name]:.2g}" if name in contest.errors else "-"
            notes = ["computes something else"] if name in contest.strangers else []
            notes += [f"not held to it: {facts[name]['beyond_cap']}"] if name in contest.uncapped else []
            notes += [latency.why_unstable] if latency.why_unstable else []
            cpu = f"{contest.cpu_ratios[name]:.2f}" if name in contest.cpu_ratios else ""
            figures = f"{latency.median:.4f} | {_interval(latency)} | {latency.cpu:.4f} | {ratio} | {cpu} | {error}"
            said = f"{facts[name].get('isa') or '-'} | {'; '.join(notes)}"
            yield f"| {finding.label} | {name} {facts[name]['version']} | {figures} | {said} |"
    for name, why in finding.refused.items():
        yield f"| {finding.label} | {name} | - | - | - | - | - | - | - | {' '.join(why.split()).replace('|', '/')[:160]} |"


def _interval(latency: Latency) -> str:
    return f"{latency.ci95[0]:.4f} to {latency.ci95[1]:.4f}"


def heading(args: argparse.Namespace) -> list[str]:
    """What was measured and how."""
    load = os.getloadavg()[0]
    held = f" Held to {args.isa}: artifact and engines." if args.isa else ""
    return [
        f"# Side by side on one machine{', held to ' + args.isa if args.isa else ''}",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {load_profile('host').description}, load {load:.1f} at the start.",
        f"bevel {__version__}; {args.threads} thread, batch 1, interleaved, medians of {args.processes} processes or more.{held}",
        f"int8 is each engine's own quantization of the same model on the same {CALIBRATION} samples.",
        "Ratio = its time / bevel's in the same precision: above 1, bevel is faster. Error = max|d| / max|fp32 reference|.",
        "`python -m benchmarks.peers.compare --write`; docs/peers.md says how each engine is run.",
        "",
        "| model | engine | median ms | 95 % interval | CPU ms | ratio | CPU ratio | error | kernels | notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]


def main() -> int:
    """Measure, print the table as it grows, write table and chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, help="folder of further ONNX files")
    parser.add_argument("--layers", action="store_true", help="single layers instead of models")
    parser.add_argument("--only", nargs="*", default=[], help="names of models or layers")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--bits", nargs="*", default=["fp32", "8"], choices=["fp32", "8"])
    parser.add_argument("--isa", choices=list(ISAS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--write", action="store_true", help="replace the table and the chart")
    args = parser.parse_args()
    lines = heading(args)
    print("\n".join(lines), flush=True)
    bars: dict[str, list[tuple[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bevel-compare-") as scratch:
        folder = Path(scratch)
        subjects = layers(folder) if args.layers else chain(shipped(), of_folder(args.models, args.only) if args.models else ())
        for subject in subjects:
            if args.only and subject.name not in args.only:
                continue
            for bits in args.bits:
                precision = "int8" if bits == "8" else "fp32"
                names = [n for n, (engine, p) in CONTESTANTS.items() if p == precision and engine.name in args.engines]
                finding = compare(subject, bits, names, args, folder)
                lines += (found := list(rows(finding)))
                print("\n".join(found), flush=True)
                if finding.contest is not None:
                    strangers = finding.contest.strangers
                    bars[finding.label] = [item for item in finding.contest.ratios.items() if item[0] not in strangers]
    if args.write:
        parts = [
            "compare",
            "layers" if args.layers else "",
            args.isa or "",
            f"{args.threads}-threads" if args.threads > 1 else "",
        ]
        stem = "-".join(part for part in parts if part)
        (HERE / f"{stem}.md").write_text("\n".join([*lines, "", f"![ratios]({stem}.svg)"]) + "\n")
        (HERE / f"{stem}.svg").write_text(draw(bars, lines[0].removeprefix("# ")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
