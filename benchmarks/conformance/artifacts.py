"""Node cases as machine code: the graphs of many cases joined into one artifact, run on this machine and compared with ONNX.

Joining keeps this affordable: a link and a library for every hundred cases instead of every one, and equal kernels compile once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.conformance.node_cases import Array, NodeCase, Verdict, difference, feed
from bevel.backends.lower import lower
from bevel.backends.objects import compile_kernels
from bevel.devices.profile import load_profile
from bevel.errors import BevelError, UnsupportedModel
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.interp import boundary_codes, to_real
from bevel.ir.types import Dim
from bevel.passes.bind_dims import bind_dims
from bevel.runtime.artifact import write_artifact
from bevel.runtime.host import HostModel

PER_ARTIFACT = 100


@dataclass(frozen=True)
class Compiled:
    """A case whose graph lowers: static, and without outputs that no kernel computes."""

    case: NodeCase
    graph: Graph
    inputs: dict[str, Array]


def bound(graph: Graph, inputs: dict[str, Array]) -> Graph:
    """`graph` with its symbolic dimensions at the extents that `inputs` have."""
    extents = {}
    for value in graph.inputs:
        for dim, extent in zip(value.type.shape, inputs[value.name].shape, strict=True):
            if isinstance(dim, Dim):
                extents[dim.name] = int(extent)
    return bind_dims(graph, extents) if extents else graph


def judge_artifacts(verdicts: Sequence[Verdict], progress: Callable[[int, int], None] | None = None) -> list[Verdict]:
    """Compile and run the cases that the interpreter passes.

    Args:
        verdicts: of the interpreter.
        progress: called with cases done and cases in all.

    Returns:
        A verdict for each of `verdicts` that passed: "pass", "refused" (no kernel takes it; says why) or "wrong".
    """
    target = load_profile("host").target()
    results: list[Verdict] = []
    ready: list[Compiled] = []
    for verdict in verdicts:
        if verdict.status != "pass" or verdict.graph is None:
            continue
        inputs = feed(verdict.graph, verdict.case)
        try:
            graph = bound(verdict.graph, inputs)
            if graph.level is Level.ANNOTATED:
                from bevel.passes.quantize.to_integer import ToInteger

                graph = ToInteger().run(graph)
                inputs = {v.name: boundary_codes(v, inputs[v.name]) for v in graph.inputs}
            lower(graph, target)
        except UnsupportedModel as error:
            results.append(Verdict(verdict.case, "refused", f"{type(error).__name__}: {error}", verdict.graph))
            continue
        except BevelError as error:
            results.append(Verdict(verdict.case, "crash", f"{type(error).__name__}: {error}", verdict.graph))
            continue
        ready.append(Compiled(verdict.case, graph, inputs))
    refused = len(results)
    # Levels cannot be mixed in one graph.
    for level in (Level.FLOAT, Level.INTEGER):
        chosen = [item for item in ready if item.graph.level is level]
        for first in range(0, len(chosen), PER_ARTIFACT):
            results += _run(chosen[first : first + PER_ARTIFACT], level)
            if progress is not None:
                progress(len(results) - refused, len(ready))
    return results


def _run(items: Sequence[Compiled], level: Level) -> list[Verdict]:
    """Verdicts of cases in one artifact."""
    whole = Graph("cases", level)
    for index, item in enumerate(items):
        _join(whole, item.graph, f"{index}/")
    profile = load_profile("host")
    schedule = lower(whole, profile.target())
    objects = compile_kernels(schedule.kernels, schedule.target)
    inputs = {f"{i}/{name}": array for i, item in enumerate(items) for name, array in item.inputs.items()}
    # The self-test is not what is tested here: its expected outputs are zeros of the right types.
    blank = {t.name: np.zeros(t.shape, t.dtype) for t in schedule.outputs}
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        artifact = write_artifact(
            Path(folder) / "cases.bevel", schedule, objects, golden=[(inputs, blank)], provenance={"purpose": "conformance"}
        )
        with HostModel(artifact) as model:
            model.set_inputs(inputs)
            model.run()
            outputs = {name: array.copy() for name, array in model.outputs().items()}
    for index, item in enumerate(items):
        own = {v.name: outputs[f"{index}/{v.name}"] for v in item.graph.outputs}
        # ONNX gives the reals where the artifact gives codes.
        for value, want in zip(item.graph.outputs, item.case.outputs or (), strict=True):
            own[value.name] = to_real(value, own[value.name]) if want.dtype.kind == "f" else own[value.name]
        fault = difference(item.case, item.graph, own)
        verdicts.append(Verdict(item.case, "wrong" if fault else "pass", fault, item.graph))
    return verdicts


def _join(whole: Graph, part: Graph, prefix: str) -> None:
    """Add `part` to `whole`, every name behind `prefix`."""
    mapped: dict[Value, Value] = {}
    for value in part.inputs:
        mapped[value] = whole.add_input(prefix + value.name, value.type)
    for value in part.constants:
        mapped[value] = whole.add_constant(prefix + value.name, value.array, value.type)
    for node in part.nodes:
        names = [prefix + v.name for v in node.outputs]
        types = [v.type for v in node.outputs]
        operands = [mapped[v] for v in node.inputs]
        twin = whole.add_node(node.op, operands, node.attrs, names=names, loc=prefix + node.loc, types=types)
        mapped |= dict(zip(node.outputs, twin.outputs, strict=True))
    whole.set_outputs([*whole.outputs, *(mapped[v] for v in part.outputs)])
