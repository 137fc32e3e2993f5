"""The proof finds every kind of difference and says how large it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bevel.errors import ParityError
from bevel.exporting.inputs import InputSpec
from bevel.exporting.parity import Case, Proof, difference, prove

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export` or `peers`)")

SPECS = [InputSpec("x", (1, "n"))]
CASES = [Case(f"case {n}", {"x": np.linspace(-1, 1, n, dtype=np.float32)[None]}) for n in (1, 2, 9)]


def double(path: Path, dim: str | int = "n", name: str = "x", out: str = "y") -> Path:
    """A file that computes out = 2 x."""
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", [name, "two"], [out])],
        "double",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, dim])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, dim])],
        [two],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def check(path: Path, reference: Any, cases: list[Case] = CASES, outputs: tuple[str, ...] = ("y",)) -> Proof:
    return prove(path, reference, SPECS, outputs, cases, 1e-4, lambda *_: None)


def test_equal_functions_pass(tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    path = double(tmp_path / "m.onnx")
    proof = prove(path, lambda f: [f["x"] * 2], SPECS, ["y"], CASES, 1e-4, lambda *stage: stages.append(stage))
    assert proof == Proof(3, 0.0, "case 0, output y", 1e-4) or proof.worst.startswith("case")
    assert proof.cases == 3
    assert stages[-1] == ("parity", 3, 3)


def test_the_size_of_an_error_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"case 9: output 'y' is wrong: .* 0\.00498") as wrong:
        check(double(tmp_path / "m.onnx"), lambda f: [f["x"] * (2 if f["x"].size < 3 else 2.01)])
    assert wrong.value.error == pytest.approx(0.01 / 2.01, rel=1e-3)
    assert wrong.value.exit_code == 1


def test_an_error_just_inside_the_tolerance_passes_and_is_the_worst(tmp_path: Path) -> None:
    proof = check(double(tmp_path / "m.onnx"), lambda f: [f["x"] * (2 if f["x"].size != 2 else 2.0001)])
    assert proof.worst == "case 2, output y"
    assert 4e-5 < proof.error < 1e-4


def test_another_interface_fails(tmp_path: Path) -> None:
    double_it = lambda f: [f["x"] * 2]  # noqa: E731
    with pytest.raises(ParityError, match="traced example's size only"):
        check(double(tmp_path / "a.onnx", dim=9), double_it)
    with pytest.raises(ParityError, match="has an input 'z'"):
        check(double(tmp_path / "b.onnx", name="z"), double_it)
    with pytest.raises(ParityError, match="has outputs"):
        check(double(tmp_path / "c.onnx", out="z"), double_it)
    (tmp_path / "d.onnx").write_bytes(b"no model")
    with pytest.raises(ParityError, match="cannot load"):
        check(tmp_path / "d.onnx", double_it)


def test_a_case_that_does_not_run_fails(tmp_path: Path) -> None:
    wide = Case("wide", {"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(ParityError, match="wide: onnxruntime cannot run"):
        check(double(tmp_path / "m.onnx"), lambda f: [f["x"] * 2], [*CASES, wide])


def test_nothing_finite_proves_nothing(tmp_path: Path) -> None:
    nothing = [Case("nan", {"x": np.full((1, 2), np.nan, np.float32)})]
    with pytest.raises(ParityError, match="nothing is proven"):
        check(double(tmp_path / "m.onnx"), lambda f: [f["x"] * 2], nothing)


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.1, -4.0], 0.025),
        ([0.0, 0.0], [0.0, 1e-3], 1e-3),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([1.0, 2.0], [1.0, math.nan], math.inf),
        ([1.0, math.inf], [1.0, math.inf], 0.0),
        ([1.0, math.inf], [1.0, -math.inf], math.inf),
        ([1.0, 2.0], [1.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_differences(expected: list[float], found: list[float], error: float) -> None:
    assert difference(np.asarray(expected, np.float32), np.asarray(found, np.float32)) == pytest.approx(error, rel=1e-4)


def test_integers_must_be_equal() -> None:
    assert difference(np.asarray([1, 2]), np.asarray([1, 2], np.int32)) == 0.0
    assert difference(np.asarray([1, 2]), np.asarray([1, 3])) == math.inf
    assert difference(np.asarray([1, 2]), np.asarray([1.0, 2.0])) == math.inf
