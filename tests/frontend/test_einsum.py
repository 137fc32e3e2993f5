"""Einsum decomposes into operators that compute what numpy computes; what it cannot mean is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from bevel.errors import UnsupportedOp
from bevel.ir.interp import run
from bevel.passes.canonicalize import canonicalize
from tests.frontend.onnx_files import imported, model_of

CASES: dict[str, list[tuple[int, ...]]] = {
    "ij,jk": [(2, 3), (3, 4)],
    "bsd,de->bse": [(2, 3, 4), (4, 5)],
    "bqhd,bkhd->bhqk": [(2, 3, 4, 5), (2, 6, 4, 5)],
    "bnij,bnj->bni": [(2, 3, 4, 5), (2, 3, 5)],
    "ij->": [(2, 3)],
    "ji": [(2, 3)],
    "ii": [(3, 3)],
    "...iji->...ij": [(2, 3, 4, 3)],
    "iij,jk->ik": [(3, 3, 4), (4, 2)],
    "i,i->": [(3,), (3,)],
    "i,i->i": [(3,), (3,)],
    "a...,...b->ab...": [(2, 3), (3, 4)],
    "...ij,...jk->...ik": [(1, 3, 4), (6, 2, 4, 5)],
    "abc,cd,bd->ad": [(2, 3, 4), (4, 5), (3, 5)],
    "ij,kl->": [(2, 3), (4, 5)],
    " abij , cd -> abcdij ": [(1, 2, 3, 4), (5, 6)],
}


def node(equation: str, count: int) -> list[object]:
    return [helper.make_node("Einsum", [f"x{i}" for i in range(count)], ["y"], equation=equation)]


@pytest.mark.parametrize("equation", CASES)
def test_equals_numpy(equation: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {f"x{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(CASES[equation])}
    model = model_of(node(equation, len(arrays)), {name: a.shape for name, a in arrays.items()}, ["y"])  # type: ignore[arg-type]
    graph = canonicalize(imported(tmp_path, model))
    expected = np.einsum(equation, *(a.astype(np.float64) for a in arrays.values()))
    (found,) = run(graph, arrays).values()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_symbolic_batch_stays_symbolic(tmp_path: Path) -> None:
    model = model_of(node("bsd,de->bse", 2), {"x0": ("n", 3, 4), "x1": (4, 5)}, ["y"])  # type: ignore[arg-type]
    graph = canonicalize(imported(tmp_path, model))
    assert [n.op for n in graph.nodes] == ["MatMul"]
    x = {"x0": np.ones((7, 3, 4), np.float32), "x1": np.ones((4, 5), np.float32)}
    assert run(graph, x)["y"].shape == (7, 3, 5)


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij,jk->ii", [(2, 3), (3, 4)], "each label of the result once"),
        ("ij,jk->iz", [(2, 3), (3, 4)], "each label of the result once"),
        ("ij,jk->ik", [(2, 3), (4, 4)], "label 'j' of extents 3 and 4"),
        ("ij->i", [(2, 3, 4)], "term 'ij' for rank 3"),
        ("i1->i", [(2, 3)], "equation term 'i1'"),
        ("ij,jk->ik", [(2, 3)], "one term for every operand"),
    ],
)
def test_refusals_name_the_term(equation: str, shapes: list[tuple[int, ...]], message: str, tmp_path: Path) -> None:
    model = model_of(node(equation, len(shapes)), {f"x{i}": s for i, s in enumerate(shapes)}, ["y"])  # type: ignore[arg-type]
    with pytest.raises(UnsupportedOp, match=message):
        imported(tmp_path, model)
