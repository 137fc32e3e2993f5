"""Weights to codes: the real weights of a layer in, its codes and their element type out.

A code is one of the integer *levels* of the layer's form times the scale of its output channel. Levels are whole numbers whatever
the form, so every layer multiplies integers: uniform ones are the codes themselves (`Quant`), others stand in a table that codes
index (`Codebook`). docs/quantization.md says which form is for what.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import InvalidPlan, UnsupportedModel
from bevel.ir.plan import TERNARY
from bevel.ir.types import Codebook, Int, Quant
from bevel.passes.quantize.scales import LONE_BIAS, MAX_BIAS, MIN_SCALE, float32_at_least, float32_scale

Array = npt.NDArray[Any]

# Greatest level: -128 would take kernels that pair products of bytes in 16 bits out of the choice.
LEVEL_MAX = 127
# Scales that the search for the least squared error tries: shares of the one that clips nothing.
_SEARCH = 128
# "auto" searches below this many bits; above, clipping costs more than it gains once biases are corrected.
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
        granularity: "channel", or "tensor" for one scale.
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
        return self.scales == "mse" or (self.scales == "auto" and self.bits < _SEARCHED_BITS)


def quantize_weights(weights: Array, bias: Array, x_scale: float, form: WeightForm, layer: str) -> tuple[Array, Quant | Codebook]:
    """Codes of the weights of a layer and their type: round to nearest.

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
    levels = _levels(rows, magnitude, form, layer)
    if form.levels == "uniform":
        # The lowest level may reach farther than the highest.
        unclipped = np.maximum(rows.max(axis=1, initial=0.0) / levels.max(), rows.min(axis=1, initial=0.0) / levels.min())
    else:
        unclipped = magnitude / (levels.max() if form.levels == "powers" else LEVEL_MAX)
    if form.granularity == "tensor":
        unclipped = np.full_like(unclipped, unclipped.max(initial=0.0))
    scales = _searched(rows, unclipped, levels, form) if form.searches else unclipped
    held = _held(scales, np.abs(bias.astype(np.float64)), x_scale, holds_zero=0 in levels)
    chosen = rounded(rows / np.asarray(held)[:, None], levels)
    bits = math.ceil(form.bits)
    if form.levels == "uniform":
        codes = chosen.astype(np.int8)
        return codes.reshape(weights.shape), Quant(Int(bits), held, (0,), axis=0)
    table = Codebook(Int(bits, signed=False), tuple(levels), held, axis=0)
    return np.searchsorted(levels, chosen).astype(table.dtype).reshape(weights.shape), table


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


def _searched(rows: Array, most: Array, levels: Array, form: WeightForm) -> Array:
    """The scale of each row, or of all, up to `most`, whose levels have least squared error; ties go to the greater."""
    least, best = np.full(len(rows), np.inf), most
    for share in range(_SEARCH, 0, -1):
        scales = most * (share / _SEARCH)
        divisor = np.where(scales > 0, scales, 1.0)[:, None]
        error = ((rows - rounded(rows / divisor, levels) * divisor) ** 2).sum(axis=1)
        if form.granularity == "tensor":
            error = np.full_like(error, error.sum())
        best = np.where(error < least, scales, best)
        least = np.minimum(error, least)
    return best


def _held(scales: Array, bias: Array, x_scale: float, *, holds_zero: bool) -> tuple[float, ...]:
    """float32 scales with the floors that keep accumulators provable."""
    found = []
    for own, b in zip(scales.tolist(), bias.tolist(), strict=True):
        floor = b / (x_scale * (LONE_BIAS if holds_zero and not own else MAX_BIAS))
        # A channel of zeros with no bias computes zero at any scale, or at the least where codes of -1 and +1 stand for them.
        wanted = max(own, floor) or (1.0 if holds_zero else MIN_SCALE)
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
