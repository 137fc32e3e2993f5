"""Everything behind `bevel quantize`: a model file or torch module and data in, an .ir file of integers and a report out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bevel.compiler import Say, load_graph
from bevel.data import inputs_of, open_data
from bevel.errors import UsageError
from bevel.exporting.extra import require
from bevel.exporting.torch_export import ExportOptions, export_model
from bevel.ir.graph import Graph, Level
from bevel.ir.plan import CompressionPlan
from bevel.ir.serialize import save_graph
from bevel.passes.canonicalize import CANONICAL
from bevel.passes.pipeline import run_passes
from bevel.passes.quantize.to_integer import ToInteger
from bevel.training.recipe import Recipe
from bevel.training.samples import require_batches

if TYPE_CHECKING:
    from bevel.training.compare import Comparison
    from bevel.training.qat import Moment


@dataclass(frozen=True)
class Request:
    """What to train, and where to leave it.

    Attributes:
        model: an .onnx or .ir file, or what `bevel export` takes.
        train: training data with labels; without, the float model teaches alone.
        output: .ir file to write.
        plan: precision.
        evaluation: data that the result is compared on; None for no comparison.
        limit: samples of it at most.
        recipe: how to train.
        inputs: of a torch module, as `bevel export` takes them.
        dims: extents of symbolic dimensions other than the batch.
        checkpoint: file; None for one beside `output`.
        every: seconds between checkpoints.
        resume: go on from the checkpoint.
        threads: of torch.
    """

    model: str
    train: Path
    output: Path
    plan: CompressionPlan
    evaluation: Path | None = None
    limit: int = 2000
    recipe: Recipe = field(default_factory=Recipe)
    inputs: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)
    checkpoint: Path | None = None
    every: float = 60.0
    resume: bool = False
    threads: int = 1

    @property
    def checkpoint_path(self) -> Path:
        """Where checkpoints go."""
        return self.checkpoint or self.output.with_name(f"{self.output.name}.checkpoint")


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        output: the .ir file.
        steps: of training.
        loss: running mean at the end.
        seconds: from beginning to end.
        compared: on the evaluation data; None without.
    """

    output: Path
    steps: int
    loss: float
    seconds: float
    compared: Comparison | None


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Progress for callers that show none."""


def quantize_model(request: Request, say: Say = _silent, moment: Callable[[Moment], None] | None = None) -> Result:
    """Train a model and write it as a graph of integers.

    Args:
        request: what, and how.
        say: progress of everything but training.
        moment: called after every step of training.

    Raises:
        UsageError: files, data, options or the checkpoint do not fit.
        InvalidPlan: the plan does not fit the model, or asks for what is not trained.
        UnsupportedModel: the model cannot be read, trained through, or turned into integers.
        ToolchainError: torch is missing.
    """
    begun = time.monotonic()
    require("torch", "training")
    request.recipe.check()
    if request.output.suffix != ".ir":
        raise UsageError(f"{request.output}: name the output .ir, which is how `bevel compile` knows a saved graph")
    if not request.output.parent.is_dir():
        raise UsageError(f"{request.output}: {request.output.parent} is not a directory; create it, or choose another place")
    import torch

    from bevel.training.compare import compare
    from bevel.training.qat import Watch, require_resumable, train

    watch = Watch(
        moment=moment,
        passes=lambda stage, done: say(stage, done, 0),
        checkpoint=request.checkpoint_path,
        every=request.every,
        resume=request.resume,
    )
    require_resumable(watch)
    torch.set_num_threads(request.threads)
    graph = _loaded(request, say)
    data = require_batches(open_data(request.train, inputs_of(graph)), request.recipe.augment)
    held = None if request.evaluation is None else require_batches(open_data(request.evaluation, inputs_of(graph)))
    trained = train(graph, request.plan, data, request.recipe, watch)
    integer = run_passes(trained.graph, (ToInteger(),))
    save_graph(integer, request.output)
    request.checkpoint_path.unlink(missing_ok=True)
    compared = None if held is None else compare(trained.net, integer, graph, held, request.limit, say)
    return Result(request.output, trained.steps, trained.loss, time.monotonic() - begun, compared)


def _loaded(request: Request, say: Say) -> Graph:
    """The model as a canonical FLOAT graph.

    Raises:
        UsageError: it is quantized already.
    """
    path = Path(request.model)
    if path.exists() and path.suffix in (".onnx", ".ir"):
        graph = load_graph(path, request.dims or None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            export_model(request.model, file, ExportOptions(inputs=dict(request.inputs), seed=request.recipe.seed), say)
            graph = load_graph(file, request.dims or None)
    if graph.level is not Level.FLOAT:
        raise UsageError(f"{request.model} is quantized already; train the float model")
    return run_passes(graph, CANONICAL)
