"""If, Loop and Scan with a course that is known at import: the subgraphs that would run are converted in place.

In: a control node whose condition or trip count shape arithmetic has made known. Out: the operands its results stand for. A
subgraph reads the values of the graphs around it by name; what it defines itself is forgotten behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from bevel.errors import UnsupportedModel
from bevel.frontend.builder import Codes, OnnxNode, Operand
from bevel.ir.ops.movement import ConcatAttrs, ReshapeAttrs, SliceAttrs
from bevel.ir.types import Shape

Array = npt.NDArray[Any]

# Nodes of subgraphs that may be converted in one import: loops in loops multiply.
MAX_INLINED = 1 << 13
# Converts one node; binds one initializer.
Convert = Callable[[onnx_ir.Node], None]
Bind = Callable[[str, onnx_ir.Value], None]


class Control:
    """The control operators of one import.

    Args:
        convert: converts a node of a subgraph, binding its results.
        bind_initializer: binds a constant of a subgraph.
    """

    def __init__(self, convert: Convert, bind_initializer: Bind) -> None:
        self._convert = convert
        self._bind_initializer = bind_initializer
        self._inlined = 0
        self._rules = {"If": self._if, "Loop": self._loop, "Scan": self._scan}

    def __contains__(self, op: str) -> bool:
        return op in self._rules

    def convert(self, node: OnnxNode) -> tuple[Operand, ...]:
        """The results of a control node.

        Raises:
            UnsupportedOp: its course depends on data, or it is too long.
        """
        results = self._rules[node.op](node)
        node.check_attributes_read()
        return results

    def _inline(self, node: OnnxNode, graph: onnx_ir.Graph, operands: Sequence[Operand]) -> tuple[Operand, ...]:
        """The results of `graph` applied to `operands`."""
        self._inlined += len(graph)
        if self._inlined > MAX_INLINED:
            node.refuse(f"{self._inlined} nodes of subgraphs", f"{MAX_INLINED} in a model")
        if len(graph.inputs) != len(operands):
            raise UnsupportedModel(
                f"node {node.loc!r} ({node.op}): a subgraph takes {len(graph.inputs)} values, given {len(operands)}"
            )
        builder = node.builder
        outer = dict(builder.env)
        for value, operand in zip(graph.inputs, operands, strict=False):
            builder.bind(value.name or "", operand)
        for name, initializer in graph.initializers.items():
            self._bind_initializer(name, initializer)
        for inner in graph:
            self._convert(inner)
        results = []
        for value in graph.outputs:
            if value.name not in builder.env:
                raise UnsupportedModel(f"node {node.loc!r} ({node.op}): subgraph output {value.name!r} is never computed")
            results.append(builder.env[value.name])
        builder.env = outer
        return tuple(results)

    def _subgraph(self, node: OnnxNode, name: str) -> onnx_ir.Graph:
        graph = node.raw(name)
        if not isinstance(graph, onnx_ir.Graph):
            raise UnsupportedModel(f"node {node.loc!r} ({node.op}): attribute {name} is no graph")
        return graph

    def _if(self, node: OnnxNode) -> tuple[Operand, ...]:
        branches = self._subgraph(node, "else_branch"), self._subgraph(node, "then_branch")
        return self._inline(node, branches[_truth(node, node.known(0, "condition"))], ())

    def _loop(self, node: OnnxNode) -> tuple[Operand, ...]:
        body = self._subgraph(node, "body")
        trips = node.known_ints(0, "trip count")
        condition = node.known(1, "condition")
        going = condition is None or _truth(node, condition)
        state = [node.operand(i) for i in range(2, len(node.source.inputs))]
        if trips is not None and len(trips) != 1:
            node.refuse(f"trip counts {list(trips)}", "one")
        if len(body.outputs) <= len(state):
            raise UnsupportedModel(
                f"node {node.loc!r} (Loop): {len(body.outputs)} outputs of its body, expected {len(state) + 1} or more"
            )
        collected: list[list[Operand]] = [[] for _ in range(len(body.outputs) - 1 - len(state))]
        step = 0
        while going and (trips is None or step < trips[0]):
            first, *rest = self._inline(node, body, [np.asarray(step, np.int64), np.asarray(True), *state])
            state = rest[: len(state)]
            for row, operand in zip(collected, rest[len(state) :], strict=True):
                row.append(operand)
            going = _truth(node, first)
            step += 1
        stacked = [self._stack(node, row, 0, f".scan{i}") for i, row in enumerate(collected)]
        return (*state, *stacked)

    def _scan(self, node: OnnxNode) -> tuple[Operand, ...]:
        body = self._subgraph(node, "body")
        if node.opset < 9:
            node.refuse("a batch of sequences", "Scan of opset 9 and later")
        count = node.integer("num_scan_inputs", 1)
        states = len(node.source.inputs) - count
        scanned_out = len(body.outputs) - states
        if states < 0 or count < 1 or scanned_out < 0:
            raise UnsupportedModel(f"node {node.loc!r} (Scan): {count} scanned inputs of {states + count}")
        state = [node.operand(i) for i in range(states)]
        axes = node.ints("scan_input_axes") or (0,) * count
        backwards = node.ints("scan_input_directions") or (0,) * count
        out_axes = node.ints("scan_output_axes") or (0,) * scanned_out
        out_backwards = node.ints("scan_output_directions") or (0,) * scanned_out
        shapes = [node.shape(states + i) for i in range(count)]
        axes = tuple(node.axis(a, len(shape)) for a, shape in zip(axes, shapes, strict=True))
        lengths = set(node.static(tuple(shape[a] for a, shape in zip(axes, shapes, strict=True)), "scanned axis"))
        if len(lengths) != 1:
            node.refuse(f"scanned axes of lengths {sorted(lengths)}", "one length")
        (steps,) = lengths
        collected: list[list[Operand]] = [[] for _ in range(scanned_out)]
        for step in range(steps):
            parts = [
                self._part(node, states + i, axes[i], steps - 1 - step if backwards[i] else step, f".{step}.{i}")
                for i in range(count)
            ]
            results = self._inline(node, body, [*state, *parts])
            state = list(results[:states])
            for row, operand in zip(collected, results[states:], strict=True):
                row.append(operand)
        stacked = [
            self._stack(node, row[::-1] if out_backwards[i] else row, out_axes[i], f".scan{i}") for i, row in enumerate(collected)
        ]
        return (*state, *stacked)

    @staticmethod
    def _part(node: OnnxNode, index: int, axis: int, at: int, suffix: str) -> Operand:
        """Operand `index` at one place of `axis`, without that axis."""
        shape = node.shape(index)
        starts, ends = [0] * len(shape), [-1] * len(shape)
        starts[axis], ends[axis] = at, at + 1
        cut = SliceAttrs(tuple(starts), tuple(ends), (1,) * len(shape))
        part = node.emit("Slice", [node.operand(index)], cut, suffix=f"{suffix}.slice")
        return node.emit("Reshape", [part], ReshapeAttrs((*shape[:axis], *shape[axis + 1 :])), suffix=suffix)

    @staticmethod
    def _stack(node: OnnxNode, rows: Sequence[Operand], axis: int, suffix: str) -> Operand:
        """Operands of equal shape joined along a new axis."""
        if not rows:
            node.refuse("a loop that never runs and collects results", "one iteration or more")
        rank = len(_shape(rows[0])) + 1
        axis = node.axis(axis, rank)
        spread = []
        for i, row in enumerate(rows):
            shape = _shape(row)
            spread.append(node.emit("Reshape", [row], ReshapeAttrs((*shape[:axis], 1, *shape[axis:])), suffix=f"{suffix}.{i}"))
        return node.emit("Concat", spread, ConcatAttrs(axis), suffix=suffix)


def _shape(operand: Operand) -> Shape:
    if isinstance(operand, np.ndarray):
        return tuple(operand.shape)
    return (operand.value if isinstance(operand, Codes) else operand).type.shape


def _truth(node: OnnxNode, condition: Operand | None) -> bool:
    """A condition that is known."""
    if not isinstance(condition, np.ndarray) or condition.size != 1 or condition.dtype == object:
        node.refuse(
            "a condition that depends on data",
            "conditions that are constant at import; export the model for one case, or bind the dimensions it tests with dims=",
        )
    return bool(condition.reshape(-1)[0])
