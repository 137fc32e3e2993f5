"""Kernel cases of the derived IntMatMul; `test_matmul.py` sweeps the kernels written for an instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bevel.ir.ops.integer import IntMulAttrs
from tests.backends.generic_cases import Case, Operand, codes, quant


def cases() -> Iterator[Case]:
    """Ragged shapes, permuted operands, and sums at the ends of their range."""
    at = IntMulAttrs(quant(5), 1_500_000_001, 44, -120, 110)
    for a, b in (((3, 2, 5, 11), (3, 2, 11, 21)), ((2, 5, 10), (10, 9)), ((1, 4, 1, 3), (3, 1, 3, 33))):
        yield Case("IntMatMul", at, (codes(*a, zero_point=-9), codes(*b, zero_point=77)))
    keys = codes(1, 3, 8, 18, zero_point=4, layout=(0, 3, 1, 2))
    yield Case("IntMatMul", at, (codes(1, 3, 7, 8, layout=(0, 2, 1, 3)), keys))
    far = Operand(np.full((2, 300), 127, np.int8), quant(-128)), Operand(np.full((300, 4), -128, np.int8), quant(127))
    yield Case("IntMatMul", IntMulAttrs(quant(-7), 1 << 30, 47, -128, 127), far)
