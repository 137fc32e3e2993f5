"""A damaged, hostile or unsupported model file gets one message that names it, the documented exit code, and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import KWS, images, save, save_model

Refused = Callable[..., str]


def truncated(path: Path) -> Path:
    path.write_bytes(KWS.read_bytes()[:20_000])
    return path


def flipped(path: Path) -> Path:
    data = bytearray(KWS.read_bytes())
    data[100:140] = b"\xff" * 40
    path.write_bytes(data)
    return path


def written(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


DAMAGED = {
    "empty": written(b""),
    "text": written(b"this is not a model\n" * 50),
    "truncated": truncated,
    "flipped": flipped,
    "no graph": written(b"\x08\x08"),
}


@pytest.mark.parametrize("verb", ["compile", "cost"])
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_file_is_refused_by_name(kind: str, verb: str, tmp_path: Path, refused: Refused) -> None:
    model = DAMAGED[kind](tmp_path / "bad.onnx")
    message = refused(3, verb, model, "--device", "host")
    assert "bad.onnx" in message


def test_random_damage_never_shows_a_defect(tmp_path: Path, refused: Refused, bevel: Callable[..., object]) -> None:
    """Forty files with eight damaged bytes each: refused, or harmless; never a defect's exit code 70."""
    import numpy as np

    rng = np.random.default_rng(3)
    original = save_model(tmp_path / "small.onnx").read_bytes()
    for _ in range(40):
        data = bytearray(original)
        # The front of the file is structure, the rest weights.
        for at in rng.integers(0, 400, 8):
            data[at] = rng.integers(0, 256)
        (tmp_path / "bad.onnx").write_bytes(data)
        result = bevel("cost", tmp_path / "bad.onnx", "--device", "x86-64", "--json")
        assert result.code in (0, 2, 3), result  # type: ignore[attr-defined]


def test_unknown_operator_names_the_node(tmp_path: Path, refused: Refused) -> None:
    model = save_model(tmp_path / "m.onnx", op="Det")
    message = refused(3, "compile", model, "--device", "host", "--bits", "fp32")
    assert "Det" in message
    assert "middle" in message


@pytest.mark.parametrize("opset", [5, 99])
def test_unknown_opset_names_the_supported_ones(opset: int, tmp_path: Path, refused: Refused) -> None:
    message = refused(3, "compile", save_model(tmp_path / "m.onnx", opset=opset), "--device", "host", "--bits", "fp32")
    assert str(opset) in message
    assert "supported are 7 to 28" in message


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
@pytest.mark.parametrize("bits", ["fp32", "8"])
def test_nan_weights_are_refused(weight: float, bits: str, tmp_path: Path, refused: Refused) -> None:
    model = save_model(tmp_path / "m.onnx", weight=weight)
    data = save(tmp_path / "data.npz", images())
    message = refused(3, "compile", model, "--device", "host", "--bits", bits, "--calib", data)
    assert "NaN" in message


@pytest.mark.parametrize("name", ["missing.onnx", "missing.ir", "missing.bevel", "no/such/folder/m.onnx"])
def test_missing_model_is_a_usage_error(name: str, refused: Refused) -> None:
    assert name in refused(2, "compile", name, "--device", "host")


def test_folder_that_is_no_artifact(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "folder").mkdir()
    assert "manifest.json" in refused(3, "compile", tmp_path / "folder", "--device", "host")


def test_damaged_saved_graph(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "graph.ir").write_bytes(b"\x00" * 100)
    assert "graph.ir" in refused(3, "compile", tmp_path / "graph.ir", "--device", "host")


def test_quantized_model_cannot_become_float(refused: Refused) -> None:
    assert "already quantized" in refused(2, "compile", KWS, "--device", "host", "--bits", "fp32")
