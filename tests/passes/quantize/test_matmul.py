"""Products of two activations at INTEGER level."""

from __future__ import annotations

import pytest

from bevel.ir.types import Dim
from bevel.ir.verify import float_islands
from tests.passes.quantize.annotated import Annotated, assert_close, lower, ops, q8


@pytest.mark.parametrize("relu", [False, True])
def test_attention_scores_are_integer(relu: bool) -> None:
    a = Annotated()
    x, y = a.input("x", (2, 3, 5, 8), q8(0.05, -40)), a.input("y", (2, 1, 8, 6), q8(0.02, 11))
    out = q8(0.07, -128 if relu else 3)
    scores = a.node("MatMul", [x, y], None if relu else out, name="m")
    assert ops(assert_close(a.done(a.node("Relu", [scores], out, name="r") if relu else scores))) == ["IntMatMul"]


def test_symbolic_lengths_are_integer_while_their_bound_fits() -> None:
    for bound, found in ((4096, ["IntMatMul"]), (40000, ["MatMul"])):
        a = Annotated()
        n = Dim("seq", 1, bound)
        x, y = a.input("x", (1, n, n), q8(0.05)), a.input("y", (1, n, 8), q8(0.05))
        graph = lower(a.done(a.node("MatMul", [x, y], q8(1.0), name="m")))
        assert [n.op for n in graph.nodes if "MatMul" in n.op] == found
        assert bool(float_islands(graph)) == (found == ["MatMul"])
