"""Speed of one kind of layer against its bits, by device class: the figure of docs/quantization.md and its numbers.

    python -m benchmarks.low_bit.speed [--device NAME ...] [--form BITS ...] [--processes 5] [--write]
    python -m benchmarks.low_bit.speed --draw

The 3x3 convolutions of ResNet-18's layers 2 to 4, padded and requantized, at every number of bits of
benchmarks/kernels/low_bit.py and in fp32, each with the kernel that a compile chooses. x86 classes are measured here; blocks of
all kernels take turns. ARM cores are not: their kernels run under qemu, and what it executes takes the cycles that llvm-mca
gives, at the clock of the profile; layer 3 alone. --write replaces the devices' part of speed.json beside this file and draws
docs/speed_against_bits.svg; --draw only draws.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.instructions.blocks import Executed, assembler_text, tally
from benchmarks.kernels.avx2 import SHAPES
from benchmarks.kernels.low_bit import FORMS as KERNEL_FORMS
from benchmarks.kernels.low_bit import MOST_TILES, Form, problem_of, weights_of
from benchmarks.kernels.plan import GIGA, Job, turn, write_plan
from benchmarks.low_bit.chart import draw
from benchmarks.tuning.ship import machine
from bevel.backends.kernel import ConvProblem
from bevel.backends.select import choose
from bevel.compiler import Options, bind, build, prepare
from bevel.data import save_arrays
from bevel.devices.instructions import count_instructions
from bevel.devices.profile import Profile, load_profile
from bevel.ir.graph import Graph
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.plan import Bits, CompressionPlan, LayerPlan
from bevel.ir.types import F32, TensorType

RECORD = Path(__file__).with_suffix(".json")
FIGURE = Path(__file__).resolve().parents[2] / "docs" / "speed_against_bits.svg"
LAYERS = ("rn_l2 784x1152x128", "rn_l3 196x2304x256", "rn_l4 49x4608x512")
# What an emulator counts depends little on the layer, and takes its time.
COUNTED = LAYERS[1:2]
FLOAT = "fp32"
# Tables of weights are another matter.
FORMS = tuple(form for form in KERNEL_FORMS if form.title == f"w{form.weight_bits}a{form.x_bits}")
TITLES = [FLOAT, *(form.title for form in FORMS)]


@dataclass(frozen=True)
class Class:
    """A device class of the figure.

    Attributes:
        title: above its panel.
        measured: here; else by instructions and llvm-mca.
    """

    title: str
    measured: bool


CLASSES: Mapping[str, Class] = {
    "x86-64-avx2": Class("AVX2", True),
    "x86-64-avx512-vnni": Class("AVX-512 VNNI", True),
    "raspberry-pi-4": Class("Cortex-A72", False),
    "raspberry-pi-5": Class("Cortex-A76", False),
}


def float_problem(layer: str) -> ConvProblem:
    """The layer in fp32."""
    return replace(SHAPES[layer].problem, dtype="float32", out_dtype="float32", short_factors=False)


def measured(profile: Profile, processes: int, titles: Collection[str]) -> dict[str, dict[str, float]]:
    """Multiply-accumulates a second of forms, by title, and layers: of the fastest process, as others only ever slow one down."""
    target = profile.target()
    problems = {(layer, form.title): problem_of(layer, form) for layer in LAYERS for form in FORMS if form.title in titles}
    problems |= {(layer, FLOAT): float_problem(layer) for layer in LAYERS if FLOAT in titles}
    jobs: dict[str, Job] = {}
    for (layer, form), problem in problems.items():
        generator = choose(problem, target, layer).generator
        weights = weights_of(problem)
        if form == FLOAT:
            weights = np.random.default_rng(44).standard_normal(weights.shape).astype(np.float32)
        for number, tile in enumerate(generator.tiles(problem, target)[:MOST_TILES]):
            jobs[f"{layer}|{form}|{number}"] = Job(problem, generator, tile, weights)
    with tempfile.TemporaryDirectory() as folder:
        write_plan(jobs, target, Path(folder))
        turns = [json.loads(turn(Path(sys.executable), "kernels", folder)) for _ in range(processes)]
    found: dict[str, dict[str, float]] = {}
    for (layer, form), problem in problems.items():
        times = [min(s for name, s in one.items() if name.startswith(f"{layer}|{form}|")) for one in turns]
        found.setdefault(form, {})[layer] = problem.macs / min(times)
    return found


def one_layer(layer: str) -> Graph:
    """A float network of nothing but the layer."""
    shape = SHAPES[layer]
    graph, pad = Graph(layer.split()[0]), shape.k // 2
    weights = np.random.default_rng(43).normal(0.0, 0.05, (shape.oc, shape.c, shape.k, shape.k))
    x = graph.add_input("x", TensorType((1, shape.c, shape.h, shape.w), F32))
    attrs = ConvAttrs((shape.k, shape.k), pads=(pad, pad, pad, pad))
    graph.set_outputs(
        [graph.add_node("Conv", [x, graph.add_constant("w", weights.astype(np.float32))], attrs, names=["y"]).output]
    )
    return graph


def by_cycles(profile: Profile, layer: str, form: Form | None) -> float:
    """Multiply-accumulates a second of the layer's kernel by llvm-mca's cycles for what it executes; in fp32 without a form."""
    graph = one_layer(layer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = SHAPES[layer]
        images = np.random.default_rng(45).standard_normal((4, shape.c, shape.h, shape.w)).astype(np.float32)
        data = save_arrays(folder / "data.npz", {"x": images})
        options = Options(profile.name, FLOAT)
        if form is not None:
            plan = CompressionPlan(layers={"y": LayerPlan(Bits(form.weight_bits, form.x_bits))})
            options = Options(profile.name, calibration=data, samples=4, plan=plan, bias_correction=False)
        artifact = build(bind(prepare(graph, options), {}), profile, folder / "layer.bevel", options)
        report = count_instructions(artifact, profile)
    (kernel,) = (found for found in report.layers if found.macs >= SHAPES[layer].problem.macs)
    blocks = [
        Executed(tuple(map(assembler_text, b.code)), b.executions, b.symbol) for b in report.blocks if b.symbol == kernel.symbol
    ]
    cycles = tally(blocks, str(profile.qemu_cpu)).cycles
    return SHAPES[layer].problem.macs / cycles * profile.clock_ghz * GIGA


def speeds(device: str, processes: int, titles: Collection[str], before: Mapping[str, Any]) -> dict[str, Any]:
    """What the record holds of a device: how, when, and GMAC/s of every form; those not in `titles` as they were `before`."""
    profile, kind = load_profile(device), CLASSES[device]
    if kind.measured:
        found = measured(profile, processes, titles)
        how = f"measured, one thread of {machine()}"
    else:
        forms = {FLOAT: None, **{form.title: form for form in FORMS}}
        found = {title: {at: by_cycles(profile, at, form) for at in COUNTED} for title, form in forms.items() if title in titles}
        how = f"not measured: llvm-mca's cycles of what qemu executes, {profile.clock_ghz} GHz"
    layers = {form: {layer: round(value / GIGA, 2) for layer, value in by.items()} for form, by in found.items()}
    layers = {**before.get("layers", {}), **layers}
    means = {form: math.exp(sum(map(math.log, by.values())) / len(by)) for form, by in layers.items()}
    return {
        "title": kind.title,
        "how": how,
        "date": date.today().isoformat(),
        "gmacs": {form: round(value, 2) for form, value in means.items()},
        "layers": layers,
    }


def main() -> int:
    """Print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    parser.add_argument("--form", nargs="+", choices=TITLES, default=TITLES, help="leave the others as they are in the record")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"replace the devices' part of {RECORD.name} and draw the figure")
    parser.add_argument("--draw", action="store_true", help=f"draw {FIGURE.name} from {RECORD.name}")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if not args.draw:
        for device in args.device:
            record[device] = speeds(device, args.processes, args.form, record.get(device, {}))
            print(device, record[device]["how"], json.dumps(record[device]["gmacs"]), flush=True)
    if args.write:
        RECORD.write_text(json.dumps({device: record[device] for device in CLASSES if device in record}, indent=1) + "\n")
    if args.write or args.draw:
        FIGURE.write_text(draw(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
