"""NEON requantization equals the integer contract for any accumulator, multiplier and shift."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevel.backends.arm.requantize import pack_requantize, packed_size, requantize
from bevel.backends.kernel import Array, ConvConstants
from bevel.backends.tvm import Builder
from bevel.errors import UsageError

SHIFTS = (1, 2, 3, 29, 30, 31, 32, 33, 34, 45, 53, 54, 61, 62)
MULTIPLIERS = (1 << 30, (1 << 30) + 1, 1518500250, (1 << 31) - 1, 0)


def kernel(symbol: str, lanes: int) -> Any:
    """acc [rows, channels] -> int8: `lo` is the number of channels, `hi` of rows."""
    with Builder(symbol) as k:
        acc, params, out = k.param("acc", "int32"), k.param("params", "int32"), k.param("out", "int8")
        channels, rows, _ = k.range_params()
        with k.serial(rows) as r, k.serial(k.floordiv(channels, k.i32(lanes))) as block:
            at = r * channels + block * lanes
            quads = [k.load(acc, at + i, 4) for i in range(0, lanes, 4)]
            k.store(out, at, requantize(k, params, block * lanes, quads), lanes)
    return k.function


def exact(acc: Array, constants: ConvConstants) -> Array:
    """The contract's formula in Python integers."""
    out = np.empty(acc.shape, np.int8)
    assert constants.multiplier is not None
    assert constants.shift is not None
    for c in range(acc.shape[1]):
        m, n = int(constants.multiplier[c]), int(constants.shift[c])
        values = (constants.y_zero_point + ((int(a) * m + (1 << (n - 1))) >> n) for a in acc[:, c])
        out[:, c] = [min(max(v, constants.lo), constants.hi) for v in values]
    return out


def constants_of(multiplier: Any, shift: Any, zp: int, lo: int, hi: int) -> ConvConstants:
    empty = np.zeros(0, np.int8)
    return ConvConstants(empty, empty, np.asarray(multiplier), np.asarray(shift), 0, zp, lo, hi)


@pytest.mark.qemu
def test_exact_at_extremes_ties_and_random(emulator: Any) -> None:
    rng = np.random.default_rng(1)
    pairs = [(m, n) for m in MULTIPLIERS for n in SHIFTS] + [
        (int(m), n) for n in range(1, 63) for m in rng.integers(1 << 30, 1 << 31, 2)
    ]
    pairs = pairs[: len(pairs) // 16 * 16]
    columns = []
    for m, n in pairs:
        # Around the ties (acc * m) / 2^n = q + 1/2 for results in and next to the int8 range.
        ties = [((2 * q + 1) << (n - 1)) // max(m, 1) + d for q in (-300, -129, -1, 0, 1, 127, 300) for d in (0, 1)]
        near = [v for v in ties if -(1 << 31) <= v < 1 << 31]
        edges = [0, 1, -1, 2, -2, 2**31 - 1, -(2**31), 2**30, -(2**30), 2**31 - 2]
        spread = [
            int(v) >> int(s)
            for v, s in zip(rng.integers(-(1 << 31), 1 << 31, 40), rng.integers(0, 31, 40), strict=True)
        ]
        columns.append((edges + near + spread + [0] * 14)[:64])
    acc = np.array(columns, np.int32).T.copy()
    multiplier, shift = zip(*pairs, strict=True)
    cases = [
        constants_of(multiplier, shift, *z) for z in ((0, -128, 127), (-128, -128, 127), (127, -128, 127), (5, -3, 77))
    ]
    for lanes in (8, 16):
        emulator.add(f"requantize{lanes}", kernel(f"requantize{lanes}", lanes))
        for constants in cases:
            packed = pack_requantize(constants, acc.shape[1])
            emulator.call(f"requantize{lanes}", [acc, packed], acc.shape, "int8", [(acc.shape[1], acc.shape[0])])
    results = emulator.run(emulator.a72)
    for constants, result in zip(cases * 2, results, strict=True):
        np.testing.assert_array_equal(result, exact(acc, constants))


def test_pack_pads_with_zero_multipliers_and_rejects_what_is_outside_the_contract() -> None:
    packed = pack_requantize(constants_of([1 << 30] * 5, [33] * 5, 3, -10, 90), 8)
    assert packed.shape == (packed_size(8),)
    assert packed[:4].tolist() == [3, -10, 90, 0]
    assert packed[4:].reshape(2, 3, 4)[1].tolist() == [[0, 0, 0, 0], [1 << 30, 0, 0, 0], [-2, 0, 0, 0]]
    for multiplier, shift in ((1 << 31, 33), (1 << 29, 33), (-(1 << 30), 33), (1 << 30, 0), (1 << 30, 63)):
        with pytest.raises(UsageError, match="channel 1"):
            pack_requantize(constants_of([1 << 30, multiplier], [33, shift], 0, -128, 127), 4)
