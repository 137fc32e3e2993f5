"""Resampling, indexed movement, borders, repetition and blocks: ragged shapes, NHWC layouts, extreme values and indices."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from bevel.ir.ops.grid_sample import GridSampleAttrs
from bevel.ir.ops.index import GatherAttrs, GatherNDAttrs, ScatterElementsAttrs, ScatterNDAttrs
from bevel.ir.ops.movement import BlockAttrs, ExpandAttrs, PadAttrs, ReverseAttrs, TileAttrs
from bevel.ir.ops.resize import IntResizeAttrs, ResizeAttrs, ResizeNearestAttrs
from bevel.ir.types import BOOL, F32, I64
from tests.backends.generic_cases import NHWC, RNG, Case, Operand, codes, plain, real


def coordinate(scale: Fraction, shift: Fraction = Fraction(0)) -> tuple[int, int, int]:
    """Of (i + shift) / scale - shift."""
    step, first = 1 / scale, shift / scale - shift
    d = step.denominator * first.denominator
    return int(step * d), int(first * d), d


def images() -> tuple[Operand, ...]:
    return (
        codes(2, 21, 5, 6, layout=NHWC, zero_point=9),
        codes(1, 3, 5, 6, zero_point=-40),
        real(2, 21, 5, 6, layout=NHWC),
        real(1, 3, 5, 6),
    )


def cases() -> Iterator[Case]:
    yield from _resampling()
    yield from _rearranging()
    yield from _gathering()
    yield from _scattering()
    yield from _grids()


def _resampling() -> Iterator[Case]:
    half = Fraction(1, 2)
    double = ((2, 3), (10, 12), (coordinate(Fraction(2), half),) * 2)
    uneven = ((2, 3), (3, 17), (coordinate(Fraction(3, 5), half), coordinate(Fraction(17, 6))))
    wide = ((3,), (2,), (coordinate(Fraction(1, 3), half),))
    deep = ((1, 2, 3), (4, 7, 5), (coordinate(Fraction(4, 3)), coordinate(Fraction(7, 5), half), coordinate(Fraction(5, 6))))
    for x in images():
        layout = x.layout
        for at in (double, uneven, wide, deep):
            for rounding in ("floor", "round_prefer_floor") if at is uneven else ("ceil", "round_prefer_ceil"):
                yield Case("ResizeNearest", ResizeNearestAttrs(*at, rounding), (x,), layout)
            for mode in ("linear", "cubic"):
                if x.elem == F32:
                    yield Case("Resize", ResizeAttrs(*at, mode, exclude_outside=at is uneven), (x,), layout)
                else:
                    bits = 7 if at is deep else 11
                    yield Case("IntResize", IntResizeAttrs(*at, mode, bits=bits), (x,), layout)
    # Antialiased: six and twelve taps along each axis.
    third = ((2, 3), (2, 3), (coordinate(Fraction(1, 3), half),) * 2)
    for mode in ("linear", "cubic"):
        yield Case("Resize", ResizeAttrs(*third, mode, stretch=(3.0, 3.0)), (real(1, 19, 6, 9, layout=NHWC),), NHWC)
        attrs = IntResizeAttrs(*third, mode, stretch=(3.0, 3.0), bits=11)
        yield Case("IntResize", attrs, (codes(1, 19, 6, 9, layout=NHWC),), NHWC)
    # Constant images of extreme codes stay constant.
    for code in (-128, 127):
        flat = codes(1, 5, 5, 6, layout=NHWC)
        yield Case(
            "IntResize", IntResizeAttrs(*uneven, "linear"), (Operand(np.full_like(flat.array, code), flat.elem, NHWC),), NHWC
        )


def _rearranging() -> Iterator[Case]:
    for x in images():
        for mode in ("edge", "reflect", "wrap"):
            yield Case("Pad", PadAttrs((0, 0, 2, 1), (0, 0, 1, 3), mode=mode), (x,), NHWC)
            yield Case("Pad", PadAttrs((1, 2, 0, 0), (0, 1, 0, 4), mode=mode), (x,))
        yield Case("Reverse", ReverseAttrs((1, 3)), (x,), NHWC)
        yield Case("Reverse", ReverseAttrs((2,)), (x,))
        yield Case("Tile", TileAttrs((1, 2, 3, 1)), (x,), NHWC)
        yield Case("Tile", TileAttrs((2, 1, 1, 4)), (x,))
        yield Case("SpaceToDepth", BlockAttrs(1), (x,), NHWC)
    yield Case("Expand", ExpandAttrs((3, 2, 70)), (codes(2, 1),))
    yield Case("Expand", ExpandAttrs((2, 17, 3, 5)), (real(2, 17, 1, 1, layout=NHWC),), NHWC)
    yield Case("Expand", ExpandAttrs((4,)), (Operand(np.array([True]), BOOL),))
    yield Case("Tile", TileAttrs((5,)), (Operand(np.arange(3), I64),))
    for image in (codes(2, 36, 4, 6, layout=NHWC), codes(1, 12, 4, 6), real(1, 72, 4, 6, layout=NHWC), real(1, 8, 4, 6)):
        for mode in ("DCR", "CRD"):
            yield Case("DepthToSpace", BlockAttrs(2, mode), (image,), NHWC)
            yield Case("DepthToSpace", BlockAttrs(2, mode), (image,))
            yield Case("SpaceToDepth", BlockAttrs(2, mode), (image,), NHWC)
            yield Case("SpaceToDepth", BlockAttrs(2, mode), (image,))


def _indices(*shape: int, extent: int, dtype: type = np.int64) -> Operand:
    """Valid indices of both signs, and some beyond the ends."""
    array = RNG.integers(-extent, extent, shape).astype(dtype)
    flat = array.reshape(-1)
    beyond = [extent, -extent - 1, np.iinfo(dtype).max, np.iinfo(dtype).min]
    if flat.size > 8:
        flat[-4:] = beyond
    return plain(array)


def _grids() -> Iterator[Case]:
    far = np.array([-1e30, -7.3, -1, 1, 5.1, 1e9], np.float32)
    for x in (real(2, 21, 5, 6, layout=NHWC), real(2, 3, 5, 6)):
        grid = RNG.uniform(-1.4, 1.4, (2, 4, 7, 2)).astype(np.float32)
        grid[0, 0, :6, 0], grid[0, 1, :6, 1] = far, far
        for mode in ("nearest", "linear", "cubic"):
            for padding in ("zeros", "border"):
                yield Case("GridSample", GridSampleAttrs(mode, padding, mode == "linear"), (x, plain(grid)), x.layout)
            # Mirrored a million times, float32 has no digits left.
            near = plain(np.clip(grid, -9, 9))
            yield Case("GridSample", GridSampleAttrs(mode, "reflection", mode != "cubic"), (x, near), x.layout)
    for mode in ("nearest", "linear"):
        cube = plain(RNG.uniform(-1.2, 1.2, (1, 2, 3, 5, 3)).astype(np.float32))
        yield Case("GridSample", GridSampleAttrs(mode), (real(1, 9, 3, 4, 5, layout=(0, 2, 3, 4, 1)), cube))


def _gathering() -> Iterator[Case]:
    for number, x in enumerate(images()):
        for axis in (1, 3) if number % 2 else (0, 2, 3):
            extent = x.array.shape[axis]
            yield Case("Gather", GatherAttrs(axis), (x, _indices(9, extent=extent)))
            yield Case("Gather", GatherAttrs(axis), (x, _indices(extent=extent, dtype=np.int32)))
            shape = tuple(9 if a == axis else n - (n > 2) for a, n in enumerate(x.array.shape))
            yield Case("GatherElements", GatherAttrs(axis), (x, _indices(*shape, extent=extent)), NHWC)
        yield Case("Gather", GatherAttrs(1), (x, _indices(3, 4, extent=x.array.shape[1])))
        yield Case("GatherND", GatherNDAttrs(), (x, _indices(3, 4, 2, extent=3)))
        yield Case("GatherND", GatherNDAttrs(1), (x, _indices(x.array.shape[0], 4, 3, extent=5)))
        yield Case("GatherND", GatherNDAttrs(1), (x, _indices(x.array.shape[0], 1, extent=3)))
    # An embedding: rows of a constant table.
    yield Case("Gather", GatherAttrs(0), (plain(RNG.normal(0, 1, (50, 37)).astype(np.float32)), _indices(2, 11, extent=50)))
    table = Operand(RNG.integers(-128, 128, (50, 37)).astype(np.int8), codes(1).elem)
    yield Case("Gather", GatherAttrs(0), (table, _indices(2, 11, extent=50)))


def _scattering() -> Iterator[Case]:
    images = (real(1, 3, 5, 6), Operand(RNG.integers(-9, 9, (2, 3, 5, 6)), I64), real(2, 21, 5, 6, layout=NHWC))
    for reduction in ("none", "add", "mul", "max", "min"):
        for x in images if reduction in ("none", "add") else images[:2]:
            n, c, h, w = x.array.shape
            axes = ((1, (n, 9, h, w)), (3, (n, c, 3, 12)))
            for axis, shape in axes if reduction in ("none", "add") else axes[1:]:
                updates = RNG.integers(-9, 9, shape).astype(x.array.dtype)
                attrs = ScatterElementsAttrs(axis, reduction)
                yield Case("ScatterElements", attrs, (x, _indices(*shape, extent=x.array.shape[axis]), plain(updates)), x.layout)
            for depth, lead in ((1, (3,)), (2, (2, 4)), (4, (9,))) if reduction in ("none", "add") else ((4, (9,)),):
                shape = (*lead, *x.array.shape[depth:])
                updates = RNG.integers(-9, 9, shape).astype(x.array.dtype)
                yield Case("ScatterND", ScatterNDAttrs(reduction), (x, _indices(*lead, depth, extent=3), plain(updates)))
