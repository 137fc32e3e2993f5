"""GridSample: an image read at positions that the model computes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import FLOAT_ONLY, Call, PruneRule, QuantRule, elements, register, require, require_real
from bevel.ir.types import F32, TensorType

Array = npt.NDArray[Any]

TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
PADDINGS = ("zeros", "border", "reflection")
# Positions beyond are as far outside as any; float32 still counts in steps of 1/8 here.
FAR = float(1 << 20)
# Coefficient of the cubic filter in ONNX and PyTorch (Keys 1981).
CUBIC = -0.75


@dataclass(frozen=True)
class GridSampleAttrs:
    """How the image is read.

    Attributes:
        mode: nearest (ties to even), linear or cubic.
        padding: elements beyond the border are zeros, those of the border, or mirrored (reflection).
        align_corners: -1 and 1 are the centres of the outermost elements instead of their outer edges.
    """

    mode: str = "linear"
    padding: str = "zeros"
    align_corners: bool = False


def _infer(attrs: GridSampleAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    x, grid = ins
    require_real(x, grid)
    rank = x.rank
    require(attrs.mode in TAPS and attrs.padding in PADDINGS, f"mode {attrs.mode!r}, padding {attrs.padding!r}")
    require(rank == 4 or (rank == 5 and attrs.mode != "cubic"), f"{attrs.mode} of {x}: expected rank 4, or 5 unless cubic")
    require(grid.rank == rank and grid.shape[-1] == rank - 2, f"grid {grid} of {x}")
    require(grid.shape[0] == x.shape[0], f"{grid} and {x} differ in their batch")
    require(all(isinstance(d, int) and d >= 1 for d in x.shape[2:]), f"extents of {x} must be static")
    return (TensorType((*x.shape[:2], *grid.shape[1:-1]), F32),)


def limits(attrs: GridSampleAttrs, extent: int) -> tuple[float, float]:
    """The outermost positions of an axis that lie inside."""
    return (0.0, extent - 1.0) if attrs.align_corners else (-0.5, extent - 0.5)


def _reflected(position: Array, low: float, high: float) -> Array:
    """Positions mirrored at both limits until they lie between."""
    span = high - low
    if span == 0:
        return np.full_like(position, low)
    moved = position - low
    rest = moved - np.floor(moved / (2 * span)) * (2 * span)
    return np.asarray(low + np.minimum(rest, 2 * span - rest))


def _axis(attrs: GridSampleAttrs, coordinate: Array, extent: int) -> list[tuple[Array, Array]]:
    """Index and weight of every tap along one axis."""
    whole = coordinate.astype(np.float64) + 1
    position = whole / 2 * (extent - 1) if attrs.align_corners else (whole * extent - 1) / 2
    position = np.clip(position, -FAR, FAR)
    if attrs.mode == "nearest":
        position = np.rint(position)
    low, high = limits(attrs, extent)
    outside = (position < low) | (position > high)
    # PyTorch and onnxruntime move cubic taps inside, not the position.
    if attrs.padding == "border" and attrs.mode != "cubic":
        position = np.where(outside, np.clip(position, 0, extent - 1), position)
    elif attrs.padding == "reflection" and attrs.mode != "cubic":
        position = np.where(outside, _reflected(position, low, high), position)
    floor = np.floor(position)
    t = position - floor
    a = CUBIC
    weights = {
        "nearest": [np.ones_like(t)],
        "linear": [1 - t, t],
        "cubic": [
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
            ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
            ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ],
    }[attrs.mode]
    taps = []
    for offset, weight in enumerate(weights, -1 if attrs.mode == "cubic" else 0):
        index = floor + offset
        if attrs.padding == "zeros":
            weight = np.where((index < 0) | (index >= extent), 0, weight)
        elif attrs.padding == "reflection":
            index = np.trunc(_reflected(index, low, high))
        taps.append((np.clip(index, 0, extent - 1).astype(np.int64), weight))
    return taps


def _reference(call: Call, x: Array, grid: Array) -> Array:
    spatial = x.shape[2:]
    image = np.moveaxis(x, 1, -1).astype(np.float64)
    batch = np.arange(len(x)).reshape(-1, *[1] * len(spatial))
    # The last coordinate of the grid is along the first axis.
    axes = [_axis(call.attrs, grid[..., -1 - a], extent) for a, extent in enumerate(spatial)]
    total = np.zeros((*grid.shape[:-1], x.shape[1]))
    for taps in product(*axes):
        weight = np.prod([w for _, w in taps], axis=0)
        total += image[(batch, *(i for i, _ in taps))] * weight[..., None]
    return np.moveaxis(total, -1, 1).astype(np.float32)


register(
    "GridSample",
    "The image at the positions of a grid, -1 to 1 along each axis.",
    attrs=GridSampleAttrs,
    arity=(2, 2),
    infer=_infer,
    reference=_reference,
    macs=lambda attrs, _ins, outs: elements(outs) * TAPS[attrs.mode] ** (outs[0].rank - 2),
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.CARRIES,
    tolerance=1e-5,
)
