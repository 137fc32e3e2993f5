"""`bevel quantize`: quantization-aware training for few bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bevel.cli import options
from bevel.cli.export import parse_inputs
from bevel.cli.output import STDERR, emit
from bevel.compiler import Say
from bevel.errors import UsageError
from bevel.ir.plan import CompressionPlan, load_plan, parse_bits
from bevel.training.command import Request, Result, quantize_model
from bevel.training.recipe import AUGMENTATIONS, Recipe

if TYPE_CHECKING:
    from bevel.training.compare import Comparison
    from bevel.training.qat import Moment

_DEFAULTS = Recipe()


@click.command("quantize")
@click.argument("model")
@click.option("--bits", metavar="wNaM", help="Precision: weights of N (1, 1.58, 2 to 8) and activations of M (1 to 8) bits.")
@click.option(
    "--plan", type=click.Path(path_type=Path), help="Compression plan (JSON): precision layer by layer, and the stream's."
)
@click.option("--train", "data", required=True, type=click.Path(path_type=Path), help="Inputs, and `label` (docs/data.md).")
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Data to compare torch, integers and float on.")
@click.option("--limit", type=click.IntRange(1), default=2000, show_default=True, help="Samples of --eval to use at most.")
@click.option("--epochs", type=float, help=f"How often every sample is seen.  [default: {_DEFAULTS.epochs:g}]")
@click.option("--minutes", type=float, help="Processor time to train in instead; the learning rate falls to zero within it.")
@click.option("--batch", type=click.IntRange(1), default=_DEFAULTS.batch, show_default=True, help="Samples of a step.")
@click.option("--learning-rate", type=float, default=_DEFAULTS.learning_rate, show_default=True, help="Of Adam, at its highest.")
@click.option("--step-rate", type=float, default=_DEFAULTS.step_rate, show_default=True, help="Of steps, over that of weights.")
@click.option(
    "--distillation",
    type=float,
    default=_DEFAULTS.distillation,
    show_default=True,
    help="Weight of the float model's outputs in the loss; labels have the rest.",
)
@click.option(
    "--augment",
    multiple=True,
    type=click.Choice(AUGMENTATIONS),
    help="Mirror images, or move them by up to 4 pixels; repeatable.",
)
@click.option("--progressive", is_flag=True, help="Train at 4 and 3 bits on the way to fewer.")
@click.option("--exact", is_flag=True, help="Multiply in float32 instead of bfloat16 while training: slower, no rounded sums.")
@click.option("--samples", type=click.IntRange(1), default=_DEFAULTS.calibration, show_default=True, help="To calibrate on.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=SHAPE", help="An input of a torch module (docs/export.md).")
@options.dims
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint file.  [default: OUTPUT.checkpoint]")
@click.option("--every", type=click.FloatRange(1), default=60, show_default=True, help="Seconds between checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run with the same options.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Graph to write (.ir), for `bevel compile`.")
@options.threads
@options.seed
@options.universal
def command(
    model: str,
    bits: str | None,
    plan: Path | None,
    data: Path,
    evaluation: Path | None,
    limit: int,
    epochs: float | None,
    minutes: float | None,
    batch: int,
    learning_rate: float,
    step_rate: float,
    distillation: float,
    augment: tuple[str, ...],
    progressive: bool,
    exact: bool,
    samples: int,
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    checkpoint: Path | None,
    every: float,
    resume: bool,
    output: Path,
    threads: int,
    seed: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Train MODEL (.onnx, .ir, or a torch module as module:factory) to compute with few bits.

    \b
    bevel quantize resnet20.onnx --bits w2a2 --train train.npz --eval test.npz --minutes 20 -o resnet20-w2a2.ir
    bevel quantize mynet:build --input x=n[1:256],3,32,32 --bits w2a8 --train train.npz --epochs 2 -o mynet.ir
    bevel compile resnet20-w2a2.ir --device raspberry-pi-4 -o resnet20.bevel      # integers, like any other
    """
    if (bits is None) == (plan is None):
        raise UsageError("give the precision once: --bits wNaM, or --plan PLAN.json")
    recipe = Recipe(
        epochs=epochs if epochs is not None or minutes is not None else _DEFAULTS.epochs,
        minutes=minutes,
        batch=batch,
        learning_rate=learning_rate,
        step_rate=step_rate,
        distillation=distillation,
        augment=frozenset(augment),
        progressive=progressive,
        exact=exact,
        calibration=samples,
        seed=seed,
    )
    request = Request(
        model=model,
        train=data,
        output=output,
        plan=load_plan(plan) if plan is not None else CompressionPlan(bits=parse_bits(bits or "")),
        evaluation=evaluation,
        limit=limit,
        recipe=recipe,
        inputs=parse_inputs(inputs),
        dims=options.parse_dims(dims),
        checkpoint=checkpoint,
        every=every,
        resume=resume,
        threads=threads,
    )
    try:
        with _reporters() as (say, moment):
            result = quantize_model(request, say, moment)
    except KeyboardInterrupt:
        if request.checkpoint_path.is_file():
            click.echo(f"training stopped; --resume goes on from {request.checkpoint_path}", err=True)
        raise
    emit(as_json, _document(result), _text(result))


@contextmanager
def _reporters() -> Iterator[tuple[Say, Callable[[Moment], None]]]:
    """Reporters of preparation and of training: bars on a terminal, silence in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[seen]}"))
    with Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, seen: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, seen="")
            bars.update(tasks[stage], completed=done, total=total or None, seen=seen)

        def tell(now: Moment) -> None:
            top1 = "" if now.top1 is None else f", top-1 {100 * now.top1:.1f} %"
            left = "" if math.isnan(now.seconds_left) else f", {now.seconds_left / 60:.1f} min left"
            show(f"train {now.bits}", now.step, now.total, f"loss {now.loss:.3f}{top1}{left}")

        yield show, tell


def _document(result: Result) -> dict[str, object]:
    return {
        "output": str(result.output),
        "steps": result.steps,
        "loss": result.loss,
        "seconds": round(result.seconds, 3),
        "compared": None if result.compared is None else _compared(result.compared),
    }


def _compared(found: Comparison) -> dict[str, object]:
    return {
        "samples": found.samples,
        "outputs": found.outputs,
        "differing": found.differing,
        "largest": found.largest,
        "top1": found.top1,
        "top1_torch": found.top1_torch,
        "top1_float": found.top1_float,
    }


def _text(result: Result) -> list[object]:
    lines: list[object] = [f"{result.steps} steps, loss {result.loss:.3f}"]
    if (found := result.compared) is not None:
        if found.top1 is not None and found.top1_torch is not None and found.top1_float is not None:
            lines.append(
                f"top-1 {100 * found.top1:.2f} % on {found.samples} samples (in torch {100 * found.top1_torch:.2f} %, float "
                f"{100 * found.top1_float:.2f} %)"
            )
        lines.append(
            f"{found.differing} of {found.outputs} outputs differ between torch and the integer graph"
            + (f", by at most {found.largest:g} steps" if found.differing else "")
        )
    lines.append(f"wrote {result.output} in {result.seconds:.1f} s; compile it with `bevel compile {result.output} --device ...`")
    return lines
