"""Kernels to time: compiled into one library, packed constants and inputs beside it, for `turn.py` in a process of its own.

In: problems with the generator and tile that compute them. Out: a folder that `turn.py kernels FOLDER` reads. And how contestants
run: turns of `turn.py`, and hand-written kernels of a program of one's own.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Generator, Tile
from bevel.backends.tvm import compile_object
from bevel.benchmarking.peers.environment import clean_environ
from bevel.ir.protocols import Target

HERE = Path(__file__).parent
GIGA = 1e9


@dataclass(frozen=True)
class Job:
    """A kernel with the weights it gets.

    Attributes:
        problem: float32, or codes to codes; activations are random.
        generator, tile: what computes it.
        weights: [oc, c, kh, kw].
    """

    problem: ConvProblem
    generator: Generator
    tile: Tile
    weights: Array


def write_plan(jobs: Mapping[str, Job], target: Target, folder: Path) -> None:
    """Compile and pack all jobs, by name, into `folder`."""
    functions, plan = {}, {}
    for number, (name, job) in enumerate(jobs.items()):
        p = job.problem
        x, constants = data(job)
        packed = job.generator.pack(p, job.tile, target, constants)
        files = []
        for index, array in enumerate((x, *packed)):
            files.append(f"{number}.{index}")
            np.ascontiguousarray(array).tofile(folder / files[-1])
        symbol = f"k{number}"
        functions[symbol] = job.generator.emit(p, job.tile, target, symbol)
        plan[name] = {
            "symbol": symbol,
            "inputs": files,
            "output_bytes": p.oh * p.ow * p.oc * np.dtype(p.out_dtype).itemsize,
            "scratch_bytes": job.generator.scratch_bytes(p, job.tile),
            "extent": job.generator.parallel_extent(p, job.tile),
        }
    (folder / "kernels.o").write_bytes(compile_object(functions, target))
    (folder / "repeat.c").write_text("#include <stdint.h>\n" + "".join(_repeat(entry) for entry in plan.values()))
    parts = [str(folder / name) for name in ("repeat.c", "kernels.o")]
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-nostdlib", "-o", str(folder / "kernels.so"), *parts], check=True)
    (folder / "plan.json").write_text(json.dumps(plan))


def _repeat(entry: Mapping[str, Any]) -> str:
    """A C function that calls a kernel over and over: a call from Python takes as long as a small kernel."""
    symbol, last = entry["symbol"], len(entry["inputs"]) + 1
    types = ", ".join(["void *"] * last + ["int32_t", "int32_t", "void *"])
    values = ", ".join([*(f"p[{i}]" for i in range(last)), "0", "extent", f"p[{last}]"])
    return (
        f"int32_t {symbol}({types});\nvoid repeat_{symbol}(void **p, int32_t extent, int32_t times)\n"
        f"{{ while (times-- > 0) {symbol}({values}); }}\n"
    )


def data(job: Job) -> tuple[Array, ConvConstants]:
    """Random activations, and constants that spread results over the codes there are."""
    p, rng = job.problem, np.random.default_rng(42)
    elements = p.h * p.w * p.c
    if p.dtype == "float32":
        bias = rng.standard_normal(p.oc).astype(np.float32)
        return rng.standard_normal(elements).astype(np.float32), ConvConstants(job.weights, bias)
    shift = 36 + round(math.log2(p.c * p.kh * p.kw) / 2)
    factors = np.full(p.oc, 1 << 30, np.int64), np.full(p.oc, shift, np.int64)
    bias = rng.integers(-1000, 1000, p.oc).astype(np.int32)
    x = rng.integers(0, 256, elements).astype(np.uint8)
    return x, ConvConstants(job.weights, bias, *factors, 128, 128, 0, 255)


def turn(python: Path, kind: str, argument: str, **environ: str) -> str:
    """Output of one process of a contestant."""
    command = [str(python), str(HERE / "turn.py"), kind, argument]
    done = subprocess.run(command, env=clean_environ() | environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:3])} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return done.stdout


def hand_written(program: str, kernel: str, shape: str) -> float:
    """Multiply-accumulates a second of the best kernel whose name begins so.

    `PROGRAM KERNEL SHAPE` prints lines of JSON with the keys shape, kern, gmacs and ok for kernels and shapes whose names contain
    these.

    Raises:
        SystemExit: it fails, knows no such kernel, or one of them computes something else.
    """
    done = subprocess.run([program, kernel, shape], capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    answers = [answer for answer in answers if answer["kern"].startswith(kernel) and answer["shape"] == shape]
    if done.returncode != 0 or not answers or not all(answer["ok"] for answer in answers):
        raise SystemExit(f"{program} {kernel} {shape} ({done.returncode}): {done.stdout[-300:]} {done.stderr[-300:]}")
    return max(float(answer["gmacs"]) for answer in answers) * GIGA


def spread(values: Sequence[float]) -> str:
    """Median (least-greatest), or a dash."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"
