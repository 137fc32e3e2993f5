"""`bevel eval`: accuracy on the device."""

from __future__ import annotations

from pathlib import Path

import click

from bevel.cli import options
from bevel.cli.output import emit, progress
from bevel.evaluation import evaluate
from bevel.report import record
from bevel.runtime.artifact import Artifact


@click.command("eval")
@options.artifact_argument
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Data set with inputs and `label` (docs/data.md).")
@click.option("--baseline", type=click.Path(path_type=Path), help="Model or artifact to compare with.")
@click.option("--limit", type=click.IntRange(1), help="Use the first N samples.")
@options.device()
@options.report
@options.universal
def command(
    artifact: Path,
    data: Path,
    baseline: Path | None,
    limit: int | None,
    device: str | None,
    report: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure top-1 accuracy of ARTIFACT on its device, and agreement with a baseline.

    \b
    bevel eval model.bevel --data test.npz
    bevel eval model.bevel --data test.npz --baseline model.onnx --device raspberry-pi-4
    """
    opened = Artifact.open(artifact)
    with options.open_transport(opened, device) as transport, progress() as say:
        result = evaluate(opened, transport, data, baseline=baseline, limit=limit, say=say)
        label = transport.label
    document = {
        "device": label,
        "metric": result.metric,
        "value": result.value,
        "n": result.n,
        "baseline": None if result.baseline is None else {"value": result.baseline},
        "agreement": result.agreement,
    }
    if report:
        record(opened, evaluation=document)
    text = [f"{result.metric} {100 * result.value:.2f} % on {result.n} samples ({label})"]
    if result.baseline is not None:
        text.append(f"baseline {100 * result.baseline:.2f} %, change {100 * (result.value - result.baseline):+.2f} points")
    if result.agreement is not None:
        text.append(f"agrees with the baseline on {100 * result.agreement:.2f} %")
    emit(as_json, document, text)
