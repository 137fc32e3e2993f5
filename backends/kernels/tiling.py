"""Splitting axes into tiles of known sizes, and storing vectors whose last lanes do not exist.

In: axis lengths and limits. Out: chunks whose sizes are compile-time constants, so that every tile body is fully static.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bevel.backends.tvm import Buffer, Builder, Expr


@dataclass(frozen=True)
class Chunks:
    """A run of equally sized chunks of an axis.

    Attributes:
        first: index of the first chunk, counted over the whole axis.
        start: axis position where that chunk begins.
        count: number of chunks.
        size: length of each.
    """

    first: int
    start: int
    count: int
    size: int


def split(length: int, limit: int) -> tuple[Chunks, ...]:
    """Cut [0, length) into the fewest chunks of at most `limit`, balanced: sizes differ by at most one, larger ones first.

    A short last tile would leave most of the multiply-accumulate pipeline idle; 32 = 16 + 16 beats 14 + 14 + 4.
    """
    chunks = -(-length // limit)
    size = -(-length // chunks)
    large = length - chunks * (size - 1)
    runs = (Chunks(0, 0, large, size), Chunks(large, large * size, chunks - large, size - 1))
    return tuple(run for run in runs if run.count)


def chunk_count(runs: Sequence[Chunks]) -> int:
    """Number of chunks in all runs."""
    return sum(run.count for run in runs)


def store_valid(k: Builder, buffer: Buffer, offset: Expr, value: Expr, lanes: int, valid: int) -> None:
    """Store the first `valid` of `lanes` elements and touch nothing behind them, in power-of-two pieces."""
    if valid == lanes:
        k.store(buffer, offset, value, lanes)
        return
    done, piece = 0, lanes
    while done < valid:
        if piece <= valid - done:
            part = k.shuffle([value], range(done, done + piece))
            k.store(buffer, offset + done, part, piece)
            done += piece
        piece //= 2
