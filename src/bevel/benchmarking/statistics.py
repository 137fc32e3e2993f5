"""From samples to what is reported.

Samples within one process agree far better with each other than two processes do (memory layout, frequency, neighbours), so the
confidence interval is taken over the medians of processes, never over samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; the normal quantile beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
# A median whose interval is wider than this share of it on either side is marked unstable.
UNSTABLE = 0.05


@dataclass(frozen=True)
class Latency:
    """Milliseconds: median and 10th percentile over all samples, 95 % interval of the median over processes."""

    median: float
    p10: float
    ci95: tuple[float, float]

    @property
    def unstable(self) -> bool:
        """True when the interval is too wide to quote the median."""
        return (self.ci95[1] - self.ci95[0]) / 2 > UNSTABLE * self.median

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {"median": self.median, "p10": self.p10, "ci95": list(self.ci95)}


def summarize(processes: Sequence[Sequence[float]]) -> Latency:
    """Latency from the samples (milliseconds) of each process.

    Raises:
        ValueError: no samples.
    """
    if not processes or not all(len(samples) for samples in processes):
        raise ValueError("latency of no samples")
    medians = np.array([np.median(samples) for samples in processes])
    everything = np.concatenate([np.asarray(samples) for samples in processes])
    center = float(np.median(medians))
    degrees = len(medians) - 1
    if degrees < 1:
        return Latency(center, float(np.percentile(everything, 10)), (float(everything.min()), float(everything.max())))
    t = _T95[degrees - 1] if degrees <= len(_T95) else 1.96
    half = t * float(medians.std(ddof=1)) / np.sqrt(len(medians))
    return Latency(center, float(np.percentile(everything, 10)), (center - half, center + half))
