"""Weights in groups: the type and its text, how groups lie in a tensor, factors found again, and what the verifier refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevel.errors import VerifyError
from bevel.ir import groups as g
from bevel.ir.graph import Graph, Level
from bevel.ir.serialize import dumps, loads
from bevel.ir.types import I8, I32, Groups, Int, Quant, TensorType
from bevel.ir.verify import verify

SHAPES = [(5, 70), (3, 16, 3, 3), (4, 40, 1, 1), (2, 7, 5, 2), (6, 128)]


def products(shape: tuple[int, ...], bits: int, size: int, seed: int) -> np.ndarray:
    """Codes of `bits` times a factor for each group."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1, 1], shape) if bits == 1 else rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)
    rows = g.kernel_rows(codes)
    factors = rng.integers(1, 16, (rows.shape[0], rows.shape[1], -(-rows.shape[2] // size)))
    return (codes * g.spread(factors, shape, size)).astype(np.int8)


@given(st.sampled_from(SHAPES), st.integers(1, 4), st.sampled_from([16, 32, 64, 128]), st.integers(0, 1 << 30))
def test_factors_are_found_again(shape: tuple[int, ...], bits: int, size: int, seed: int) -> None:
    """Whatever factors were multiplied in: what is found multiplies to the same, within its bits."""
    weights, groups = products(shape, bits, size, seed), Groups(Int(bits), size)
    codes, factors = g.factored(weights, groups)
    np.testing.assert_array_equal(codes * g.spread(factors.astype(np.int64), shape, size), weights)
    assert codes.min() >= groups.codes.min
    assert codes.max() <= groups.codes.max
    assert 1 <= factors.min()
    assert factors.max() <= g.FACTOR_MAX
    assert factors[0].size == g.group_count(shape, size)


def test_groups_are_runs_of_kernel_rows() -> None:
    """Weights of a kernel row come pixel by pixel, all channels of each; the orders are inverse to each other."""
    weights = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = g.kernel_rows(weights)
    assert rows.shape == (2, 4, 15)
    assert rows[1, 2, 4] == weights[1, 1, 2, 1]
    np.testing.assert_array_equal(g.from_kernel_rows(rows, weights.shape), weights)
    np.testing.assert_array_equal(g.from_groups(g.by_group(rows, 16), 15), rows)
    factors = np.arange(2 * 4).reshape(2, 4, 1)
    np.testing.assert_array_equal(g.spread(factors, weights.shape, 16)[1, :, 2, :], 6)


def graph_of(weights: np.ndarray, groups: Groups) -> Graph:
    graph = Graph("net", Level.INTEGER)
    x = graph.add_input("x", TensorType((1, weights.shape[1]), Quant(I8, (0.5,))))
    scale = tuple(0.25 for _ in weights)
    w = graph.add_constant("w", weights, TensorType(weights.shape, Quant(I8, scale, axis=0, groups=groups)))
    b = graph.add_constant("b", np.zeros(len(weights), np.int32), TensorType((len(weights),), I32))
    graph.outputs = [graph.add_node("IntGemm", [x, w, b]).output]
    return graph


def test_the_type_is_saved() -> None:
    """Text and file keep the groups."""
    graph = graph_of(products((5, 70), 3, 32, 0), Groups(Int(3), 32))
    verify(graph)
    again = loads(dumps(graph))
    assert again.value("w").type == graph.value("w").type
    assert "codes=i3, group=32" in str(again.value("w").type)


def test_other_weights_are_refused() -> None:
    """A group of neighbours has no common factor."""
    weights = np.arange(-35, 35, dtype=np.int8).reshape(1, 70)
    with pytest.raises(VerifyError, match=r"'w': weights .* of output channel 0 are no multiples of i4 by 1 to 15"):
        verify(graph_of(weights, Groups(Int(4), 32)))
    zeros = np.zeros((1, 70), np.int8)
    with pytest.raises(VerifyError, match="bipolar codes hold 0"):
        verify(graph_of(zeros, Groups(Int(1), 32)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Groups(Int(5), 32), "expected i1 to i4"),
        (lambda: Groups(Int(4, signed=False), 32), "expected i1 to i4"),
        (lambda: Groups(Int(4), 30), "16, 32, 64, 128"),
        (lambda: Quant(Int(4), (1.0,), groups=Groups(Int(4), 32)), "expected i8"),
        (lambda: Quant(I8, (1.0, 2.0), axis=1, groups=Groups(Int(4), 32)), "axis 0"),
    ],
)
def test_what_cannot_be_is_refused(make: object, said: str) -> None:
    """Products of longer codes do not fit a byte; real scales belong to output channels."""
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
