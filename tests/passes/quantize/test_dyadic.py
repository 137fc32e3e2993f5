"""Dyadic factors are the nearest ones, normalized, and exact at both ends of the range."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.ir.ops.integer import requantize
from bevel.passes.quantize.dyadic import add_factors, channel_factors, dyadic, exact

SCALES = st.floats(2.0**-60, 2.0**60, width=32)
ACCUMULATORS = st.integers(-(2**31), 2**31 - 1)


@given(SCALES, SCALES, SCALES)
def test_multiplier_is_the_nearest_normalized_one(a: float, b: float, c: float) -> None:
    ratio = exact(a) * exact(b) / exact(c)
    m, n = dyadic(ratio)
    assert 1 <= n <= 62
    if ratio < Fraction(1, 2**32) - Fraction(1, 2**63):
        assert m == 0
    elif ratio >= 2**30 - Fraction(1, 4):
        assert (m, n) == (2**31 - 1, 1)
    else:
        assert 2**30 <= m < 2**31
        assert abs(ratio * 2**n - m) <= Fraction(1, 2)


@given(st.integers(2**30, 2**31 - 1), st.integers(1, 62))
def test_representable_ratios_round_trip(m: int, n: int) -> None:
    assert dyadic(Fraction(m, 2**n)) == (m, n)


def test_rounding_up_to_the_next_power_of_two_keeps_the_multiplier_normalized() -> None:
    assert dyadic(Fraction(2**40 - 1, 2**40)) == (2**30, 30)


@given(ACCUMULATORS, SCALES, SCALES)
@settings(max_examples=300)
def test_requantize_is_within_one_of_the_exact_quotient(acc: int, a: float, b: float) -> None:
    ratio = exact(a) / exact(b)
    m, n = dyadic(ratio)
    found = int(requantize(np.asarray([acc], np.int32), np.asarray([m]), np.asarray([n]), 0, -128, 127)[0])
    expected = min(127, max(-128, (acc * ratio + Fraction(1, 2)).__floor__()))
    assert abs(found - expected) <= 1


@given(ACCUMULATORS)
def test_both_ends_give_the_exact_result(acc: int) -> None:
    for ratio in (Fraction(1, 2**33), Fraction(1, 2**70), Fraction(2**31), Fraction(2**90)):
        m, n = dyadic(ratio)
        found = int(requantize(np.asarray([acc], np.int32), np.asarray([m]), np.asarray([n]), 0, -128, 127)[0])
        assert found == min(127, max(-128, (acc * ratio + Fraction(1, 2)).__floor__()))


@pytest.mark.parametrize("ratio", [Fraction(0), Fraction(-1, 2)])
def test_non_positive_ratios_are_refused(ratio: Fraction) -> None:
    with pytest.raises(ValueError, match="positive"):
        dyadic(ratio)


@given(st.floats(2.0**-30, 2.0**20, width=32), st.floats(2.0**-30, 2.0**20, width=32), st.booleans())
def test_add_factors_fit_int32_with_the_largest_shift(a: float, b: float, subtract: bool) -> None:
    rb = -exact(b) if subtract else exact(b)
    factors = add_factors(exact(a), rb)
    assert factors is not None
    ma, mb, n = factors
    assert 255 * (abs(ma) + abs(mb)) + 2 ** (n - 1) < 2**31
    assert abs(exact(a) * 2**n - ma) <= Fraction(1, 2)
    assert abs(rb * 2**n - mb) <= Fraction(1, 2)
    if n < 30:
        wider = 255 * (round(exact(a) * 2 ** (n + 1)) + abs(round(rb * 2 ** (n + 1)))) + 2**n
        assert wider >= 2**31


def test_add_factors_are_none_where_nothing_fits() -> None:
    assert add_factors(Fraction(2**23), Fraction(1)) is None


@given(st.lists(st.tuples(st.floats(2.0**-30, 0.75, width=32), st.integers(0, 2**31 - 1)), min_size=1, max_size=4))
def test_factors_of_a_layer_move_no_result_by_more_than_a_64th(channels: list[tuple[float, int]]) -> None:
    ratios, reach = [exact(r) for r, _ in channels], [bound for _, bound in channels]
    factors = channel_factors(ratios, reach)
    short = all(m % (1 << (n - 31)) == 0 if m and n > 31 else m == 0 for m, n in factors)
    for ratio, bound, (m, n) in zip(ratios, reach, factors, strict=True):
        assert m == 0 or 2**30 <= m < 2**31
        error = abs(Fraction(m, 2**n) - ratio)
        # Accumulators that matter: reachable, and not saturated.
        assert error * min(bound, 256 / ratio) <= Fraction(1, 64)
        assert short or error <= ratio / 2**30 or ratio < Fraction(1, 2**32)


def test_one_wide_channel_keeps_a_layer_from_short_factors() -> None:
    third, tiny = Fraction(1, 3), Fraction(1, 3 * 2**24)
    assert all(m % (1 << (n - 31)) == 0 for m, n in channel_factors([third, tiny], [2**20, 2**20]))
    assert channel_factors([third, tiny], [2**20, 2**30]) == [dyadic(third), dyadic(tiny)]
    assert channel_factors([third, Fraction(3, 5)], [2**20, 2**20]) == [dyadic(third), dyadic(Fraction(3, 5))]
    assert channel_factors([third, Fraction(3)], [2**20, 0]) == [*channel_factors([third], [2**20]), (0, 1)]
