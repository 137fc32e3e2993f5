"""Pass `gptq`: weights of few bits rounded so that what a layer computes changes least, not the weights themselves.

In: an ANNOTATED graph whose weights are rounded to nearest, the FLOAT graph it was made from, data. Out: the ANNOTATED graph with
other codes, scales and biases in its layers of fewer than 8 bits.

Layers are taken in execution order. X_q is what a layer reads in the quantized graph, whose layers before it are done; X is what
it reads in the float graph. With C = cov(X_q) and ridge L = 1 % of its mean diagonal, the weights are first moved to

    W* = (W cov(X, X_q) + L W) (C + L)^-1,

the best real weights for the inputs that the layer really has, and W* is then rounded column by column, the error of each column
made up for by those that follow: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", after Hassibi & Stork 1993, "Optimal Brain Surgeon". Moments are centred, so the bias takes up the difference of
the means exactly. Columns go by falling variance of their inputs. Where the plan leaves scales open, each channel is rounded at
some scales around its first one, and keeps the one at which the layer's error is least. Then columns are rounded again, each with
all others as they are, which can only lower the error, until nothing changes: Behdin et al. 2023, "QuantEase: Optimization-based
Quantization for Language Models".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevel.errors import CalibrationError, UsageError
from bevel.ir import interp
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.window import windows
from bevel.ir.plan import CompressionPlan
from bevel.ir.types import Codebook, Quant
from bevel.passes.quantize.calibrate import retype
from bevel.passes.quantize.observe import Batch, Progress
from bevel.passes.quantize.pixels import Reals, take_pixels
from bevel.passes.quantize.scales import MAX_BIAS, bias_codes, bias_type, float32_at_least, float32_scale
from bevel.passes.quantize.weights import Grid, WeightForm, rounded, weight_grid

Array = npt.NDArray[Any]

# Ridge over the mean variance of the inputs, at least. Weights over positions where that is more: W* would fit those alone.
RIDGE = 0.01
# Activations of all samples that may be in memory at a time; more samples than fit are left out.
MEMORY = 2 << 30
# Scales that are tried, over the one that plain rounding has. Above 1, because made up errors reach beyond the range.
SHARES = tuple(share / 20 for share in (20, *range(10, 20), *range(21, 26)))
# Columns whose errors are passed on to all others at once.
BLOCK = 64
# How often columns are rounded again, at most.
SWEEPS = 8
# Rows of a layer's input as a matrix that are multiplied at once.
ROWS = 1 << 14


@dataclass(frozen=True)
class Gptq:
    """Round the weights of an ANNOTATED graph by what they multiply.

    Attributes:
        source: the FLOAT graph that was calibrated.
        plan: says of which layers weights are rounded so, and how they become codes.
        data: batches that can be iterated again, each a dict of arrays named like the inputs.
        progress: called with "gptq" and the number of layers done.
    """

    name: ClassVar[str] = "gptq"
    source: Graph = field(compare=False, repr=False)
    plan: CompressionPlan = field(default_factory=CompressionPlan, compare=False, repr=False)
    data: Iterable[Batch] = field(default=(), compare=False, repr=False)
    progress: Progress | None = field(default=None, compare=False, repr=False)

    def run(self, graph: Graph) -> Graph:
        """`graph` with other weights.

        Raises:
            UsageError: `graph` is not at ANNOTATED level.
            CalibrationError: there is no data.
        """
        if graph.level is not Level.ANNOTATED:
            raise UsageError(f"gptq: graph {graph.name!r} is at {graph.level.value} level, expected annotated")
        result, source = graph.clone(), self.source.clone()
        pixels = take_pixels(source)
        data: Iterable[Batch] = Reals(self.data, frozenset(v.name for v in source.inputs if v in pixels)) if pixels else self.data
        layers = [n for n in result.nodes if _is_low(n) and self.plan.layer(n.output.name).rounding == "gptq"]
        batches = _fitting(data, source, result, layers)
        reals, codes = _Run(source, batches), _Run(result, batches)
        for done, node in enumerate(layers):
            moments = _Moments(node)
            for real, quantized in zip(reals.take(_origin(node.inputs[0], source)), codes.take(node.inputs[0]), strict=True):
                moments.update(real, quantized)
            self._round(result, node, source, moments)
            codes.forget(node)
            if self.progress is not None:
                self.progress(self.name, done + 1)
        return result

    def _round(self, graph: Graph, node: Node, source: Graph, moments: _Moments) -> None:
        """Give one layer its codes and its bias."""
        name = node.output.name
        origin = source.value(name).producer
        assert origin is not None
        weights = origin.inputs[1].array.astype(np.float64)
        bias = origin.inputs[2].array.astype(np.float64) if len(origin.inputs) == 3 else np.zeros(len(weights))
        asked = self.plan.layer(name)
        assert asked.bits is not None
        form = WeightForm(asked.bits.weights, asked.granularity or "", asked.scales or "", asked.levels or "")
        x = node.inputs[0].type.elem
        assert isinstance(x, Quant)
        best = moments.best(weights)
        moved = bias + moments.shift(weights, best)
        grid = weight_grid(best.astype(np.float32), moved.astype(np.float32), x.scale[0], form, name)
        # A bias has to stay within its codes, whatever the scale.
        least = np.abs(moved) / (x.scale[0] * MAX_BIAS)
        chosen, grid = moments.rounded(best, grid, least, SHARES if form.scales == "auto" else (1.0,))
        real = chosen * grid.steps
        retype(graph, node, 1, grid.codes(chosen), grid.elem)
        own = bias_type(x.scale[0], grid.elem)
        limit = MAX_BIAS * np.asarray(own.scale)
        final = np.clip(bias + moments.shift(weights, real), -limit, limit)
        if len(node.inputs) == 3:
            retype(graph, node, 2, bias_codes(final, own), own)


def _is_low(node: Node) -> bool:
    """Whether a layer's weights have fewer than 8 bits."""
    if Trait.WEIGHTED not in lookup(node.op).traits:
        return False
    elem = node.inputs[1].type.elem
    bits = elem.code_bits if isinstance(elem, Quant) else elem.codes.bits if isinstance(elem, Codebook) else 8
    return bits < 8


def _origin(value: Value, source: Graph) -> Value:
    """The float value that a quantized one stands for: conversions to fewer bits have none of their own."""
    while value.name not in source:
        assert value.producer is not None
        value = value.producer.inputs[0]
    return source.value(value.name)


def _fitting(data: Iterable[Batch], source: Graph, graph: Graph, layers: list[Node]) -> list[Batch]:
    """The first batches whose activations fit MEMORY, at least one."""
    found: list[Batch] = []
    most = 0
    for batch in data:
        if not found:
            reals, codes = _Run(source, [batch]), _Run(graph, [batch])
            for node in layers:
                reals.take(_origin(node.inputs[0], source))
                codes.take(node.inputs[0])
                most = max(most, reals.bytes + codes.bytes)
        elif (len(found) + 1) * most > MEMORY:
            break
        found.append(dict(batch))
    if not found:
        raise CalibrationError(f"no calibration data for {graph.name!r}: give at least one batch, better 100 to 500 samples")
    return found


class _Run:
    """A graph executed on all batches at once, as far as was asked for; what nobody reads any more is forgotten."""

    def __init__(self, graph: Graph, batches: Iterable[Batch]) -> None:
        self._graph = graph
        self._nodes = iter(graph.nodes)
        self._left = {v: len(v.users) for v in graph.values()}
        self._runs = [interp.Execution(graph, batch) for batch in batches]

    def take(self, value: Value) -> Iterator[Array]:
        """The arrays of `value`, batch by batch."""
        path: list[tuple[Node, list[Value]]] = []
        known = value in self._runs[0].arrays
        while not known:
            node = next(self._nodes)
            read = list(dict.fromkeys(v for v in node.inputs if not v.is_constant))
            for operand in read:
                self._left[operand] -= 1
            path.append((node, [v for v in read if not self._left[v]]))
            known = value in node.outputs
        # One batch after the other: what lies between two layers is alive for one at a time.
        for run in self._runs:
            for node, done in path:
                run.execute(node)
                for operand in done:
                    del run.arrays[operand]
        return (run.arrays[value] for run in self._runs)

    @property
    def bytes(self) -> int:
        """Of what is remembered, constants not counted."""
        return sum(array.nbytes for run in self._runs for value, array in run.arrays.items() if not value.is_constant)

    def forget(self, node: Node) -> None:
        """Constants of `node` were replaced."""
        for run in self._runs:
            run.refresh(node)


class _Moments:
    """Means and covariances of what the weights of a layer meet, in the float graph and in the quantized one.

    Args:
        node: Conv or Gemm.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._groups: int = node.attrs.groups if node.op == "Conv" else 1
        self._rows = 0
        self._sums: list[Array] = []

    def update(self, real: Array, quantized: Array) -> None:
        """Take in the layer's input of one batch, as both graphs compute it."""
        for x, q in zip(self._matrices(real), self._matrices(quantized), strict=True):
            self._rows += x.shape[1]
            added = [x.sum(axis=1, dtype=np.float64), q.sum(axis=1, dtype=np.float64), x.mT @ q, q.mT @ q]
            self._sums = [a + b for a, b in zip(self._sums, added, strict=True)] if self._sums else added

    def _matrices(self, x: Array) -> Iterator[Array]:
        """Groups x rows x weights of one output, some rows at a time."""
        if self._node.op == "Conv":
            view = windows(x, self._node.attrs, 0.0)
            view = view.reshape(view.shape[0], self._groups, -1, *view.shape[2:]).transpose(1, 0, 3, 4, 2, 5, 6)
            step = max(1, ROWS // (view.shape[2] * view.shape[3]))
            for start in range(0, view.shape[1], step):
                some = view[:, start : start + step]
                yield some.reshape(self._groups, some.shape[1] * some.shape[2] * some.shape[3], -1)
        else:
            yield x.reshape(1, -1, x.shape[-1])

    @property
    def _means(self) -> tuple[Array, Array]:
        return self._sums[0] / self._rows, self._sums[1] / self._rows

    def _covariances(self) -> tuple[Array, Array, Array]:
        """Of float with quantized inputs, of quantized inputs, and the ridge [groups, 1, 1]."""
        mean, mean_q = self._means
        cross = self._sums[2] / self._rows - mean[:, :, None] * mean_q[:, None, :]
        own = self._sums[3] / self._rows - mean_q[:, :, None] * mean_q[:, None, :]
        columns = own.shape[1]
        ridge = max(RIDGE, columns / self._rows) * np.einsum("gkk->g", own)[:, None, None] / columns
        return cross, own, np.maximum(ridge, np.finfo(np.float32).tiny)

    def _grouped(self, weights: Array) -> Array:
        return weights.reshape(self._groups, weights.shape[0] // self._groups, -1)

    def best(self, weights: Array) -> Array:
        """W* of the module's docstring, shaped like `weights`."""
        cross, own, ridge = self._covariances()
        w = self._grouped(weights)
        unit = np.eye(own.shape[1])
        found = np.linalg.solve(own + ridge * unit, (w @ cross + ridge * w).mT).mT
        return np.asarray(found.reshape(weights.shape))

    def shift(self, weights: Array, others: Array) -> Array:
        """What a bias takes up when `weights` on float inputs become `others` on quantized ones: float64 [O]."""
        mean, mean_q = self._means
        moved = self._grouped(weights) @ mean[:, :, None] - self._grouped(others) @ mean_q[:, :, None]
        return np.asarray(moved.reshape(-1))

    def rounded(self, weights: Array, grid: Grid, least: Array, shares: tuple[float, ...]) -> tuple[Array, Grid]:
        """Levels for `weights`, float64 of their shape, and their grid; every error is passed on to columns not rounded yet.

        Args:
            weights: W*.
            grid: what they can be, but for its scales.
            least: scales that may not be gone below [O].
            shares: of the scales of `grid` to try; every channel takes its best, or all take one where they have one scale.
        """
        _, own, ridge = self._covariances()
        order = np.argsort(-np.einsum("gkk->gk", own), axis=1, kind="stable")
        steps = self._grouped(np.broadcast_to(grid.steps, weights.shape))
        w, steps = (np.take_along_axis(each, order[:, None, :], axis=2) for each in (self._grouped(weights), steps))
        own = np.take_along_axis(np.take_along_axis(own, order[:, :, None], axis=1), order[:, None, :], axis=2)
        metric = own + ridge * np.eye(own.shape[1])
        inverse = np.linalg.inv(metric)
        # Row j of the upper factor: how an error in column j moves those that follow, with what was rounded before held fixed.
        factor = np.linalg.cholesky(inverse).mT
        scales, together = np.asarray(grid.elem.scale), len(grid.elem.scale) < len(weights)
        # Of few weights, as in depthwise layers, rounding to nearest may be the better beginning.
        best, ratio = rounded(w / steps, grid.levels), np.ones(len(weights))
        missed = best * steps - w
        error = ((missed @ metric) * missed).sum(axis=2).reshape(-1)
        error = np.full_like(error, error.sum()) if together else error
        for share in shares:
            wanted = scales * share if share == 1 else np.maximum(scales * share, least.max() if together else least)
            tried = np.broadcast_to([float32_at_least(s) for s in wanted.tolist()] / scales, len(weights))
            chosen, squares = _in_turn(w, steps * self._grouped(tried), grid.levels, factor)
            squares = np.full_like(error, squares.sum()) if together else squares.reshape(-1)
            better = squares < error
            error, ratio = np.where(better, squares, error), np.where(better, tried, ratio)
            best = np.where(self._grouped(better), chosen, best)
        best = _again(best, w, steps * self._grouped(ratio), grid.levels, metric)
        back = np.argsort(order, axis=1)
        found = np.take_along_axis(best, back[:, None, :], axis=2).reshape(weights.shape)
        return np.asarray(found), _scaled(grid, ratio[:1] if together else ratio)


def _scaled(grid: Grid, ratio: Array) -> Grid:
    """The same levels, the scales of channels times `ratio`."""
    elem = replace(grid.elem, scale=tuple(float32_scale(s) for s in (np.asarray(grid.elem.scale) * ratio).tolist()))
    exact = np.asarray(elem.scale) / np.asarray(grid.elem.scale)
    return replace(grid, elem=elem, steps=grid.steps * exact.reshape(-1, *[1] * (grid.steps.ndim - 1)))


def _in_turn(weights: Array, steps: Array, levels: Array, factor: Array) -> tuple[Array, Array]:
    """Levels for `weights` [groups, outputs, columns], column after column, and the squared error of each output."""
    w, chosen, total = weights.copy(), np.empty_like(weights), np.zeros(weights.shape[:2])
    for begin in range(0, w.shape[2], BLOCK):
        end = min(begin + BLOCK, w.shape[2])
        errors = np.empty((*w.shape[:2], end - begin))
        for column in range(begin, end):
            s = steps[:, :, column]
            chosen[:, :, column] = rounded(w[:, :, column] / s, levels)
            error = (w[:, :, column] - chosen[:, :, column] * s) / factor[:, None, column, column]
            w[:, :, column:end] -= error[:, :, None] * factor[:, None, column, column:end]
            errors[:, :, column - begin] = error
        w[:, :, end:] -= errors @ factor[:, begin:end, end:]
        total += (errors**2).sum(axis=2)
    return chosen, total


def _again(chosen: Array, weights: Array, steps: Array, levels: Array, metric: Array) -> Array:
    """`chosen` after sweeps over the columns, each going where E M E^T, E the error of an output and M the `metric`, is least."""
    chosen = chosen.copy()
    # Of every output, half of the gradient of its error.
    slope = (chosen * steps - weights) @ metric
    for _ in range(SWEEPS):
        changed = False
        for column in range(weights.shape[2]):
            s, old = steps[:, :, column], chosen[:, :, column]
            new = rounded(old - slope[:, :, column] / (metric[:, None, column, column] * s), levels)
            if np.array_equal(new, old):
                continue
            slope += ((new - old) * s)[:, :, None] * metric[:, None, column]
            chosen[:, :, column], changed = new, True
        if not changed:
            break
    return chosen
