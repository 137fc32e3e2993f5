"""Where weights.bin holds the constants of the graph, so that an artifact stores each of them once.

A generator's `pack` only moves weights about. Packing their own indices, digit by digit in the weights' element type, shows
where each one went; the result is checked against the packed weights themselves, so a pack that computes on them is noticed
and its constant is simply stored in the graph again. The answer is data: it stays true when a later version packs otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.kernel import Array, ConvConstants
from bevel.backends.schedule import Place

# Smaller constants cost less than the note of where they are.
LEAST_BYTES = 256


@dataclass(frozen=True)
class Stored:
    """A constant of the graph as weights.bin holds it.

    Attributes:
        data: the constant, C-contiguous, in the graph's own order and type.
        place: of the packed buffer.
        dtype: numpy name of the packed elements.
        order: int64 indices of `data`'s elements in the packed buffer; None where the bytes are the same.
        factors: whether `data` holds the packed numbers as `normalized` makes them.
    """

    data: Array
    place: Place
    dtype: str
    order: Array | None
    factors: bool = False


Pack = Callable[[ConvConstants], Sequence[Array]]


def find_stored(pack: Pack, constants: ConvConstants, packed: Sequence[Array], places: Sequence[Place]) -> list[Stored]:
    """The weights and multipliers in `constants` as they are found in `packed`, what `pack` made of them, at `places`."""
    stored = []
    if constants.weights.nbytes >= LEAST_BYTES and (weights := find_weights(pack, constants, packed)) is not None:
        index, order = weights
        stored.append(Stored(np.ascontiguousarray(constants.weights), places[index], packed[index].dtype.name, order))
    if constants.multiplier is not None and (factors := find_factors(constants.multiplier, packed)) is not None:
        index, order = factors
        stored.append(Stored(constants.multiplier.astype(np.int32), places[index], "int32", order, factors=True))
    return stored


def find_weights(pack: Pack, constants: ConvConstants, packed: Sequence[Array]) -> tuple[int, Array] | None:
    """Which of the buffers `packed` holds the weights, and where each element is.

    Args:
        pack: the generator's packing.
        constants: what was packed; weights float32, float16 or int8 of any shape.
        packed: what `pack` made of it.

    Returns:
        Index of the buffer and int64 positions [weights.size] in it, None where no buffer holds every weight unchanged.
    """
    weights = constants.weights
    base = {"int8": 127, "float16": 1 << 10}.get(weights.dtype.name, 1 << 20)
    # Numbered from 1: padding packs to 0.
    number = np.arange(1, weights.size + 1, dtype=np.int64)
    found = [np.zeros(buffer.size, np.int64) for buffer in packed]
    power = 1
    while power <= weights.size:
        digits = (number // power % base).astype(weights.dtype).reshape(weights.shape)
        for total, buffer in zip(found, pack(replace(constants, weights=digits)), strict=True):
            # Clamp bounds may be infinite; no weight is.
            total += np.rint(np.nan_to_num(buffer.reshape(-1).astype(np.float64), posinf=0, neginf=0)).astype(np.int64) * power
        power *= base
    for index, (total, buffer) in enumerate(zip(found, packed, strict=True)):
        held = np.flatnonzero((total > 0) & (total <= weights.size))
        order = np.full(weights.size, -1, np.int64)
        order[total[held] - 1] = held
        if (order >= 0).all() and np.array_equal(buffer.reshape(-1)[order].astype(weights.dtype), weights.reshape(-1)):
            return index, order
    return None


def normalized(numbers: Array) -> Array:
    """int32 numbers shifted left until they are at least 2^30, as multipliers of factors are; what is not positive gives 0."""
    positive = np.maximum(numbers.astype(np.int64), 0)
    return np.where(positive > 0, np.left_shift(positive, 31 - np.frexp(positive.astype(np.float64))[1]), 0).astype(np.int32)


def find_factors(multiplier: Array, packed: Sequence[Array]) -> tuple[int, Array] | None:
    """Which of the buffers `packed` holds the multipliers of a layer's channels up to a shift, and where each is; else None."""
    for index, buffer in enumerate(packed):
        if buffer.dtype == np.int32:
            values, first = np.unique(normalized(buffer.reshape(-1)), return_index=True)
            at = np.minimum(np.searchsorted(values, multiplier), len(values) - 1)
            if np.array_equal(values[at], multiplier):
                return index, first[at]
    return None
