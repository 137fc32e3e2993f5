"""From blocks to what is reported: a median, and the interval in which the next measurement's median will fall.

Blocks within one process agree far better with each other than two processes do (memory layout, neighbours), and processes of
one session better than two sessions do (clock, heat, the host of a virtual machine). So nothing is inferred from the scatter of
blocks: the processes of a session are its sample (Kalibera and Jones, 2013, treat the levels of such an experiment alike), and
what separates sessions is learned from the sessions the store holds of the same device.

Times are logarithmic inside, since all these effects are ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
# More processes are measured until the median over them is known this well, relative to it, on either side (95 %) ...
PRECISION = 0.02
# ... and a median is unstable when that is not reached, or when more than this share of the blocks had to be rejected.
MOST_REJECTED = 0.25
# Variance of a sample median over that of the mean, for normal data; from 1.43 for five to pi/2.
_MEDIAN_VARIANCE = math.pi / 2
# What separates two sessions where the store knows none to compare, relative standard deviation, and how many sessions this
# guess is worth beside those it learns from. benchmarks/repeatability has the measurement.
DRIFT, DRIFT_DEGREES = 0.006, 6


@dataclass(frozen=True)
class Drift:
    """What separates sessions of one device that measure the same thing.

    Attributes:
        sd: relative standard deviation.
        degrees: of freedom behind it.
    """

    sd: float = DRIFT
    degrees: int = DRIFT_DEGREES


@dataclass(frozen=True)
class Interval:
    """Where a median is expected.

    Attributes:
        lo: lower end.
        hi: upper end.
        kind: "prediction": the median of a later session of as many processes, with 95 % probability; "range": least and
            greatest block, when there was one process.
    """

    lo: float
    hi: float
    kind: str


@dataclass(frozen=True)
class Latency:
    """Latency of one contestant, milliseconds.

    Attributes:
        median: of the processes' medians.
        p10: 10th percentile over all blocks.
        interval: where the median of a later session is expected.
        precision: how well the median over processes is known: 95 %, either side, relative; infinite for one process.
        spread: standard deviation of the processes' medians, relative.
        cpu: median CPU time a call, over all threads; None where it was not measured.
        disturbed: share of the blocks that had to be rejected.
    """

    median: float
    p10: float
    interval: Interval
    precision: float
    spread: float
    cpu: float | None = None
    disturbed: float = 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.interval.lo, self.interval.hi

    @property
    def unstable(self) -> bool:
        """True when the median should not be quoted."""
        return self.why_unstable is not None

    @property
    def why_unstable(self) -> str | None:
        """What speaks against quoting the median; None when nothing does."""
        if self.disturbed > MOST_REJECTED:
            return f"{100 * self.disturbed:.0f} % of the blocks were disturbed"
        # The range of one process is held against the same bound.
        width = self.precision if math.isfinite(self.precision) else (self.interval.hi - self.interval.lo) / 2 / self.median
        return f"processes differ: the median is known to {100 * width:.1f} % only" if width > PRECISION else None

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {"median": self.median, "p10": self.p10, "ci95": list(self.ci95), "cpu": self.cpu}


def t95(degrees: float) -> float:
    """Two-sided 95 % quantile of Student's t; between whole degrees and beyond the table by its expansion in 1/degrees."""
    last = len(_T95)
    if degrees >= last:
        return 1.96 + (_T95[-1] - 1.96) * last / degrees
    below = max(1, math.floor(degrees))
    share = (1 / below - 1 / max(1.0, degrees)) / (1 / below - 1 / (below + 1))
    return _T95[below - 1] + share * (_T95[below] - _T95[below - 1])


def summarize(
    processes: Sequence[Sequence[float]],
    cpu: Sequence[Sequence[float]] | None = None,
    disturbed: Sequence[float] = (),
    drift: Drift | None = None,
) -> Latency:
    """Latency from the blocks (milliseconds a call) of each process, their CPU time and the rejected share of each.

    Args:
        processes: accepted blocks; every process has some.
        cpu: CPU time of the same blocks.
        disturbed: rejected share of each process's blocks.
        drift: between sessions; `Drift()` when None.

    Raises:
        ValueError: no samples.
    """
    if not processes or not all(len(samples) for samples in processes):
        raise ValueError("latency of no samples")
    drift = drift or Drift()
    medians = np.log([np.median(samples) for samples in processes])
    everything = np.concatenate([np.asarray(samples) for samples in processes])
    center, p10 = float(np.exp(np.median(medians))), float(np.percentile(everything, 10))
    cpu_center = float(np.median([np.median(samples) for samples in cpu])) if cpu else None
    share = float(np.mean(disturbed)) if len(disturbed) else 0.0
    degrees = len(medians) - 1
    if degrees < 1:
        extremes = Interval(float(everything.min()), float(everything.max()), "range")
        return Latency(center, p10, extremes, math.inf, 0.0, cpu_center, share)
    spread = float(medians.std(ddof=1))
    error = _MEDIAN_VARIANCE * spread**2 / len(medians)
    half = _prediction(2 * error, degrees, 2 * drift.sd**2, drift.degrees)
    interval = Interval(center * math.exp(-half), center * math.exp(half), "prediction")
    return Latency(center, p10, interval, t95(degrees) * math.sqrt(error), spread, cpu_center, share)


def _prediction(within: float, within_degrees: int, between: float, between_degrees: int) -> float:
    """Half width of the interval for the difference of two sessions' medians, whose variance has two estimated parts.

    Their degrees of freedom are combined as by Welch (1947) and Satterthwaite (1946).
    """
    total = within + between
    if total == 0:
        return 0.0
    return t95(total**2 / (within**2 / within_degrees + between**2 / between_degrees)) * math.sqrt(total)


def learn_drift(groups: Sequence[Sequence[tuple[float, float, int]]]) -> Drift:
    """Drift between sessions, from groups of sessions that measured the same thing on one device.

    What medians within a group differ by, less what the scatter of their processes explains, updates the guess `Drift()`, which
    counts as `DRIFT_DEGREES` sessions.

    Args:
        groups: (median, relative spread of the processes, processes) of each session (`Store.repeated_medians`).
    """
    squares, degrees = DRIFT_DEGREES * DRIFT**2, DRIFT_DEGREES
    for group in groups:
        if len(group) > 1:
            medians = np.log([median for median, _, _ in group])
            explained = float(np.mean([_MEDIAN_VARIANCE * spread**2 / count for _, spread, count in group]))
            free = len(group) - 1
            squares += max(0.0, free * (float(medians.var(ddof=1)) - explained))
            degrees += free
    return Drift(math.sqrt(squares / degrees), degrees)
