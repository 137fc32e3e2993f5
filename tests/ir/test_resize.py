"""IntResize equals an independent implementation in exact Python numbers; filters have the properties that callers rely on."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.errors import VerifyError
from bevel.ir.graph import Graph, Level
from bevel.ir.ops import Call, lookup
from bevel.ir.ops.resize import IntResizeAttrs, ResizeAttrs, ResizeNearestAttrs, fixed_point_tables, nearest_table, weight_table
from bevel.ir.types import I8, Quant, TensorType

CODES = Quant(I8, (0.1,), (-7,))


def apply(attrs: IntResizeAttrs, codes: np.ndarray) -> np.ndarray:
    x = TensorType(codes.shape, CODES)
    (y,) = lookup("IntResize").infer(attrs, (x,))
    return np.asarray(lookup("IntResize").reference(Call(attrs, (x,), (y,)), codes))


def tent(distance: Fraction) -> Fraction:
    return max(Fraction(1) - abs(distance), Fraction(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 7), st.integers(-9, 9), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_linear_on_codes_is_exact_with_one_rounding(extent: int, size: int, a: int, b: int, d: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-128, 128, (extent, extent)).astype(np.int8)
    attrs = IntResizeAttrs((0, 1), (size, size), ((a, b, d), (d, b, a)), "linear", bits=11)
    rows = []
    for step, first, over in attrs.coordinates:
        taps = []
        for i in range(size):
            at = Fraction(step * i + first, over)
            near = [floor(at), floor(at) + 1]
            weights = [round(tent(at - n) * 2**11) for n in near]
            weights[1 if tent(at - near[1]) > tent(at - near[0]) else 0] += 2**11 - sum(weights)
            taps.append([(min(max(n, 0), extent - 1), w) for n, w in zip(near, weights, strict=True)])
        rows.append(taps)
    expected = np.zeros((size, size), np.int64)
    for i, j in product(range(size), repeat=2):
        total = sum(u * v * int(codes[r, c]) for (r, u), (c, v) in product(rows[0][i], rows[1][j]))
        expected[i, j] = floor(Fraction(total, 2**22) + Fraction(1, 2))
    np.testing.assert_array_equal(apply(attrs, codes), expected)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("bits", [1, 4, 11])
def test_constant_codes_stay_constant(mode: str, bits: int) -> None:
    attrs = IntResizeAttrs((0, 1), (7, 3), ((5, -1, 7), (11, 2, 3)), mode, bits=bits)
    for code in (-128, -1, 0, 127):
        assert (apply(attrs, np.full((5, 11), code, np.int8)) == code).all()


def test_cubic_saturates_where_it_overshoots() -> None:
    edge = np.repeat(np.array([[-128, 127]], np.int8), 4, axis=1).reshape(1, 8)
    attrs = IntResizeAttrs((1,), (29,), ((1, 0, 4),), "cubic", bits=13)
    assert apply(attrs, edge).min() == -128
    assert apply(attrs, edge).max() == 127


def test_weights_that_overflow_int32_are_an_error() -> None:
    graph = Graph("wide", Level.INTEGER)
    x = graph.add_input("x", TensorType((4, 4), CODES))
    with pytest.raises(VerifyError, match="14 bits overflow int32"):
        graph.add_node("IntResize", [x], IntResizeAttrs((0, 1), (8, 8), ((1, 0, 2),) * 2, "cubic", bits=14))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("stretch", [1.0, 1.5, 3.7])
@pytest.mark.parametrize("exclude", [False, True])
def test_weights_of_a_result_sum_to_one(mode: str, stretch: float, exclude: bool) -> None:
    attrs = ResizeAttrs((0,), (9,), ((13, -4, 9),), mode, -0.75, (stretch,), exclude)
    index, weights = weight_table(attrs, 0, 11)
    assert index.min() >= 0
    assert index.max() <= 10
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    fixed = IntResizeAttrs(**vars(attrs), bits=9)
    assert all((w.sum(axis=1) == 512).all() for _, w in fixed_point_tables(fixed, (11,)))


def test_nearest_rounds_ties_as_its_name_says() -> None:
    coordinates = ((1, 0, 2),)
    found = {r: nearest_table(ResizeNearestAttrs((0,), (6,), coordinates, r), 0, 99).tolist() for r in ("floor", "ceil")}
    assert found == {"floor": [0, 0, 1, 1, 2, 2], "ceil": [0, 1, 1, 2, 2, 3]}
    assert nearest_table(ResizeNearestAttrs((0,), (6,), coordinates, "round_prefer_floor"), 0, 99).tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest_table(ResizeNearestAttrs((0,), (6,), coordinates, "round_prefer_ceil"), 0, 99).tolist() == [0, 1, 1, 2, 2, 3]
