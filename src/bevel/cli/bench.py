"""`bevel bench`: latency on the device, alone or against peers."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from bevel.benchmarking.host import PROCESSES, Contest, find_peers, measure_host
from bevel.benchmarking.statistics import MOST_DISTURBED, UNSTABLE, Latency, summarize
from bevel.cli import options
from bevel.cli.output import emit, progress, table
from bevel.compiler import Say
from bevel.data import open_data
from bevel.devices.local import LocalTransport
from bevel.devices.runner import DeviceRunner
from bevel.devices.transport import Transport
from bevel.errors import UsageError
from bevel.evaluation import artifact_inputs
from bevel.frontend.onnx_file import read_onnx
from bevel.runtime.artifact import Artifact

# Emulated runs prove the road, not the speed: a few suffice.
_EMULATED = (1, 1, 3)


@click.command("bench")
@options.artifact_argument
@options.device()
@options.threads
@options.seed
@click.option(
    "--against", metavar="PEER[,PEER]", default="", help="Measure peers in the same run: onnxruntime, onnxruntime-int8."
)
@click.option("--model", type=click.Path(path_type=Path), help="Model file for the peers.")
@click.option("--calib", type=click.Path(path_type=Path), help="Calibration data for onnxruntime-int8.")
@click.option("--processes", type=click.IntRange(1), default=PROCESSES, show_default=True, help="Measuring processes.")
@click.option("--runs", type=click.IntRange(1), default=200, show_default=True, help="Timed runs per process on a device.")
@options.dims
@options.universal
def command(
    artifact: Path,
    device: str | None,
    threads: int,
    seed: int,
    against: str,
    model: Path | None,
    calib: Path | None,
    processes: int,
    runs: int,
    dims: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure the latency of ARTIFACT on its device.

    Several processes are measured and the interval is taken over them. On this machine peers run interleaved with the artifact in
    the same process, with the same inputs bound once.

    \b
    bevel bench model.bevel
    bevel bench model.bevel --against onnxruntime --model model.onnx
    bevel bench model.bevel --device raspberry-pi-4
    bevel bench text.bevel --dim seq=32   # a size of an artifact compiled with --dim seq=1:256; without it the largest
    """
    opened = Artifact.open(artifact)
    extents = opened.extents(options.parse_extents(dims))
    names = list(dict.fromkeys(name.strip() for name in against.split(",") if name.strip()))
    with options.open_transport(opened, device) as transport, progress() as say:
        label, emulated = transport.label, transport.emulated
        if isinstance(transport, LocalTransport) and not emulated:
            contest = _on_host(opened, names, model, calib, threads, seed, processes, extents, say)
        elif names:
            raise UsageError(f"--against: peers are measured on this machine only, and the artifact runs on {label}")
        else:
            contest = Contest(_on_device(opened, transport, threads, processes, runs, extents, say), {}, {})
    latency = contest.ours
    document: dict[str, Any] = {
        "artifact": str(opened.path),
        "device": label,
        "latency_ms": latency.document(),
        "dims": extents,
        "threads": threads,
        "provenance": "emulated" if emulated else "measured",
        "unstable": latency.unstable,
        "disturbed": latency.disturbed,
        "peers": {name: {"latency_ms": peer.document(), "ratio": contest.ratios[name]} for name, peer in contest.peers.items()},
    }
    rows: list[tuple[object, ...]] = [("bevel", latency.median, latency.p10, latency.cpu, _interval(latency), None)]
    rows += [(name, p.median, p.p10, p.cpu, _interval(p), contest.ratios[name]) for name, p in contest.peers.items()]
    text: list[object] = [
        table(
            ", ".join(
                [
                    f"{opened.name} on {label}",
                    f"{threads} thread{'s' * (threads > 1)}",
                    *(f"{d} = {n}" for d, n in extents.items()),
                ]
            ),
            ("", "median ms", "p10 ms", "CPU ms", "95 % interval", "peer / bevel"),
            rows,
        )
    ]
    if emulated:
        text.append("emulated: these times say nothing about the device's speed")
    elif latency.unstable:
        busy = latency.disturbed > MOST_DISTURBED
        why = (
            f"other programs disturbed {100 * latency.disturbed:.0f} %"
            if busy
            else f"processes disagree by over {100 * UNSTABLE:.0f} %"
        )
        text.append(f"unstable: {why}; close other programs and measure again. Ratios suffer less: contestants are interleaved")
    emit(as_json, document, text)


def _interval(latency: Latency) -> str:
    return f"{latency.ci95[0]:.4g} to {latency.ci95[1]:.4g}"


def bench_inputs(
    artifact: Artifact, model: Path | None, calibration: Path | None, seed: int, dims: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Inputs every contestant takes: the first calibration sample, else noise in the type of the model's inputs.

    `dims` are the extents of the noise.

    Raises:
        UsageError: model or data do not fit the artifact.
    """
    shapes = artifact.input_shapes(dims)
    dtypes = {str(tensor["name"]): np.dtype(tensor["dtype"]) for tensor in artifact.manifest["inputs"]}
    if model is not None:
        dtypes |= _model_dtypes(model, shapes.keys())
    if calibration is not None:
        sample = open_data(calibration, artifact_inputs(artifact)).sample(0)
        for name, array in sample.items():
            if model is not None and array.dtype != dtypes[name]:
                raise UsageError(f"{calibration}: {name!r} is {array.dtype}, {model} takes {dtypes[name]}")
        return sample
    rng = np.random.default_rng(seed)
    # 0 and 1 are valid in any index, mask or table of a model.
    noise = {n: rng.uniform(-1, 1, s) if dtypes[n].kind == "f" else rng.integers(0, 2, s) for n, s in shapes.items()}
    return {name: array.astype(dtypes[name]) for name, array in noise.items()}


def _model_dtypes(model: Path, names: Collection[str]) -> dict[str, np.dtype[Any]]:
    """Input dtypes of an ONNX file, whose inputs must be called `names`."""
    dtypes = {str(value.name): value.dtype.numpy() for value in read_onnx(model).model.graph.inputs if value.dtype is not None}
    if dtypes.keys() != set(names):
        raise UsageError(f"--model {model}: its inputs are {sorted(dtypes)}, the artifact's {sorted(names)}; give its own model")
    return dtypes


def _on_host(
    artifact: Artifact,
    names: list[str],
    model: Path | None,
    calib: Path | None,
    threads: int,
    seed: int,
    processes: int,
    dims: Mapping[str, int],
    say: Say,
) -> Contest:
    inputs = bench_inputs(artifact, model, calib, seed, dims)
    with tempfile.TemporaryDirectory(prefix="bevel-peers-") as folder:
        peers = find_peers(names, model, artifact, inputs, calib, Path(folder))
        return measure_host(artifact, inputs, peers, threads=threads, processes=processes, say=say)


def _on_device(
    artifact: Artifact, transport: Transport, threads: int, processes: int, runs: int, dims: Mapping[str, int], say: Say
) -> Latency:
    runner = DeviceRunner(artifact, transport, threads)
    if transport.emulated:
        processes, warmup, runs = _EMULATED
    else:
        warmup = max(10, runs // 10)
    samples = []
    for done in range(processes):
        answer = runner.bench(warmup=warmup, runs=runs, dims=dims)
        samples.append([ns / 1e6 for ns in answer["samples_ns"]])
        say("measure", done + 1, processes)
    return summarize(samples)
