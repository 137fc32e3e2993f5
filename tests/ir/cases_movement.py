"""Resampling, indexing, borders, repetition and blocks against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.grid_sample import GridSampleAttrs
from bevel.ir.ops.index import GatherAttrs, GatherNDAttrs, ScatterElementsAttrs, ScatterNDAttrs
from bevel.ir.ops.movement import BlockAttrs, ExpandAttrs, PadAttrs, ReverseAttrs, TileAttrs
from bevel.ir.ops.resize import ResizeAttrs, ResizeNearestAttrs
from tests.ir.float_case import Case

Array = npt.NDArray[Any]
IMAGE = (2, 3, 5, 6)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def cases() -> list[Case]:
    return [*_resizes(), *_grids(), *_rearranged(), *_gathers(), *_scatters()]


def _resizes() -> list[Case]:
    made = []
    for sizes, coordinates, how in (
        ((10, 12), ((2, -1, 4), (2, -1, 4)), {"coordinate_transformation_mode": "half_pixel"}),
        ((3, 8), ((5, 1, 3), (6, -1, 8)), {"coordinate_transformation_mode": "half_pixel"}),
        ((9, 4), ((4, 0, 8), (5, 0, 3)), {"coordinate_transformation_mode": "align_corners"}),
        ((7, 15), ((5, 0, 7), (6, 0, 15)), {"coordinate_transformation_mode": "asymmetric"}),
    ):
        extra = [None, None, i64(2, 3, *sizes)]
        for mode in ("linear", "cubic"):
            attrs = ResizeAttrs((2, 3), sizes, coordinates, mode)
            made.append(Case("Resize", [IMAGE], attrs, {"mode": mode, **how}, extra))
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
            nearest = ResizeNearestAttrs((2, 3), sizes, coordinates, rounding)
            onnx = {"mode": "nearest", "nearest_mode": rounding, **how}
            made.append(Case("ResizeNearest", [IMAGE], nearest, onnx, extra, onnx_op="Resize"))
    half = {"coordinate_transformation_mode": "half_pixel", "antialias": 1, "exclude_outside": 1}
    for mode in ("linear", "cubic"):
        attrs = ResizeAttrs((2, 3), (2, 3), ((10, 3, 4), (4, 1, 2)), mode, -0.75, (2.5, 2.0), True)
        made.append(Case("Resize", [IMAGE], attrs, {"mode": mode, **half}, [None, None, i64(2, 3, 2, 3)]))
    return made


def _grids() -> list[Case]:
    grid = np.random.default_rng(4).uniform(-1.3, 1.3, (2, 4, 7, 2)).astype(np.float32)
    return [
        Case(
            "GridSample",
            [IMAGE, grid],
            GridSampleAttrs(mode, padding, corners),
            {"mode": mode, "padding_mode": padding, "align_corners": int(corners)},
        )
        for mode in ("nearest", "linear", "cubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (False, True)
    ]


def _rearranged() -> list[Case]:
    pads = (0, 1, 2, 3), (1, 0, 4, 1)
    made = [
        Case("Pad", [IMAGE], PadAttrs(*pads, 0.0, mode), {"mode": mode}, [i64(*pads[0], *pads[1])])
        for mode in ("edge", "reflect", "wrap")
    ]
    backwards = [i64(-1, -1), i64(-99, -99), i64(1, 3), i64(-1, -1)]
    made.append(Case("Reverse", [IMAGE], ReverseAttrs((1, 3)), extra=backwards, onnx_op="Slice"))
    for source, target in (((3, 1), (2, 3, 4)), ((1,), (5,)), ((), (2, 2)), ((2, 3), (2, 3))):
        made.append(Case("Expand", [source], ExpandAttrs(target), extra=[i64(*target)]))
    made.append(Case("Tile", [(2, 3)], TileAttrs((3, 2)), extra=[i64(3, 2)]))
    made.append(Case("Tile", [i64(1, 2)], TileAttrs((2,)), extra=[i64(2)]))
    blocks = {"blocksize": 2}
    made += [Case("DepthToSpace", [(2, 12, 3, 5)], BlockAttrs(2, m), {**blocks, "mode": m}) for m in ("DCR", "CRD")]
    made.append(Case("SpaceToDepth", [(2, 3, 4, 6)], BlockAttrs(2), blocks))
    return made


def _gathers() -> list[Case]:
    made = []
    picks = (
        (0, i64(1, -1, 0)),
        (1, i64(0, 2, -3, 1).reshape(2, 2)),
        (3, np.array(-2, np.int64)),
        (2, np.array([4, 4], np.int32)),
    )
    for axis, indices in picks:
        made.append(Case("Gather", [IMAGE, indices], GatherAttrs(axis), {"axis": axis}))
    rng = np.random.default_rng(5)
    for axis in range(4):
        shape = tuple(7 if a == axis else n for a, n in enumerate(IMAGE))
        picked = rng.integers(-IMAGE[axis], IMAGE[axis], shape)
        made.append(Case("GatherElements", [IMAGE, picked], GatherAttrs(axis), {"axis": axis}))
    made.append(Case("GatherND", [IMAGE, rng.integers(-2, 2, (4, 3, 2))], GatherNDAttrs(), {}))
    made.append(Case("GatherND", [IMAGE, rng.integers(-3, 3, (2, 4, 1))], GatherNDAttrs(1), {"batch_dims": 1}))
    made.append(Case("GatherND", [IMAGE, rng.integers(-5, 5, (2, 3, 2))], GatherNDAttrs(2), {"batch_dims": 2}))
    return made


def _scatters() -> list[Case]:
    rng = np.random.default_rng(6)
    made = []
    for reduction in ("none", "add", "mul", "max", "min"):
        for axis in (0, 2):
            # Without duplicates, whose order onnxruntime leaves open, where elements are replaced.
            shape = tuple(2 if a == axis else n for a, n in enumerate(IMAGE))
            order = np.argsort(rng.random(IMAGE), axis=axis)
            indices = np.take(order, [0, 1], axis=axis) - (IMAGE[axis] if axis else 0)
            attrs = ScatterElementsAttrs(axis, reduction)
            onnx = {"axis": axis, "reduction": reduction}
            made.append(Case("ScatterElements", [IMAGE, indices, shape], attrs, onnx))
        places = i64(1, 0, 0, -1).reshape(2, 2)
        made.append(Case("ScatterND", [IMAGE, places, (2, 5, 6)], ScatterNDAttrs(reduction), {"reduction": reduction}))
        rows = i64(4, 1, 4).reshape(3, 1) if reduction == "add" else i64(4, 1, 0).reshape(3, 1)
        made.append(Case("ScatterND", [(5, 4), rows, (3, 4)], ScatterNDAttrs(reduction), {"reduction": reduction}))
    return made
