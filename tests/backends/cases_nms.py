"""Selection of boxes: images and classes, thresholds that select all, some and none, ties, ragged counts, layouts, NaN."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bevel.ir.ops.nms import NmsAttrs
from tests.backends.generic_cases import RNG, Case, Operand, plain, real

# Boxes behind edges, scores behind boxes: how a transpose in front of the operator leaves them.
TRANSPOSED = (0, 2, 1)


def boxes(images: int, count: int, layout: tuple[int, ...] | None = None) -> Operand:
    """Boxes of a few sizes that overlap often, corners in any order."""
    centre = RNG.uniform(0, 4, (images, count, 2))
    size = RNG.choice([0.5, 1.0, 2.5], (images, count, 2)) * RNG.choice([-1, 1], (images, count, 2))
    return Operand(np.concatenate([centre - size, centre + size], axis=2).astype(np.float32), real(1).elem, layout)


def scores(images: int, classes: int, count: int, layout: tuple[int, ...] | None = None) -> Operand:
    """Scores of which many are equal."""
    return Operand(np.round(RNG.uniform(-1, 1, (images, classes, count)), 1).astype(np.float32), real(1).elem, layout)


def cases() -> Iterator[Case]:
    op = "NonMaxSuppression"
    yield Case(op, NmsAttrs(1), (boxes(1, 1), scores(1, 1, 1)))
    for center in (False, True):
        for images, classes, count in ((1, 1, 7), (2, 3, 33), (3, 1, 100)):
            for most, iou, score in ((3, 0.5, None), (2**62, 0.0, 0.0), (1000, 0.3, 0.45), (5, 1.0, -0.5), (4, 0.5, 1.0)):
                yield Case(op, NmsAttrs(most, iou, score, center), (boxes(images, count), scores(images, classes, count)))
        operands = boxes(2, 21, TRANSPOSED), scores(2, 5, 21, TRANSPOSED)
        yield Case(op, NmsAttrs(6, 0.25, 0.1, center), operands, (1, 0))
        yield Case(op, NmsAttrs(50, 0.4, None, center), _strange())
    # Equal boxes, equal scores, shares of the union that equal the threshold exactly.
    same = plain(np.tile(np.array([0, 0, 1, 1], np.float32), (1, 9, 1)))
    yield Case(op, NmsAttrs(9, 0.99), (same, plain(np.zeros((1, 2, 9), np.float32))))
    yield Case(op, NmsAttrs(9, 1.0), (same, plain(np.array([[[0.0, -0.0, 0.0, -0.0, 1, 1, -1, 0, 2]]], np.float32))))
    halves = np.array([[0, 0, 1, 4], [0, 1, 1, 5], [0, 2, 1, 6], [0, 3, 1, 7]], np.float32)[None]
    yield Case(op, NmsAttrs(4, 0.6), (plain(halves), plain(np.array([[[4, 3, 2, 1]]], np.float32))))


def _strange() -> tuple[Operand, Operand]:
    """Boxes and scores with NaN, infinities, numbers that overflow and such that vanish, empty boxes."""
    odd = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-30, 0, -0.0, 1e-42, 1], np.float32)
    return plain(RNG.choice(odd, (2, 40, 4))), plain(RNG.choice(odd, (2, 3, 40)))
