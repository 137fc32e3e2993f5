"""Calibration methods against brute force over all values: histograms lose what a bin hides, ranges minimize what they say."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.errors import UsageError
from bevel.passes.quantize.histogram import MAX_BINS, Histogram
from bevel.passes.quantize.methods import METHODS, Entropy, LeastSquares, MovingAverage, parse_method, squared_error
from bevel.passes.quantize.scales import activation_type

Array = npt.NDArray[Any]


def heavy_tails(n: int = 20_000, seed: int = 0) -> Array:
    """Mostly within 1, a few far out, on one side farther."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) * 0.3
    x[: n // 500] = rng.standard_t(2, n // 500) * 2 + 1
    return rng.permutation(x).astype(np.float32)


def laplace(n: int = 300_000) -> Array:
    """So long tails that 8 bits do better without their ends."""
    return np.random.default_rng(0).laplace(size=n).astype(np.float32)


def activations(n: int = 20_000, seed: int = 0) -> Array:
    """Half zeros, a tail on the right, some saturated."""
    return np.clip(heavy_tails(n, seed) * 3, 0, 6)


def observed(spec: str, values: Array, pieces: int = 4) -> tuple[float, float]:
    watcher = parse_method(spec)()
    for piece in np.array_split(values, pieces):
        watcher.update(piece.reshape(1, -1))
    return watcher.range()


def real_error(values: Array, lo: float, hi: float) -> float:
    """Mean squared error of the 8-bit type over [lo, hi]."""
    elem = activation_type(lo, hi)
    return float(((elem.dequantize(elem.quantize(values)) - values.astype(np.float64)) ** 2).mean())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-30, 30), st.floats(0.001, 3), st.integers(1, 200), st.sampled_from([1e-30, 1e-3, 1.0, 1e12])),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_histogram_does_not_depend_on_pieces_or_their_order(parts: list[tuple[float, float, int, float]], shuffler: Any) -> None:
    rng = np.random.default_rng(1)
    pieces = [((rng.normal(size=n) * spread + centre) * unit).astype(np.float32) for centre, spread, n, unit in parts]
    whole = Histogram()
    whole.update(np.concatenate(pieces))
    shuffler.shuffle(pieces)
    grown = Histogram()
    for piece in pieces:
        grown.update(piece)
    assert (grown.lo, grown.hi, grown.width) == (whole.lo, whole.hi, whole.width)
    np.testing.assert_array_equal(grown.counts, whole.counts)
    np.testing.assert_array_equal(grown.edges, whole.edges)


@pytest.mark.parametrize(
    "values",
    [
        heavy_tails(),
        activations(),
        np.asarray([5.0]),
        np.zeros(3),
        np.asarray([-3e38, 3e38]),
        np.asarray([1e-44, 7.0]),
        -heavy_tails(),
    ],
    ids=["tails", "relu", "one", "zeros", "extreme", "subnormal", "mirrored"],
)
def test_histogram_counts_what_lies_between_its_edges(values: Array) -> None:
    array = values.astype(np.float32)
    histogram = Histogram()
    histogram.update(array)
    edges = histogram.edges
    assert 1 <= len(histogram.counts) <= MAX_BINS
    assert edges[0] <= array.min()
    assert array.max() < edges[-1]
    np.testing.assert_array_equal(histogram.counts, np.histogram(array.astype(np.float64), edges)[0])
    if array.max() > array.min() and histogram.width > 2.0**-126:
        assert len(histogram.counts) > MAX_BINS // 2 - 1, "half of the bins hold the range"


@pytest.mark.parametrize("make", [heavy_tails, activations, laplace])
@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99])
def test_percentile_leaves_that_share_outside(make: Any, percent: float) -> None:
    values = make()
    lo, hi = observed(f"percentile:{percent}", values)
    tail = (1 - percent / 100) / 2
    width = (values.max() - values.min()) / (MAX_BINS // 2 - 1)
    assert (values < lo - width).mean() <= tail <= (values <= lo + width).mean()
    assert (values > hi + width).mean() <= tail <= (values >= hi - width).mean()


@pytest.mark.parametrize("make", [laplace, lambda: np.abs(laplace())], ids=["two ends", "one end"])
def test_mse_is_as_good_as_the_best_range_of_a_grid(make: Any) -> None:
    values = make()
    found = real_error(values, *observed("mse", values))
    low, high = min(float(values.min()), 0.0), float(values.max())
    shares = np.arange(10, 21) / 20
    best = min(real_error(values, low * a, high * b) for b in shares for a in (shares if low < 0 else [1.0]))
    assert found <= best * 1.02
    assert found < 0.9 * real_error(values, low, high), "clipping pays on this data, else the test would prove nothing"


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.03])
def test_predicted_error_is_the_error(share: float) -> None:
    values = heavy_tails()
    histogram = Histogram()
    histogram.update(values)
    lo, hi = histogram.lo * share, histogram.hi * share
    assert squared_error(histogram, lo, hi) == pytest.approx(real_error(values, lo, hi), rel=0.05)


def brute_divergence(values: Array, threshold: float, bins: int = 2048) -> float:
    """Kullback-Leibler divergence of clipped values from their 256 levels, by direct counting."""
    lo, hi = max(-threshold, float(values.min())), min(threshold, float(values.max()))
    kept, _ = np.histogram(values[values != 0], bins, (lo, hi))
    p = kept.astype(float)
    p[0] += (values < lo).sum()
    p[-1] += (values > hi).sum()
    q = np.zeros(bins)
    for level in range(256):
        part = slice(level * bins // 256, (level + 1) * bins // 256)
        q[part] = np.where(kept[part] > 0, kept[part].sum() / max((kept[part] > 0).sum(), 1), 0)
    p, q = np.where(p > 0, p, 1e-4), np.where(q > 0, q, 1e-4)
    return float((p / p.sum() * np.log(p / p.sum() / (q / q.sum()))).sum())


@pytest.mark.parametrize("make", [heavy_tails, lambda n: np.abs(heavy_tails(n))], ids=["two ends", "one end"])
def test_entropy_is_close_to_the_least_divergence(make: Any) -> None:
    values = make(200_000)
    lo, hi = observed("entropy", values)
    assert values.min() <= lo <= hi <= values.max()
    top = float(np.abs(values).max())
    candidates = {t: brute_divergence(values, t) for t in top * np.arange(4, 41) / 40}
    assert brute_divergence(values, max(-lo, hi)) <= min(candidates.values()) * 1.5 + 0.01
    assert max(-lo, hi) < 0.9 * top, "outliers are cut off"


def test_moving_average_takes_every_sample_as_a_step() -> None:
    samples = np.random.default_rng(0).normal(size=(300, 50)).astype(np.float32)
    one, many = MovingAverage(0.99), MovingAverage(0.99)
    for sample in samples:
        one.update(sample[None])
    many.update(samples[:7])
    many.update(samples[7:])
    assert one.range() == many.range(), "whatever the batch size"
    lo, hi = samples[0].min(), samples[0].max()
    for step, sample in enumerate(samples[1:], start=2):
        weight = max(1 / step, 0.01)
        lo, hi = lo + weight * (float(sample.min()) - lo), hi + weight * (float(sample.max()) - hi)
    assert one.range() == pytest.approx((lo, hi), rel=1e-6)


@pytest.mark.parametrize("spec", [*METHODS, "percentile:99", "moving-average:0.5"])
@pytest.mark.parametrize("values", [np.zeros(9), np.full(9, 3.0), np.full(9, -2.5), np.asarray([-1e-30, 1e-30])])
def test_degenerate_values(spec: str, values: Array) -> None:
    lo, hi = observed(spec, values.astype(np.float32), 1)
    elem = activation_type(lo, hi)
    assert np.abs(elem.dequantize(elem.quantize(values)) - values).max() <= max(elem.scale[0], 1e-30)


def test_spellings() -> None:
    for spec in (
        "minmax:1",
        "percentile:",
        "percentile:x",
        "percentile:50",
        "percentile:100.1",
        "moving-average:0",
        "guess",
        "mse:2",
    ):
        with pytest.raises(UsageError, match="calibration method"):
            parse_method(spec)
    assert observed("percentile:100", heavy_tails()) == pytest.approx(observed("minmax", heavy_tails()))


def test_clipped_share() -> None:
    values = activations()
    for kind in (LeastSquares, Entropy):
        watcher = kind()
        watcher.update(values.reshape(1, -1))
        lo, hi = watcher.range()
        assert watcher.outside(lo, hi) == pytest.approx(((values < lo) | (values > hi)).mean(), abs=2e-3)
        assert watcher.outside(*watcher.observed()) == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_memory_does_not_grow_with_the_data(name: str) -> None:
    watcher = parse_method(name)()
    sample = activations(100_000).reshape(1, -1)
    watcher.update(sample)
    tracemalloc.start()
    for factor in range(1, 30):
        watcher.update(sample * np.float32(factor))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000
    assert peak < 8 * sample.nbytes
