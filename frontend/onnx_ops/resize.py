"""Resize, Upsample and GridSample: every coordinate transformation becomes one affine map per axis, in exact integers.

Crops beyond the ends (tf_crop_and_resize) become a Pad around what lies inside. Antialiasing widens the filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.ir.ops.grid_sample import GridSampleAttrs
from bevel.ir.ops.movement import PadAttrs
from bevel.ir.ops.resize import ROUNDINGS, ResizeAttrs, ResizeNearestAttrs

Array = npt.NDArray[Any]

MODES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")
_HALF = Fraction(1, 2)
# Region of interest: all of an axis.
_WHOLE = (Fraction(0), Fraction(1))


@dataclass(frozen=True)
class Axis:
    """A resized axis.

    Attributes:
        axis: of the operand.
        extent: of the operand.
        size: of the result.
        scale: result per operand.
        roi: first and last source position, from 0 to 1.
    """

    axis: int
    extent: int
    size: int
    scale: Fraction
    roi: tuple[Fraction, Fraction]

    @property
    def length(self) -> Fraction:
        """The result's extent before rounding, which is what some transformations divide by."""
        return self.scale * self.extent


def exact(number: float) -> Fraction:
    """The simplest fraction that is `number` in float32: 1/3 for 0.33333334."""
    value = Fraction(float(number))
    for digits in range(1, 10):
        near = value.limit_denominator(10**digits)
        if np.float32(float(near)) == np.float32(number):
            return near
    return value


def _map(node: OnnxNode, mode: str, at: Axis) -> tuple[Fraction, Fraction]:
    """Step and first source coordinate of an axis."""
    if mode == "asymmetric":
        return 1 / at.scale, Fraction(0)
    if mode == "align_corners":
        return (Fraction(0), Fraction(0)) if at.length == 1 else (Fraction(at.extent - 1) / (at.length - 1), Fraction(0))
    if mode == "tf_crop_and_resize":
        start, end = at.roi
        span = (end - start) * (at.extent - 1)
        if at.length == 1:
            return Fraction(0), (start + end) / 2 * (at.extent - 1)
        return span / (at.length - 1), start * (at.extent - 1)
    if mode == "pytorch_half_pixel" and at.length == 1:
        return Fraction(0), Fraction(0)
    first = _HALF / at.scale - _HALF
    if mode == "half_pixel_symmetric":
        first += Fraction(at.extent, 2) * (1 - at.size / at.length)
    elif mode not in ("half_pixel", "pytorch_half_pixel"):
        node.refuse(f"coordinate_transformation_mode={mode!r}", ", ".join(MODES))
    return 1 / at.scale, first


def _scaled_axes(node: OnnxNode, axes: tuple[int, ...], scales: Array, roi: tuple[Fraction, ...]) -> list[Axis]:
    shape = node.shape(0)
    found = []
    for i, (axis, number) in enumerate(zip(axes, scales.reshape(-1).tolist(), strict=True)):
        if not number > 0 or not np.isfinite(number):
            node.refuse(f"scale {number} of axis {axis}", "positive scales")
        scale, region = exact(number), (roi[i], roi[i + len(axes)])
        if scale == 1 and region == _WHOLE:
            continue
        (extent,) = node.static(shape[axis : axis + 1], "resized axis")
        found.append(Axis(axis, extent, floor(scale * extent), scale, region))
    return found


def _sized_axes(
    node: OnnxNode, axes: tuple[int, ...], sizes: tuple[Any, ...], roi: tuple[Fraction, ...], policy: str
) -> list[Axis]:
    shape = node.shape(0)
    if policy not in ("stretch", "not_larger", "not_smaller"):
        node.refuse(f"keep_aspect_ratio_policy={policy!r}", "stretch, not_larger, not_smaller")
    if policy != "stretch":
        extents = node.static(tuple(shape[a] for a in axes), "resized axes")
        scales = [Fraction(int(size), extent) for size, extent in zip(sizes, extents, strict=True) if extent]
        scale = min(scales) if policy == "not_larger" else max(scales)
        sizes = tuple(floor(scale * extent + _HALF) for extent in extents)
        return [
            Axis(a, n, s, scale, (roi[i], roi[i + len(axes)]))
            for i, (a, n, s) in enumerate(zip(axes, extents, sizes, strict=True))
        ]
    found = []
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        region = (roi[i], roi[i + len(axes)])
        if shape[axis] == size and region == _WHOLE:
            continue
        (extent,) = node.static(shape[axis : axis + 1], "resized axis")
        if not isinstance(size, int) or size < 1 or extent < 1:
            node.refuse(f"size {size} of axis {axis} with extent {extent}", "positive constant sizes")
        found.append(Axis(axis, extent, size, Fraction(size, extent), region))
    return found


def _axes(node: OnnxNode, mode: str, scales: Array | None, sizes: Array | None) -> list[Axis]:
    """The axes whose elements change place."""
    rank = len(node.shape(0))
    axes = tuple(node.axis(a, rank) for a in node.ints("axes") or range(rank))
    given = scales if sizes is None else sizes
    if given is None or given.size != len(axes) or len(set(axes)) != len(axes):
        node.refuse(f"scales or sizes for axes {list(axes)} missing", "a constant scale or size for every axis")
    roi = (Fraction(0),) * len(axes) + (Fraction(1),) * len(axes)
    region = node.known(1, "roi") if node.op == "Resize" and node.opset >= 11 and mode == "tf_crop_and_resize" else None
    if mode == "tf_crop_and_resize":
        if region is None or region.size != 2 * len(axes):
            node.refuse("no region of interest", "a constant start and end for every resized axis")
        roi = tuple(exact(r) for r in region.reshape(-1).tolist())
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if sizes is None:
        assert scales is not None
        return _scaled_axes(node, axes, scales, roi)
    return _sized_axes(node, axes, tuple(sizes.reshape(-1).tolist()), roi, policy)


def _integers(step: Fraction, first: Fraction) -> tuple[int, int, int]:
    """(a, b, d) with (a * i + b) / d = step * i + first."""
    d = step.denominator * first.denominator // np.gcd(step.denominator, first.denominator)
    return int(step * d), int(first * d), int(d)


def convert_resize(_builder: Builder, node: OnnxNode) -> Operand:
    """Resize by constant scales or sizes, and Upsample."""
    mode = node.text("mode", "nearest")
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)
    old = node.op == "Upsample" or node.opset < 11
    how = node.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = node.text("nearest_mode", "floor" if old else "round_prefer_floor")
    sizes = node.known(3, "sizes") if not old else None
    if node.op == "Upsample" and node.has("scales"):
        scales: Array | None = np.asarray(node.raw("scales"), np.float32)
    else:
        scales = node.known(1 if old else 2, "scales")
    sizes = None if sizes is not None and not sizes.size else sizes
    antialias, exclude = bool(node.integer("antialias", 0)), bool(node.integer("exclude_outside", 0))
    cubic, outside = node.number("cubic_coeff_a", -0.75), node.number("extrapolation_value", 0.0)
    if mode not in ("nearest", "linear", "cubic") or rounding not in ROUNDINGS or (antialias and mode == "nearest"):
        node.refuse(
            f"mode={mode!r}, nearest_mode={rounding!r}, antialias={int(antialias)}",
            "nearest, or linear and cubic with or without antialias",
        )
    axes = _axes(node, how, scales, sizes)
    if any(at.size < 1 for at in axes):
        node.refuse("a result without elements", "scales that leave one element or more")
    before, after = [0] * len(node.shape(0)), [0] * len(node.shape(0))
    kept: list[tuple[Axis, int, tuple[int, int, int]]] = []
    for at in axes:
        step, first = _map(node, how, at)
        inside = range(at.size)
        if how == "tf_crop_and_resize":
            inside = _inside(node, at, step, first)
            before[at.axis], after[at.axis] = inside.start, at.size - inside.stop
        kept.append((at, len(inside), _integers(step, first + step * inside.start)))
    result = node.operand(0)
    padded = any(before) or any(after)
    suffix = ".inside" if padded else ""
    if kept:
        where = tuple(at.axis for at, _, _ in kept), tuple(n for _, n, _ in kept), tuple(c for _, _, c in kept)
        if mode == "nearest":
            result = node.emit("ResizeNearest", [result], ResizeNearestAttrs(*where, rounding), suffix=suffix)
        else:
            stretch = tuple(max(1.0, float(1 / at.scale)) for at, _, _ in kept) if antialias else ()
            result = node.emit("Resize", [result], ResizeAttrs(*where, mode, cubic, stretch, exclude), suffix=suffix)
    if padded:
        result = node.emit("Pad", [result], PadAttrs(tuple(before), tuple(after), outside))
    return result


def _inside(node: OnnxNode, at: Axis, step: Fraction, first: Fraction) -> range:
    """Result indices whose source coordinate lies within the operand."""
    last = at.extent - 1
    if step == 0:
        found = range(at.size) if 0 <= first <= last else range(0)
    elif step > 0:
        found = range(max(0, ceil(-first / step)), min(at.size, floor((last - first) / step) + 1))
    else:
        found = range(max(0, ceil((last - first) / step)), min(at.size, floor(-first / step) + 1))
    if not found:
        node.refuse(f"a region of axis {at.axis} that lies outside the operand", "regions that overlap it")
    return found


def convert_grid_sample(_builder: Builder, node: OnnxNode) -> Operand:
    """GridSample."""
    mode = node.text("mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    attrs = GridSampleAttrs(mode, node.text("padding_mode", "zeros"), bool(node.integer("align_corners", 0)))
    return node.emit("GridSample", node.operands(), attrs)


TABLE = {"GridSample": convert_grid_sample, "Resize": convert_resize, "Upsample": convert_resize}
