"""`bevel profile`: where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bevel.benchmarking.protocol import LOCK_WAIT_S, session_facts, session_plan
from bevel.cli import options
from bevel.cli.instructions import show_instructions
from bevel.cli.output import emit, table
from bevel.compiler import load_graph
from bevel.devices.conditions import Sample, fingerprint, sample
from bevel.devices.cost import Roofline, predict_layers, take_prediction
from bevel.devices.measurements import LayerTime
from bevel.devices.profile import load_profile
from bevel.devices.runner import DeviceRunner
from bevel.devices.store import Store
from bevel.errors import UsageError
from bevel.report import record, short_name
from bevel.runtime.artifact import Artifact


@click.command("profile")
@options.artifact_argument
@options.device()
@options.threads
@click.option("--runs", type=click.IntRange(1), default=200, show_default=True, help="Timed runs.")
@click.option("--instructions", is_flag=True, help="Count instructions under emulation instead: exact, and no time.")
@options.dims
@options.report
@options.universal
def command(
    artifact: Path,
    device: str | None,
    threads: int,
    runs: int,
    instructions: bool,
    dims: tuple[str, ...],
    report: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Time every layer of ARTIFACT on its device, beside what the cost model predicts.

    Timers are sparse, so that they take at most 1 % of the time, and the layers add up to the whole run (docs/measuring.md).

    \b
    bevel profile model.bevel
    bevel profile model.bevel --device raspberry-pi-4 --json
    bevel profile model.bevel --device raspberry-pi-4 --instructions
    """
    opened = Artifact.open(artifact)
    if instructions:
        if threads != 1:
            raise UsageError("--instructions counts what one thread executes; leave out --threads")
        show_instructions(opened, device, options.parse_extents(dims), as_json)
        return
    extents = opened.extents(options.parse_extents(dims))
    profile = load_profile(device or str(opened.manifest["target"]["name"]))
    with options.open_transport(opened, device) as transport:
        runner = DeviceRunner(opened, transport, threads)
        with transport.lock(f"profile of {opened.name}", LOCK_WAIT_S, lambda line: click.echo(line, err=True)):
            found = sample(transport)
            answer = runner.profile(runs=10 if transport.emulated else runs, dims=extents)
        layers = _layers(answer, opened, predict_layers(load_graph(opened.path), Roofline(profile)))
        if not transport.emulated:
            _keep(runner, profile.name, found, {"runs": runs, "dims": extents}, layers)
        label, emulated = transport.label, transport.emulated
    total, whole = sum(layer.ns for layer in layers) or 1.0, float(answer["whole_ns"])
    document = {
        "device": label,
        "provenance": "emulated" if emulated else "measured",
        "dims": extents,
        "threads": threads,
        "total_ms": total / 1e6,
        "whole_ms": whole / 1e6,
        "timer_overhead": answer["overhead"],
        "clock_ns": answer["clock_ns"],
        "predicted_ms": sum(layer.predicted_ns or 0.0 for layer in layers) / 1e6,
        "conditions": session_facts(found),
        "layers": [_document(layer, total) for layer in layers],
    }
    if report:
        record(opened, profile=document)
    rows = []
    for layer in layers:
        named = (short_name(layer.name), layer.op, layer.kernel.partition(":")[0], layer.bits)
        predicted = layer.predicted_ns / 1e3 if layer.predicted_ns is not None else None
        rows.append((*named, layer.ns / 1e3, 100 * layer.ns / total, predicted, layer.macs / max(layer.ns, 1e-3)))
    note = (
        "emulated: shares and order only, times mean nothing" if emulated else "predictions are static, good to a factor of two"
    )
    sums = f"sum of layers {total / 1e3:.1f} us, whole run {whole / 1e3:.1f} us ({100 * total / max(whole, 1.0):.1f} %)"
    emit(
        as_json,
        document,
        [
            table(
                ", ".join([f"{opened.name} on {label}", *(f"{d} = {n}" for d, n in extents.items())]),
                ("layer", "op", "kernel", "bits", "us", "%", "predicted us", "GMAC/s"),
                rows,
            ),
            f"{sums}; timers took {100 * answer['overhead']:.2f} % of the profiled runs; {note}",
        ],
    )


def _layers(answer: Mapping[str, Any], artifact: Artifact, predicted_ms: Mapping[str, float]) -> list[LayerTime]:
    """Layers of a profile with their predictions. The mean of the middle half is what adds up to the whole."""
    found = []
    left = dict(predicted_ms)
    for step, (layer, described) in enumerate(zip(answer["layers"], artifact.manifest["layers"], strict=True)):
        # The first step of a layer stands for all of it; copies that layouts need have no prediction of their own.
        ms = take_prediction(left, described)
        predicted = None if ms is None else ms * 1e6
        named = (step, layer["name"], layer["op"], layer["kernel"], layer["bits"], layer["macs"], layer["bytes"])
        found.append(LayerTime(*named, float(layer["ns"]["mean"]), predicted))
    return found


def _keep(runner: DeviceRunner, device: str, found: Sample, settings: Mapping[str, Any], layers: Sequence[LayerTime]) -> None:
    """Put the profile into the store."""
    with Store.open() as store:
        row = store.device(fingerprint(runner.transport, device, found))
        session = store.begin(session_plan(runner, row, "profile", settings), session_facts(found))
        store.finish_profile(session, layers)


def _document(layer: LayerTime, total: float) -> dict[str, Any]:
    return {
        "name": layer.name,
        "op": layer.op,
        "kernel": layer.kernel.partition(":")[0],
        "bits": layer.bits,
        "macs": layer.macs,
        "ms": layer.ns / 1e6,
        "share": layer.ns / total,
        "predicted_ms": layer.predicted_ns / 1e6 if layer.predicted_ns is not None else None,
    }
