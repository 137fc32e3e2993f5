"""Fixtures of the command line's tests: verbs run in this process, small models and data."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.cli import main
from bevel.compiler import Options, compile_model

ROOT = Path(__file__).resolve().parents[2]
# Already quantized, so it compiles without calibration data, in a second.
KWS = ROOT / "models" / "kws_dscnn_int8_qdq.onnx"
KWS_INPUT = "input_1"


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Bevel = Callable[..., Result]


@pytest.fixture
def bevel(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bevel]:
    """Run `bevel ARGS` in an empty current directory; fails the test when anything shows a traceback."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*args: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert "Traceback" not in err or "--verbose" in args, err
        assert isinstance(leave.value.code, int)
        return Result(leave.value.code, out, err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(bevel: Bevel, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail with `code`: its message, after checking that it is one line and that nothing was written."""

    def run(code: int, *args: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = bevel(*args, "--json")
        assert result.code == code, result
        error = result.json["error"]
        assert error["exit_code"] == code
        assert result.err.strip().endswith(error["message"].strip())
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return str(error["message"])

    return run


@pytest.fixture(scope="session")
def kws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An integer artifact for this machine; tests must not change it."""
    artifact, _ = compile_model(KWS, tmp_path_factory.mktemp("artifact") / "kws.bevel", Options("host"))
    return artifact.path


def save_model(
    path: Path, *, opset: int = 17, op: str = "Relu", weight: float = 0.5, batch: str | int = "batch", name: str = "x"
) -> Path:
    """A small float CNN [batch, 3, 8, 8] -> [batch, 4]: convolution, `op`, global average, fully connected."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    kernel[0, 0, 0, 0] = weight
    constants = {"k": kernel, "w": rng.standard_normal((8, 4)).astype(np.float32), "b": np.zeros(4, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [name, "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node(op, ["c"], ["r"], "middle"),
            helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
            helper.make_node("Flatten", ["g"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], "dense"),
        ],
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small float model."""
    return save_model(tmp_path / "small.onnx")


def images(count: int = 8, **changes: Any) -> dict[str, Any]:
    """A data set for `save_model`, as arrays; `changes` replace or add arrays."""
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((count, 3, 8, 8)).astype(np.float32), **changes}


def save(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path
