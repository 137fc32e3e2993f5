"""The op table is complete: a missing column is a failure here, not a surprise in a pass."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from bevel.errors import UnsupportedOp, VerifyError
from bevel.ir.graph import Graph, Level
from bevel.ir.ops import Op, PruneRule, QuantRule, Trait, lookup, table
from bevel.ir.ops.op import register
from bevel.ir.syntax import field_hints, format_attrs
from bevel.ir.types import BOOL, F32, Dim, TensorType
from tests.ir.test_float_ops import CASES
from tests.ir.test_verify import integer_graph

OPS = table()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_row_is_complete(op: Op) -> None:
    assert op.doc.endswith(".")
    assert "\n" not in op.doc
    assert op.levels
    assert isinstance(op.quant, QuantRule)
    assert isinstance(op.prune, PruneRule)
    least, most = op.arity
    assert 1 <= least
    assert most is None or least <= most
    assert 0 <= op.tolerance <= 1e-4
    assert dataclasses.is_dataclass(op.attrs)
    assert op.attrs.__dataclass_params__.frozen
    assert op.attrs.__doc__
    assert all(hint is not None for hint in field_hints(op.attrs).values())


@pytest.mark.parametrize("op", [op for op in OPS if Level.FLOAT in op.levels], ids=lambda op: op.name)
def test_quantized_results_have_an_integer_counterpart(op: Op) -> None:
    if op.quant in (QuantRule.OWN, QuantRule.FUSED, QuantRule.FIXED, QuantRule.SAME):
        assert op.integer, f"{op.name} is quantized but names no integer operator"
        named = {word for word in re.findall(r"[A-Z]\w+", op.integer)}
        assert named, op.integer
        for name in named:
            assert Level.INTEGER in lookup(name).levels
    if op.integer is None:
        assert op.quant is QuantRule.FLOAT


def test_integer_operators_are_exact_and_never_quantized_again() -> None:
    for op in OPS:
        if op.levels == {Level.INTEGER}:
            assert op.tolerance == 0.0
            assert op.quant is QuantRule.NONE


def test_traits_agree_with_each_other() -> None:
    for op in OPS:
        if Trait.VIEW in op.traits:
            assert Trait.MOVEMENT in op.traits
        if Trait.ACTIVATION in op.traits:
            assert {Trait.UNARY, Trait.ELEMENTWISE} <= op.traits
        if Trait.MOVEMENT in op.traits:
            assert op.levels == set(Level)
        if Trait.WEIGHTED in op.traits:
            assert op.prune is PruneRule.PRODUCES


def test_every_type_rule_and_cost_is_exercised() -> None:
    """Each row infers types, counts work and prints attributes for at least one real node."""
    seen = set()
    for case in CASES:
        graph = Graph("g")
        values = [graph.add_constant("x", a) for a in case.arrays()]
        seen.add(check_node(graph.add_node(case.op, values, case.attrs)))
    for node in integer_graph().nodes:
        seen.add(check_node(node))
    # IntGemm's row shares every rule with IntConv's but the shape's; test_integer_ops covers it.
    assert seen >= {op.name for op in OPS} - {"IntGemm"}


def check_node(node: object) -> str:
    from bevel.ir.graph import Node

    assert isinstance(node, Node)
    spec = lookup(node.op)
    assert spec.infer_node(node) == tuple(v.type for v in node.outputs)
    cost = spec.cost(node)
    assert cost.macs >= 0
    assert cost.bytes >= sum(v.type.size * v.type.dtype.itemsize for v in node.outputs)
    assert format_attrs(node.attrs) == "" or format_attrs(node.attrs).startswith("{")
    return node.op


def test_conv_and_gemm_macs_by_hand() -> None:
    conv = next(n for n in integer_graph().nodes if n.op == "IntConv")
    assert lookup("IntConv").cost(conv).macs == 2 * 4 * 3 * 2
    float_graph = Graph("g")
    x = float_graph.add_input("x", TensorType((Dim("n", 2, 8), 5, 7), F32))
    w = float_graph.add_constant("w", np.ones((3, 7), np.float32))
    gemm = float_graph.add_node("Gemm", [x, w])
    assert lookup("Gemm").cost(gemm).macs == 8 * 5 * 3 * 7
    assert lookup("Gemm").cost(gemm).bytes == 4 * (8 * 5 * 7 + 3 * 7 + 8 * 5 * 3)


# Operators that are about truth values.
LOGICAL = {"And", "Cast", "Equal", "Not", "Or", "Where", "Xor"}
ARITHMETIC = [op for op in OPS if op.levels == {Level.FLOAT, Level.ANNOTATED} and op.name not in LOGICAL]


@pytest.mark.parametrize("op", ARITHMETIC, ids=lambda op: op.name)
def test_float_operators_refuse_truth_values(op: Op) -> None:
    case = next(case for case in CASES if case.op == op.name)
    graph = Graph("g")
    values = [graph.add_input(f"x{i}", TensorType(a.shape, BOOL)) for i, a in enumerate(case.arrays())]
    with pytest.raises(VerifyError, match=op.name):
        graph.add_node(op.name, values, case.attrs, loc="here")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_wrong_operand_count(op: Op) -> None:
    graph = Graph("g", Level.INTEGER)
    x = graph.add_input("x", TensorType((1,), F32))
    count = 0 if op.arity[1] is None else op.arity[1] + 1
    attrs = next((c.attrs for c in CASES if c.op == op.name), None) or next(
        n.attrs for n in integer_graph().nodes if n.op == op.name or op.name == "IntGemm"
    )
    with pytest.raises(VerifyError, match=rf"{op.name} 'here': {count} operands"):
        graph.add_node(op.name, [x] * count, attrs, loc="here")


def test_names_are_unique_and_unknown_ones_refused() -> None:
    row = lookup("Relu")
    with pytest.raises(ValueError, match="twice"):
        register(**{f.name: getattr(row, f.name) for f in dataclasses.fields(row)})
    with pytest.raises(UnsupportedOp, match="SequenceMap"):
        lookup("SequenceMap")
