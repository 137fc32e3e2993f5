"""`bevel quantize`: from a model and data to a graph that `bevel compile` takes, and its errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bevel.data import save_arrays
from bevel.ir import serialize
from bevel.ir.graph import Level
from tests.cli.conftest import Bevel
from tests.cli.conftest import bevel as bevel_fixture
from tests.training.nets import arrays, network

command = bevel_fixture
KEYS = {"output", "steps", "loss", "seconds", "compared"}
MODULE = """
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2),
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4))
"""


def files(folder: Path) -> tuple[Path, Path]:
    """A float graph and data for it."""
    graph = network()
    serialize.save_graph(graph, folder / "net.ir")
    return folder / "net.ir", save_arrays(folder / "data.npz", arrays(graph, 96))


def test_trains_and_compiles(command: Bevel, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
    model, data = files(tmp_path)
    quick = ["--epochs", 2, "--batch", 32, "--samples", 32]
    done = command("quantize", model, "--bits", "w2a2", "--train", data, "--eval", data, *quick, "-o", "out.ir", "--json")
    assert done.code == 0, done
    assert done.err == "", "a pipe gets no progress"
    assert done.json.keys() == KEYS
    assert done.json["steps"] == 6
    assert done.json["compared"]["samples"] == 96
    assert done.json["compared"]["differing"] <= 4
    assert serialize.load_graph("out.ir").level is Level.INTEGER
    assert not Path("out.ir.checkpoint").exists()
    compiled = command("compile", "out.ir", "--device", "host", "--tune", "off", "-o", "out.bevel", "--json")
    assert compiled.code == 0, compiled
    assert compiled.json["integer_only"] is True
    assert "w2a2" in {layer["bits"] for layer in compiled.json["layers"]}
    again = command("quantize", model, "--bits", "w2a2", "--train", data, *quick, "-o", "again.ir")
    assert "wrote again.ir" in again.out
    assert Path("again.ir").read_bytes() == Path("out.ir").read_bytes()


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(command: Bevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
    model, data = files(tmp_path)
    args = ["quantize", model, "--bits", "w2a2", "--train", data, "--epochs", 1, "--batch", 32, "--samples", 32]
    assert command(*args, "-o", "whole.ir").code == 0

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bevel.training.qat._Training._tell", interrupted)
        stopped = command(*args, "-o", "out.ir")
    assert stopped.code == 130
    assert "--resume goes on from out.ir.checkpoint" in stopped.err
    assert not Path("out.ir").exists()
    resumed = command(*args, "-o", "out.ir", "--resume", "--json")
    assert resumed.json["steps"] == 3
    assert Path("out.ir").read_bytes() == Path("whole.ir").read_bytes()


def test_trains_a_torch_module(command: Bevel, tmp_path: Path) -> None:
    for package in ("torch", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra `export`)")
    _, data = files(tmp_path)
    (tmp_path / "trainee.py").write_text(MODULE)
    batch = ["--input", "x=n[1:256],3,8,8", "--epochs", 1, "--batch", 48, "--samples", 32]
    done = command(
        "quantize", "trainee:build", "--bits", "w3a3", "--train", data, "--eval", data, *batch, "-o", "net.ir", "--json"
    )
    assert done.code == 0, done
    assert done.json["compared"]["differing"] <= 4


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--plan", "plan.json"], "give the precision once"),
        (["-o", "out.bevel"], "name the output .ir"),
        (["--minutes", 1, "--epochs", 1], "either --epochs or --minutes"),
        (["--resume"], "there is no checkpoint"),
        (["--bits", "w8a8"], "fewer than 8 bits"),
        (["--learning-rate", 0], "expected a positive number"),
        (["--train", "nothing.npz"], "no such file"),
        (["--distillation", 2], "expected 0 to 1"),
    ],
)
def test_mistakes(command: Bevel, tmp_path: Path, change: list[object], part: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
    model, data = files(tmp_path)
    done = command("quantize", model, "--bits", "w2a2", "--train", data, "-o", "out.ir", *change, "--json")
    assert done.code == 2
    assert part in done.json["error"]["message"]
    assert not Path("out.ir").exists()


def test_a_quantized_model_is_refused(command: Bevel, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
    _, data = files(tmp_path)
    model = Path(__file__).resolve().parents[2] / "models" / "kws_dscnn_int8_qdq.onnx"
    done = command("quantize", model, "--bits", "w2a2", "--train", data, "-o", "out.ir")
    assert done.code == 2
    assert "quantized already" in done.err


def test_without_torch_the_extra_is_named(command: Bevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = files(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = command("quantize", model, "--bits", "w2a2", "--train", data, "-o", "out.ir", "--json")
    assert done.code == 4
    assert done.json["error"]["kind"] == "ToolchainError"
    assert "training needs torch" in done.json["error"]["message"]
    assert "bevel[export]" in done.json["error"]["message"]
    help_ = command("quantize", "--help")
    assert help_.code == 0
    assert "bevel quantize resnet20.onnx" in help_.out
