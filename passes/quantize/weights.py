"""Weights to codes: the real weights of a layer in, its codes and their element type out.

A code is one of the integer *levels* of the layer's form times the scale of its output channel. Levels are whole numbers whatever
the form, so every layer multiplies integers: uniform ones are the codes themselves (`Quant`), others stand in a table that codes
index (`Codebook`), and those of groups of inputs are multiplied by the factor of their group (`Groups`). docs/quantization.md
says which form is for what.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import InvalidPlan, UnsupportedModel
from bevel.ir.groups import FACTOR_MAX, by_group, kernel_rows, spread
from bevel.ir.plan import TERNARY, group_size
from bevel.ir.types import I8, MOST_GROUPED_BITS, Codebook, Groups, Int, Quant
from bevel.passes.quantize.scales import LONE_BIAS, MAX_BIAS, MIN_SCALE, float32_at_least, float32_scale

Array = npt.NDArray[Any]

# Greatest level: -128 would take kernels that pair products of bytes in 16 bits out of the choice.
LEVEL_MAX = 127
# Scales that the search for the least squared error tries: shares of the one that clips nothing.
_SEARCH = 128
# Those that groups try, whose steps are whole multiples of their channel's anyway.
_GROUP_SEARCH = 32
# "auto" searches below this many bits, and for groups; else clipping costs more than it gains once biases are corrected.
_SEARCHED_BITS = 4
# Rounds of k-means; centres of sorted one-dimensional data settle well before.
_KMEANS_ROUNDS = 50
# Quantiles of the normal distribution: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", appendix E.
_NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class WeightForm:
    """How the weights of a layer become codes, as `LayerPlan` spells it.

    Attributes:
        bits: of a code; `TERNARY` for three levels.
        granularity: "channel", "tensor" for one scale, or "group32" for factors of groups of so many inputs.
        scales: "minmax", "mse" or "auto".
        levels: "uniform", "kmeans", "nf4" or "powers".
    """

    bits: float = 8
    granularity: str = "channel"
    scales: str = "auto"
    levels: str = "uniform"

    @property
    def searches(self) -> bool:
        """Whether scales are searched for the least squared error."""
        few = self.bits < _SEARCHED_BITS or group_size(self.granularity) is not None
        return self.scales == "mse" or (self.scales == "auto" and few)

    def of(self, shape: tuple[int, ...]) -> WeightForm:
        """The form that weights of `shape` have: one scale for each channel where groups cannot be."""
        return self if self.why_ungrouped(shape) is None else replace(self, granularity="channel")

    def why_ungrouped(self, shape: tuple[int, ...]) -> str | None:
        """Why weights of `shape` get no groups, where they are asked for."""
        size = group_size(self.granularity)
        if size is None:
            return None
        if self.bits > MOST_GROUPED_BITS:
            return f"times 15, only codes of up to {MOST_GROUPED_BITS} bits fit 8, these have {self.bits:g}"
        if self.levels != "uniform":
            return f"levels {self.levels} stand in a table, groups multiply uniform ones"
        if (taken := math.prod(shape[1:])) < 2 * size:
            return f"its output channels have {taken} weights, fewer than two groups of {size}"
        return None


@dataclass(frozen=True)
class Grid:
    """What the weights of a layer can be: steps times levels.

    Attributes:
        levels: float64, ascending integers.
        elem: type of the codes.
        steps: float64 that weights are divided by, broadcastable to them.
        factors: integers that levels are multiplied by in codes, shaped like the weights; None where they are not.
    """

    levels: Array
    elem: Quant | Codebook
    steps: Array
    factors: Array | None = None

    def codes(self, chosen: Array) -> Array:
        """Codes of the levels `chosen`."""
        if isinstance(self.elem, Codebook):
            codes = np.searchsorted(self.levels, chosen)
        else:
            codes = chosen if self.factors is None else chosen * self.factors
        return np.asarray(codes, self.elem.dtype)


def quantize_weights(weights: Array, bias: Array, x_scale: float, form: WeightForm, layer: str) -> tuple[Array, Quant | Codebook]:
    """Codes of the weights of a layer and their type: round to nearest; arguments as for `weight_grid`."""
    grid = weight_grid(weights, bias, x_scale, form, layer)
    return grid.codes(rounded(weights.astype(np.float64) / grid.steps, grid.levels)), grid.elem


def weight_grid(weights: Array, bias: Array, x_scale: float, form: WeightForm, layer: str) -> Grid:
    """Levels and scales for the weights of a layer.

    Args:
        weights: reals [O, ...].
        bias: reals [O]; a scale is raised until |bias| / (x_scale * scale) <= 2^30, or 2^20 where all weights are zero.
        x_scale: the layer input's scale.
        form: what codes are to be.
        layer: name for messages.

    Raises:
        UnsupportedModel: weights or bias hold NaN or infinity.
        InvalidPlan: there is no such table of so many bits.
    """
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise UnsupportedModel(f"layer {layer!r}: its weights or bias hold NaN or infinity; repair or re-export the model")
    rows = weights.reshape(weights.shape[0], -1).astype(np.float64)
    magnitude = np.abs(rows).max(axis=1, initial=0.0)
    form = form.of(weights.shape)
    levels = _levels(rows, magnitude, form, layer)
    floor = _Floor(np.abs(bias.astype(np.float64)), x_scale, holds_zero=0 in levels)
    bits = math.ceil(form.bits)
    if (size := group_size(form.granularity)) is not None:
        held, factors = _grouped(kernel_rows(weights.astype(np.float32)), size, levels.astype(np.float32), form, floor)
        elem = Quant(I8, held, (0,), axis=0, groups=Groups(Int(bits), size))
        each = spread(factors, weights.shape, size)
        return Grid(levels, elem, each * _by_channel(held, weights.ndim), each)
    if form.levels == "uniform":
        unclipped = _unclipped(rows, levels)
    else:
        unclipped = magnitude / (levels.max() if form.levels == "powers" else LEVEL_MAX)
    if form.granularity == "tensor":
        unclipped = np.full_like(unclipped, unclipped.max(initial=0.0))
    scales = _searched(rows, unclipped, levels, form) if form.searches else unclipped
    held = floor.held(scales)
    steps = _by_channel(held, weights.ndim)
    if form.levels == "uniform":
        return Grid(levels, Quant(Int(bits), held, (0,), axis=0), steps)
    return Grid(levels, Codebook(Int(bits, signed=False), tuple(levels), held, axis=0), steps)


def _by_channel(scales: tuple[float, ...], rank: int) -> Array:
    return np.asarray(scales).reshape(-1, *[1] * (rank - 1))


def _unclipped(rows: Array, levels: Array) -> Array:
    """Of each row the least scale that clips nothing; the lowest level may reach farther than the highest."""
    return np.asarray(np.maximum(rows.max(axis=1, initial=0.0) / levels.max(), rows.min(axis=1, initial=0.0) / levels.min()))


def rounded(values: Array, levels: Array) -> Array:
    """The level nearest to each of `values`; between neighbouring integers ties go to the even one."""
    if levels.size == levels[-1] - levels[0] + 1:
        return np.asarray(np.clip(np.rint(values), levels[0], levels[-1]))
    return np.asarray(levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values, side="right")])


def _levels(rows: Array, magnitude: Array, form: WeightForm, layer: str) -> Array:
    """Ascending integers."""
    if form.levels != "uniform":
        return np.unique(np.rint(_TABLES[form.levels](rows, magnitude, form, layer)))
    if form.bits in (1, TERNARY):
        return np.asarray([-1.0, 1.0] if form.bits == 1 else [-1.0, 0.0, 1.0])
    top = (1 << (int(form.bits) - 1)) - 1
    return np.arange(-top if form.bits == 8 else -top - 1, top + 1, dtype=np.float64)


def _searched(
    rows: Array, most: Array, levels: Array, form: WeightForm, counted: Array | bool = True, shares: int = _SEARCH
) -> Array:
    """The scale of each row, or of all, up to `most`, whose levels have least squared error; ties go to the greater.

    Only elements that are `counted` have an error.
    """
    least, best = np.full(len(rows), np.inf), most
    for share in range(shares, 0, -1):
        scales = most * (share / shares)
        divisor = np.where(scales > 0, scales, 1.0)[:, None]
        error = ((rows - rounded(rows / divisor, levels) * divisor) ** 2 * counted).sum(axis=1)
        if form.granularity == "tensor":
            error = np.full_like(error, error.sum())
        best = np.where(error < least, scales, best)
        least = np.minimum(error, least)
    return best


def _grouped(rows: Array, size: int, levels: Array, form: WeightForm, floor: _Floor) -> tuple[tuple[float, ...], Array]:
    """Scales of output channels, and factors [O, rows, groups] of weights [O, rows, run], with least squared error.

    Every group has a step that it would choose alone. Of the scales of which the widest of them is 8 to 15 times, each with the
    factors next to the others' steps, the one is taken whose error is least.
    """
    cut = by_group(rows, size)
    # What fills up the last group of a row is no weight.
    there = by_group(np.ones(rows.shape[1:], bool), size)
    shape = cut.shape[:3]
    cut, there = cut.reshape(shape[0], -1, size), there.reshape(1, -1, size)
    wanted = _unclipped(cut.reshape(-1, size), levels)
    if form.searches:
        each = np.broadcast_to(there, cut.shape).reshape(-1, size)
        wanted = _searched(cut.reshape(-1, size), wanted, levels, form, each, _GROUP_SEARCH)
    wanted = wanted.reshape(cut.shape[:2])

    def fitted(scales: Array) -> tuple[Array, Array]:
        """Factors for these scales and the error of each channel."""
        ideal = wanted / scales[:, None]
        tried = []
        for factors in (np.ceil(ideal), np.floor(ideal)) if form.searches else (np.ceil(ideal),):
            factors = np.clip(factors, 1, FACTOR_MAX)
            steps = (factors * scales[:, None])[:, :, None]
            tried.append((((cut - rounded(cut / steps, levels) * steps) ** 2 * there).sum(axis=2), factors))
        errors, factors = tried[0]
        for other, lower in tried[1:]:
            factors = np.where(other < errors, lower, factors)
            errors = np.minimum(other, errors)
        return factors, errors.sum(axis=1)

    top = wanted.max(axis=1)
    least, best = np.full(len(rows), np.inf), top / FACTOR_MAX
    for count in range(FACTOR_MAX, FACTOR_MAX // 2, -1):
        scales = top / count
        _, error = fitted(np.where(scales > 0, scales, 1.0))
        best = np.where(error < least, scales, best)
        least = np.minimum(error, least)
    held = floor.held(best)
    factors, _ = fitted(np.asarray(held))
    return held, factors.astype(np.int64).reshape(shape)


@dataclass(frozen=True)
class _Floor:
    """The floors of scales that keep accumulators provable.

    Attributes:
        bias: magnitudes [O].
        x_scale: of the layer's input.
        holds_zero: whether zero is a level.
    """

    bias: Array
    x_scale: float
    holds_zero: bool

    def held(self, scales: Array) -> tuple[float, ...]:
        """float32 scales that are not below."""
        found = []
        for own, b in zip(scales.tolist(), self.bias.tolist(), strict=True):
            floor = b / (self.x_scale * (LONE_BIAS if self.holds_zero and not own else MAX_BIAS))
            # A channel of zeros with no bias computes zero at any scale, or at the least where codes of -1 and +1 stand for them.
            wanted = max(own, floor) or (1.0 if self.holds_zero else MIN_SCALE)
            found.append(float32_at_least(max(floor, MIN_SCALE)) if floor >= own and floor > 0 else float32_scale(wanted))
        return tuple(found)


def _nf4(_rows: Array, _magnitude: Array, form: WeightForm, layer: str) -> Array:
    if form.bits != 4:
        raise InvalidPlan(f"layer {layer!r}: levels nf4 with {form.bits:g} bits; they are 16 levels of 4 bits")
    return np.asarray(_NF4) * LEVEL_MAX


def _powers(_rows: Array, _magnitude: Array, form: WeightForm, layer: str) -> Array:
    """0 and signed powers of two: Zhou et al. 2017, "Incremental Network Quantization"."""
    if form.bits not in (2, 3, 4):
        raise InvalidPlan(f"layer {layer!r}: levels powers with {form.bits:g} bits; powers within 8 bits take 2, 3 or 4 bits")
    powers = 2.0 ** np.arange((1 << (int(form.bits) - 1)) - 1)
    return np.concatenate([-powers, [0.0], powers])


def _kmeans(rows: Array, magnitude: Array, form: WeightForm, layer: str) -> Array:
    """Centres of the layer's weights over their channel's largest: Han et al. 2016, "Deep Compression"."""
    if form.bits not in range(1, 8):
        raise InvalidPlan(f"layer {layer!r}: levels kmeans with {form.bits:g} bits, expected 1 to 7")
    values = np.sort((rows / np.where(magnitude > 0, magnitude, 1.0)[:, None]).reshape(-1))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    count = 1 << int(form.bits)
    # Evenly over the range, not the density: outliers matter most to the error.
    centres = np.linspace(values[0], values[-1], count) if values.size else np.zeros(1)
    for _ in range(_KMEANS_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(values, (centres[1:] + centres[:-1]) / 2), [values.size]])
        sizes = np.diff(edges)
        moved = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    # Weights of zero stay zero.
    centres[np.abs(centres).argmin()] = 0.0
    return centres * LEVEL_MAX


_TABLES: dict[str, Callable[[Array, Array, WeightForm, str], Array]] = {"kmeans": _kmeans, "nf4": _nf4, "powers": _powers}
