"""Histograms of values seen piece by piece: arrays in, counts over bins of a power-of-two width out.

Bins lie on multiples of their width. When a new array does not fit, the width doubles and neighbours merge, so the result holds
what one histogram over all data at the final width would: it does not depend on the order or the size of the pieces.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# At least half of them lie inside the observed range (one bin's width less): 8 or more to a step of 8 bits.
MAX_BINS = 4096
# A bin index stays below 2^23, where float32 counts exactly; narrower bins would tell apart what float32 does not.
_INDEX_BITS = 23
# Indices of so many elements stay in a level-2 cache.
_CHUNK = 1 << 16


class Histogram:
    """Counts of all values seen.

    Attributes:
        lo: least value, infinity before the first.
        hi: greatest value, minus infinity before the first.
        counts: int64 elements in each bin, at most MAX_BINS; the first and the last bin hold `lo` and `hi`.
    """

    def __init__(self) -> None:
        self.lo, self.hi = math.inf, -math.inf
        self.counts = np.zeros(0, np.int64)
        self._exponent = -_INDEX_BITS
        self._first = 0

    @property
    def width(self) -> float:
        """Width of a bin: a power of two."""
        return math.ldexp(1.0, self._exponent)

    @property
    def edges(self) -> Array:
        """float64 [bins + 1]: where bins begin, and the end of the last."""
        return np.ldexp(self._first + np.arange(len(self.counts) + 1, dtype=np.float64), self._exponent)

    def update(self, array: Array) -> None:
        """Count the elements of a finite float array."""
        if not array.size:
            return
        lo, hi = min(self.lo, float(array.min())), max(self.hi, float(array.max()))
        exponent = _exponent(lo, hi)
        if not self.counts.size:
            self._exponent = exponent
        self._cover(lo, hi, max(exponent, self._exponent))
        unit = math.ldexp(1.0, -self._exponent)
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            index = np.floor(flat[start : start + _CHUNK].astype(np.float64) * unit).astype(np.int64)
            self.counts += np.bincount(index - self._first, minlength=len(self.counts))

    def _cover(self, lo: float, hi: float, exponent: int) -> None:
        """Make room for [lo, hi] at bins of width 2^exponent."""
        first, last = _index(lo, exponent), _index(hi, exponent)
        grown = np.zeros(last - first + 1, np.int64)
        if self.counts.size:
            # Arithmetic shifts round down, as bin indices do.
            moved = (self._first + np.arange(len(self.counts))) >> (exponent - self._exponent)
            np.add.at(grown, moved - first, self.counts)
        self.lo, self.hi, self.counts = lo, hi, grown
        self._first, self._exponent = first, exponent

    def quantile(self, share: float) -> float:
        """The value below which `share` (0..1) of the elements lie: even inside a bin, within the observed range."""
        below = np.concatenate([[0], np.cumsum(self.counts)])
        return float(np.clip(np.interp(share * below[-1], below, self.edges), self.lo, self.hi))

    def outside(self, lo: float, hi: float) -> float:
        """Share of the elements below `lo` or above `hi`: even inside a bin, 0 where the range holds all."""
        if not self.counts.size or (lo <= self.lo and self.hi <= hi):
            return 0.0
        edges, total = self.edges, int(self.counts.sum())
        inside = np.clip(np.minimum(edges[1:], hi) - np.maximum(edges[:-1], lo), 0.0, None) / self.width
        # Nothing lies beyond the observed ends: the bins that hold them count whole where the range reaches an end.
        if lo <= self.lo:
            inside[0] = 1.0
        if hi >= self.hi:
            inside[-1] = 1.0
        return float(1.0 - (inside * self.counts).sum() / total)


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent(lo: float, hi: float) -> int:
    """The least exponent of a bin width at which [lo, hi] takes at most MAX_BINS bins and indices stay exact."""
    largest = max(abs(lo), abs(hi), math.ldexp(1.0, -126))
    exponent = math.frexp(largest)[1] - _INDEX_BITS
    while _index(hi, exponent) - _index(lo, exponent) >= MAX_BINS:
        exponent += 1
    return exponent
