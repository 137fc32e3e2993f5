"""Kernels for weights of one to four bits beside int8 kernels of others and bevel's own, on the shapes of `avx2.py`.

    python -m benchmarks.kernels.low_bit [--isa avx2|avx512] [--reference PROGRAM] [--processes 5] [--only SHAPE ...] [--write]

Of every number of bits the kernel that a compile chooses, with the fastest of its tiles, all in one process whose blocks take
turns; contestants in processes of their own beside each: oneDNN, held to AVX2, and QNNPACK, whose x86 kernels are SSE2; with the
full instruction set onnxruntime's MatMulNBits for matrix-vector products; and hand-written kernels of the same bits, where
there is a PROGRAM (see `plan.hand_written`). One thread. --write replaces the ISA's part of low_bit.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.kernels.avx2 import PEER, SHAPES, implementations
from benchmarks.kernels.plan import GIGA, HERE, Job, hand_written, spread, turn, write_plan
from bevel.backends.kernel import Array, ConvProblem
from bevel.backends.select import choose
from bevel.backends.x86.conv_products import CONV_PRODUCTS_AVX2, CONV_PRODUCTS_AVX512
from bevel.benchmarking.peers.engines import ENGINES
from bevel.benchmarking.peers.preparation import engine_python
from bevel.devices.profile import load_profile

RESULTS = HERE / "low_bit.md"
# Tiles of a kernel that are timed, the statically best first.
MOST_TILES = 2


@dataclass(frozen=True)
class Form:
    """Bits of weights, activations and, where weights come from a table, indices of it.

    Weights of 8 bits are such that the fastest int8 kernel takes them: they fit seven.
    """

    weight_bits: int
    x_bits: int
    index_bits: int = 0

    @property
    def title(self) -> str:
        """As in plans."""
        return f"w{self.index_bits}a{self.x_bits}, table" if self.index_bits else f"w{self.weight_bits}a{self.x_bits}"


INT8 = Form(8, 8)
W2A2 = Form(2, 2)
FORMS = (INT8, Form(4, 8), Form(8, 8, 4), Form(4, 4), Form(2, 8), W2A2, Form(1, 8), Form(1, 2), Form(1, 1))
Names = dict[tuple[str, str], list[str]]
"""Jobs of a shape and a form, by their names."""
Times = dict[tuple[str, str], list[float]]
"""Seconds of a shape and a form in every turn."""
QNNPACK, NBITS, REFERENCE = "QNNPACK", "MatMulNBits", "C prototypes"
# bevel's own, which no compile chooses.
PRODUCTS = "tables of products"
PRODUCT_KERNELS = {"avx2": CONV_PRODUCTS_AVX2, "avx512": CONV_PRODUCTS_AVX512}
PROFILES = {"avx2": "x86-64-avx2", "avx512": "x86-64-avx512-vpopcntdq"}
# How names of the kernels of a reference program begin that compute with as many bits, and its names of shapes that differ.
HAND_WRITTEN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "avx2": {
        "w8a8": ("a2_int8_maddubs",),
        "w4a8": ("a2_w4a8",),
        "w2a8": ("a2_w2a8", "a2_tmac_w2a8"),
        "w2a2": ("a2_w2a2", "a2_tmac_w2a2", "a2_bitserial_w2a2"),
        "w1a8": ("a2_tmac_w1a8",),
        "w1a2": ("a2_tmac_w1a2", "a2_bitserial_w1a2"),
        "w1a1": ("a2_bitserial_w1a1",),
    },
    "avx512": {
        "w8a8": ("vnni_int8",),
        "w4a8": ("vnni_w4a8",),
        "w2a8": ("vnni_w2a8", "z_tmac_w2a8"),
        "w2a2": ("z_tmac_w2a2", "z_tmac6_vpermb_w2a2", "z_bitserial_w2a2"),
        "w1a8": ("z_tmac_w1a8",),
        "w1a2": ("z_tmac_w1a2", "z_tmac6_vpermb_w1a2", "z_bitserial_w1a2"),
        "w1a1": ("z_bitserial_w1a1",),
    },
}
REFERENCE_SHAPES = {"16x768x768": "tf_16_768", "1x2048x2048": "tf_1_2k", "1x4096x4096": "llm_1"}


def problem_of(shape: str, form: Form) -> ConvProblem:
    """A shape with codes of few bits."""
    problem = replace(SHAPES[shape].problem, light_weights=True)
    return replace(problem, weight_bits=form.weight_bits, x_bits=form.x_bits, index_bits=form.index_bits)


def weights_of(problem: ConvProblem) -> Array:
    """int8 weights [oc, c, kh, kw]."""
    rng = np.random.default_rng(43)
    shape = (problem.oc, problem.c, problem.kh, problem.kw)
    if problem.weight_bits == 1:
        return rng.choice(np.array([-1, 1], np.int8), shape)
    # Seven bits of eight.
    half = 64 if problem.weight_bits == INT8.weight_bits else 1 << (problem.weight_bits - 1)
    if problem.index_bits:
        return rng.choice(rng.permutation(np.arange(-half, half))[: 1 << problem.index_bits].astype(np.int8), shape)
    return rng.integers(-half, half, shape).astype(np.int8)


def prepare(isa: str, shapes: Sequence[str], folder: Path) -> Names:
    """Compile every form of every shape into `folder`; the kernels of each, by the name of their job."""
    target = load_profile(PROFILES[isa]).target()
    jobs: dict[str, Job] = {}
    names: Names = {}
    for shape in shapes:
        for form in FORMS:
            problem = problem_of(shape, form)
            for title, generator in ((form.title, choose(problem, target, shape).generator), (PRODUCTS, PRODUCT_KERNELS[isa])):
                if title == PRODUCTS and (form != W2A2 or generator.legal(problem, target) is not None):
                    continue
                for tile in generator.tiles(problem, target)[:MOST_TILES]:
                    name = f"{shape} {form.title} {generator.name} {tile['mr']}x{tile['nv']} {tile['unroll']}"
                    jobs[name] = Job(problem, generator, tile, weights_of(problem))
                    names.setdefault((shape, title), []).append(name)
    write_plan(jobs, target, folder)
    return names


def speeds(shapes: Sequence[str], peers: Mapping[str, Times], mine: Times) -> list[str]:
    """Markdown: GMAC/s, medians over the turns; of peers those that compute with 8 bits."""
    shown = {title: peers[title] for title in (PEER, QNNPACK) if title in peers}
    lines = ["| M x K x N | " + " | ".join([*shown, *(form.title for form in FORMS)]) + " |"]
    lines.append("|---" * (1 + len(shown) + len(FORMS)) + "|")
    for shape in shapes:
        times = [*(of[shape, INT8.title] for of in shown.values()), *(mine[shape, form.title] for form in FORMS)]
        cells = [f"{SHAPES[shape].problem.macs / median(of) / GIGA:.0f}" for of in times]
        lines.append("| " + " | ".join([shape, *cells]) + " |")
    return lines


def ratios(title: str, shapes: Sequence[str], theirs: Times, mine: Times) -> list[str]:
    """Markdown: times of a peer over bevel's within turns, where both have some."""
    forms = [form.title for form in FORMS if any((shape, form.title) in theirs for shape in shapes)]
    lines = ["", f"| {title} / bevel | " + " | ".join(forms) + " |", "|---" * (1 + len(forms)) + "|"]
    logs: dict[str, list[list[float]]] = {form: [] for form in forms}
    for shape in shapes:
        cells = []
        for form in forms:
            found = [b / a for a, b in zip(mine[shape, form], theirs.get((shape, form), ()), strict=False)]
            cells.append(spread(found))
            # Matrix-vector products are bound by memory.
            if found and not shape.startswith("1x"):
                logs[form].append([math.log(ratio) for ratio in found])
        if set(cells) != {"-"}:
            lines.append("| " + " | ".join([shape, *cells]) + " |")
    if any(logs.values()):
        means = [[math.exp(sum(of) / len(of)) for of in zip(*logs[form], strict=True)] for form in forms]
        lines.append("| " + " | ".join(["geometric mean without GEMV", *(f"**{spread(mean)}**" for mean in means)]) + " |")
    return lines


def chosen(shapes: Sequence[str], turns: Sequence[dict[str, float]], names: Names) -> list[str]:
    """Markdown: the kernel and tile of every form."""
    lines = ["", "| M x K x N | " + " | ".join(form.title for form in FORMS) + " |", "|---" * (1 + len(FORMS)) + "|"]
    for shape in shapes:
        fastest = [min(names[shape, form.title], key=lambda name: min(t[name] for t in turns)) for form in FORMS]
        cells = [
            " ".join(name.removeprefix(f"{shape} {form.title} ").split()[:2]) for name, form in zip(fastest, FORMS, strict=True)
        ]
        lines.append("| " + " | ".join([shape, *(f"`{cell.removeprefix('x86_conv_')}`" for cell in cells)]) + " |")
    return lines


def reference(program: str, isa: str, shapes: Sequence[str]) -> dict[tuple[str, str], float]:
    """Seconds of the fastest hand-written kernels."""
    found = {}
    for shape in shapes:
        name = REFERENCE_SHAPES.get(shape, shape.split()[0])
        for form, kernels in HAND_WRITTEN[isa].items():
            found[shape, form] = SHAPES[shape].problem.macs / max(hand_written(program, kernel, name) for kernel in kernels)
    return found


def replaced(isa: str, lines: Sequence[str]) -> str:
    """The text of low_bit.md with the part about `isa` replaced."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    parts[isa] = "\n".join(["", *lines, ""])
    head = (
        "# Kernels for weights of one to four bits\n\n"
        "`python -m benchmarks.kernels.low_bit --isa ISA --reference PROGRAM --write`. One thread; GMAC/s, medians over\n"
        "processes, then times of others over bevel's within a turn, median (least-greatest): above 1, bevel is faster. w4a8:\n"
        "weights of 4 bits, codes of 8. All results are exact; codes in and out, requantized, padding and tables or planes of\n"
        "the input included. int8 weights fit seven bits, those of one bit are -1 or 1, of a table 16 values of seven bits.\n"
        f"Calls repeat one just made, so weights are where caches hold them. torch's int8 kernels: {PEER} is held to AVX2,\n"
        f"{QNNPACK} has SSE2; as convolution or as matrix product, whichever is faster. {REFERENCE}: the fastest of as many\n"
        "bits in C intrinsics, products of matrices that leave int32 sums.\n"
    )
    return head + "".join(f"\n## {name}\n{part.rstrip()}\n" for name, part in sorted(parts.items()))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--isa", choices=sorted(PROFILES), default="avx2")
    parser.add_argument("--reference", metavar="PROGRAM", help="hand-written kernels to compare with")
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
    # onnxruntime has no cap: only the full instruction set is a fair match.
    gemv = [] if capped else [shape for shape in shapes if shape.startswith("1x")]
    turns: list[dict[str, float]] = []
    mine: Times = {}
    peers: dict[str, Times] = {}

    def log(title: str, shape: str, form: str, seconds: float) -> None:
        peers.setdefault(title, {}).setdefault((shape, form), []).append(seconds)

    with tempfile.TemporaryDirectory() as scratch:
        names = prepare(args.isa, shapes, Path(scratch))
        for number in range(args.processes):
            for title, kind in ((PEER, "onednn"), (QNNPACK, "qnnpack")) if capped else ():
                found = json.loads(turn(python, kind, asked, **caps))
                for shape in shapes:
                    for form in FORMS:
                        log(title, shape, form.title, found[shape])
            turns.append(json.loads(turn(Path(sys.executable), "kernels", scratch)))
            for (shape, title), of in names.items():
                mine.setdefault((shape, title), []).append(min(turns[-1][name] for name in of))
            for shape in shapes:
                for form in FORMS[1:]:
                    log("bevel's int8", shape, form.title, mine[shape, INT8.title][-1])
                if (shape, PRODUCTS) in names:
                    log(f"bevel's {PRODUCTS}", shape, W2A2.title, mine[shape, PRODUCTS][-1])
            if gemv:
                found = json.loads(turn(Path(sys.executable), "nbits", json.dumps({s: vars(SHAPES[s]) for s in gemv})))
                for shape in gemv:
                    for bits in (4, 2):
                        log(NBITS, shape, f"w{bits}a8", found[f"{shape} {bits}"])
            if args.reference:
                for (shape, title), seconds in reference(args.reference, args.isa, shapes).items():
                    log(REFERENCE, shape, title, seconds)
            print(f"turn {number + 1} of {args.processes}", file=sys.stderr, flush=True)
    lines = [
        f"{date.today().isoformat()}, {load_profile('host').description}; kernels for `{PROFILES[args.isa]}`; {args.processes} "
        f"processes, load {os.getloadavg()[0]:.1f} at the end. {said}.",
        "",
        *speeds(shapes, peers, mine),
        *(line for title, theirs in peers.items() for line in ratios(title, shapes, theirs, mine)),
        *chosen(shapes, turns, names),
    ]
    print("\n".join(lines))
    if args.write:
        RESULTS.write_text(replaced(args.isa, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
