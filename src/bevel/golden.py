"""Inputs of an artifact's self-test.

In: a graph and, where there is one, its calibration data. Out: a few inputs in the stored dtypes, small as files.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.data import inputs_of, open_data
from bevel.errors import CalibrationError
from bevel.ir.graph import Graph
from bevel.ir.types import Dim, Float, Int, Quant, TensorType

Array = npt.NDArray[Any]

GOLDEN_CASES = 2
# How far a golden input drawn at random reaches: normalized images lie within it.
_RANDOM_RANGE = 2.0


def golden_inputs(graph: Graph, calibration: Path | None) -> list[dict[str, Array]]:
    """Inputs of the self-test in the stored dtypes: the first calibration samples, else noise from a fixed seed.

    Noise has the smallest, an inner and the largest extent of every symbolic dimension. Large inputs are made of blocks of equal
    elements, of which the artifact stores one each: a photograph stays one, in coarse pixels, at a few kilobytes.

    Args:
        graph: its symbolic dimensions are bounded.
        calibration: data set; None for noise.

    Raises:
        UsageError: the data does not fit.
        CalibrationError: it holds NaN or infinity.
    """
    if calibration is None:
        static = all(v.type.is_static for v in graph.inputs)
        shares = (0.0,) * GOLDEN_CASES if static else (0.0, 0.4, 1.0)
        return [
            {v.name: _coarse(v.type, _random_input(v.type.elem, _shape_at(v.type, share), rng)) for v in graph.inputs}
            for share, rng in ((share, np.random.default_rng(index)) for index, share in enumerate(shares))
        ]
    from bevel.ir.interp import boundary_codes

    data = open_data(calibration, inputs_of(graph))
    cases = []
    for index in range(GOLDEN_CASES):
        case = data.sample(index % len(data))
        for value in graph.inputs:
            array = case[value.name]
            if not np.isfinite(array).all():
                raise CalibrationError(f"{calibration}: {value.name!r} holds NaN or infinity; correct the data")
            array = boundary_codes(value, array) if isinstance(value.type.elem, Quant) else array
            case[value.name] = _coarse(value.type, array)
        cases.append(case)
    return cases


def _coarse(type_: TensorType, array: Array) -> Array:
    """An input of the self-test in its stored dtype, in blocks of equal elements if it is static and large."""
    from bevel.runtime.artifact import LARGE_INPUT_BYTES

    array = array.astype(type_.dtype)
    blocks = [1] * array.ndim
    while type_.is_static and array.nbytes // prod(blocks) > LARGE_INPUT_BYTES:
        halves = [axis for axis, extent in enumerate(array.shape) if extent % (2 * blocks[axis]) == 0]
        if not halves:
            break
        blocks[max(halves, key=lambda axis: array.shape[axis] // blocks[axis])] *= 2
    for axis, count in enumerate(blocks):
        array = np.repeat(array.take(range(0, array.shape[axis], count), axis), count, axis)
    return array


def _shape_at(type_: TensorType, share: float) -> tuple[int, ...]:
    """The shape whose symbolic extents lie that share of the way from their lower to their upper bound."""
    return tuple(d.lo + int(share * ((d.hi or d.lo) - d.lo)) if isinstance(d, Dim) else d for d in type_.shape)


def _random_input(elem: object, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if isinstance(elem, Quant):
        return rng.integers(elem.storage.min, elem.storage.max + 1, shape)
    if isinstance(elem, Float):
        return rng.uniform(-_RANDOM_RANGE, _RANDOM_RANGE, shape)
    if isinstance(elem, Int):
        return rng.integers(0, 2, shape)
    return rng.integers(0, 2, shape).astype(bool)
