"""Instructions that one inference executes on ARM cores, emulated: a measure of kernels that no noise touches.

    python -m benchmarks.instructions.count [--models DIR] [--device NAME ...] [--only MODEL ...] [--write | --check]

The models that ship with bevel, and every ONNX file of --models, in fp32 and int8, for each device; calibrated on noise, which
changes no kernel. Counts say nothing of what an instruction costs: they compare versions of one kernel on one core. --write
replaces counts.md and counts.json beside this file, --check compares with counts.json and fails where one grew by over 1 %.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bevel.compiler import Options, bind, build, load_graph, prepare
from bevel.data import save_arrays
from bevel.devices.instructions import count_instructions
from bevel.devices.profile import load_profile
from bevel.errors import BevelError
from bevel.ir.graph import Graph, Level

ROOT = Path(__file__).resolve().parents[2]
RESULTS, RECORD = Path(__file__).with_suffix(".md"), Path(__file__).with_suffix(".json")
DEVICES = ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "armv7-a7")
SHIPPED = ("resnet8_cifar10_float", "resnet20_cifar10", "kws_dscnn_float")
GROWTH = 0.01
SAMPLES, NOISE = 8, 0


@dataclass(frozen=True)
class Count:
    """One row.

    Attributes:
        instructions: of one inference.
        macs: multiply-accumulates of one inference.
        common: the most frequent mnemonics with their shares.
    """

    model: str
    bits: str
    device: str
    instructions: int
    macs: int
    common: str

    @property
    def key(self) -> str:
        """What a record calls it."""
        return f"{self.model} {self.bits} {self.device}"


def noise(graph: Graph) -> dict[str, Any]:
    """Samples for every input of `graph`, whose batch is 1."""
    rng = np.random.default_rng(NOISE)
    arrays = {}
    for value in graph.inputs:
        shape = value.type.static_shape
        arrays[value.name] = rng.standard_normal((SAMPLES, *shape[1:])).astype(value.type.dtype.name)
    return arrays


def count(model: Path, bits: str, device: str, folder: Path) -> Count:
    """Compile `model` for `device` and count.

    Raises:
        BevelError: it cannot be compiled, or emulated.
    """
    graph = load_graph(model)
    options = Options(device, bits=bits)
    if bits == "8" and graph.level is Level.FLOAT:
        options = Options(device, bits=bits, calibration=save_arrays(folder / f"{model.stem}.npz", noise(bind(graph, {}))))
    compiled = build(
        bind(prepare(graph, options), {}), load_profile(device), folder / f"{model.stem}-{device}-{bits}.bevel", options
    )
    found = count_instructions(compiled, load_profile(device))
    macs = sum(layer.macs for layer in found.layers if "Conv" in layer.op or "Gemm" in layer.op or "MatMul" in layer.op)
    common = ", ".join(f"{name} {100 * n / found.total:.0f} %" for name, n in list(found.opcodes.items())[:4])
    return Count(model.stem, "int8" if bits == "8" else bits, device, found.total, macs, common)


def counts(models: list[Path], devices: list[str]) -> Iterator[Count]:
    """All rows, as they are known; what cannot be counted is said."""
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            for device in devices:
                for bits in ("fp32", "8"):
                    try:
                        yield count(model, bits, device, Path(folder))
                    except BevelError as error:
                        print(f"{model.stem} {bits} {device}: {error}")


def line(row: Count) -> str:
    """A row of the table."""
    per_mac = f"{row.instructions / row.macs:.3f}"
    return f"| {row.model} | {row.bits} | {row.device} | {row.instructions:,} | {per_mac} | {row.common} |"


def main() -> int:
    """Print the table; exit 1 when --check finds growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="directory of more ONNX files")
    parser.add_argument("--only", nargs="+", help="some of the models")
    parser.add_argument("--device", nargs="+", default=list(DEVICES), help="device profiles")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name} and {RECORD.name}")
    parser.add_argument("--check", action="store_true", help=f"compare with {RECORD.name}")
    args = parser.parse_args()
    models = [ROOT / "models" / f"{name}.onnx" for name in SHIPPED] + sorted(args.models.glob("*.onnx") if args.models else [])
    head = [
        "# Instructions of one inference on ARM cores",
        "",
        f"`python -m benchmarks.instructions.count --write`, {date.today().isoformat()}, TVM {version('apache-tvm')}: executed "
        "under qemu-user, exact and repeatable. They are not time: cores execute one to four at once, some of them for several "
        "cycles.",
        "",
        "| model | precision | device | instructions | per multiply-accumulate | most frequent |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(head), flush=True)
    rows = []
    for row in counts([model for model in models if not args.only or model.stem in args.only], args.device):
        rows.append(row)
        print(line(row), flush=True)
    if args.write:
        RESULTS.write_text("\n".join([*head, *map(line, rows)]) + "\n")
        RECORD.write_text(json.dumps({row.key: row.instructions for row in rows}, indent=1) + "\n")
    grown = 0
    if args.check:
        record = json.loads(RECORD.read_text())
        for row in rows:
            before = record.get(row.key)
            if before is not None and row.instructions > (1 + GROWTH) * before:
                grown += 1
                print(f"{row.key}: {row.instructions:,} instructions, recorded are {before:,}")
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
