"""Requantization parameters: five bytes a channel in weights.bin on every instruction set, expanded by the kernel that uses them.

In: multipliers and shifts of a layer. Out: the packed array; in a kernel, *records* in its scratch, one per vector of channels.
A record has as many *fields* of one int32 vector each as the instruction set wants at hand (multipliers of even and odd channels
apart, bounds, ...). A kernel writes the records of a block of channels once, before the loops over that block's pixels, so what
is compact costs nothing where it is used.

Packed layout, int32: for each vector of `lanes` channels `lanes` multipliers, then `lanes` shifts of one byte each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from bevel.backends.kernel import Array, ConvConstants
from bevel.backends.kernels.scratch import Vectors
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.errors import CheckFailed

# Of channels that do not exist: the one that no instruction set treats apart.
LONGEST = 62

Fields = Callable[[int], Expr]
"""The fields of one record by index, each an int32 vector."""


def pack(constants: ConvConstants, lanes: int, channels: int = 0) -> Array:
    """Multipliers and shifts of `constants`, padded to whole vectors of `lanes` (a multiple of 4) channels with factors of 0.

    There are at least `channels` of them.

    Raises:
        CheckFailed: one is missing, or outside the integer contract (docs/numerics.md).
    """
    if constants.multiplier is None or constants.shift is None:
        raise CheckFailed("a requantized convolution was packed without multiplier and shift")
    multiplier, shift = (np.asarray(values, np.int64) for values in (constants.multiplier, constants.shift))
    no_factor = (multiplier != 0) & ((multiplier < 1 << 30) | (multiplier >= 1 << 31))
    outside = (shift < 1) | (shift > 62) | no_factor
    if outside.any():
        at = int(np.argmax(outside))
        raise CheckFailed(
            f"requantization of channel {at}: multiplier {multiplier[at]}, shift {shift[at]}; expected 0 or "
            "[2^30, 2^31) and 1..62: derive them with the dyadic rule of the integer contract"
        )
    vectors = -(-max(len(shift), channels) // lanes)
    factors, shifts = np.zeros(vectors * lanes, np.int32), np.full(vectors * lanes, LONGEST, np.uint8)
    factors[: len(shift)], shifts[: len(shift)] = multiplier, shift
    return np.concatenate([factors.reshape(vectors, lanes), shifts.view(np.int32).reshape(vectors, lanes // 4)], axis=1).ravel()


def load(k: Builder, params: Buffer, channel: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Multipliers and shifts, int32 vectors, of channels [channel, channel + lanes) from what `pack` made with these lanes."""
    base = k.floordiv(channel * 5, k.i32(4))
    shifts = k.bitcast(k.load(params, base + lanes, lanes // 4), "uint8", lanes)
    return k.load(params, base, lanes), k.cast(shifts, "int32", lanes)


def write(records: Vectors, first: Expr, record: Iterable[Expr]) -> None:
    """Write the fields of a record into scratch, from vector `first` on."""
    for index, value in enumerate(record):
        records.put(first + index, value)


def fields(records: Vectors, first: Expr) -> Fields:
    """The record whose fields are the vectors from `first` on."""
    return lambda index: records.get(first + index)
