"""Calibration methods: what was observed of a value in, the range that its type of 8 or fewer bits shall hold out.

A method is spelled NAME or NAME:PARAMETER, for example "percentile:99.9"; `METHODS` lists them. All see the data once, piece by
piece, in memory that does not grow with it. docs/calibration.md compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bevel.errors import UsageError
from bevel.passes.quantize.histogram import Histogram

Array = npt.NDArray[Any]

LEVELS = 256
# Grid of the ranges that mse and entropy try, on each side: 1/128 of the observed range is half a step of 8 bits times four.
_GRID = 128
# Alternations between the two ends; every one lowers the error, and three suffice on all networks measured.
_MAX_ROUNDS = 8


class RangeObserver(Protocol):
    """Accumulates what a calibration method needs of one value."""

    def update(self, samples: Array) -> None:
        """Take in reals [samples, elements] of some samples; all finite."""
        ...

    def observed(self) -> tuple[float, float]:
        """Least and greatest real seen."""
        ...

    def range(self, levels: int = LEVELS) -> tuple[float, float]:
        """Least and greatest real that the quantized type of so many levels shall hold."""
        ...

    def outside(self, lo: float, hi: float) -> float:
        """Share (0..1) of the reals seen that lie outside [lo, hi]."""
        ...


class _Histogrammed:
    """What methods share that look at the distribution."""

    def __init__(self) -> None:
        self.histogram = Histogram()

    def update(self, samples: Array) -> None:
        """Count the elements."""
        self.histogram.update(samples)

    def observed(self) -> tuple[float, float]:
        """Least and greatest real seen."""
        return self.histogram.lo, self.histogram.hi

    def outside(self, lo: float, hi: float) -> float:
        """Share of the reals outside [lo, hi], to the width of a bin."""
        return self.histogram.outside(lo, hi)


class MinMax:
    """The full observed range: nothing is clipped."""

    def __init__(self) -> None:
        self._lo, self._hi = np.inf, -np.inf

    def update(self, samples: Array) -> None:
        """Widen the range."""
        self._lo = min(self._lo, float(samples.min(initial=np.inf)))
        self._hi = max(self._hi, float(samples.max(initial=-np.inf)))

    def observed(self) -> tuple[float, float]:
        """Least and greatest real seen."""
        return self._lo, self._hi

    def range(self, levels: int = LEVELS) -> tuple[float, float]:
        """All of it."""
        return self._lo, self._hi

    def outside(self, lo: float, hi: float) -> float:
        """Zero: the chosen range holds all that was seen."""
        return 0.0


class MovingAverage(_Histogrammed):
    """Averages of each sample's least and greatest real, the weight of the past decaying with every sample.

    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section
    3.1. Every sample is a step, whatever the batch size; a plain mean until it has 1 / (1 - decay) samples, so the first does not
    dominate.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self._steps = 0
        self._range = np.zeros(2)

    def update(self, samples: Array) -> None:
        """Average over the samples, in order."""
        super().update(samples)
        for lo, hi in zip(samples.min(axis=1), samples.max(axis=1), strict=True):
            self._steps += 1
            weight = max(1.0 - self._decay, 1.0 / self._steps)
            self._range += weight * (np.asarray([lo, hi], np.float64) - self._range)

    def range(self, levels: int = LEVELS) -> tuple[float, float]:
        """The averages."""
        return float(self._range[0]), float(self._range[1])


class Percentile(_Histogrammed):
    """The range between two quantiles that leaves the same share of the reals outside at either end.

    McKinstry et al. 2018, "Discovering Low-Precision Networks Close to Full-Precision Networks for Efficient Embedded Inference".
    """

    def __init__(self, percent: float) -> None:
        super().__init__()
        self._tail = (1.0 - percent / 100.0) / 2.0

    def range(self, levels: int = LEVELS) -> tuple[float, float]:
        """The quantiles, even inside a bin."""
        return self.histogram.quantile(self._tail), self.histogram.quantile(1.0 - self._tail)


class LeastSquares(_Histogrammed):
    """The range of least mean squared quantization error, rounding and clipping together.

    Sung, Shin and Hwang 2015, "Resiliency of Deep Neural Networks under Quantization"; Banner, Nahshan and Soudry 2019, "Post
    training 4-bit quantization of convolutional networks for rapid-deployment".
    """

    def range(self, levels: int = LEVELS) -> tuple[float, float]:
        """Ends searched in turn on a grid of the observed range, from the best common shrinkage."""
        return least_squares_range(self.histogram, levels)


class Entropy(_Histogrammed):
    """The range whose quantized distribution loses least information: the least Kullback-Leibler divergence.

    Migacz 2017, "8-bit Inference with TensorRT"; here over signed values, the threshold cutting both ends.
    """

    def range(self, levels: int = LEVELS) -> tuple[float, float]:
        """The best of the thresholds on a grid."""
        return least_divergence_range(self.histogram, levels)


def squared_error(histogram: Histogram, lo: float, hi: float, levels: int = LEVELS) -> float:
    """Mean squared error of quantizing the histogram's elements to `levels` over [lo, hi], which contains 0.

    Elements lie evenly inside their bin, over which the error is integrated exactly: evaluating it at the bins' centres would
    favour steps that are multiples of their width.
    """
    scale = (hi - lo) / (levels - 1)
    zero = np.clip(np.rint(-lo / scale), 0, levels - 1)
    position = histogram.edges / scale
    code = np.clip(np.rint(position), -zero, levels - 1 - zero)
    # Antiderivative of the squared distance to the nearest level: 1/12 for each level passed, then a cubic.
    integral = code / 12.0 + (position - code) ** 3 / 3.0
    total = (histogram.counts * np.diff(integral)).sum() * scale**3
    return float(total / (histogram.width * max(int(histogram.counts.sum()), 1)))


def least_squares_range(histogram: Histogram, levels: int = LEVELS) -> tuple[float, float]:
    """The range within the observed one that makes `squared_error` least, on a grid of 1/128 of either end."""
    lo, hi = min(histogram.lo, 0.0), max(histogram.hi, 0.0)
    if lo == hi:
        return lo, hi
    shares = np.arange(1, _GRID + 1) / _GRID

    def best(ends: list[tuple[float, float]]) -> tuple[float, float]:
        # Ties go to the widest range, which stands last.
        errors = [squared_error(histogram, *pair, levels) for pair in reversed(ends)]
        return ends[len(ends) - 1 - int(np.argmin(errors))]

    found = best([(lo * s, hi * s) for s in shares])
    for _ in range(_MAX_ROUNDS if lo < 0.0 < hi else 0):
        before = found
        found = best([(lo * s, found[1]) for s in shares])
        found = best([(found[0], hi * s) for s in shares])
        if found == before:
            break
    return found


def divergence(histogram: Histogram, first: int, last: int, levels: int = LEVELS) -> float:
    """Kullback-Leibler divergence of the elements clipped to bins `first`..`last` from the same quantized to `levels` steps.

    Migacz 2017: the reference gets the outliers in its end bins; the candidate spreads each level's elements evenly over those of
    its bins that hold any. The bin at 0 is left out, as there: what a clamp put at exactly 0 loses nothing.
    """
    kept = np.where(histogram.edges[first : last + 1] == 0.0, 0.0, histogram.counts[first : last + 1])
    reference = kept.copy()
    reference[0] += histogram.counts[:first].sum()
    reference[-1] += histogram.counts[last + 1 :].sum()
    level = np.arange(len(kept)) * levels // len(kept)
    filled = np.bincount(level, kept > 0, levels)
    mean = np.bincount(level, kept, levels) / np.maximum(filled, 1)
    candidate = np.where(kept > 0, mean[level], 0.0)
    reference, candidate = _smoothed(reference), _smoothed(candidate)
    return float((reference * np.log(reference / candidate)).sum())


def _smoothed(counts: Array) -> Array:
    """A distribution without zeros: each gets 1e-4 of an element, so that an outlier in an empty end bin costs, but finitely."""
    raised = np.where(counts > 0, counts, 1e-4)
    return np.asarray(raised / raised.sum())


def least_divergence_range(histogram: Histogram, levels: int = LEVELS) -> tuple[float, float]:
    """The range [-t, t] within the observed one of least `divergence`, over a grid of thresholds t of at least `levels` bins."""
    edges, bins = histogram.edges, len(histogram.counts)
    if bins <= levels:
        return histogram.lo, histogram.hi
    # Bins with their greatest distance to 0: a threshold keeps those within it.
    reach = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    best, found = np.inf, (0, bins - 1)
    for threshold in reach.max() * np.arange(_GRID, 0, -1) / _GRID:
        inside = np.flatnonzero(reach <= threshold)
        if len(inside) < levels:
            break
        value = divergence(histogram, int(inside[0]), int(inside[-1]), levels)
        if value < best:
            best, found = value, (int(inside[0]), int(inside[-1]))
    return max(histogram.lo, float(edges[found[0]])), min(histogram.hi, float(edges[found[1] + 1]))


@dataclass(frozen=True)
class Method:
    """How the ranges of activations are chosen.

    Attributes:
        doc: one line.
        observer: makes the accumulator of one activation, from the parameter where there is one.
        parameter: its default, None for a method without.
        bounds: what it lies between, both excluded but for the upper.
    """

    doc: str
    observer: Callable[..., RangeObserver]
    parameter: float | None = None
    bounds: tuple[float, float] = (0.0, 0.0)


METHODS = {
    "minmax": Method("the full observed range", MinMax),
    "moving-average": Method("decaying average of each sample's range", MovingAverage, 0.99, (0.0, 1.0)),
    "percentile": Method("the range that holds a percentage of the values", Percentile, 99.99, (50.0, 100.0)),
    "mse": Method("the range of least mean squared error", LeastSquares),
    "entropy": Method("the range of least Kullback-Leibler divergence", Entropy),
}


def parse_method(spec: str) -> Callable[[], RangeObserver]:
    """The maker of observers that "NAME" or "NAME:PARAMETER" spells.

    Raises:
        UsageError: no such method, or no such parameter.
    """
    name, colon, text = spec.partition(":")
    if name not in METHODS:
        raise UsageError(f"calibration method {name!r} is unknown; choose one of {', '.join(sorted(METHODS))}")
    method = METHODS[name]
    if method.parameter is None:
        if colon:
            raise UsageError(f"calibration method {spec!r}: {name} takes no parameter; write {name}")
        return method.observer
    lo, hi = method.bounds
    try:
        value = float(text) if colon else method.parameter
    except ValueError:
        value = np.nan
    if not lo < value <= hi:
        raise UsageError(
            f"calibration method {spec!r}: expected {name}:P with {lo:g} < P <= {hi:g}, default {method.parameter:g}"
        )
    return lambda: method.observer(value)
