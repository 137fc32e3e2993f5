"""From samples to what is reported.

Samples within one process agree far better with each other than two processes do (memory layout, frequency, neighbours), so the
confidence interval is taken over the medians of processes, never over samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
# A median whose interval is wider than this share of it on either side is marked unstable ...
UNSTABLE = 0.05
# ... and so is one of which other programs disturbed more than this share of the blocks.
MOST_DISTURBED = 0.25


@dataclass(frozen=True)
class Latency:
    """Latency of one contestant.

    Attributes:
        median: of the processes' medians, milliseconds.
        p10: 10th percentile over all samples, milliseconds.
        ci95: 95 % interval of the median over processes, milliseconds; least and greatest sample when there was one process.
        cpu: median CPU milliseconds a call, over all threads; None where it was not measured.
        disturbed: share of the samples that other programs disturbed.
    """

    median: float
    p10: float
    ci95: tuple[float, float]
    cpu: float | None = None
    disturbed: float = 0.0

    @property
    def unstable(self) -> bool:
        """True when the median should not be quoted: its interval is too wide, or the machine was busy with something else."""
        return (self.ci95[1] - self.ci95[0]) / 2 > UNSTABLE * self.median or self.disturbed > MOST_DISTURBED

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {"median": self.median, "p10": self.p10, "ci95": list(self.ci95), "cpu": self.cpu}


def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t; beyond the table by its expansion in 1/degrees, right to 0.01."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96 + 2.5 / degrees


def summarize(
    processes: Sequence[Sequence[float]], cpu: Sequence[Sequence[float]] | None = None, disturbed: Sequence[float] = ()
) -> Latency:
    """Latency from the samples (milliseconds) of each process, their CPU time and the disturbed share of each.

    Raises:
        ValueError: no samples.
    """
    if not processes or not all(len(samples) for samples in processes):
        raise ValueError("latency of no samples")
    medians = np.array([np.median(samples) for samples in processes])
    everything = np.concatenate([np.asarray(samples) for samples in processes])
    center, p10 = float(np.median(medians)), float(np.percentile(everything, 10))
    cpu_center = float(np.median([np.median(samples) for samples in cpu])) if cpu else None
    share = float(np.mean(disturbed)) if len(disturbed) else 0.0
    degrees = len(medians) - 1
    if degrees < 1:
        return Latency(center, p10, (float(everything.min()), float(everything.max())), cpu_center, share)
    half = t95(degrees) * float(medians.std(ddof=1)) / float(np.sqrt(len(medians)))
    return Latency(center, p10, (max(0.0, center - half), center + half), cpu_center, share)
