"""The text form parses back to the same graph, and bad text gets an error with its line."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.errors import BevelError, UnsupportedModel, VerifyError
from bevel.ir.graph import Graph, Level
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.text import parse_graph, print_graph
from bevel.ir.types import BOOL, F32, Codebook, Dim, Float, Int, Quant, TensorType
from bevel.ir.verify import verify
from tests.ir.graphs import graphs

TINY = """bevel graph 1 "tiny" level=float source="" {
  // a comment
  input %x : f32[n(1..8),2]
  const %w : f32[3,2] = [1.0, 2, -0.5, 1e-07, 3.0, 4.0]
  %y = Gemm(%x, %w) : f32[n(1..8),3] loc "fc"
  %z = Clip(%y) {lo=0.0} : f32[n(1..8),3]
  output %z
}
"""


@settings(max_examples=80, deadline=None)
@given(graphs(), st.sampled_from([0, 4, 10**6]))
def test_round_trip_is_exact(graph: Graph, inline: int) -> None:
    verify(graph)
    text = print_graph(graph, inline_constants=inline)
    parsed = parse_graph(text, {v.name: v.array for v in graph.constants})
    verify(parsed)
    assert print_graph(parsed, inline_constants=inline) == text
    assert (parsed.name, parsed.level, parsed.source_hash) == (graph.name, graph.level, graph.source_hash)
    assert [v.name for v in parsed.values()] == [v.name for v in graph.values()]
    assert [v.type for v in parsed.values()] == [v.type for v in graph.values()]
    assert [(n.op, n.attrs, n.loc) for n in parsed.nodes] == [(n.op, n.attrs, n.loc) for n in graph.nodes]
    for ours, theirs in zip(graph.constants, parsed.constants, strict=True):
        assert ours.array.dtype == theirs.array.dtype
        assert ours.array.tobytes() == theirs.array.tobytes()


def test_hand_written_text_takes_defaults_and_comments() -> None:
    graph = parse_graph(TINY, {})
    verify(graph)
    assert graph.nodes[1].attrs == ClipAttrs(0.0, np.inf)
    assert graph.nodes[0].loc == "fc"
    assert graph.inputs[0].type.shape == (Dim("n", 1, 8), 2)


ELEMS = [
    BOOL,
    Float(16),
    Float(64),
    Int(1, signed=False),
    Int(64, signed=False),
    Int(64),
    Quant(Int(4), (0.1, 1e-30, 3.0), (1, -2, 0), axis=0, block=2),
    Codebook(Int(2, signed=False), (-1.0, 0.0, 0.1)),
    Codebook(Int(3, signed=False), (-4.0, 0.0, 7.0), (0.25,)),
    Codebook(Int(2, signed=False), (-1.0, 2.0), (0.25, 1e-08), axis=0),
    Quant(Int(1), (0.5,)),
]


@pytest.mark.parametrize("elem", ELEMS, ids=str)
def test_every_element_type_round_trips(elem: object) -> None:
    graph = Graph("types", Level.ANNOTATED)
    type_ = TensorType((5,), elem)  # type: ignore[arg-type]
    limits = {"f": 1.5, "b": True, "u": 2, "i": -2}
    value = graph.add_constant("c", np.full(5, limits[type_.dtype.kind], type_.dtype), type_)
    graph.set_outputs([value])
    parsed = parse_graph(print_graph(graph), {})
    assert parsed.value("c").type == type_
    assert parsed.value("c").array.tobytes() == value.array.tobytes()


def test_numpy_scalars_print_as_the_numbers_they_are() -> None:
    plain, scalar = Graph("g"), Graph("g")
    for graph, lo in ((plain, 1.0), (scalar, np.float32(1.0))):
        x = graph.add_input("x", TensorType((1,), F32))
        graph.set_outputs([graph.add_node("Clip", [x], ClipAttrs(lo)).output])
    assert print_graph(plain) == print_graph(scalar)


def test_attribute_of_the_wrong_type_is_refused() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType((1,), F32))
    graph.set_outputs([graph.add_node("Clip", [x], ClipAttrs("0")).output])  # type: ignore[arg-type]
    with pytest.raises(VerifyError, match="'lo' holds '0'"):
        print_graph(graph)


BAD = [
    ("bevel graph 1", "bevel graph 2", "version 2"),
    ("level=float", "level=double", "line 1: found 'double'"),
    ("f32[n(1..8),2]\n", "f33[n(1..8),2]\n", "line 3: Float of 33 bits"),
    ("f32[n(1..8),2]\n", "f32[n(8..1),2]\n", "line 3: Dim 'n'"),
    ("f32[n(1..8),2]\n", "f32[n(1..8),-2]\n", "line 3: .*negative"),
    ("[1.0, 2,", "[2,", "line 4: 5 elements given for f32"),
    ("[1.0, 2,", "resource [", "line 4: constant 'w' stands as resource"),
    ("const %w", "const %x", "line 4: value 'x' is defined twice"),
    ("Gemm(", "Gemn(", "line 5: operator 'Gemn'"),
    ("Gemm(%x, %w)", "Gemm(%x, %v)", "line 5: value 'v' is used before"),
    ("Gemm(%x, %w)", "Gemm(%x)", "line 5: .*1 operands, expected 2..3"),
    ("%y = Gemm(%x, %w) : f32[n(1..8),3]", "%y = Gemm(%x, %w) : f32[n(1..8),4]", "line 5: .*its type rule says"),
    ("{lo=0.0}", "{low=0.0}", "line 6: found 'low', expected one of the attributes"),
    ("{lo=0.0}", "{lo=0.0, lo=1.0}", "line 6: attribute 'lo' is given twice"),
    ("{lo=0.0}", '{lo="0"}', "line 6: found '0', expected a float"),
    ("output %z", "output %q", "line 7: value 'q' is used before"),
    ("output %z", "result %z", "line 7: found 'result'"),
    ("output %z", "output %z state %x %z", "line 7: found 'z', expected '='"),
    ("output %z", "output %z state %q = %z", "line 7: value 'q' is used before"),
    ("output %z", "output %z state %x = %z state %x = %z", "line 7: input 'x' is a state twice"),
    ('loc "fc"', 'loc "fc', "line 5: .*no token"),
    ("}\n", "} }\n", "line 8: found '}'"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD, ids=[b[2] for b in BAD])
def test_bad_text_names_the_line(old: str, new: str, message: str) -> None:
    text = TINY[::-1].replace(old[::-1], new[::-1], 1)[::-1]
    assert text != TINY
    with pytest.raises(UnsupportedModel) as caught:
        parse_graph(text, {})
    assert re.search(message, str(caught.value)), caught.value


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutilated_text_never_escapes_the_error_hierarchy(data: st.DataObject) -> None:
    text = list(TINY)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 9))] = data.draw(
            st.text('0123456789%"()[]{}<>=,.:@-einf qx\\\n\x00é', max_size=3)
        )
        text = text or ["x"]
    try:
        parse_graph("".join(text), {})
    except BevelError:
        pass
