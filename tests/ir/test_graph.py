"""Def-use stays consistent under any sequence of the graph's own mutations, and clones are independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.errors import VerifyError
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.text import print_graph
from bevel.ir.types import F32, I8, Quant, TensorType
from bevel.ir.verify import verify

SQUARE = TensorType((2, 2), F32)


def start() -> Graph:
    graph = Graph("g")
    x = graph.add_input("x", SQUARE)
    c = graph.add_constant("c", np.ones((2, 2), np.float32))
    y = graph.add_node("Add", [x, c], names=["y"]).output
    graph.set_outputs([graph.add_node("Mul", [y, y], names=["z"]).output])
    return graph


def earlier(graph: Graph, node: object) -> list[Value]:
    """Values a node may read: inputs, constants, results before it."""
    found = [*graph.inputs, *graph.constants]
    for other in graph.nodes:
        if other is node:
            break
        found += other.outputs
    return found


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_rewrites_keep_the_graph_valid(data: st.DataObject) -> None:
    graph = start()
    removed_constants: list[Value] = []

    def pick(values: list[Value]) -> Value:
        return data.draw(st.sampled_from(values))

    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(
            st.sampled_from(["add", "insert", "constant", "revive", "set", "replace", "rename", "take", "prune", "clone", "out"])
        )
        node = data.draw(st.sampled_from(graph.nodes))
        before = set(graph.constants)
        if action == "add":
            graph.add_node(data.draw(st.sampled_from(["Add", "Mul"])), [pick(earlier(graph, None)), pick(earlier(graph, None))])
        elif action == "insert":
            new = graph.add_node("Relu", [pick(earlier(graph, node))], before=node, loc="inserted")
            graph.set_input(node, 0, new.output)
        elif action == "constant":
            graph.set_input(node, 0, graph.add_constant(data.draw(st.sampled_from(["c", "d"])), np.zeros((2, 2), np.float32)))
        elif action == "revive" and removed_constants:
            graph.set_input(node, 0, pick(removed_constants))
        elif action == "set":
            graph.set_input(node, data.draw(st.integers(0, len(node.inputs) - 1)), pick(earlier(graph, node)))
        elif action == "replace":
            graph.replace_uses(node.outputs[0], pick(earlier(graph, node)))
        elif action == "rename":
            graph.rename(pick([*graph.values()]), graph.unique_name(data.draw(st.sampled_from(["c", "n", "m"]))))
        elif action == "take":
            graph.take_name(pick(earlier(graph, node)), node.outputs[0])
        elif action == "prune":
            graph.prune_dead()
        elif action == "clone":
            text, graph = print_graph(graph), graph.clone()
            removed_constants, before = [], set()
            assert print_graph(graph) == text
        elif action == "out":
            graph.set_outputs([pick(earlier(graph, None))])
        removed_constants += [v for v in before if v not in graph.constants and v not in removed_constants]
        removed_constants = [v for v in removed_constants if v not in graph.constants]
        verify(graph)
        for value in graph.values():
            assert graph.value(value.name) is value
            assert set(value.users) == {n for n in graph.nodes if value in n.inputs}
        if not graph.nodes:
            return


def test_sole_user_counts_repeated_operands_and_outputs() -> None:
    graph = start()
    add, mul = graph.nodes
    assert graph.sole_user(graph.value("y")) is None
    assert graph.sole_user(graph.value("x")) is add
    graph.set_input(mul, 1, graph.value("x"))
    assert graph.sole_user(graph.value("y")) is mul
    graph.set_outputs([graph.value("y"), graph.value("z")])
    assert graph.sole_user(graph.value("y")) is None


def test_removing_a_used_node_is_refused() -> None:
    graph = start()
    with pytest.raises(VerifyError, match="'y' is still used"):
        graph.remove(graph.nodes[0])
    with pytest.raises(VerifyError, match="'z' is still used"):
        graph.remove(graph.nodes[1])


def test_values_of_other_graphs_and_removed_nodes_are_refused() -> None:
    graph, other = start(), start()
    with pytest.raises(VerifyError, match="belongs to another graph"):
        graph.add_node("Relu", [other.value("y")])
    dead = graph.add_node("Relu", [graph.value("y")])
    graph.remove(dead)
    for use in (lambda: graph.add_node("Relu", [dead.output]), lambda: graph.set_input(graph.nodes[0], 0, dead.output)):
        with pytest.raises(VerifyError, match="was removed"):
            use()
    verify(graph)


def test_a_constant_without_readers_comes_back_under_a_free_name() -> None:
    graph = start()
    old = graph.value("c")
    graph.set_input(graph.nodes[0], 1, graph.value("x"))
    assert "c" not in graph
    graph.set_input(graph.nodes[1], 0, graph.add_constant("c", np.zeros((2, 2), np.float32)))
    graph.set_input(graph.nodes[1], 1, old)
    assert old.name == "c.1"
    verify(graph)


def test_taking_the_name_of_an_output_keeps_the_interface() -> None:
    graph = start()
    old = graph.value("z")
    new = graph.add_node("Relu", [graph.value("y")], names=["fresh"]).output
    graph.take_name(new, old)
    assert [v.name for v in graph.outputs] == ["z"]
    assert graph.outputs[0] is new
    assert graph.prune_dead() == 1
    verify(graph)


def test_results_and_constants_must_fit_their_types() -> None:
    graph = start()
    with pytest.raises(VerifyError, match="constant 'k': data is float32"):
        graph.add_constant("k", np.zeros(3, np.float32), TensorType((4,), F32))
    for types in ([TensorType((2, 3), F32)], [SQUARE, SQUARE], [SQUARE.with_elem(Quant(I8, (1.0,)))]):
        with pytest.raises(VerifyError, match="Relu"):
            graph.add_node("Relu", [graph.value("x")], types=types)
    assert len(graph.nodes) == 2
    verify(graph)
    graph.level = Level.ANNOTATED
    graph.add_node("Relu", [graph.value("x")], types=[SQUARE.with_elem(Quant(I8, (1.0,)))])
    verify(graph)


def test_names() -> None:
    graph = start()
    with pytest.raises(VerifyError, match="already has a value named 'x'"):
        graph.add_input("x", SQUARE)
    with pytest.raises(VerifyError, match="already has a value named 'y'"):
        graph.rename(graph.value("x"), "y")
    assert graph.unique_name("y") == "y.1"
    with pytest.raises(KeyError):
        graph.value("nowhere")
    with pytest.raises(VerifyError, match="not a constant"):
        _ = graph.value("x").array
    node = graph.nodes[0]
    node.outputs *= 2
    with pytest.raises(VerifyError, match="has 2 results, expected 1"):
        _ = node.output
