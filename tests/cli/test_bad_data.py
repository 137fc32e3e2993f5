"""Data that does not fit the model gets one message with what was found and expected, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bevel.data import Inputs, open_data, save_arrays
from bevel.errors import UsageError
from tests.cli.conftest import KWS, KWS_INPUT, Bevel, images, save, save_model

Refused = Callable[..., str]
NAN = images()["x"].copy()
NAN[3, 1, 2, 2] = np.nan

BAD_SETS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong name": ({"image": images()["x"]}, "missing ['x']"),
    "extra name": (images(z=np.zeros(8)), "not an input: ['z']"),
    "wrong shape": (images(x=np.zeros((8, 3, 8, 9), np.float32)), "[8, 3, 8, 9]"),
    "wrong rank": (images(x=np.zeros((3, 8, 8), np.float32)), "expected [samples, 3, 8, 8]"),
    "no samples": (images(0), "no samples"),
    "double": (images(x=np.zeros((8, 3, 8, 8))), "float64"),
    "text": (images(x=np.full((8, 3, 8, 8), "a")), "expected numbers"),
    "NaN": (images(x=NAN), "NaN"),
}


@pytest.mark.parametrize("kind", BAD_SETS)
def test_calibration_data_that_does_not_fit(kind: str, small: Path, tmp_path: Path, refused: Refused) -> None:
    arrays, part = BAD_SETS[kind]
    message = refused(2, "compile", small, "--device", "host", "--calib", save(tmp_path / "d.npz", arrays))
    assert part in message


def test_float_model_needs_calibration_data(small: Path, refused: Refused) -> None:
    message = refused(2, "compile", small, "--device", "host")
    assert "--calib" in message
    assert "'x'" in message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"not an archive"])
def test_unreadable_calibration_data(content: bytes, small: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    assert "d.npz" in refused(2, "compile", small, "--device", "host", "--calib", tmp_path / "d.npz")


def test_missing_calibration_data(small: Path, refused: Refused) -> None:
    assert "no.npz" in refused(2, "compile", small, "--device", "host", "--calib", "no.npz")


def test_pickles_are_never_loaded(small: Path, tmp_path: Path, refused: Refused) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], object))
    assert "d.npz" in refused(2, "compile", small, "--device", "host", "--calib", tmp_path / "d.npz")


def test_nan_in_data_of_a_quantized_model(tmp_path: Path, refused: Refused) -> None:
    data = save(tmp_path / "d.npz", {KWS_INPUT: np.full((4, 49, 10, 1), np.nan, np.float32)})
    assert "NaN" in refused(2, "compile", KWS, "--device", "host", "--calib", data)


RUN_INPUTS: dict[str, tuple[str, np.ndarray, int, str]] = {
    "wrong shape": ("", np.zeros((1, 49, 10, 2), np.float32), 2, KWS_INPUT),
    "NaN": ("", np.full((1, 49, 10, 1), np.nan, np.float32), 2, "NaN"),
    "double": ("", np.zeros((1, 49, 10, 1)), 2, "float64"),
    "two samples": ("", np.zeros((2, 49, 10, 1), np.float32), 2, "[2,49,10,1]"),
    "wrong name": ("nothing=", np.zeros((1, 49, 10, 1), np.float32), 2, "nothing"),
    "wrong dtype": ("", np.zeros((1, 49, 10, 1), np.complex64), 2, KWS_INPUT),
    "text": ("", np.full((1, 49, 10, 1), "a"), 2, KWS_INPUT),
}


@pytest.mark.parametrize("kind", RUN_INPUTS)
def test_run_inputs_that_do_not_fit(kind: str, kws: Path, tmp_path: Path, refused: Refused) -> None:
    prefix, array, code, part = RUN_INPUTS[kind]
    np.save(tmp_path / "x.npy", array)
    assert part in refused(code, "run", kws, "--input", f"{prefix}{tmp_path / 'x.npy'}")


@pytest.mark.parametrize("file", ["missing.npy", "missing.npz"])
def test_run_with_a_missing_file(file: str, kws: Path, refused: Refused) -> None:
    assert file in refused(2, "run", kws, "--input", file)


def test_run_with_a_damaged_archive(kws: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK damaged")
    assert "x.npz" in refused(2, "run", kws, "--input", tmp_path / "x.npz")


def test_run_needs_something_to_do(kws: Path, refused: Refused) -> None:
    assert "--input" in refused(2, "run", kws)


def test_run_output_that_cannot_be_written(kws: Path, tmp_path: Path, refused: Refused) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 49, 10, 1), np.float32))
    assert "out.npz" in refused(2, "run", kws, "--input", tmp_path / "x.npy", "-o", tmp_path / "no" / "out.npz")


LABELS: dict[str, tuple[Any, str]] = {
    "one-hot": (np.zeros((4, 12), np.int64), "[4, 12]"),
    "float": (np.zeros(4), "float64"),
    "length": (np.zeros(3, np.int64), "different lengths"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_do_not_fit(kind: str, kws: Path, tmp_path: Path, refused: Refused) -> None:
    label, part = LABELS[kind]
    data = save(tmp_path / "d.npz", {KWS_INPUT: np.zeros((4, 49, 10, 1), np.float32), "label": label})
    assert part in refused(2, "eval", kws, "--data", data)


def test_eval_needs_labels_or_a_baseline(kws: Path, tmp_path: Path, refused: Refused) -> None:
    data = save(tmp_path / "d.npz", {KWS_INPUT: np.zeros((4, 49, 10, 1), np.float32)})
    assert "--baseline" in refused(2, "eval", kws, "--data", data)


def test_eval_refuses_nan(kws: Path, tmp_path: Path, refused: Refused) -> None:
    array = np.zeros((4, 49, 10, 1), np.float32)
    array[2, 5] = np.nan
    data = save(tmp_path / "d.npz", {KWS_INPUT: array, "label": np.zeros(4, np.int64)})
    message = refused(2, "eval", kws, "--data", data)
    assert "NaN" in message
    assert "sample 2" in message


def test_eval_baseline_of_another_model(kws: Path, small: Path, tmp_path: Path, refused: Refused) -> None:
    data = save(tmp_path / "d.npz", {KWS_INPUT: np.zeros((4, 49, 10, 1), np.float32)})
    assert "small.onnx" in refused(2, "eval", kws, "--data", data, "--baseline", small)


def test_bench_peer_of_another_model(kws: Path, small: Path, refused: Refused) -> None:
    message = refused(2, "bench", kws, "--against", "onnxruntime", "--model", small)
    assert KWS_INPUT in message


@pytest.mark.parametrize("bits", ["w4a8", "w2a2"])
def test_a_quantized_model_keeps_its_bits(bits: str, refused: Refused) -> None:
    assert "already quantized" in refused(2, "compile", KWS, "--device", "host", "--bits", bits)


BENCH: dict[str, tuple[list[object], str]] = {
    "unknown peer": (["--against", "tensorrt", "--model", KWS], "known peers"),
    "no model": (["--against", "onnxruntime"], "--model"),
    "no calibration": (["--against", "onnxruntime-int8", "--model", KWS], "--calib"),
    "missing model": (["--against", "onnxruntime", "--model", "no.onnx"], "no.onnx"),
}


@pytest.mark.parametrize("kind", BENCH)
def test_bench_options_that_do_not_fit(kind: str, kws: Path, refused: Refused) -> None:
    args, part = BENCH[kind]
    assert part in refused(2, "bench", kws, *args)


OPTIONS: dict[str, tuple[list[object], str]] = {
    "no such bits": (["--bits", "17"], "17"),
    "bits to come": (["--bits", "w4a32"], "fp32, fp16 and wNaM"),
    "no such weight scales": (["--weight-scales", "guess"], "minmax"),
    "plan and weight scales": (["--plan", "no.json", "--weight-scales", "mse"], "--plan"),
    "no such groups": (["--bits", "w4a8", "--weight-group", "48"], "16"),
    "groups of many bits": (["--bits", "8", "--weight-group", "32"], "weights of 1 to 4 bits"),
    "plan and groups": (["--plan", "no.json", "--weight-group", "32"], "--plan"),
    "no such method": (["--method", "guess"], "minmax"),
    "dim without value": (["--dim", "batch"], "NAME=N"),
    "dim of zero": (["--dim", "batch=0"], "NAME=N"),
    "dim that is no number": (["--dim", "batch=many"], "NAME=N"),
    "dim that is not there": (["--dim", "length=3"], "batch"),
    "samples of zero": (["--samples", "0"], "0"),
    "missing plan": (["--plan", "no.json"], "no.json"),
    "plan and bits": (["--plan", "no.json", "--bits", "8"], "--plan"),
    "no such option": (["--frobnicate"], "--frobnicate"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_compile_options_that_cannot_be_meant(kind: str, small: Path, tmp_path: Path, refused: Refused) -> None:
    args, part = OPTIONS[kind]
    data = save(tmp_path / "d.npz", images())
    assert part in refused(2, "compile", small, "--device", "host", "--calib", data, *args)


@pytest.mark.parametrize("args", [["compile"], ["compile", "m.onnx"], ["frobnicate"], ["run", "a", "--threads", "0"]])
def test_usage_errors_of_the_parser_are_json_as_well(args: list[str], refused: Refused, bevel: Bevel) -> None:
    assert "--help" in refused(2, *args)
    assert bevel(*args, "--json").json["error"]["kind"] == "UsageError"


def test_a_symbolic_dimension_is_bound_on_the_command_line(tmp_path: Path, refused: Refused, bevel: Bevel) -> None:
    proto = onnx.load(save_model(tmp_path / "m.onnx", batch=1))
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(proto, tmp_path / "m.onnx")
    command = ["compile", tmp_path / "m.onnx", "--device", "host", "--bits", "fp32"]
    message = refused(3, *command)
    assert "width" in message
    assert "--dim" in message
    assert bevel(*command, "--dim", "width=8").code == 0


def test_an_explicit_batch_is_compiled(small: Path, tmp_path: Path, bevel: Bevel) -> None:
    """--dim batch=4: self-test cases take four consecutive calibration samples."""
    data = save(tmp_path / "d.npz", images())
    assert bevel("compile", small, "--device", "host", "--calib", data, "--dim", "batch=4", "-o", "b4.bevel").code == 0
    result = bevel("run", "b4.bevel", "--selftest", "--json")
    assert result.code == 0, result


def test_save_arrays_takes_any_name_numpy_reads(tmp_path: Path) -> None:
    arrays = {"file": np.arange(3), "a/b;c": np.ones((2, 2), np.float32), "args": np.zeros(1)}
    with np.load(save_arrays(tmp_path / "d.npz", arrays), allow_pickle=False) as back:
        assert {n: back[n].tolist() for n in back.files} == {n: a.tolist() for n, a in arrays.items()}


def test_a_directory_is_memory_mapped_and_batched(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(30, dtype=np.float32).reshape(10, 3))
    np.save(tmp_path / "label.npy", np.arange(10))
    data = open_data(tmp_path, (Inputs("x", (None, 3)),))
    assert isinstance(data.arrays["x"], np.memmap)
    assert [len(batch["x"]) for batch in data.batches(4, 9)] == [4, 4, 1]
    assert data.sample(2)["x"].tolist() == [[6, 7, 8]]
    assert data.labels is not None


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_archives_are_streamed_not_loaded(tmp_path: Path, pack: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (512, 8192)).astype(np.float32)
    pack(tmp_path / "d.npz", x=x, label=np.arange(512))
    whole = x.nbytes
    tracemalloc.start()
    data = open_data(tmp_path / "d.npz", (Inputs("x", (None, 8192)),))
    total = sum(float(batch["x"].sum()) for batch in data.batches(16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == x.sum(dtype=np.float64)
    assert peak < whole / 3, "a few batches and one piece of the archive"
    assert data.labels is not None
    assert data.labels.tolist() == list(range(512))


def test_archive_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((64, 3), np.float32))
    damaged = bytearray((tmp_path / "d.npz").read_bytes())
    damaged[300] ^= 1
    (tmp_path / "d.npz").write_bytes(damaged)
    with pytest.raises(UsageError, match="not a readable"):
        open_data(tmp_path / "d.npz", (Inputs("x", (None, 3)),))


def test_a_single_array_is_not_a_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(UsageError, match="single array"):
        open_data(tmp_path / "x.npy", (Inputs("x", (None, 3)),))


def test_a_larger_batch_takes_rows_and_a_fixed_leading_axis_whole_inputs(tmp_path: Path) -> None:
    rows = save(tmp_path / "rows.npz", {"x": np.arange(24).reshape(8, 3), "label": np.arange(8)})
    data = open_data(rows, (Inputs("x", (4, 3)),))
    assert len(data) == 2
    assert data.sample(1)["x"].tolist() == np.arange(12, 24).reshape(4, 3).tolist()
    whole = open_data(save(tmp_path / "whole.npz", {"x": np.arange(24).reshape(2, 4, 3)}), (Inputs("x", (4, 3)),))
    assert whole.sample(1)["x"].tolist() == data.sample(1)["x"].tolist()
    with pytest.raises(UsageError, match="8 rows found, the model takes 3"):
        open_data(rows, (Inputs("x", (3, 3)),))
