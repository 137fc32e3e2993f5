"""Dyadic factors: exact rationals of scales in, integer multipliers and shifts out.

Everything here is Python integers and `Fraction`, so the derived constants are the same on every machine. docs/numerics.md states
the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

# A multiplier is 0 or has 31 significant bits; shifts reach what one 64-bit arithmetic shift can do.
MULTIPLIER_BITS = 31
MAX_SHIFT = 62
# IntAdd works in int32: code differences reach 255, and the rounding term must fit beside them.
MAX_ADD_SHIFT = 30
MAX_DIFFERENCE = 255
# A layer's factors become multiples of 2^-31 where that moves no result by more than 2^-6 of a step: |acc| * 2^-32 at most, of
# accumulators that do not saturate.
SHORT_SHIFT = 31
SHORT_REACH = 1 << 26
CODES = 256


def exact(scale: float) -> Fraction:
    """The rational number that a float is."""
    return Fraction(scale)


def _floor_log2(value: Fraction) -> int:
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if value >= Fraction(2) ** guess else guess - 1


def dyadic(ratio: Fraction) -> tuple[int, int]:
    """(m, n) with ratio ~ m * 2^-n: m in [2^30, 2^31) and n in 1..62, to the nearest m.

    A ratio below 2^-32 gives (0, 1): it takes every int32 accumulator to 0. A ratio of 2^30 or more gives (2^31 - 1, 1): it takes
    every nonzero accumulator out of the 8-bit range.

    Raises:
        ValueError: the ratio is not positive.
    """
    if ratio <= 0:
        raise ValueError(f"dyadic factor of {ratio}: expected a positive ratio of scales")
    n = MULTIPLIER_BITS - 1 - _floor_log2(ratio)
    m = (ratio * Fraction(2) ** n + Fraction(1, 2)).__floor__()
    if m == 1 << MULTIPLIER_BITS:
        m, n = m >> 1, n - 1
    if n > MAX_SHIFT:
        return 0, 1
    if n < 1:
        return (1 << MULTIPLIER_BITS) - 1, 1
    return m, n


def channel_factors(ratios: Sequence[Fraction], reach: Sequence[int]) -> list[tuple[int, int]]:
    """(m, n) of every output channel of a layer, as `dyadic` forms them.

    Multiplying by m * 2^-31 and rounding is one instruction of most cores, and a vector has no use for channels that need another
    shift. So where all channels allow it, ratios are first rounded to multiples of 2^-31, as long as results stay within 2^-6 of
    a step of what they were.

    Args:
        ratios: of each channel.
        reach: bound on |acc| of each channel.
    """
    # A channel that computes zero does so with any factor.
    wanted = [Fraction(0) if bound == 0 else ratio for ratio, bound in zip(ratios, reach, strict=True)]
    short = [(ratio * (1 << SHORT_SHIFT) + Fraction(1, 2)).__floor__() for ratio in wanted]
    fits = all(
        m < 1 << (MULTIPLIER_BITS - 1) and (bound <= SHORT_REACH or ratio * SHORT_REACH >= CODES)
        for m, ratio, bound in zip(short, wanted, reach, strict=True)
    )
    if fits:
        return [dyadic(Fraction(m, 1 << SHORT_SHIFT)) if m else (0, 1) for m in short]
    return [dyadic(ratio) for ratio in ratios]


def add_factors(a: Fraction, b: Fraction) -> tuple[int, int, int] | None:
    """(ma, mb, n) of IntAdd for signed ratios a, b: n is the largest for which the sum provably fits int32.

    Returns:
        None when a ratio is so large (about 2^22) that not even n = 1 fits.
    """
    for n in range(MAX_ADD_SHIFT, 0, -1):
        ma, mb = round(a * (1 << n)), round(b * (1 << n))
        if MAX_DIFFERENCE * (abs(ma) + abs(mb)) + (1 << (n - 1)) < 1 << 31:
            return ma, mb, n
    return None
