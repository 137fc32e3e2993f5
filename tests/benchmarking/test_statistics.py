"""Medians and intervals: known values, and coverage of later sessions on simulated devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from bevel.benchmarking.statistics import (
    DRIFT,
    DRIFT_DEGREES,
    MOST_REJECTED,
    PRECISION,
    Drift,
    Interval,
    Latency,
    learn_drift,
    summarize,
    t95,
)

STEADY = Drift(0.0, DRIFT_DEGREES)


def test_the_interval_is_taken_over_processes() -> None:
    """Medians e^-1, 1 and e: logarithms -1, 0, 1, deviation 1, t(2) = 4.303; a later median differs by twice the variance."""
    latency = summarize([[1 / math.e] * 3, [1.0, 1.0], [math.e, math.e, 30.0]], drift=STEADY)
    error = math.pi / 2 / 3
    assert latency.median == pytest.approx(1.0)
    assert latency.spread == pytest.approx(1.0)
    assert latency.precision == pytest.approx(4.303 * math.sqrt(error))
    assert np.log(latency.ci95) == pytest.approx([-4.303 * math.sqrt(2 * error), 4.303 * math.sqrt(2 * error)])
    assert latency.interval.kind == "prediction"
    assert latency.p10 == pytest.approx(1 / math.e)
    assert latency.unstable


def test_drift_between_sessions_widens_the_interval_and_not_the_precision() -> None:
    """Equal processes: only what separates sessions is left, with the degrees of freedom it was learned with."""
    latency = summarize([[2.0]] * 5, drift=Drift(0.01, 6))
    assert latency.precision == 0.0
    assert np.log(np.array(latency.ci95) / 2) == pytest.approx(2.447 * math.sqrt(2) * 0.01 * np.array([-1, 1]))
    assert not latency.unstable


def test_equal_processes_are_stable_however_their_blocks_scatter() -> None:
    latency = summarize([[1.0, 2.0, 9.0], [2.0, 0.1, 3.0]], drift=STEADY)
    assert latency.ci95 == (2.0, 2.0)
    assert not latency.unstable


def test_one_process_shows_its_extremes() -> None:
    latency = summarize([[1.0, 2.0, 4.0]])
    assert latency.interval == Interval(1.0, 4.0, "range")
    assert latency.unstable
    assert not summarize([[1.0, 1.001]]).unstable


def test_what_makes_a_median_unstable() -> None:
    interval = Interval(0.99, 1.01, "prediction")
    assert Latency(1.0, 1.0, interval, PRECISION, 0.01, None, MOST_REJECTED).why_unstable is None
    assert "known to 3.0 % only" in str(Latency(1.0, 1.0, interval, 0.03, 0.01).why_unstable)
    assert "30 % of the blocks were disturbed" in str(Latency(1.0, 1.0, interval, 0.001, 0.01, None, 0.3).why_unstable)


@pytest.mark.parametrize("processes", [[], [[]], [[1.0], []]])
def test_no_samples_have_no_latency(processes: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize(processes)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (4, 2.776), (4.5, 2.659), (10, 2.228), (15, 2.131), (16, 2.120), (30, 2.042), (120, 1.980)],
)
def test_student_quantiles(degrees: float, quantile: float) -> None:
    """Against tables; at 4.5 degrees against R's qt(0.975, 4.5)."""
    assert t95(degrees) == pytest.approx(quantile, abs=0.012)


def test_student_quantiles_fall_with_the_degrees() -> None:
    values = [t95(degrees) for degrees in np.arange(1, 60, 0.25)]
    assert all(a > b for a, b in pairwise(values))


def test_drift_is_learned_from_repeated_sessions() -> None:
    """Sessions 5 % apart whose processes agree: the guess gives way as sessions come in."""
    rng = np.random.default_rng(0)
    groups = [[(float(np.exp(rng.normal(0, 0.05))), 0.001, 5) for _ in range(10)] for _ in range(20)]
    assert learn_drift([]) == learn_drift([[(1.0, 0.1, 5)]]) == Drift()
    learned = learn_drift(groups)
    assert learned.degrees == DRIFT_DEGREES + 180
    assert learned.sd == pytest.approx(0.05, rel=0.15)
    assert DRIFT < learn_drift([groups[0][:3]]).sd


def test_drift_does_not_count_what_processes_explain() -> None:
    """Medians that differ by no more than the processes behind them are no drift."""
    rng = np.random.default_rng(0)
    groups = [[(float(np.median(np.exp(rng.normal(0, 0.05, 5)))), 0.05, 5) for _ in range(10)] for _ in range(20)]
    assert learn_drift(groups).sd < 0.015


class Device:
    """A device as a model of random effects: sessions, processes and blocks each differ; processes also with heavy tails."""

    def __init__(self, seed: int, session: float, process: float, heavy: bool) -> None:
        self.rng, self.session, self.process, self.heavy = np.random.default_rng(seed), session, process, heavy

    def measure(self) -> list[np.ndarray]:
        """One session under the stopping rule."""
        base = self.rng.normal(0, self.session)
        processes = [self._process(base) for _ in range(5)]
        while summarize(processes).precision > PRECISION and len(processes) < 40:
            processes.append(self._process(base))
        return processes

    def _process(self, base: float) -> np.ndarray:
        own = abs(self.rng.standard_t(3)) if self.heavy else self.rng.normal()
        blocks: np.ndarray = np.exp(base + self.process * own + self.rng.normal(0, 0.002, 8))
        return blocks


def coverage(device: Device, trials: int, history: int) -> float:
    """How often a session's interval holds the next session's median, with a store of so many earlier sessions."""
    hits = 0
    for _ in range(trials):
        before: Sequence[Latency] = [summarize(device.measure()) for _ in range(history)]
        drift = learn_drift([[(known.median, known.spread, 5) for known in before]])
        now, later = summarize(device.measure(), drift=drift), summarize(device.measure())
        hits += now.interval.lo <= later.median <= now.interval.hi
    return hits / trials


@pytest.mark.parametrize(
    ("session", "process", "heavy", "history"),
    [
        (0.0, 0.005, False, 0),
        (DRIFT, 0.005, False, 0),
        (DRIFT, 0.02, True, 0),
        # More drift than is guessed: known after some sessions.
        (2 * DRIFT, 0.005, False, 16),
        (4 * DRIFT, 0.01, True, 16),
    ],
)
def test_intervals_cover_later_medians(session: float, process: float, heavy: bool, history: int) -> None:
    """At least 90 % of later medians lie in an interval of nominally 95 %, whatever the processes are like."""
    assert coverage(Device(1, session, process, heavy), 150, history) >= 0.9
