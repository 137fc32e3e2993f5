"""Quantization-aware training: the loop.

In: a canonical FLOAT graph, a plan, labelled data, a recipe. Out: an ANNOTATED graph whose weights, biases and step sizes were
trained, ready for `ToInteger`. Each stage starts from calibration and GPTQ, which leaves little to recover, and trains with Adam,
the rate falling to zero on a cosine; the loss weighs labels against the float graph's outputs (Hinton et al. 2015,
"Distilling the Knowledge in a Neural Network").

Imports torch; callers import this file when it is used.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bevel.data import DataSet
from bevel.errors import CheckFailed, UsageError
from bevel.ir import serialize
from bevel.ir.graph import Graph
from bevel.ir.plan import CompressionPlan
from bevel.passes.pipeline import Pass, run_passes
from bevel.passes.quantize.calibrate import Calibrate
from bevel.passes.quantize.gptq import Gptq
from bevel.passes.quantize.observe import Progress, samples_per_batch
from bevel.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bevel.training.fake_quant import FakeQuantNet, with_weights
from bevel.training.recipe import Recipe, Stage, lowest_codes, stages
from bevel.training.samples import Shuffled
from bevel.training.torch_graph import FloatNet

Array = npt.NDArray[Any]

# Steps over which the rate rises; with a budget of minutes, the cost of a step is measured on those after the first SETTLING.
RISING = 16
SETTLING = 4
# Weight of a step in the running means of loss and top-1.
_RECENT = 0.05
# Least probability that a quantized Softmax tells apart, halved: its logarithm stands for less.
_LEAST_PROBABILITY = 2.0**-9


@dataclass(frozen=True)
class Moment:
    """Where training stands.

    Attributes:
        stage: number of the stage, from 0.
        bits: of the stage.
        step: steps done in all.
        total: steps to be done in all.
        loss: running mean.
        top1: running mean over training batches, 0 to 1; None without labels.
        seconds_left: at the present speed.
    """

    stage: int
    bits: str
    step: int
    total: int
    loss: float
    top1: float | None
    seconds_left: float


@dataclass(frozen=True)
class Watch:
    """Who is told of progress, and where checkpoints go.

    Attributes:
        moment: called after every step.
        prepared: called with the ANNOTATED graph that each stage starts from.
        passes: progress of calibration and GPTQ.
        checkpoint: file to write to every `every` seconds and when interrupted; None for none.
        every: seconds.
        resume: go on from the checkpoint.
    """

    moment: Callable[[Moment], None] | None = None
    prepared: Callable[[Graph], None] | None = None
    passes: Progress | None = None
    checkpoint: Path | None = None
    every: float = 60.0
    resume: bool = False


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        graph: ANNOTATED.
        net: what computed it.
        steps: that were done.
        loss: running mean at the end.
        seconds: this run took.
    """

    graph: Graph
    net: FakeQuantNet
    steps: int
    loss: float
    seconds: float


def start(graph: Graph, plan: CompressionPlan, data: DataSet, samples: int, progress: Progress | None = None) -> Graph:
    """The ANNOTATED graph that training starts from: calibrated, and rounded by GPTQ below 8 bits."""
    batches = data.batches(samples_per_batch(graph), samples)
    calibrate = Calibrate(
        plan.calibration,
        str(plan.bits),
        plan.stream,
        plan.granularity,
        plan.scales,
        plan.levels,
        data=batches,
        layers=plan.layers,
        progress=progress,
    )
    passes: list[Pass] = [calibrate, Gptq(graph, plan, batches, progress=progress)]
    return run_passes(graph, passes)


def train(graph: Graph, plan: CompressionPlan, data: DataSet, recipe: Recipe, watch: Watch | None = None) -> Trained:
    """Train `graph` at the precision of `plan`.

    Args:
        graph: canonical FLOAT graph, its leading dimension symbolic.
        plan: precision.
        data: what `require_batches` let pass.
        recipe: how.
        watch: who is told.

    Raises:
        UsageError: the recipe or the checkpoint does not fit.
        InvalidPlan: the plan asks for what is not trained.
        UnsupportedOp: an operator has no differentiable form.
        CheckFailed: the loss became NaN or infinite.
    """
    recipe.check()
    plan.validate(graph)
    return _Training(graph, plan, data, recipe, watch or Watch()).run()


@dataclass
class _Training:
    """One run: what is fixed, and where it stands."""

    graph: Graph
    plan: CompressionPlan
    data: DataSet
    recipe: Recipe
    watch: Watch
    done: int = 0
    totals: list[int] = field(default_factory=list)
    loss: float = math.nan
    top1: float | None = None
    updating: bool = False

    def __post_init__(self) -> None:
        self.stages = stages(self.plan, self.recipe.progressive)
        _require_classes(self.graph, self.data)
        self.shuffled = Shuffled(self.data, self.recipe.batch, self.recipe.seed, self.recipe.augment)
        self.product = torch.float32 if self.recipe.exact else torch.bfloat16
        self.teacher = FloatNet(self.graph, self.product)
        self.softmax = [v.producer is not None and v.producer.op == "Softmax" for v in self.graph.outputs]
        if self.recipe.epochs is not None:
            steps = max(1, round(self.recipe.epochs * self.shuffled.per_epoch))
            self.totals = _shared(steps, self.stages)

    def run(self) -> Trained:
        """Train through all stages."""
        self.begun = self.saved = time.monotonic()
        self.begun_processor = time.process_time()
        source, stage, state = self.graph, 0, None
        if self.watch.resume:
            assert self.watch.checkpoint is not None
            state = load_checkpoint(self.watch.checkpoint, self._identity())
            stage, self.done, self.totals = state.stage, state.done, list(state.totals)
            self.loss, self.top1 = state.loss, state.top1
        while True:
            if state is not None:
                annotated = serialize.loads(state.graph, f"checkpoint {self.watch.checkpoint}: graph")
            else:
                plan = replace(self.stages[stage].plan, model="")
                annotated = start(source, plan, self.data, self.recipe.calibration, self.watch.passes)
            if self.watch.prepared is not None:
                self.watch.prepared(annotated)
            net = FakeQuantNet(annotated, source, lowest_codes(self.stages[stage].plan, annotated))
            self._stage(stage, net, annotated, state)
            state, stage = None, stage + 1
            if stage == len(self.stages):
                return Trained(net.annotated(), net, self.done, self.loss, time.monotonic() - self.begun)
            source = with_weights(self.graph, net.real_weights())

    def _stage(self, stage: int, net: FakeQuantNet, annotated: Graph, state: Checkpoint | None) -> None:
        """Train `net` through one stage."""
        steps = {id(p) for p in net.steps}
        others = [p for p in net.parameters() if p.requires_grad and id(p) not in steps]
        optimizer = torch.optim.Adam(
            [{"params": others, "share": 1.0}, {"params": net.steps, "share": self.recipe.step_rate}], self.recipe.learning_rate
        )
        first = sum(self.totals[:stage])
        if state is not None:
            net.load_state_dict(state.net)
            optimizer.load_state_dict(state.optimizer)
        measured: list[float] = []
        processor: list[float] = []
        net.dtype = self.product
        try:
            while not self.totals or self.done < first + self.totals[stage]:
                begun, begun_processor = time.monotonic(), time.process_time()
                self._step(stage, self.done - first, net, optimizer)
                measured.append(time.monotonic() - begun)
                processor.append(time.process_time() - begun_processor)
                if not self.totals and len(processor) == RISING:
                    self.totals = self._affordable(float(np.mean(processor[SETTLING:])))
                self._tell(stage, measured)
                if time.monotonic() - self.saved >= self.watch.every:
                    self._save(stage, net, annotated, optimizer)
        except (KeyboardInterrupt, SystemExit):
            # Half an update is no state to go on from: the last checkpoint is.
            if not self.updating:
                self._save(stage, net, annotated, optimizer)
            raise
        finally:
            net.dtype = torch.float32

    def _step(self, stage: int, step: int, net: FakeQuantNet, optimizer: torch.optim.Optimizer) -> None:
        rate = self.recipe.learning_rate * min(1.0, (step + 1) / RISING)
        if self.totals:
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.totals[stage]))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        arrays, labels = self.shuffled.take(stage, step)
        inputs = as_tensors(arrays)
        with torch.no_grad():
            wanted = self.teacher(inputs)
        optimizer.zero_grad(set_to_none=True)
        found = net(inputs)
        loss = self._loss(found, wanted, labels)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CheckFailed(f"training: the loss is {value} at step {self.done}; try a lower --learning-rate")
        self.updating = True
        optimizer.step()
        net.constrain()
        self.loss = value if math.isnan(self.loss) else self.loss + _RECENT * (value - self.loss)
        if labels is not None:
            hit = float((found[0].detach().reshape(len(labels), -1).argmax(1).numpy() == labels).mean())
            self.top1 = hit if self.top1 is None else self.top1 + _RECENT * (hit - self.top1)
        self.done += 1
        self.updating = False

    def _loss(self, found: list[Tensor], wanted: list[Tensor], labels: Array | None) -> Tensor:
        """Of classifiers, cross entropy and divergence from the float graph; of other models, squared error against it."""
        if len(found) > 1 or found[0].dim() != 2:
            errors = [F.mse_loss(a, b) / b.var().clamp_min(1e-12) for a, b in zip(found, wanted, strict=True)]
            return torch.stack(errors).sum()
        a, b = (
            torch.log(x.clamp_min(_LEAST_PROBABILITY)) if soft else x
            for x, soft in zip((found[0], wanted[0]), (self.softmax[0],) * 2, strict=True)
        )
        weight, heat = (1.0 if labels is None else self.recipe.distillation), self.recipe.temperature
        loss = torch.zeros(())
        if weight > 0:
            divergence = F.kl_div(F.log_softmax(a / heat, 1), F.log_softmax(b / heat, 1), reduction="batchmean", log_target=True)
            loss = loss + weight * heat**2 * divergence
        if weight < 1:
            loss = loss + (1 - weight) * F.cross_entropy(a, torch.from_numpy(labels))
        return loss

    def _affordable(self, per_step: float) -> list[int]:
        """Steps of every stage that fit the budget at `per_step` seconds of the processor."""
        assert self.recipe.minutes is not None
        # What came before the first step, calibration and GPTQ, comes again before every later stage.
        spent = time.process_time() - self.begun_processor
        preparation = max(0.0, spent - RISING * per_step)
        left = 60 * self.recipe.minutes - preparation * len(self.stages)
        return _shared(max(RISING + 1, int(left / per_step)), self.stages)

    def _tell(self, stage: int, measured: list[float]) -> None:
        if self.watch.moment is None:
            return
        total = sum(self.totals)
        left = max(0, total - self.done) * float(np.mean(measured[-RISING:])) if total else math.nan
        self.watch.moment(Moment(stage, str(self.stages[stage].plan.bits), self.done, total, self.loss, self.top1, left))

    def _identity(self) -> str:
        """Digest of everything that a resumed run must have in common with the one before it."""
        plans = "".join(stage.plan.dumps() for stage in self.stages)
        # A set prints in another order in every process.
        recipe = f"{replace(self.recipe, augment=frozenset())} {sorted(self.recipe.augment)}"
        text = f"{serialize.graph_hash(self.graph)} {plans} {recipe} {len(self.data)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _save(self, stage: int, net: FakeQuantNet, annotated: Graph, optimizer: torch.optim.Optimizer) -> None:
        if self.watch.checkpoint is None:
            return
        now = time.monotonic()
        state = Checkpoint(
            identity=self._identity(),
            stage=stage,
            done=self.done,
            totals=self.totals,
            loss=self.loss,
            top1=self.top1,
            graph=serialize.dumps(annotated),
            net=net.state_dict(),
            optimizer=optimizer.state_dict(),
        )
        save_checkpoint(state, self.watch.checkpoint)
        self.saved = now


def _require_classes(graph: Graph, data: DataSet) -> None:
    """Refuse labels that the graph has no class for.

    Raises:
        UsageError: there are some.
    """
    shape = graph.outputs[0].type.shape
    if data.labels is None or len(graph.outputs) > 1 or len(shape) != 2 or not isinstance(shape[1], int):
        return
    least, most = int(np.min(data.labels)), int(np.max(data.labels))
    if least < 0 or most >= shape[1]:
        raise UsageError(f"{data.path}: labels {least}..{most}, but the model has {shape[1]} classes: expected 0..{shape[1] - 1}")


def _shared(steps: int, of: list[Stage]) -> list[int]:
    """`steps` in the shares of the stages, at least one each."""
    found = [max(1, int(steps * stage.share)) for stage in of[:-1]]
    return [*found, max(1, steps - sum(found))]


def as_tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Arrays as tensors, images with their channels last in memory: the order in which convolutions are fastest."""
    found = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {n: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in found.items()}


def require_resumable(watch: Watch) -> None:
    """Refuse to resume without a checkpoint.

    Raises:
        UsageError: there is none.
    """
    if watch.resume and (watch.checkpoint is None or not watch.checkpoint.is_file()):
        raise UsageError(f"--resume: there is no checkpoint {watch.checkpoint}; leave --resume out to begin anew")
