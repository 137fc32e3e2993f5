"""bin/bevel-run: results, batches, conversions, self-test, timing output, and one exit code for each kind of failure."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.runtime.artifact import Artifact


def run(artifact: Artifact, *arguments: object, code: int = 0) -> Any:
    """Run the artifact's runner; the JSON it prints, or its error text when it fails."""
    done = subprocess.run([artifact.runner, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    if code >= 2:
        assert done.stdout == ""
        return done.stderr
    return json.loads(done.stdout)


def save(path: Path, array: np.ndarray[Any, Any]) -> Path:
    np.save(path, array)
    return path


def test_one_run(built: Artifact, tiny: Any, tmp_path: Path) -> None:
    """.npy in, .npy and raw bytes out."""
    x = tiny.inputs(11)["x"]
    result = run(
        built,
        "--input",
        f"x={save(tmp_path / 'x.npy', x)}",
        "--output",
        f"max={tmp_path / 'm.bin'}",
        "--output",
        f"rows={tmp_path / 'r.npy'}",
    )
    assert result["runs"] == 1
    expected = tiny.reference(x)
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), expected["rows"])
    assert (tmp_path / "m.bin").read_bytes() == expected["max"].tobytes()


@pytest.mark.parametrize("shape", [(37, 64, 16), (37, 1, 64, 16)])
def test_batch(built: Artifact, tiny: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Many inputs in one process, with or without the model's own batch axis of one; raw bytes count as rows too."""
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "x.bin").write_bytes(x.tobytes())
    expected = np.concatenate([tiny.reference(row.reshape(1, 64, 16))["rows"] for row in x])
    for file in (save(tmp_path / "x.npy", x), tmp_path / "x.bin"):
        assert run(built, "--batch", "--input", file, "--output", tmp_path / "y.npy")["runs"] == 37
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_empty_batch(built: Artifact, tmp_path: Path) -> None:
    """No rows give no rows."""
    x = np.zeros((0, 64, 16), np.uint8)
    assert run(built, "--batch", "--input", save(tmp_path / "x.npy", x), "--output", tmp_path / "y.npy")["runs"] == 0
    assert np.load(tmp_path / "y.npy").shape == (0, 64, 8)


def test_float_in_and_out(built: Artifact, tiny: Any, tmp_path: Path) -> None:
    """float32 files are quantized with the input's scale; --float writes real values."""
    real = np.random.default_rng(0).normal(0, 6, (1, 64, 16)).astype(np.float32)
    codes = np.clip(np.rint(real / np.float32(0.1)) + 128, 0, 255).astype(np.uint8)
    run(built, "--float", "--input", save(tmp_path / "x.npy", real), "--output", tmp_path / "y.npy")
    expected = (tiny.reference(codes)["rows"].astype(np.float32) - 128) * np.float32(0.25)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_selftest(built: Artifact, threads: int) -> None:
    """Golden vectors hold for any number of threads."""
    assert run(built, "--selftest", "--threads", threads) == {
        "selftest": "passed",
        "cases": 2,
        "failures": 0,
        "weights": "ok",
        "threads": threads,
    }


def test_selftest_sees_one_changed_output(copied: Artifact) -> None:
    """One bit of one expected output fails the self-test with exit code 1 and names output and case."""
    path = copied.path / "selftest" / "1.out.0.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    result = run(copied, "--selftest", code=1)
    assert result["selftest"] == "failed"
    assert (result["cases"], result["failures"]) == (2, 1)


def test_selftest_sees_damaged_weights(copied: Artifact) -> None:
    """One flipped bit of the payload: opening stays cheap and does not notice, the self-test does."""
    data = bytearray(copied.weights.read_bytes())
    data[-70] ^= 1
    copied.weights.write_bytes(data)
    assert "damaged" in run(copied, "--selftest", code=3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:-1], "truncated"),
        (lambda d: d + b"\0", "truncated or has trailing"),
        (lambda d: d[:50], "truncated"),
        (lambda d: b"", "truncated"),
        (lambda d: b"PK" + d[2:], "not a bevel weights file"),
        (lambda d: d[:8] + b"\2" + d[9:], "format version"),
        (lambda d: d[:64] + b"0" + d[65:], "another model"),
    ],
)
def test_bad_weights(copied: Artifact, damage: Any, message: str) -> None:
    """Every kind of wrong weights file is told apart and exits with 3."""
    copied.weights.write_bytes(damage(copied.weights.read_bytes()))
    assert message in run(copied, "--info", code=3)


def test_missing_weights_and_golden(copied: Artifact) -> None:
    """A missing file is named; a self-test without vectors is a failure, not a success."""
    (copied.path / "weights.bin").rename(copied.path / "w.bin")
    assert "No such file" in run(copied, "--info", code=3)
    run(copied, "--info", "--weights", copied.path / "w.bin")
    assert "no golden vectors" in run(
        copied, "--selftest", "--weights", copied.path / "w.bin", "--golden", copied.path / "lib", code=3
    )


def test_info(built: Artifact) -> None:
    assert run(built, "--info")["inputs"] == [
        {"name": "x", "dtype": "uint8", "shape": [1, 64, 16], "scale": 0.100000001, "zero_point": 128, "bytes": 1024}
    ]


def test_usage_errors(built: Artifact, tiny: Any, tmp_path: Path) -> None:
    """Exit code 2 and a message that names file and expectation."""
    x = tiny.inputs()["x"]
    good = save(tmp_path / "x.npy", x)
    assert "--threads 0" in run(built, "--threads", 0, code=2)
    assert "unexpected argument" in run(built, "stray", code=2)
    assert "usage" in run(built, "--frobnicate", code=2)
    assert "more than one mode" in run(built, "--bench", "--info", code=2)
    assert "--blocks 0" in run(built, "--bench", "--blocks", 0, code=2)
    assert "--start none" in run(built, "--start", "none", code=2)
    for cpus in ("", "0,", "0-1", "1024", "one"):
        assert f"--pin {cpus}: expected CPU,CPU" in run(built, "--info", "--pin", cpus, code=2)
    assert "'x' is missing" in run(built, code=2)
    assert "given twice" in run(built, "--input", f"x={good}", "--input", f"x={good}", code=2)
    assert "the model has 1 inputs" in run(built, "--input", good, "--input", good, code=2)
    assert "cannot be opened" in run(built, "--input", tmp_path / "none.npy", code=2)
    message = run(built, "--input", save(tmp_path / "s.npy", x[:, :3]), code=2)
    assert "[1,3,16]" in message
    assert "[1,64,16]" in message
    assert "uint8 codes or float32" in run(built, "--input", save(tmp_path / "d.npy", x.astype(np.int8)), code=2)
    assert "Fortran" in run(built, "--input", save(tmp_path / "f.npy", np.asfortranarray(x[0])), code=2)
    assert "little-endian" in run(built, "--input", save(tmp_path / "b.npy", x.astype(">i2")), code=2)
    assert "cannot be opened" not in run(built, "--input", good, "--output", tmp_path / "no" / "y.npy", code=4)


@pytest.mark.parametrize("length", [0, 1, 6, 9, 11, 40, 127, 128, 1151])
def test_truncated_npy(built: Artifact, tiny: Any, tmp_path: Path, length: int) -> None:
    """A .npy file cut anywhere is refused."""
    data = save(tmp_path / "x.npy", tiny.inputs()["x"]).read_bytes()
    assert len(data) == 1152
    (tmp_path / "x.npy").write_bytes(data[:length])
    run(built, "--input", tmp_path / "x.npy", code=2)


def test_full_disk(built: Artifact, tiny: Any, tmp_path: Path) -> None:
    """An output that cannot be written is an error of the device, never a short file and exit code 0."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert "No space" in run(built, "--input", save(tmp_path / "x.npy", tiny.inputs()["x"]), "--output", "/dev/full", code=4)
