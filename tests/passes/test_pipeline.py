"""Pipelines: text to passes and back, what the runner verifies, and which pass it blames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from bevel.errors import CheckFailed, UsageError, VerifyError
from bevel.ir.graph import Graph
from bevel.ir.ops.movement import ReshapeAttrs
from bevel.ir.types import F32, Dim, TensorType
from bevel.passes.bind_dims import BindDims, bind_dims
from bevel.passes.fold_bn import FoldBn
from bevel.passes.fold_constants import FoldConstants
from bevel.passes.pipeline import PASSES, Check, Pass, lookup_pass, parse_pipeline, print_pipeline, run_passes
from bevel.passes.quantize.calibrate import Calibrate
from bevel.passes.quantize.to_integer import ToInteger


def small() -> Graph:
    graph = Graph("small")
    x = graph.add_input("x", TensorType((Dim("batch"), 4), F32))
    node = graph.add_node("Relu", [x], names=["y"])
    graph.set_outputs([node.output])
    return graph


@dataclass(frozen=True)
class Scale:
    """Multiplies the first output: a pass that does what it must not."""

    name: ClassVar[str] = "scale"
    factor: float = 1.0

    def run(self, graph: Graph) -> Graph:
        result = graph.clone()
        factor = result.add_constant("factor", np.asarray(self.factor, np.float32))
        old = result.outputs[0]
        new = result.add_node("Mul", [old, factor], names=["scaled"])
        result.rename(old, "inner")
        result.rename(new.output, "y")
        result.set_outputs([new.output])
        return result


@dataclass(frozen=True)
class Break:
    """Leaves a graph whose output type is a lie."""

    name: ClassVar[str] = "break"

    def run(self, graph: Graph) -> Graph:
        result = graph.clone()
        result.outputs[0].type = TensorType((3,), F32)
        return result


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", ()),
        ("fold-bn", (FoldBn(),)),
        (" fold-bn , fold-constants{limit=12} ", (FoldBn(), FoldConstants(limit=12))),
        ("calibrate{method=minmax},to-integer", (Calibrate(), ToInteger())),
        ('calibrate{keep_float=["conv1;a,b", plain]}', (Calibrate(keep_float=frozenset({"conv1;a,b", "plain"})),)),
        ('bind-dims{dims=["batch=1","n=1:8"]}', (BindDims(("batch=1", "n=1:8")),)),
        ("bind-dims{dims=[]}", (BindDims(),)),
        ("fold-bn{}", (FoldBn(),)),
    ],
)
def test_pipelines_parse_and_print_back(text: str, passes: tuple[Pass, ...]) -> None:
    assert parse_pipeline(text) == passes
    assert parse_pipeline(print_pipeline(passes)) == passes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-nb", "pass 'fold-nb' does not exist; choose from .*fold-bn"),
        ("fold-bn{x=1}", "no field 'x'; it has none"),
        ("calibrate{data=1}", "no field 'data'; it has .*method"),
        ("fold-constants{limit=many}", "fold-constants.limit is many, expected int"),
        ("fold-constants{limit}", "found } at token 4, expected '='"),
        ("fold-constants{limit=1", "found the end at token 6, expected ',' or '}'"),
        ("bind-dims{dims=batch}", "expected '\\[' of the list bind-dims.dims"),
        ("fold-bn fold-pad", "expected ',' or the end"),
        (",fold-bn", "expected a pass name"),
        ('fold-bn"', "cannot read"),
    ],
)
def test_bad_pipelines_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_pipeline(text)


@pytest.mark.parametrize("name", sorted(PASSES))
def test_registered_passes_exist_under_their_name(name: str) -> None:
    cls = lookup_pass(name)
    assert cls.name == name
    assert parse_pipeline(print_pipeline([cls()])) == (cls(),)


def test_runner_leaves_its_input_alone_and_reports() -> None:
    graph, seen, timings = small(), [], list[tuple[str, float]]()
    result = run_passes(
        graph, [Scale(2.0), FoldBn()], dump_after=lambda name, g: seen.append((name, len(g.nodes))), timings=timings
    )
    assert len(graph.nodes) == 1
    assert len(result.nodes) == 2
    assert seen == [("scale", 2), ("fold-bn", 2)]
    assert [name for name, _ in timings] == ["scale", "fold-bn"]


def test_runner_names_the_pass_that_broke_the_graph() -> None:
    with pytest.raises(VerifyError, match="after pass 'break'"):
        run_passes(small(), [FoldBn(), Break(), FoldBn()])
    run_passes(small(), [Break()], verify=False)


def test_check_each_names_the_first_pass_that_moves_an_output() -> None:
    check = Check({"x": np.asarray([[1.0, -2.0, 3.0, 4.0]], np.float32)}, tolerance=1e-3)
    run_passes(small(), [FoldBn(), Scale(1.0001)], check_each=check)
    with pytest.raises(CheckFailed, match=r"pass 'scale' is the first to move output 'y' of 'small' beyond 0\.001: by 0\.4"):
        run_passes(small(), [FoldBn(), Scale(1.1), Scale(3.0)], check_each=check)


def test_bind_dims_replaces_symbols_in_types_and_attributes() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType((Dim("batch"), 2, 3), F32))
    graph.set_outputs([graph.add_node("Reshape", [x], ReshapeAttrs((Dim("batch"), 6)), names=["y"]).output])
    bound = run_passes(graph, [BindDims(("batch=4",))])
    assert bound.inputs[0].type.shape == (4, 2, 3)
    assert bound.outputs[0].type.shape == bound.nodes[0].attrs.shape == (4, 6)
    assert graph.inputs[0].type.shape[0] == Dim("batch")
    bounded = bind_dims(graph, {"batch": (1, 8)})
    assert bounded.nodes[0].attrs.shape[0] == bounded.inputs[0].type.shape[0] == Dim("batch", 1, 8)
    with pytest.raises(UsageError, match=r"\['n'\] do not exist in 'g'; it has \['batch'\]"):
        bind_dims(graph, {"n": 1})
    with pytest.raises(UsageError, match="expected within"):
        bind_dims(bounded, {"batch": 9})
    with pytest.raises(UsageError, match="expected NAME=N"):
        BindDims(("batch",)).run(graph)
