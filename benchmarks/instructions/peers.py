"""Instructions of one inference on emulated ARM cores: other engines side by side with bevel, and cycles by llvm-mca.

    python -m benchmarks.instructions.peers [--models DIR] [--only MODEL ...] [--engines NAME ...] [--cpu cortex-a72 ...]
                                            [--bits fp32 8] [--blocks N] [--write]

Every engine's wheel for aarch64 runs under qemu-user in a Debian of its own (`arm64.py`), on the files that
`bevel.benchmarking.peers` prepares natively. What 2N calls execute less what N calls execute, divided by N, is one inference.
Counts are a proxy of time, and so are the cycles that llvm-mca gives for the executed blocks (`blocks.py`); no hardware was
measured. --write replaces peers.md beside this file; --blocks prints where the instructions are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.instructions.arm64 import made, python_command
from benchmarks.instructions.blocks import (
    MCA_CPUS,
    WEIGHED,
    Executed,
    Tally,
    added,
    assembler_text,
    disassembled,
    llvm_tool,
    tally,
)
from benchmarks.peers.models import CALIBRATION, Subject, of_folder, shipped
from bevel import __version__
from bevel.benchmarking.peers import worker
from bevel.benchmarking.peers.contest import Contestant, relative_difference
from bevel.benchmarking.peers.engines import CONTESTANTS
from bevel.benchmarking.peers.preparation import find_peers, reference_outputs
from bevel.compiler import Options, compile_model
from bevel.data import load_arrays, save_arrays
from bevel.devices.instructions import count_instructions
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.devices.tcg import count_blocks
from bevel.errors import BevelError, ToolchainError
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]
RESULTS = Path(__file__).with_suffix(".md")
MODELS = ("resnet20_cifar10", "mobilenet_v2", "efficientnet_lite0")
ENGINES = ("onnxruntime", "litert", "ncnn", "mnn")
DEVICES: Mapping[str, str] = {"cortex-a72": "raspberry-pi-4", "cortex-a76": "raspberry-pi-5"}
# N. Loading calls once and each block once more before the calls counted, so packing and the choice of algorithms are over. With
# 2 and 4 instead, onnxruntime's int8 moved by 5 %, all others by less than 0.1 %.
_CALLS = 1
# What an engine multiplies with when it uses the best the core has, and the least share of its products that must be.
BEST: Mapping[tuple[str, str], str] = {
    ("fp32", "cortex-a72"): "fmla",
    ("fp32", "cortex-a76"): "fmla",
    ("8", "cortex-a72"): "mlal",
    ("8", "cortex-a76"): "dot",
}
_LEAST_SHARE = 0.5
# As docs/peers.md says: beyond it an engine computes something else.
_TOLERANCE = {"fp32": 0.01, "8": 0.5}
_PATIENCE_S = 600
_CLASSES = {"mlal": "smlal/umlal", "dot": "sdot/udot", "mmla": "smmla", "fmla.h": "fmla of halves"}


@dataclass(frozen=True)
class Row:
    """One engine with one model on one core.

    Attributes:
        engine: name and version.
        tally: of one inference; None when the engine could not run it.
        error: max|d| / max|fp32 reference|.
        notes: why it does not count, or has no figures.
    """

    engine: str
    tally: Tally | None
    error: float
    notes: tuple[str, ...]


def kernels_note(found: Tally, bits: str, cpu: str) -> str | None:
    """Why an engine does not count: its products are not made with the best instructions of the core."""
    best, products = BEST[bits, cpu], sum(found.products.values())
    share = found.products.get(best, 0.0) / products if products else 0.0
    if share >= _LEAST_SHARE:
        return None
    return f"does not count: {100 * share:.0f} % of its products by {_CLASSES.get(best, best)}"


def bevel_row(subject: Subject, artifact: Artifact, device: str, bits: str, reference: list[Array] | None) -> Row:
    """The artifact, counted between the first call of bevel_run and the second."""
    profile = load_profile(device)
    report = count_instructions(artifact, profile)
    blocks = [Executed(tuple(map(assembler_text, b.code)), b.executions, b.symbol) for b in report.blocks]
    with resolve_transport(profile) as transport:
        codes = DeviceRunner(artifact, transport).run(subject.inputs)
    outputs = []
    for tensor in artifact.manifest["outputs"]:
        array = codes[str(tensor["name"])]
        real = (array.astype(np.float64) - tensor["zero_point"]) * tensor["scale"] if tensor.get("scale") else array
        outputs.append(np.asarray(real))
    error = relative_difference(outputs, reference) if reference is not None else float("nan")
    return _judged(f"bevel {__version__}", tally(blocks, str(profile.qemu_cpu)), error, bits, str(profile.qemu_cpu))


def peer_row(peer: Contestant, bits: str, cpu: str, reference: list[Array] | None) -> Row:
    """An engine under the emulator; counted once, because neither its wheel nor its files change."""
    engine, _ = CONTESTANTS[peer.name]
    emulator, python = python_command(engine, cpu)
    inputs = hashlib.sha256()
    for name, array in sorted(peer.inputs.items()):
        inputs.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    # The folders of prepared files and of what the emulator needs are named by their contents.
    contents = (*emulator, *python, _qemu_version(), peer.folder.name, inputs.hexdigest(), str(_CALLS))
    folder = made(f"counts-{peer.name}", contents, lambda folder: _count(peer, [*emulator], [*python], folder))
    arrays = load_arrays(folder / "outputs.npz")
    found = [np.array(arrays[f"arr_{index}"]) for index in range(len(arrays))]
    blocks = [(bytes.fromhex(code), executions) for code, executions in json.loads((folder / "blocks.json").read_text())]
    error = relative_difference(found, reference) if reference is not None else float("nan")
    return _judged(f"{engine.name} {engine.version}", tally(disassembled(blocks), cpu), error, bits, cpu)


def _count(peer: Contestant, emulator: list[str], python: list[str], folder: Path) -> None:
    """Run an engine's process once plain for its outputs, then counted with N and 2N calls."""
    argv = [*python, worker.__file__, peer.adapter]
    inputs = save_arrays(folder / "inputs.npz", peer.inputs)
    load = {"do": "load", "folder": str(peer.folder), "threads": 1, "inputs": str(inputs), "outputs": list(peer.outputs)}
    # It also leaves the compiled modules of Python behind, which the first run would otherwise make.
    done = subprocess.run(
        [*emulator, *argv], input=_lines(load, {"do": "read", "file": str(folder / "outputs.npz")}), env={}, capture_output=True,
        timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ToolchainError(f"{peer.name}: {said[-1] if said else f'ended with {done.returncode}'}")
    fewer, more = (
        count_blocks(emulator, argv, stdin=_lines(load, {"do": "block", "calls": calls}), code=True)
        for calls in (_CALLS, 2 * _CALLS)
    )
    (folder / "blocks.json").write_text(json.dumps([(code.hex(), runs) for code, runs in added(more, fewer, _CALLS)]))


def _judged(engine: str, found: Tally, error: float, bits: str, cpu: str) -> Row:
    notes = [note] if (note := kernels_note(found, bits, cpu)) else []
    if error > _TOLERANCE[bits]:
        notes.append("does not count: computes something else")
    return Row(engine, found, error, tuple(notes))


def _lines(*commands: Mapping[str, Any]) -> bytes:
    return "".join(json.dumps(command) + "\n" for command in commands).encode()


def compare(subject: Subject, bits: str, cpu: str, engines: Sequence[str], folder: Path) -> Iterator[Row]:
    """The artifact first, then every engine; what cannot run a model is a row that says why."""
    calibration = save_arrays(folder / "calibration.npz", subject.calibration)
    options = Options(DEVICES[cpu], bits, calibration if bits == "8" else None, dims=dict(subject.dims))
    artifact, _ = compile_model(subject.model, folder / f"{subject.name}-{cpu}-{bits}.bevel", options)
    reference = reference_outputs(subject.model, subject.inputs, artifact)
    yield bevel_row(subject, artifact, DEVICES[cpu], bits, reference)
    wanted = "int8" if bits == "8" else "fp32"
    for name, (engine, precision) in CONTESTANTS.items():
        if precision != wanted or engine.name not in engines:
            continue
        try:
            peers = find_peers([name], subject.model, artifact, subject.inputs, calibration)
            yield peer_row(peers[name], bits, cpu, reference)
        except (BevelError, subprocess.TimeoutExpired) as error:
            why = " ".join(str(error).split()).replace(str(subject.model.resolve()), "the model").replace("|", "/")
            said = why.removeprefix(f"--against {name}: ")[:160]
            yield Row(f"{engine.name} {engine.version}", None, float("nan"), (said,))


def line(label: str, row: Row, ours: Tally, macs: int) -> str:
    """A row of the table."""
    notes = "; ".join(row.notes)
    if row.tally is None:
        return f"| {label} | {row.engine} | - | - | - | - | - | - | - | {notes} |"
    found = row.tally
    used = ", ".join(f"{_CLASSES.get(kind, kind)} {100 * share:.0f} %" for kind, share in found.classes.items() if share >= 0.005)
    figures = f"{found.instructions / 1e6:.2f} | {found.instructions / ours.instructions:.2f}"
    cycles = f"{found.cycles / 1e6:.2f} | {found.cycles / ours.cycles:.2f}"
    products = f"{sum(found.products.values()) / macs:.2f}"
    return f"| {label} | {row.engine} | {figures} | {cycles} | {used} | {products} | {row.error:.2g} | {notes} |"


def standing(label: str, rows: Sequence[Row]) -> str:
    """How bevel compares with the best engine that counts: its figure over the engine's, in instructions and in cycles."""
    ours, peers = rows[0].tally, [row for row in rows[1:] if row.tally is not None and not row.notes]
    if ours is None or not peers:
        return f"| {label} | - | - |"
    least = min(peers, key=lambda row: row.tally.instructions if row.tally else 0.0)
    fastest = min(peers, key=lambda row: row.tally.cycles if row.tally else 0.0)
    assert least.tally is not None
    assert fastest.tally is not None
    first = f"{ours.instructions / least.tally.instructions:.2f} ({least.engine.split()[0]})"
    return f"| {label} | {first} | {ours.cycles / fastest.tally.cycles:.2f} ({fastest.engine.split()[0]}) |"


def hottest(row: Row, count: int) -> Iterator[str]:
    """The blocks with most instructions."""
    if row.tally is None:
        return
    for block, cycles in list(zip(row.tally.blocks, row.tally.block_cycles, strict=False))[:count]:
        of_all, of_cycles = block.instructions / row.tally.instructions, block.executions * cycles / row.tally.cycles
        share = f"{100 * of_all:5.1f} % {100 * of_cycles:5.1f} %"
        common = ", ".join(f"{name} {n}" for name, n in Counter(text.split()[0] for text in block.code).most_common(6))
        yield f"    {share} of cycles; {block.executions:9.0f} x {len(block.code):3} in {cycles:6.1f}: {common} {block.place}"


def _qemu_version() -> str:
    said = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].replace("qemu-aarch64", "qemu-user")


def heading() -> list[str]:
    """What was counted and how."""
    mca = " and ".join(sorted(set(MCA_CPUS.values())))
    return [
        "# Instructions of one inference on ARM cores, side by side",
        "",
        f"{date.today().isoformat()}, bevel {__version__}, {_qemu_version()}, {Path(llvm_tool('llvm-mca')).name} ({mca}).",
        "**No hardware was measured: instruction counts are a proxy, and so are the cycles.** Counts are exact for what runs; "
        f"cycles are llvm-mca's for the blocks that make at least {100 * WEIGHED:.0f} % of the instructions, each as a loop of "
        "its own with all loads in the first-level cache, the rest in proportion.",
        "One thread, batch 1; counted is what the process's first thread executes. int8 is each engine's own quantization of the "
        f"same model on the same {CALIBRATION} samples, prepared natively; engines are their wheels for aarch64.",
        "Ratio = its figure / bevel's: above 1, bevel executes less. Products = multiplications executed / multiply-accumulates "
        "of the model: below 1 by Winograd's or Strassen's algorithm. Error = max|d| / max|fp32 reference|.",
        "`python -m benchmarks.instructions.peers --models DIR --write`; docs/peers.md says how engines are run.",
        "",
    ]


def main() -> int:
    """Count, print the table as it grows, write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, help="folder of further ONNX files")
    parser.add_argument("--only", nargs="+", default=list(MODELS), help="names of models")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--cpu", nargs="+", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--bits", nargs="+", default=["fp32", "8"], choices=["fp32", "8"])
    parser.add_argument("--blocks", type=int, default=0, help="print so many blocks of each engine")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    columns = ["M instructions", "ratio", "M cycles", "ratio", "multiplying instructions", "products", "error", "notes"]
    lines = ["| model, precision, core | engine | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    print("\n".join(lines), flush=True)
    summary = []
    with tempfile.TemporaryDirectory(prefix="bevel-instructions-") as scratch:
        for subject in chain(shipped(), of_folder(args.models, args.only) if args.models else ()):
            if subject.name not in args.only:
                continue
            for bits in args.bits:
                for cpu in args.cpu:
                    label = f"{subject.name} {'int8' if bits == '8' else bits} {cpu}"
                    rows: list[Row] = []
                    for row in compare(subject, bits, cpu, args.engines, Path(scratch)):
                        rows.append(row)
                        ours = rows[0].tally
                        assert ours is not None
                        lines.append(line(label, row, ours, _macs(Path(scratch) / f"{subject.name}-{cpu}-{bits}.bevel")))
                        print("\n".join([lines[-1], *hottest(row, args.blocks)]), flush=True)
                    summary.append(standing(label, rows))
    best = ["bevel / the best engine that counts; at most 1.00 means that none needs less.", ""]
    best += ["| model, precision, core | instructions | cycles |", "|---|---|---|", *summary]
    print("\n".join(best))
    if args.write:
        RESULTS.write_text("\n".join([*heading(), *best, "", *lines]) + "\n")
    return 0


def _macs(artifact: Path) -> int:
    return sum(int(layer["macs"]) for layer in Artifact.open(artifact).manifest["layers"])


if __name__ == "__main__":
    raise SystemExit(main())
