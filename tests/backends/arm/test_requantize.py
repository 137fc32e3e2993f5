"""NEON requantization equals the integer contract for any accumulator, multiplier and shift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends.arm.neon import A32, A64, Neon
from bevel.backends.arm.requantize import expand, narrow_codes, requantize
from bevel.backends.kernel import Array, ConvConstants
from bevel.backends.kernels import parameters
from bevel.backends.tvm import Builder
from bevel.errors import CheckFailed
from bevel.ir.protocols import Target
from tests.backends.harness import A7, A72, Call, Compiled, skip_unless_runs

SHIFTS = (1, 2, 3, 29, 30, 31, 32, 33, 34, 45, 53, 54, 61, 62)
MULTIPLIERS = (1 << 30, (1 << 30) + 1, 1518500250, (1 << 31) - 1, 0)


def kernel(symbol: str, neon: Neon) -> Any:
    """acc [hi rows, lo channels] -> int8, clamped to limits [lo, hi, zero point]."""
    with Builder(symbol) as k:
        acc, params = k.param("acc", "int32"), k.param("params", "int32")
        limits, out = k.param("limits", "int32"), k.param("out", "int8")
        channels, rows, _ = k.range_params()
        with k.serial(rows) as r, k.serial(k.floordiv(channels, k.i32(8))) as block:
            at = r * channels + block * 8
            values = []
            for i in (0, 4):
                factors = parameters.load(k, params, block * 8 + i, 4)
                record = expand(k, *factors, k.load(limits, k.i32(2)))
                values.append(requantize(k, neon, k.load(acc, at + i, 4), record.__getitem__))
            codes = narrow_codes(k, neon, values, [k.load(limits, k.i32(i)) for i in (0, 1)])
            k.store(out, at, codes, 8)
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
@pytest.mark.parametrize(("target", "neon"), [(A72, A64), (A7, A32)], ids=["aarch64", "armv7"])
def test_exact_at_extremes_ties_and_random(target: Target, neon: Neon, tmp_path: Path) -> None:
    skip_unless_runs(target)
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
        spread = [int(v) >> int(s) for v, s in zip(rng.integers(-(1 << 31), 1 << 31, 40), rng.integers(0, 31, 40), strict=True)]
        columns.append((edges + near + spread + [0] * 14)[:64])
    acc = np.array(columns, np.int32).T.copy()
    multiplier, shift = zip(*pairs, strict=True)
    cases = [constants_of(multiplier, shift, *z) for z in ((0, -128, 127), (-128, -128, 127), (127, -128, 127), (5, -3, 77))]
    calls = []
    for constants in cases:
        limits = np.array([constants.lo, constants.hi, constants.y_zero_point], np.int32)
        inputs = [acc, parameters.pack(constants, 4), limits]
        calls.append(Call("requantize", inputs, [(acc.shape, "int8")], [(acc.shape[1], acc.shape[0])]))
    results = Compiled({"requantize": kernel("requantize", neon)}, target, tmp_path).run(calls)
    for constants, (result,) in zip(cases, results, strict=True):
        np.testing.assert_array_equal(result, exact(acc, constants))


def test_pack_pads_with_zero_multipliers_and_rejects_what_is_outside_the_contract() -> None:
    packed = parameters.pack(constants_of([1 << 30] * 5, [33] * 5, 3, -10, 90), 4).reshape(2, 5)
    assert packed[:, :4].tolist() == [[1 << 30] * 4, [1 << 30, 0, 0, 0]]
    assert packed[:, 4:].copy().view(np.uint8).tolist() == [[33, 33, 33, 33], [33, 62, 62, 62]]
    for multiplier, shift in ((1 << 31, 33), (1 << 29, 33), (-(1 << 30), 33), (1 << 30, 0), (1 << 30, 63)):
        with pytest.raises(CheckFailed, match="channel 1"):
            parameters.pack(constants_of([1 << 30, multiplier], [33, shift], 0, -128, 127), 4)
