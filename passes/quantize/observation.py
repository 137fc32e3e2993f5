"""What calibration reports of a value: the rows of the report of ranges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Observation:
    """What calibration saw of a value and chose for it.

    Attributes:
        name: of the value.
        observed: least and greatest real in the calibration data.
        chosen: least and greatest real that its type holds.
        scale: of its type.
        zero_point: of its type.
        clipped: share (0..1) of the reals seen outside `chosen`.
    """

    name: str
    observed: tuple[float, float]
    chosen: tuple[float, float]
    scale: float
    zero_point: int
    clipped: float
