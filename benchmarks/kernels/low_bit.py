"""Kernels for weights of one to four bits beside bevel's and oneDNN's int8 kernels, on the shapes of `avx2.py`.

    python -m benchmarks.kernels.low_bit [--isa avx2|avx512] [--processes 5] [--only SHAPE ...] [--write]

Of every number of bits the kernel that a compile chooses, with the fastest of its tiles, all in one process whose blocks take
turns; oneDNN, held to AVX2, in a process of its own before each. One thread. --write replaces the ISA's part of low_bit.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.kernels.avx2 import GIGA, PEER, SHAPES, implementations
from benchmarks.kernels.plan import HERE, Job, turn, write_plan
from bevel.backends.kernel import Array, ConvProblem
from bevel.backends.select import choose
from bevel.benchmarking.peers.engines import ENGINES
from bevel.benchmarking.peers.preparation import engine_python
from bevel.devices.profile import load_profile

RESULTS = HERE / "low_bit.md"
# Tiles of a kernel that are timed, the statically best first.
MOST_TILES = 2


@dataclass(frozen=True)
class Form:
    """Bits of weights and activations, of 8 such that the fastest int8 kernel takes them: weights fit seven."""

    weight_bits: int
    x_bits: int

    @property
    def title(self) -> str:
        """As in plans."""
        return f"w{self.weight_bits}a{self.x_bits}"


INT8 = Form(8, 8)
FORMS = (INT8, Form(4, 8), Form(4, 4), Form(2, 8), Form(2, 2), Form(1, 8), Form(1, 2), Form(1, 1))
Names = dict[tuple[str, str], list[str]]
"""Jobs of a shape and a form, by their names."""
NBITS = "MatMulNBits"
PROFILES = {"avx2": "x86-64-avx2", "avx512": "x86-64-avx512-vnni"}


def problem_of(shape: str, form: Form) -> ConvProblem:
    """A shape with codes of few bits."""
    return replace(SHAPES[shape].problem, weight_bits=form.weight_bits, x_bits=form.x_bits, light_weights=True)


def weights_of(problem: ConvProblem) -> Array:
    """int8 weights [oc, c, kh, kw]."""
    rng = np.random.default_rng(43)
    shape = (problem.oc, problem.c, problem.kh, problem.kw)
    if problem.weight_bits == 1:
        return rng.choice(np.array([-1, 1], np.int8), shape)
    # Seven bits of eight.
    half = 64 if problem.weight_bits == INT8.weight_bits else 1 << (problem.weight_bits - 1)
    return rng.integers(-half, half, shape).astype(np.int8)


def prepare(isa: str, shapes: Sequence[str], folder: Path) -> Names:
    """Compile every form of every shape into `folder`; the kernels of each, by the name of their job."""
    target = load_profile(PROFILES[isa]).target()
    jobs: dict[str, Job] = {}
    names: Names = {}
    for shape in shapes:
        for form in FORMS:
            problem = problem_of(shape, form)
            generator = choose(problem, target, shape).generator
            weights = weights_of(problem)
            for tile in generator.tiles(problem, target)[:MOST_TILES]:
                name = f"{shape} {form.title} {generator.name} {tile['mr']}x{tile['nv']} {tile['unroll']}"
                jobs[name] = Job(problem, generator, tile, weights)
                names.setdefault((shape, form.title), []).append(name)
    write_plan(jobs, target, folder)
    return names


def table(
    shapes: Sequence[str],
    turns: Sequence[dict[str, float]],
    peers: Sequence[dict[str, float]],
    names: Names,
) -> list[str]:
    """Markdown: medians over the turns of speeds, and of ratios within turns to oneDNN (where it ran) and to bevel's int8."""
    rivals = ([PEER] if peers else []) + ["int8"]
    lines = ["| M x K x N | " + " | ".join([*([PEER] if peers else []), *(form.title for form in FORMS)]) + " |"]
    lines.append("|---" * (1 + len(FORMS) + bool(peers)) + "|")
    logs: dict[tuple[str, str], list[list[float]]] = {}
    for shape in shapes:
        macs = SHAPES[shape].problem.macs
        best = {form.title: [min(t[name] for name in names[shape, form.title]) for t in turns] for form in FORMS}
        against = {"int8": best[INT8.title]} | ({PEER: [t[shape] for t in peers]} if peers else {})
        cells = [shape, *([f"{macs / median(against[PEER]) / GIGA:.0f}"] if peers else [])]
        for form in FORMS:
            shown = []
            for rival in rivals:
                ratios = [theirs / mine for theirs, mine in zip(against[rival], best[form.title], strict=True)]
                shown.append(f"{median(ratios):.2f}")
                for log, ratio in zip(logs.setdefault((form.title, rival), [[] for _ in turns]), ratios, strict=True):
                    log.append(math.log(ratio))
            cells.append(f"{macs / median(best[form.title]) / GIGA:.0f} ({', '.join(shown)})")
        lines.append("| " + " | ".join(cells) + " |")
    # Matrix-vector products come last, and are bound by memory.
    count = sum(not shape.startswith("1x") for shape in shapes)
    if count:
        cells = ["geometric mean without GEMV", *([""] if peers else [])]
        for form in FORMS:
            means = [[math.exp(sum(log[:count]) / count) for log in logs[form.title, rival]] for rival in rivals]
            cells.append(", ".join(f"**{median(mean):.2f}** ({min(mean):.2f}-{max(mean):.2f})" for mean in means))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| M x K x N | " + " | ".join(form.title for form in FORMS) + " |", "|---" * (1 + len(FORMS)) + "|"]
    for shape in shapes:
        fastest = [min(names[shape, form.title], key=lambda name: min(t[name] for t in turns)) for form in FORMS]
        cells = [" ".join(name.removeprefix(shape).split()[1:3]) for name in fastest]
        lines.append("| " + " | ".join([shape, *(f"`{cell.removeprefix('x86_conv_')}`" for cell in cells)]) + " |")
    return lines


def vectors(
    shapes: Sequence[str], turns: Sequence[dict[str, float]], peers: Sequence[dict[str, float]], names: Names
) -> list[str]:
    """Markdown: matrix-vector products beside onnxruntime's with weights of as many bits, medians of ratios within turns."""
    lines = ["", f"| GEMV, GMAC/s | {NBITS} 4 bits | w4a8 | ratio | {NBITS} 2 bits | w2a8 | ratio |", "|---" * 7 + "|"]
    for shape in shapes:
        macs, cells = SHAPES[shape].problem.macs, [shape]
        for bits in (4, 2):
            mine = [min(t[name] for name in names[shape, f"w{bits}a8"]) for t in turns]
            theirs = [t[f"{shape} {bits}"] for t in peers]
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
            cells += [f"{macs / median(times) / GIGA:.0f}" for times in (theirs, mine)]
            cells.append(f"**{median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def replaced(isa: str, lines: Sequence[str]) -> str:
    """The text of low_bit.md with the part about `isa` replaced."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    parts[isa] = "\n".join(["", *lines, ""])
    head = (
        "# Kernels for weights of one to four bits\n\n"
        "`python -m benchmarks.kernels.low_bit --isa ISA --write`. One thread; GMAC/s, medians over processes.\n"
        "In brackets the time of int8 over that of few bits within a process: above 1, few bits are faster; the first of two is\n"
        f"against {PEER}'s int8 kernels held to AVX2, the last against bevel's. w4a8: weights of 4 bits, codes of 8.\n"
        "All results are exact; codes in and out, requantized, padding and tables or planes of the input included. int8 weights\n"
        "fit seven bits, those of one bit are -1 or 1.\n"
    )
    return head + "".join(f"\n## {name}\n{part.rstrip()}\n" for name, part in sorted(parts.items()))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--isa", choices=sorted(PROFILES), default="avx2")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[name.split()[0] for name in SHAPES], metavar="SHAPE")
    parser.add_argument("--write", action="store_true", help=f"replace the part of {RESULTS.name}")
    args = parser.parse_args()
    shapes = [name for name in SHAPES if not args.only or name.split()[0] in args.only]
    asked = json.dumps({name: vars(SHAPES[name]) for name in shapes})
    said = f"TVM {version('apache-tvm')}, onnxruntime {version('onnxruntime')}"
    capped = args.isa == "avx2"
    if capped:
        engine = ENGINES["torch"]
        python, caps = engine_python(engine), dict(engine.caps["avx2"])
        ran = implementations(python, asked, caps)
        said += f"; {engine.packages[0]} with oneDNN, which ran {', '.join(f'`{name}`' for name in ran)}"
    turns: list[dict[str, float]] = []
    peers: list[dict[str, float]] = []
    # onnxruntime has no cap: only the full instruction set is a fair match.
    gemv = [] if capped else [shape for shape in shapes if shape.startswith("1x")]
    rivals: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        names = prepare(args.isa, shapes, Path(scratch))
        for number in range(args.processes):
            if capped:
                peers.append(json.loads(turn(python, "onednn", asked, **caps)))
            turns.append(json.loads(turn(Path(sys.executable), "kernels", scratch)))
            if gemv:
                rivals.append(json.loads(turn(Path(sys.executable), "nbits", json.dumps({s: vars(SHAPES[s]) for s in gemv}))))
            print(f"turn {number + 1} of {args.processes}", file=sys.stderr, flush=True)
    lines = [
        f"{date.today().isoformat()}, {load_profile('host').description}; kernels for `{PROFILES[args.isa]}`; {args.processes} "
        f"processes, load {os.getloadavg()[0]:.1f} at the end. {said}.",
        "",
        *table(shapes, turns, peers, names),
        *(vectors(gemv, turns, rivals, names) if gemv else []),
    ]
    print("\n".join(lines))
    if args.write:
        RESULTS.write_text(replaced(args.isa, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
