"""`bevel export` of torch modules and programs: proven files, named axes, and nothing left after a failure."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bevel
from bevel.errors import ExportError, ParityError, UsageError
from tests.cli.conftest import Bevel
from tests.cli.conftest import bevel as bevel_fixture
from tests.export.conftest import shapes

pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra `export`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")

command = bevel_fixture

TEXT = {"ids": "1,seq[1:40]:int64[0:10]", "mask": "1,seq:float32[mask]"}


def net(name: str) -> Any:
    made = getattr(importlib.import_module("nets"), name)()
    return made


def left(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"nets.py", "needs.py", "broken.py", "__pycache__"}


def test_a_factory_through_the_command_line(command: Bevel, nets: Path) -> None:
    done = command(
        "export", "nets:conv", "--input", "x=n[1:3],3,h[4:20],w[4:20]", "--outputs", "logits", "-o", "net.onnx", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["dims"] == {"n": [1, 3], "h": [4, 20], "w": [4, 20]}
    assert done.json["parity"]["error"] < 1e-5
    assert done.json["parity"]["cases"] >= 9
    assert shapes(nets / "net.onnx") == {"x": ["n", 3, "h", "w"], "logits": ["n", 4]}
    assert left(nets) == {"net.onnx"}
    text = command("export", "nets:conv", "--input", "x=1,3,8,8", "-o", "net.onnx")
    assert text.code == 0
    assert "float32[1, 3, 8, 8]" in text.out
    assert "printed while importing" not in text.out


def test_keywords_sequences_and_masks(nets: Path) -> None:
    exported = bevel.export(net("Text"), "text.onnx", inputs=TEXT)
    assert shapes(nets / "text.onnx") == {"ids": [1, "seq"], "mask": [1, "seq"], "sums": [1, "seq", 4], "count": [1]}
    assert exported.outputs == ("sums", "count")
    assert exported.proof.cases >= 5


def test_files_say_nothing_of_the_machine(nets: Path) -> None:
    for exporter in ("dynamo", "torchscript"):
        bevel.export("nets:conv", "net.onnx", inputs={"x": "1,3,8,8"}, exporter=exporter)
        data = (nets / "net.onnx").read_bytes()
        assert os.fsencode(nets) not in data
        assert b"nets.py" not in data
        assert b"site-packages" not in data


def test_a_branch_that_was_traced_away_is_rejected_with_its_error(command: Bevel, nets: Path) -> None:
    (nets / "net.onnx").write_bytes(b"an older file")
    done = command("export", "nets:Branch", "--input", "x=1,3", "--exporter", "torchscript", "-o", "net.onnx", "--json")
    assert done.code == 1
    assert done.json["error"]["kind"] == "ParityError"
    assert "max|d|/max|reference| is 0." in done.json["error"]["message"]
    assert (nets / "net.onnx").read_bytes() == b"an older file"
    assert left(nets) == {"net.onnx"}
    with pytest.raises(ParityError) as wrong:
        bevel.export(net("Branch"), "net.onnx", inputs={"x": "1,3"}, exporter="torchscript")
    assert wrong.value.error in (pytest.approx(1 / 3), pytest.approx(1 / 2))


def test_a_loop_that_was_unrolled_is_rejected(nets: Path) -> None:
    for exporter in ("dynamo", "torchscript"):
        with pytest.raises(ParityError):
            bevel.export(net("Loop"), "net.onnx", inputs={"x": "1,t[1:9],3"}, exporter=exporter)
        assert left(nets) == set()


def test_a_wrong_exporter_is_found_out(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bevel.exporting import torch_export

    real = torch_export.strip_provenance

    def sabotage(path: Path) -> None:
        real(path)
        model = onnx.load(path)
        weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
        weights.flat[0] += 0.1
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, model.graph.initializer[0].name))
        onnx.save(model, path)

    monkeypatch.setattr(torch_export, "strip_provenance", sabotage)
    with pytest.raises(ParityError) as wrong:
        bevel.export("nets:conv", "net.onnx", inputs={"x": "1,3,8,8"})
    assert 1e-4 < wrong.value.error < 1
    assert left(nets) == set()


def test_given_inputs_are_part_of_the_proof(nets: Path) -> None:
    """Random inputs of this range never reach the branch that the data reaches."""
    positive = {"x": "1,3:float32[1:2]"}
    assert bevel.export(net("Branch"), "net.onnx", inputs=positive, exporter="torchscript").proof.cases == 3
    data = {"x": np.asarray([[1, 2, 3], [-1, -2, -3]], np.float32)}
    with pytest.raises(ParityError, match=r"sample 1: .* is 0\.333"):
        bevel.export(net("Branch"), "net.onnx", inputs=positive, exporter="torchscript", data=data)
    narrow = {"ids": np.zeros((2, 1, 50), np.int64), "mask": np.ones((2, 1, 50), np.float32)}
    with pytest.raises(UsageError, match=r"seq=50, outside of \[1:40\]"):
        bevel.export(net("Text"), "text.onnx", inputs=TEXT, data=narrow)


def test_modules_may_offer_their_inputs(nets: Path) -> None:
    exported = bevel.export("nets:Offers", "net.onnx")
    assert shapes(nets / "net.onnx") == {"x": [2, 3], "output_0": [2, 2], "output_1": [2]}
    assert exported.inputs[0].high == 5
    bevel.export("nets:Offers", "net.onnx", inputs={"x": "n[1:9],3"})
    assert shapes(nets / "net.onnx")["x"] == ["n", 3]


def test_evaluation_mode_is_what_is_exported(nets: Path) -> None:
    assert bevel.export("nets:Dropped", "net.onnx", inputs={"x": "1,100"}).proof.error == 0


def test_programs(nets: Path) -> None:
    import torch

    seq = torch.export.Dim("s", min=1, max=40)
    example = (torch.zeros(1, 13, dtype=torch.int64),)
    shape = {"ids": {1: seq}, "mask": {1: seq}}
    torch.export.save(
        torch.export.export(net("Text"), example, kwargs={"mask": torch.ones(1, 13)}, dynamic_shapes=shape), "text.pt2"
    )
    # Ids beyond the table raise in the model: the default range of integers is 0 and 1.
    exported = bevel.export("text.pt2", "text.onnx")
    assert exported.dims == {"ids_1": (1, 40)}
    assert shapes(nets / "text.onnx")["mask"] == [1, "ids_1"]
    bevel.export("text.pt2", "text.onnx", inputs={"ids": "1,seq[2:20]:int64[0:10]", "mask": "1,seq"})
    assert shapes(nets / "text.onnx")["sums"] == [1, "seq", 4]
    for wrong in ({"ids": "2,seq[2:20]:int64"}, {"ids": "1,13:int64"}, {"ids": "1,seq[1:2]:int32"}):
        with pytest.raises(UsageError, match="in the program"):
            bevel.export("text.pt2", "text.onnx", inputs={**wrong, "mask": "1,seq"}, dims={})
    with pytest.raises(UsageError, match="the program takes"):
        bevel.export("text.pt2", "text.onnx", inputs={"other": "1"})
    (nets / "damaged.pt2").write_bytes((nets / "text.pt2").read_bytes()[:500])
    with pytest.raises(ExportError, match="damaged"):
        bevel.export("damaged.pt2", "text.onnx")


@pytest.mark.parametrize(
    ("source", "inputs", "kind", "message"),
    [
        ("nowhere:net", {}, UsageError, "no module 'nowhere'"),
        ("needs:net", {}, UsageError, "needs 'a_package_that_is_not_there'"),
        ("broken:net", {}, UsageError, "ZeroDivisionError"),
        ("nets:absent", {}, UsageError, "no function 'absent'"),
        ("nets:constant", {}, UsageError, "no function 'constant'"),
        ("nets:boom", {}, UsageError, "weights are missing"),
        ("nets:number", {}, UsageError, "returned int"),
        ("nets", {}, UsageError, "module:factory"),
        ("nets.py", {}, UsageError, ".py files are none of these"),
        ("absent.pt2", {}, UsageError, "no such file"),
        ("nets:conv", {}, UsageError, "give --input"),
        ("nets:conv", {"x": "1,4,8,8"}, ExportError, "raises RuntimeError"),
        ("nets:conv", {"x": [1, 2]}, UsageError, "is list"),
        ("nets:Text", {"ids": "1,4:int64"}, UsageError, r"no input given for \['mask'\]"),
        ("nets:Text", {"ids": "1,4:int64", "other": "1,4"}, UsageError, "forward takes"),
        ("nets:Fails", {"x": "1"}, ExportError, "no such luck"),
        ("nets:Words", {"x": "1"}, ExportError, "returns str"),
        ("nets:Branch", {"x": "1,3"}, ExportError, "data-dependent"),
        ("nets:WrongExample", {}, UsageError, "example_inputs"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(
    nets: Path, source: str, inputs: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        bevel.export(source, "net.onnx", inputs=inputs)
    assert left(nets) == set()


def test_options_that_cannot_be_meant(command: Bevel, nets: Path) -> None:
    for arguments, message in (
        (["--input", "x"], "NAME=SHAPE"),
        (["--input", "x=1", "--input", "x=2"], "twice"),
        (["--dim", "seq=9:1"], "LO:HI"),
        (["--input", "x=1,3,8,8", "--outputs", "a,b"], "the model gives 1"),
        (["--input", "x=1,3,8,8", "--dim", "n=1:2"], "no input has"),
        (["--task", "fill-mask"], "transformers"),
    ):
        done = command("export", "nets:conv", *arguments, "-o", "net.onnx")
        assert done.code == 2, done.err
        assert message in done.err
    for place in ("no/such/folder.onnx", "."):
        assert command("export", "nets:conv", "--input", "x=1,3,8,8", "-o", place).code == 2
