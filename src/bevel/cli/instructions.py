"""`bevel profile --instructions`: what one inference executes, counted under emulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from bevel.cli.output import emit, table
from bevel.devices.instructions import Block, InstructionReport, count_instructions
from bevel.devices.profile import load_profile
from bevel.report import short_name
from bevel.runtime.artifact import Artifact

_BLOCKS = 20
_OPCODES = 12


def show_instructions(artifact: Artifact, device: str | None, dims: Mapping[str, int], as_json: bool) -> None:
    """Print the instruction counts of one inference; `device` defaults to the one the artifact was compiled for.

    Raises:
        BevelError: as `count_instructions`.
    """
    profile = load_profile(device or str(artifact.manifest["target"]["name"]))
    report = count_instructions(artifact, profile, dims=dims or None)
    document = {
        "device": report.device,
        "cpu": report.cpu,
        "provenance": "emulated instruction counts",
        "inputs": report.inputs,
        "dims": report.dims,
        "total": report.total,
        "layers": [asdict(layer) for layer in report.layers],
        "functions": report.symbols,
        "opcodes": report.opcodes,
        "blocks": [_document(block) for block in report.blocks[:_BLOCKS]],
    }
    layers = [
        (
            *(short_name(layer.name), layer.op, layer.kernel.partition(":")[0], layer.bits, layer.instructions),
            100 * layer.instructions / report.total,
            layer.instructions / layer.macs if layer.macs else None,
        )
        for layer in report.layers
    ]
    title = f"{artifact.name} on {report.cpu}: emulated instruction counts of one inference, inputs: {report.inputs}"
    emit(
        as_json,
        document,
        [
            table(title, ("layer", "op", "kernel", "bits", "instructions", "%", "per MAC"), layers),
            table("operations", ("mnemonic", "instructions", "%"), _shares(report)),
            f"total {report.total:,} instructions on one thread, exact and the same every time; they say nothing about time",
        ],
    )


def _shares(report: InstructionReport) -> list[tuple[str, int, float]]:
    return [(name, count, 100 * count / report.total) for name, count in list(report.opcodes.items())[:_OPCODES]]


def _document(block: Block) -> dict[str, object]:
    return {
        "address": hex(block.address),
        "function": block.symbol,
        "executions": block.executions,
        "instructions": block.instructions,
        "code": list(block.code),
    }
