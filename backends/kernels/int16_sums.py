"""Weights arranged so that products of bytes can be added in 16 bits: exact on cores that multiply bytes but only add in 16.

pmaddubsw adds the products of two uint8 codes and two int8 weights into int16, saturating. That is exact while the positive
weights of the pair sum to at most 128 and the negative ones to at least -128, because codes are at most 255. Two such results
may be added in int16 under the same condition on all four weights, which halves what has to be widened to 32 bits.

The reduction is cut into *terms*: four neighbouring weights of every channel of a block, which meet the same four codes. A
term with a pair beyond the limit is split into two halves at the same place, each with 7-bit weights. Then terms are paired,
heavy ones with light ones: the order of a sum is free, and whether two fit together in every channel is known from the weights.
Terms without a partner stand alone. Nothing is approximated, and heavier weights only make more terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Array

WIDTH = 4
# 255 * 128 <= 2^15 - 1
LIMIT = 128
# Partners offered to every heavy term. More rounds find few more.
ROUNDS = 64
# Channels whose weights are judged together: one vector of sums.
VECTOR = 8
# Of all terms, the share that may be heavy. Each term of a pair costs 2.5 instructions for 32 products and each split makes one
# more; pmaddwd takes 4.
HEAVY_SHARE = 0.35


@dataclass(frozen=True)
class Terms:
    """What a block of channels adds up over one reduction run.

    Attributes:
        places: int32 [terms], the first reduction element of each.
        weights: int8 [terms, channels, WIDTH].
        pairs: how many pairs of terms may be added in 16 bits: terms 2 i and 2 i + 1 for i < pairs. The others stand alone.
    """

    places: Array
    weights: Array
    pairs: int


def are_light(weights: Array) -> bool:
    """Whether few terms of a convolution would be split.

    Args:
        weights: int8 [channels, inputs, kernel height, kernel width].
    """
    channels = len(weights)
    runs = weights.transpose(0, 2, 3, 1).reshape(channels, -1)
    padded = np.zeros((-(-channels // VECTOR) * VECTOR, -(-runs.shape[1] // WIDTH) * WIDTH), np.int8)
    padded[:channels, : runs.shape[1]] = runs
    heavy = (_loads(padded.reshape(-1, VECTOR, padded.shape[1] // WIDTH, WIDTH)) > LIMIT).any(axis=(1, 3))
    return bool(heavy.mean() <= HEAVY_SHARE)


def arrange(weights: Array) -> Terms:
    """Terms of one reduction run.

    Args:
        weights: int8 [channels, run], the run a multiple of WIDTH.
    """
    channels, run = weights.shape
    terms = weights.reshape(channels, -1, WIDTH).transpose(1, 0, 2)
    places = np.arange(0, run, WIDTH, dtype=np.int32)
    heavy = (_loads(terms) > LIMIT).any(axis=(1, 2))
    halves = terms[heavy] >> 1
    terms = np.concatenate([terms[~heavy], halves, terms[heavy] - halves])
    places = np.concatenate([places[~heavy], places[heavy], places[heavy]])
    first, second, alone = _paired(_loads(terms).reshape(len(terms), -1))
    order = np.concatenate([np.stack([first, second], axis=1).ravel(), alone])
    return Terms(places[order], terms[order], len(first))


def restore(terms: Terms, run: int) -> Array:
    """int8 weights [channels, run] back from `arrange`."""
    whole = np.zeros((run // WIDTH, *terms.weights.shape[1:]), np.int16)
    np.add.at(whole, terms.places // WIDTH, terms.weights)
    return whole.transpose(1, 0, 2).reshape(-1, run).astype(np.int8)


def _loads(weights: Array) -> Array:
    """int16 [..., WIDTH]: what the positive and what the negative weights of each pair sum to, both counted upward."""
    pairs = weights.astype(np.int16).reshape(*weights.shape[:-1], WIDTH // 2, 2)
    return np.concatenate([np.maximum(pairs, 0).sum(-1, dtype=np.int16), -np.minimum(pairs, 0).sum(-1, dtype=np.int16)], axis=-1)


def _paired(loads: Array) -> tuple[Array, Array, Array]:
    """Terms that fit together, as two arrays of their numbers, and the numbers of those left over; loads are [terms, sums]."""
    order = np.argsort(-np.square(loads, dtype=np.float32).sum(axis=1), kind="stable")
    middle = len(order) // 2
    heavy, light = order[:middle], order[middle:][::-1]
    first, second = [], []
    for turn in range(ROUNDS):
        count = min(len(heavy), len(light))
        if count == 0:
            break
        # The heaviest meets the lightest first, then the next, and so on.
        partner = (np.arange(count) + turn) % len(light)
        fits = (loads[heavy[:count]] + loads[light[partner]] <= LIMIT).all(axis=1)
        first.append(heavy[:count][fits])
        second.append(light[partner[fits]])
        heavy = np.concatenate([heavy[:count][~fits], heavy[count:]])
        light = np.delete(light, partner[fits])
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *first]), np.concatenate([none, *second]), np.concatenate([heavy, light])
