"""Matrix products beside what this core can do at most, and beside hand-written C where there is some.

    python -m benchmarks.kernels.limits [--reference PROGRAM] [--processes 5] [--only SHAPE ...] [--write]

A fresh process of every contestant in turn, one thread each. The limit is the fastest loop of the multiplying instruction on
registers alone, measured in every turn. PROGRAM is called as `PROGRAM KERNEL SHAPE`, with names of HAND_WRITTEN, and prints lines
of JSON with the keys shape, kern, gmacs and ok. --write replaces limits.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.kernels.plan import GIGA, HERE, Job, hand_written, spread, turn, write_plan
from bevel.backends.kernel import ConvProblem
from bevel.backends.select import choose
from bevel.devices.conditions import choose_cpus, sample
from bevel.devices.microbenchmark import Program
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport

RESULTS = HERE / "limits.md"
# M, K, N.
SHAPES = {
    "rn_l1": (3136, 576, 64),
    "rn_l2": (784, 1152, 128),
    "rn_l3": (196, 2304, 256),
    "rn_l4": (49, 4608, 512),
    "mb_b": (196, 384, 96),
    "mb_c": (49, 960, 320),
    "tf_16_768": (16, 768, 768),
}


@dataclass(frozen=True)
class Kind:
    """A class of kernels.

    Attributes:
        title: in the table.
        device: profile that chooses the kernel.
        dtype: "float32" or "uint8".
        instruction: whose loop on registers is the limit, as `bevel devices probe` names it.
        hand_written: kernel of the reference program; empty where there is none.
    """

    title: str
    device: str
    dtype: str
    instruction: str
    hand_written: str = ""

    def problems(self, shape: str) -> list[ConvProblem]:
        """The matrix product of a shape; of codes with requantization, and as the prototypes do, without."""
        m, k, n = SHAPES[shape]
        problem = ConvProblem(1, 1, m, k, n, dtype=self.dtype, out_dtype=self.dtype)
        if self.dtype == "float32":
            return [problem]
        codes = replace(problem, short_factors=True, light_weights=True)
        return [codes, replace(codes, short_factors=False, out_dtype="int32")]


KINDS = (
    Kind("float32, AVX-512", "x86-64-avx512-vnni", "float32", "vfmadd231ps zmm"),
    Kind("float32, AVX2", "x86-64-avx2", "float32", "vfmadd231ps ymm"),
    Kind("int8, AMX", "x86-64-amx", "uint8", "tdpbusd", "amx_int8"),
    Kind("int8, VNNI", "x86-64-avx512-vnni", "uint8", "vpdpbusd zmm", "vnni_int8"),
    Kind("int8, AVX2", "x86-64-avx2", "uint8", "vpmaddwd, vpaddd ymm", "a2_int8_maddubs_w7"),
)


def prepare(kind: Kind, shapes: Sequence[str], folder: Path) -> None:
    """Compile one kind of every shape into `folder`."""
    target = load_profile(kind.device).target()
    rng = np.random.default_rng(41)
    jobs = {}
    for shape in shapes:
        for problem in kind.problems(shape):
            weights = rng.standard_normal((problem.oc, problem.c, 1, 1)).astype(np.float32)
            if kind.dtype != "float32":
                weights = np.round(weights / np.abs(weights).max(axis=1, keepdims=True) * 63).astype(np.int8)
            choice = choose(problem, target, shape)
            jobs[f"{shape} {problem.out_dtype}"] = Job(problem, choice.generator, choice.tile, weights)
    folder.mkdir()
    write_plan(jobs, target, folder)


def peaks() -> dict[str, float]:
    """1e9 multiply-accumulates a second of loops on registers, by instruction."""
    profile = load_profile("host")
    with resolve_transport(profile) as transport:
        (cpu,) = choose_cpus(sample(transport).cpus, 1)
        measured = Program.install(transport).measure(cpu, profile.caches, profile.memory_mib * 1024)
    return {rate.instruction: rate.value for rate in measured.rates}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", metavar="PROGRAM", help="hand-written kernels to compare with")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    speeds: dict[tuple[str, str, str], list[tuple[float, float, float | None]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {kind.title: Path(scratch) / str(index) for index, kind in enumerate(KINDS)}
        for kind in KINDS:
            prepare(kind, args.only, folders[kind.title])
        for number in range(args.processes):
            limits = peaks()
            for kind in KINDS:
                seconds = json.loads(turn(Path(sys.executable), "kernels", str(folders[kind.title])))
                compared = args.reference and kind.hand_written
                written = {shape: hand_written(args.reference, kind.hand_written, shape) for shape in args.only if compared}
                for shape in args.only:
                    for problem in kind.problems(shape):
                        speed = problem.macs / seconds[f"{shape} {problem.out_dtype}"] / GIGA
                        row = (speed, speed / limits[kind.instruction], speed * GIGA / written[shape] if written else None)
                        speeds.setdefault((kind.title, shape, problem.out_dtype), []).append(row)
            print(f"turn {number + 1} of {args.processes}", file=sys.stderr, flush=True)
    lines = [
        "# Matrix products beside their limits",
        "",
        f"{date.today().isoformat()}, {load_profile('host').description}; one thread, {args.processes} processes of each in "
        f"turn, load {os.getloadavg()[0]:.1f} at the end. TVM {version('apache-tvm')}.",
        "`python -m benchmarks.kernels.limits --write`. Medians (least-greatest) over the turns; share = speed over that of the "
        "instruction on registers alone; over C = over a prototype in C intrinsics of the same product, which leaves int32 sums.",
        "",
        "| kernels | limit | M x K x N | result | GMAC/s | share of the limit | over C |",
        "|---|---|---|---|---|---|---|",
    ]
    for (title, shape, result), rows in speeds.items():
        limit = next(kind.instruction for kind in KINDS if kind.title == title)
        product = "x".join(map(str, SHAPES[shape]))
        cells = [title, limit, f"{shape} {product}", result, f"{median(row[0] for row in rows):.1f}"]
        shares = [row[1] for row in rows], [row[2] for row in rows if row[2] is not None]
        lines.append("| " + " | ".join([*cells, *map(spread, shares)]) + " |")
    print("\n".join(lines))
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
