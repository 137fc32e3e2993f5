"""How elementwise nodes become operators: which form each takes, what it computes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bevel.errors import UnsupportedOp
from tests.frontend.onnx_files import agrees, imported, model_of

F32 = np.float32
node = helper.make_node
X = np.random.default_rng(4).normal(0, 2, (2, 3, 4)).astype(F32)


def number(value: float) -> np.ndarray[Any, Any]:
    return np.asarray(value, F32)


# Nodes, constants, operators of the canonical graph.
FORMS: dict[str, tuple[list[Any], dict[str, Any], list[str]]] = {
    "power 1": ([node("Pow", ["x", "p"], ["t"]), node("Neg", ["t"], ["y"])], {"p": number(1)}, ["Neg"]),
    "power 2": ([node("Pow", ["x", "p"], ["y"])], {"p": number(2)}, ["Mul"]),
    "power 3": ([node("Pow", ["x", "p"], ["y"])], {"p": np.asarray(3, np.int64)}, ["Power"]),
    "power -1": ([node("Pow", ["x", "p"], ["y"])], {"p": number(-1)}, ["Reciprocal"]),
    "powers": ([node("Pow", ["x", "p"], ["y"])], {"p": np.asarray([1, 2, 3, 4], F32)}, ["Pow"]),
    "inverse": ([node("Div", ["one", "x"], ["y"])], {"one": number(1)}, ["Reciprocal"]),
    "clamp": ([node("Clip", ["x", "a", "b"], ["y"])], {"a": number(-1), "b": number(1)}, ["Clip"]),
    "greatest": ([node("Max", ["x", "a", "b"], ["y"])], {"a": number(-1), "b": X[0]}, ["Max", "Max"]),
    "mean": ([node("Mean", ["x", "a"], ["y"])], {"a": X[1]}, ["Add", "Mul"]),
    "one slope": ([node("PRelu", ["x", "s"], ["y"])], {"s": np.full((3, 1), 0.25, F32)}, ["LeakyRelu"]),
    "channel slopes": ([node("PRelu", ["x", "s"], ["y"])], {"s": np.asarray([[1], [2], [-3]], F32)}, ["PRelu"]),
    "other slopes": ([node("PRelu", ["x", "s"], ["y"])], {"s": np.arange(4).astype(F32)}, ["Clip", "Mul", "Relu", "Add"]),
    "chosen at import": ([node("Where", ["c", "x", "a"], ["t"]), node("Neg", ["t"], ["y"])],
                         {"c": np.ones((1, 1), bool), "a": number(0)}, ["Neg"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, tmp_path: Path) -> None:
    nodes, constants, expected = FORMS[name]
    graph = agrees(tmp_path, model_of(nodes, {"x": X.shape}, ["y"], constants), {"x": X})
    assert sorted(n.op for n in graph.nodes) == sorted(expected)


def test_crossed_bounds_give_the_upper_one(tmp_path: Path) -> None:
    bounds = {"a": number(2), "b": number(-1)}
    agrees(tmp_path, model_of([node("Clip", ["x", "a", "b"], ["y"])], {"x": X.shape}, ["y"], bounds), {"x": X})


def test_bounds_that_the_model_computes(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", ["x"], ["m"], keepdims=0), node("Clip", ["x", "m"], ["y"])]
    graph = agrees(tmp_path, model_of(nodes, {"x": X.shape}, ["y"]), {"x": X})
    assert "Max" in [n.op for n in graph.nodes]


def test_integers_are_clamped_exactly(tmp_path: Path) -> None:
    x = np.array([2**53 + 1, -5, 7], np.int64)
    model = model_of([node("Clip", ["x", "", "b"], ["y"])], {"x": (3,)}, ["y"], {"b": np.asarray(2**53 + 1, np.int64)},
                     elem=TensorProto.INT64, out_elem=TensorProto.INT64)  # fmt: skip
    graph = agrees(tmp_path, model, {"x": x})
    assert [n.op for n in graph.nodes] == ["Min"]


REFUSED: dict[str, tuple[Any, str]] = {
    "negative alpha": (node("Celu", ["x"], ["y"], alpha=-1.0), "Celu.*alpha=-1.0; supported: positive alpha"),
    "narrow integers": (node("Cast", ["x"], ["y"], to=TensorProto.UINT4), "Cast.*to=UINT4; supported: float16"),
    "text": (node("Cast", ["x"], ["y"], to=TensorProto.STRING), "Cast.*to=STRING"),
    "form of gelu": (node("Gelu", ["x"], ["y"], approximate="fast"), "Gelu.*approximate='fast'"),
    "bits of reals": (node("BitwiseAnd", ["x", "x"], ["y"]), "BitwiseAnd.*expected one integer type"),
    "training": (node("Dropout", ["x", "r", "t"], ["y"]), "Dropout.*training mode; supported: inference"),
    "slopes": (node("PRelu", ["x", "wide"], ["y"]), r"PRelu.*supported: slopes that broadcast"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_attribute(name: str, tmp_path: Path) -> None:
    asked, message = REFUSED[name]
    constants = {"r": number(0.5), "t": np.asarray(True), "wide": np.ones((5, 1, 1, 1), F32)}
    constants = {key: value for key, value in constants.items() if key in asked.input}
    with pytest.raises(UnsupportedOp, match=message):
        imported(tmp_path, model_of([asked], {"x": X.shape}, ["y"], constants, opset=21))
