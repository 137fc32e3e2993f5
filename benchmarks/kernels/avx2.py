"""int8 kernels for AVX2 beside oneDNN held to AVX2, on nine shapes: four convolutions of ResNet-18, 1x1 ones, GEMM and GEMV.

    python -m benchmarks.kernels.avx2 [--processes 5] [--only SHAPE ...] [--write]

A fresh process of every contestant in turn, one thread each; ratios are taken within a turn. torch is installed in an environment
of its own when first needed. --write replaces avx2.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.kernels.plan import GIGA, HERE, Job, turn, write_plan
from bevel.backends.kernel import Array, ConvProblem, Generator, Tile
from bevel.backends.kernels.int16_sums import are_light
from bevel.backends.select import choose
from bevel.backends.x86.conv_int8_madd import CONV_INT8_AVX2
from bevel.benchmarking.peers.engines import ENGINES
from bevel.benchmarking.peers.preparation import engine_python
from bevel.devices.profile import load_profile

RESULTS = HERE / "avx2.md"
PEER = "oneDNN"
# Codes of weights that fit seven bits, and of all.
SEVEN, EIGHT = 63, 127


@dataclass(frozen=True)
class Shape:
    """A convolution with stride 1 that keeps the size of its image; a GEMM is one of 1x1 on an image of one row."""

    h: int
    w: int
    c: int
    oc: int
    k: int = 1

    @property
    def problem(self) -> ConvProblem:
        """uint8 to uint8, requantized with short factors as most layers are."""
        n = self.k // 2
        geometry = ConvProblem(
            1, self.h, self.w, self.c, self.oc, self.k, self.k, pad_top=n, pad_left=n, pad_bottom=n, pad_right=n
        )
        return replace(geometry, dtype="uint8", out_dtype="uint8", short_factors=True)


SHAPES = {
    "rn_l1 3136x576x64": Shape(56, 56, 64, 64, 3),
    "rn_l2 784x1152x128": Shape(28, 28, 128, 128, 3),
    "rn_l3 196x2304x256": Shape(14, 14, 256, 256, 3),
    "rn_l4 49x4608x512": Shape(7, 7, 512, 512, 3),
    "mb_b 196x384x96": Shape(14, 14, 384, 96),
    "mb_c 49x960x320": Shape(7, 7, 960, 320),
    "16x768x768": Shape(1, 16, 768, 768),
    "1x2048x2048": Shape(1, 1, 2048, 2048),
    "1x4096x4096": Shape(1, 1, 4096, 4096),
}


@dataclass(frozen=True)
class Form:
    """Weights, and how the kernel for them is found.

    Attributes:
        title: in the table.
        limit: largest weight code of a channel.
        uniform: whether all sizes are as frequent; else normal, the largest of each channel at the limit, as trained layers are.
        generator: what computes; None leaves it to the compiler.
    """

    title: str
    limit: int
    uniform: bool
    generator: Generator | None = None


FORMS = {
    "pmaddwd": Form("8 bits, pmaddwd only", EIGHT, False, CONV_INT8_AVX2),
    "uniform": Form("8 bits, uniform weights", EIGHT, True),
    "normal": Form("8 bits, normal weights", EIGHT, False),
    "seven": Form("7 bits, normal weights", SEVEN, False),
}


def weights_of(problem: ConvProblem, form: Form) -> Array:
    """int8 weights [oc, c, kh, kw] of a form."""
    rng = np.random.default_rng(41)
    shape = (problem.oc, problem.c, problem.kh, problem.kw)
    if form.uniform:
        return rng.integers(-form.limit, form.limit + 1, shape).astype(np.int8)
    values = rng.standard_normal(shape)
    codes: Array = np.round(values / np.abs(values).max(axis=(1, 2, 3), keepdims=True) * form.limit).astype(np.int8)
    return codes


def prepare(form: Form, shapes: Iterable[str], folder: Path) -> dict[str, str]:
    """Compile and pack one form of every shape into `folder`; the kernel of each shape."""
    target = load_profile("x86-64-avx2").target()
    jobs: dict[str, Job] = {}
    names: dict[str, str] = {}
    for name in shapes:
        problem = SHAPES[name].problem
        weights = weights_of(problem, form)
        problem = replace(problem, light_weights=are_light(weights))
        generator: Generator
        tile: Tile
        if form.generator is None:
            choice = choose(problem, target, name)
            generator, tile = choice.generator, choice.tile
        else:
            generator, tile = form.generator, form.generator.tiles(problem, target)[0]
        jobs[name] = Job(problem, generator, tile, weights)
        names[name] = f"{generator.name} {tile['mr']}x{tile['nv']}"
    write_plan(jobs, target, folder)
    return names


def implementations(python: Path, shapes: str, caps: dict[str, str]) -> list[str]:
    """The kernels that oneDNN says it runs.

    Raises:
        SystemExit: one of them is beyond AVX2, or none is named: the figures would mean nothing.
    """
    said = turn(python, "onednn", shapes, **caps, ONEDNN_VERBOSE="1")
    isa = re.search(r"info,cpu,isa:(.*)", said)
    found = sorted(set(re.findall(r"primitive,exec,cpu,(?:convolution|matmul|inner_product),([^,]+),", said)))
    if isa is None or isa[1].strip() != "Intel AVX2" or not found or any("avx512" in name or "vnni" in name for name in found):
        raise SystemExit(
            f"oneDNN is not held to AVX2: it says {isa[1] if isa else 'nothing'} and runs {', '.join(found) or 'nothing'}"
        )
    return found


def table(shapes: Sequence[str], turns: Sequence[dict[str, dict[str, float]]], names: dict[str, dict[str, str]]) -> list[str]:
    """Markdown: medians over the turns, ratios within them."""
    lines = ["| M x K x N | " + " | ".join([f"{PEER} GMAC/s", *(f"{form.title} | ratio" for form in FORMS.values())]) + " |"]
    lines.append("|---" * (2 + 2 * len(FORMS)) + "|")
    logs: dict[str, list[list[float]]] = {form: [[] for _ in turns] for form in FORMS}
    for shape in shapes:
        macs = SHAPES[shape].problem.macs
        cells = [shape, f"{macs / median(t[PEER][shape] for t in turns) / GIGA:.1f}"]
        for form in FORMS:
            ratios = [t[PEER][shape] / t[form][shape] for t in turns]
            for log, ratio in zip(logs[form], ratios, strict=True):
                log.append(math.log(ratio))
            speed = macs / median(t[form][shape] for t in turns) / GIGA
            cells += [f"{speed:.1f}", f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"]
        lines.append("| " + " | ".join(cells) + " |")
    cells = ["geometric mean", ""]
    for form in FORMS:
        means = [math.exp(sum(log) / len(log)) for log in logs[form]]
        cells += ["", f"**{median(means):.2f}** ({min(means):.2f}-{max(means):.2f})"]
    lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| M x K x N | " + " | ".join(form.title for form in FORMS.values()) + " |", "|---" * (1 + len(FORMS)) + "|"]
    lines += ["| " + " | ".join([shape, *(f"`{names[form][shape]}`" for form in FORMS)]) + " |" for shape in shapes]
    return lines


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[name.split()[0] for name in SHAPES], metavar="SHAPE")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    shapes = [name for name in SHAPES if not args.only or name.split()[0] in args.only]
    asked = json.dumps({name: vars(SHAPES[name]) for name in shapes})
    engine = ENGINES["torch"]
    python, caps = engine_python(engine), dict(engine.caps["avx2"])
    ran = implementations(python, asked, caps)
    turns: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {form: Path(scratch) / form for form in FORMS}
        names = {}
        for form, folder in folders.items():
            folder.mkdir()
            names[form] = prepare(FORMS[form], shapes, folder)
        for number in range(args.processes):
            found = {PEER: json.loads(turn(python, "onednn", asked, **caps))}
            found |= {form: json.loads(turn(Path(sys.executable), "kernels", str(folder))) for form, folder in folders.items()}
            turns.append(found)
            print(f"turn {number + 1} of {args.processes}", file=sys.stderr, flush=True)
    lines = [
        "# int8 kernels for AVX2 beside oneDNN held to AVX2",
        "",
        f"{date.today().isoformat()}, {load_profile('host').description}; one thread, {args.processes} processes of each in "
        f"turn, load {os.getloadavg()[0]:.1f} at the end.",
        f"TVM {version('apache-tvm')}; {engine.packages[0]} with oneDNN, which ran {', '.join(f'`{name}`' for name in ran)}.",
        "`python -m benchmarks.kernels.avx2 --write`. Speeds are medians; ratio = oneDNN's time / bevel's within a turn, median "
        "(least-greatest): above 1, bevel is faster. uint8 codes in and out, requantized, per-channel weights.",
        "Kernels are those that a compile for `x86-64-avx2` chooses. Every form is exact; oneDNN's is not with weights of eight "
        "bits: sums of two products saturate in 16 bits.",
        "",
        *table(shapes, turns, names),
    ]
    print("\n".join(lines))
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
