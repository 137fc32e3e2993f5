"""`bevel export`: a torch or transformers model becomes an ONNX file that is proven to compute the same."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from bevel.cli import options
from bevel.cli.output import emit, kib, progress
from bevel.errors import UsageError
from bevel.exporting.inputs import Bounds
from bevel.exporting.torch_export import EXPORTERS, OPSET, TOLERANCE, Exported, ExportOptions, export_model
from bevel.exporting.transformers_export import TASKS


@click.command("export")
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="ONNX file to write.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=SHAPE[:TYPE]", help="An input (docs/export.md); repeatable.")
@click.option("--dim", "dims", multiple=True, metavar="NAME=LO:HI", help="Bounds of a named dimension; repeatable.")
@click.option("--outputs", metavar="NAME,...", help="Names of the outputs, in order.  [default: the model's own]")
@click.option("--data", type=click.Path(path_type=Path), help="Inputs to prove parity on besides random ones (docs/data.md).")
@click.option("--samples", type=click.IntRange(1), default=32, show_default=True, help="Samples of --data to use at most.")
@click.option("--tolerance", type=click.FloatRange(0), default=TOLERANCE, show_default=True, help="Of max|d|/max|reference|.")
@click.option("--task", metavar="TASK", help=f"Head of a transformers model: {', '.join(TASKS)}.")
@click.option("--class", "head", metavar="NAME", help="Head of a transformers model, by the name of its class.")
@click.option("--random-weights", is_flag=True, help="Draw weights that a transformers directory lacks.")
@click.option("--exporter", type=click.Choice(EXPORTERS), default="dynamo", show_default=True, help="Which of torch's exporters.")
@click.option("--opset", type=click.IntRange(11, 23), default=OPSET, show_default=True, help="ONNX operator set.")
@options.seed
@options.universal
def command(
    source: str,
    output: Path,
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    outputs: str | None,
    data: Path | None,
    samples: int,
    tolerance: float,
    task: str | None,
    head: str | None,
    random_weights: bool,
    exporter: str,
    opset: int,
    seed: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Export SOURCE (module:factory, a .pt2 file, a transformers config.json or directory) to ONNX, proving parity.

    \b
    bevel export mynet:build --input x=1,3,224,224 -o net.onnx
    bevel export mynet:build --input ids=1,seq[1:256]:int64[0:30522] --data sentences.npz -o net.onnx
    bevel export program.pt2 -o net.onnx
    bevel export ./my-bert --task text-classification --dim seq=1:128 -o bert.onnx
    """
    chosen = ExportOptions(
        inputs=parse_inputs(inputs),
        dims=_parse_bounds(dims),
        data=data,
        samples=samples,
        outputs=tuple(name.strip() for name in outputs.split(",")) if outputs else (),
        task=task,
        head=head,
        random_weights=random_weights,
        exporter=exporter,
        opset=opset,
        tolerance=tolerance,
        seed=seed,
    )
    with progress() as say:
        exported = export_model(source, output, chosen, say)
    emit(as_json, _document(exported), _text(exported))


def parse_inputs(pairs: tuple[str, ...]) -> dict[str, str]:
    """`NAME=SHAPE` pairs of --input.

    Raises:
        UsageError: not of that form, or a name twice.
    """
    inputs: dict[str, str] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise UsageError(f"--input {pair}: expected NAME=SHAPE, for example --input x=1,3,224,224")
        if name in inputs:
            raise UsageError(f"--input {name} is given twice")
        inputs[name] = text
    return inputs


def _parse_bounds(pairs: tuple[str, ...]) -> dict[str, Bounds]:
    bounds: dict[str, Bounds] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        low, colon, high = text.partition(":")
        if not separator or not colon or not low.isdecimal() or not high.isdecimal() or not 1 <= int(low) <= int(high):
            raise UsageError(f"--dim {pair}: expected NAME=LO:HI with 1 <= LO <= HI, for example --dim seq=1:256")
        bounds[name] = (int(low), int(high))
    return bounds


def _document(exported: Exported) -> dict[str, object]:
    proof = exported.proof
    return {
        "model": str(exported.path),
        "bytes": exported.path.stat().st_size,
        "exporter": exported.exporter,
        "opset": exported.opset,
        "inputs": [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in exported.inputs],
        "outputs": list(exported.outputs),
        "dims": {name: list(bounds) for name, bounds in exported.dims.items()},
        "parity": {"cases": proof.cases, "error": proof.error, "worst": proof.worst, "tolerance": proof.tolerance},
        "seconds": round(exported.seconds, 3),
    }


def _text(exported: Exported) -> list[object]:
    proof = exported.proof
    inputs = ", ".join(f"{s.name} {s.dtype}[{', '.join(map(str, s.shape))}]" for s in exported.inputs)
    bounds = "".join(f", {name} {low} to {high}" for name, (low, high) in exported.dims.items())
    lines = [
        f"wrote {exported.path} ({kib(exported.path.stat().st_size)}, opset {exported.opset}) in {exported.seconds:.1f} s",
        f"inputs: {inputs}{bounds}; outputs: {', '.join(exported.outputs)}",
        f"parity: {proof.cases} cases, max|d|/max|reference| {proof.error:.2g} at {proof.worst} (allowed {proof.tolerance:g})",
    ]
    # Shapes in brackets are no markup.
    return [Text(line) for line in lines]
