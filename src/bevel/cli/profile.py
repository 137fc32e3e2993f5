"""`bevel profile`: where the time goes."""

from __future__ import annotations

from pathlib import Path

import click

from bevel.cli import options
from bevel.cli.instructions import show_instructions
from bevel.cli.output import emit, table
from bevel.devices.runner import DeviceRunner
from bevel.report import short_name
from bevel.runtime.artifact import Artifact


@click.command("profile")
@options.artifact_argument
@options.device()
@options.threads
@click.option("--runs", type=click.IntRange(1), default=200, show_default=True, help="Timed runs.")
@click.option("--instructions", is_flag=True, help="Count instructions under emulation instead: exact, and no time.")
@options.dims
@options.universal
def command(
    artifact: Path,
    device: str | None,
    threads: int,
    runs: int,
    instructions: bool,
    dims: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Time every layer of ARTIFACT on its device.

    \b
    bevel profile model.bevel
    bevel profile model.bevel --device raspberry-pi-4 --json
    bevel profile model.bevel --device raspberry-pi-4 --instructions
    """
    opened = Artifact.open(artifact)
    if instructions:
        show_instructions(opened, device, options.parse_extents(dims), as_json)
        return
    extents = opened.extents(options.parse_extents(dims))
    with options.open_transport(opened, device) as transport:
        answer = DeviceRunner(opened, transport, threads).profile(runs=10 if transport.emulated else runs, dims=extents)
        label, emulated = transport.label, transport.emulated
    total = sum(layer["ns"]["median"] for layer in answer["layers"]) or 1
    layers = [
        {
            "name": layer["name"],
            "op": layer["op"],
            "kernel": layer["kernel"].partition(":")[0],
            "bits": layer["bits"],
            "macs": layer["macs"],
            "ms": layer["ns"]["median"] / 1e6,
            "share": layer["ns"]["median"] / total,
        }
        for layer in answer["layers"]
    ]
    document = {
        "device": label,
        "provenance": "emulated" if emulated else "measured",
        "dims": extents,
        "threads": threads,
        "total_ms": total / 1e6,
        "layers": layers,
    }
    rows = []
    for layer in layers:
        rate = layer["macs"] / max(layer["ms"], 1e-9) / 1e6
        named = (short_name(layer["name"]), layer["op"], layer["kernel"], layer["bits"])
        rows.append((*named, layer["ms"] * 1e3, 100 * layer["share"], rate))
    note = "emulated: shares and order only, times mean nothing" if emulated else "median of per-layer timers"
    emit(
        as_json,
        document,
        [
            table(
                ", ".join([f"{opened.name} on {label}", *(f"{d} = {n}" for d, n in extents.items())]),
                ("layer", "op", "kernel", "bits", "us", "%", "GMAC/s"),
                rows,
            ),
            f"total {total / 1e3:.1f} us; {note}",
        ],
    )
