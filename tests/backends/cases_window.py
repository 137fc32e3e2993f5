"""Kernel cases of windowed operators beyond plain pooling: positions of maxima, computed weights, transposed convolution."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bevel.ir.ops import NoAttrs
from bevel.ir.ops.convolution import ConvAttrs, ConvTransposeAttrs
from bevel.ir.ops.pool import MaxPoolIndicesAttrs, PoolAttrs
from tests.backends.generic_cases import NHWC, Case, Operand, plain, real


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _max_with_positions()
    yield from _convolutions()
    image = np.random.default_rng(5).integers(-128, 128, (1, 3, 5, 6)).astype(np.int8)
    yield Case("MaxPool", PoolAttrs((2, 2), (1, 2), (1, 0, 0, 0)), (plain(image),))


def _max_with_positions() -> Iterator[Case]:
    # Few distinct values, so that many windows hold ties.
    ties = np.random.default_rng(4).integers(0, 3, (2, 5, 9, 7)).astype(np.float32)
    for x, layout in ((plain(ties, NHWC), NHWC), (plain(ties), None)):
        for down in (False, True):
            yield Case(
                "MaxPoolIndices", MaxPoolIndicesAttrs((3, 2), (2, 1), (1, 1, 0, 0), (1, 2), column_major=down), (x,), layout
            )
    low = Operand(np.full((1, 1, 2, 2), -1e30, np.float32), plain(ties).elem)
    yield Case("MaxPoolIndices", MaxPoolIndicesAttrs((2, 2), (1, 1), (1, 1, 1, 1)), (low,))


def _convolutions() -> Iterator[Case]:
    relu = (("Relu", NoAttrs()),)
    for layout in (NHWC, None):
        x = real(2, 6, 7, 5, layout=layout)
        at = ConvAttrs((3, 2), (2, 1), (1, 0, 0, 1), (1, 2), 2)
        yield Case("Conv", at, (x, real(8, 3, 3, 2, layout=layout), real(8)), layout)
        yield Case("Conv", ConvAttrs((1, 1)), (x, real(4, 6, 1, 1)), layout)
        for up in (
            ConvTransposeAttrs((3, 2), (2, 3), (1, 0, 0, 1), (1, 2), 2, (1, 2)),
            ConvTransposeAttrs((3, 2), (1, 1), (0, 0, 0, 0), (2, 1), 2),
        ):
            yield Case("ConvTranspose", up, (x, real(6, 4, 3, 2, layout=layout), real(8)), layout)
            yield Case("ConvTranspose", up, (x, real(6, 4, 3, 2)), layout, relu if layout else ())
