"""Pass `equalize`: channels between two layers get like ranges, so that one scale serves them all.

    %a: f32 = Conv(%x, %w, %b)               %a: f32 = Conv(%x, s * %w, s * %b)
    %r: f32 = Relu(%a)                 ->    %r: f32 = Relu(%a)
    %y: f32 = Conv(%r, %v)                   %y: f32 = Conv(%r, %v / s)

A layer's output channel times s_i and the next layer's weights for it divided by s_i cancel, through anything homogeneous in
between. 8-bit activations have one scale for all channels; depthwise networks have channels whose ranges lie a hundredfold apart,
and small ones would use few codes. Every s_i is 1 or more, and no channel outgrows the widest, so a Clip [0, hi] between the
layers cuts off nothing that it let pass on the calibration data.

Meller et al. 2019, "Same, Same But Different: Recovering Neural Network Quantization Error Through Weight Factorization"; Nagel
et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction". How much of the imbalance the
second layer's weights take over (nothing is lost where it is depthwise: each has its scale) is the exponent of least predicted
noise, after Xiao et al. 2023, "SmoothQuant".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import Trait, lookup
from bevel.passes.quantize.lowering import clamp_bounds
from bevel.passes.quantize.observe import Batch, Progress, require_finite, walk

Array = npt.NDArray[Any]

# A channel that the calibration data hardly moves may move more later: beyond this factor it is left alone.
MAX_FACTOR = 32.0
# Steps of 8 bits in a range, of activations and of weights to one side.
_ACTIVATION_STEPS, _WEIGHT_STEPS = 255, 127
_EXPONENTS = np.linspace(0.0, 1.0, 11)


@dataclass(frozen=True)
class Pair:
    """Two weighted layers and the value between them.

    Attributes:
        first: its output channels are scaled.
        value: what `second` reads: the result of `first`, or of the clamps behind it.
        second: its weights take the inverse.
    """

    first: Node
    value: Value
    second: Node


@dataclass
class Statistics:
    """What the noise of a pair depends on, by channel.

    Attributes:
        largest: greatest |x|.
        squares: sum of x^2.
        count: elements of a channel.
    """

    largest: Array
    squares: Array
    count: int = 0


@dataclass(frozen=True)
class Equalize:
    """Scale channels between layers of a FLOAT graph.

    Attributes:
        data: batches, each a dict of float32 arrays named like the inputs; read once.
        keep_float: names of node results whose layers stay float, and stay as they are.
        progress: called with "equalize" and the number of batches done.
    """

    name: ClassVar[str] = "equalize"
    data: Iterable[Batch] = field(default=(), compare=False, repr=False)
    keep_float: frozenset[str] = frozenset()
    progress: Progress | None = field(default=None, compare=False, repr=False)

    def run(self, graph: Graph) -> Graph:
        """The same function with other weights.

        Raises:
            UsageError: `graph` is not at FLOAT level.
            CalibrationError: see `walk`; also where a layer computes NaN or infinity.
        """
        if graph.level is not Level.FLOAT:
            raise UsageError(f"equalize: graph {graph.name!r} is at {graph.level.value} level already, expected float")
        result = graph.clone()
        pairs = [p for p in _pairs(result) if not {p.first.output.name, p.value.name, p.second.output.name} & self.keep_float]
        if not pairs:
            return result
        seen = {p.value: Statistics(np.zeros(1), np.zeros(1)) for p in pairs}
        axes = {p.value: -1 if p.first.op == "Gemm" else 1 for p in pairs}
        done = -1

        def watch(value: Value, array: Array) -> None:
            nonlocal done
            done += value is result.inputs[0]
            if value in seen:
                require_finite(value, array, done)
                _update(seen[value], np.moveaxis(array, axes[value], 0).reshape(array.shape[axes[value]], -1))

        walk(result, self.data, watch, self.name, self.progress)
        for pair in pairs:
            _scale(result, pair, factors(seen[pair.value], pair.second.inputs[1].array, _groups(pair.second)))
        return result


def _pairs(graph: Graph) -> list[Pair]:
    """Layers joined by nothing but clamps at 0, each the only reader of what is before it."""
    found = []
    for first in graph.nodes:
        if first.op not in ("Conv", "Gemm") or not all(v.is_constant for v in first.inputs[1:]):
            continue
        value, user = first.output, graph.sole_user(first.output)
        while user is not None and Trait.ACTIVATION in lookup(user.op).traits and clamp_bounds(user)[0] == 0.0:
            value, user = user.output, graph.sole_user(user.output)
        if user is None or user.op != first.op or user.inputs[0] is not value or not user.inputs[1].is_constant:
            continue
        found.append(Pair(first, value, user))
    return found


def _update(statistics: Statistics, channels: Array) -> None:
    """Take in [channels, elements]."""
    statistics.largest = np.maximum(statistics.largest, np.abs(channels).max(axis=1, initial=0.0))
    statistics.squares = statistics.squares + np.einsum("ij,ij->i", channels, channels, dtype=np.float64)
    statistics.count += channels.shape[1]


def _groups(node: Node) -> int:
    return int(node.attrs.groups) if node.op == "Conv" else 1


def _by_input(weights: Array, groups: int) -> Array:
    """Weights [O, I / groups, ...] as [groups, O / groups, I / groups, taps]."""
    return weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)


def factors(statistics: Statistics, weights: Array, groups: int) -> Array:
    """The factor (1..MAX_FACTOR) of each channel between two layers.

    (R / r_i)^e for the widest range R and the channel's r_i, with the e of least predicted noise. Two errors reach the second
    layer's sums: activations rounded in steps of R / 255, and weights rounded in steps of their row's max |w| / 127.

    Args:
        statistics: of the value between them.
        weights: of the second layer, [O, I / groups, ...].
        groups: its groups.
    """
    largest = statistics.largest
    widest = float(largest.max())
    if widest == 0.0:
        return np.ones_like(largest)
    # A channel that never moved says nothing of its range.
    ratio = np.where(largest > 0.0, np.minimum(widest / np.where(largest > 0.0, largest, 1.0), MAX_FACTOR), 1.0)
    power = statistics.squares / statistics.count
    rows = _by_input(weights.astype(np.float64), groups)
    best, found = np.inf, np.ones_like(ratio)
    for exponent in _EXPONENTS:
        factor = ratio**exponent
        by_group = factor.reshape(groups, 1, -1, 1)
        scaled = rows / by_group
        rounded = (widest / _ACTIVATION_STEPS) ** 2 * (scaled**2).sum(axis=(2, 3))
        step = np.abs(scaled).max(axis=(2, 3), initial=0.0) / _WEIGHT_STEPS
        weighed = step**2 * (by_group**2 * power.reshape(groups, 1, -1, 1) * np.ones(rows.shape[3])).sum(axis=(2, 3))
        noise = float((rounded + weighed).sum())
        if noise < best:
            best, found = noise, factor
    return found


def _scale(graph: Graph, pair: Pair, factor: Array) -> None:
    """Move `factor` from the second layer's weights to the first layer."""
    groups = _groups(pair.second)
    weights = pair.second.inputs[1].array
    divided = _by_input(weights.astype(np.float64), groups) / factor.reshape(groups, 1, -1, 1)
    _replace(graph, pair.second, 1, divided.reshape(weights.shape))
    for index, value in enumerate(pair.first.inputs[1:], start=1):
        _replace(graph, pair.first, index, value.array * factor.reshape(-1, *[1] * (value.array.ndim - 1)))


def _replace(graph: Graph, node: Node, index: int, data: Array) -> None:
    """Give `node` a constant of its own; its name stays where nothing else reads the old one."""
    name = node.inputs[index].name
    graph.set_input(node, index, graph.add_constant(name, data.astype(np.float32)))
    if name not in graph:
        graph.rename(node.inputs[index], name)
