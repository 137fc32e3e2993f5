"""Large self-test inputs are stored as one element for each block of equal ones; runner and library read them alike."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.errors import ArtifactError
from bevel.golden import golden_inputs
from bevel.ir.graph import Graph, Level
from bevel.ir.types import I8, Quant, TensorType
from bevel.runtime import artifact
from bevel.runtime.artifact import LARGE_INPUT_BYTES, Artifact


@pytest.fixture
def folded(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """The tiny model [1, 64, 16], its self-test in blocks of [1, 8, 2] and of [1, 1, 16]."""
    monkeypatch.setattr(artifact, "LARGE_INPUT_BYTES", 256)
    rng = np.random.default_rng(3)
    inputs = [
        np.kron(rng.integers(0, 256, small, dtype=np.uint8), np.ones(block, np.uint8))
        for small, block in (((1, 8, 8), (1, 8, 2)), ((1, 64, 1), (1, 1, 16)))
    ]
    return write_tiny(tiny, tmp_path / "m.bevel", golden=[({"x": x}, tiny.reference(x)) for x in inputs])


def selftest(artifact: Artifact) -> subprocess.CompletedProcess[str]:
    return subprocess.run([artifact.runner, "--selftest"], capture_output=True, text=True, check=False)


def test_stored_small_and_read_whole(folded: Artifact, tiny: Any) -> None:
    stored = [np.load(folded.path / "selftest" / f"{case}.in.0.npy").shape for case in (0, 1)]
    assert stored == [(1, 8, 8), (1, 64, 1)]
    for inputs, outputs in folded.golden():
        assert inputs["x"].shape == (1, 64, 16)
        np.testing.assert_array_equal(tiny.reference(inputs["x"])["rows"], outputs["rows"])
    done = selftest(folded)
    assert done.returncode == 0, done.stderr


def test_small_or_uneven_inputs_are_stored_as_they_are(built: Artifact, tiny: Any) -> None:
    assert np.load(built.path / "selftest" / "0.in.0.npy").shape == (1, 64, 16)


@pytest.mark.parametrize("shape", [(1, 9, 8), (1, 0, 8), (8, 8), (1, 128, 16)])
def test_a_shape_that_does_not_divide_the_input(folded: Artifact, shape: tuple[int, ...]) -> None:
    np.save(folded.path / "selftest" / "0.in.0.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ArtifactError, match="self-test case 0"):
        folded.golden()
    done = selftest(folded)
    assert done.returncode == 3
    assert "0.in.0.npy" in done.stderr


def test_compiled_images_are_coarse_photographs(tmp_path: Path) -> None:
    """Samples of calibration data, every fourth pixel of them; small inputs stay as they are."""
    graph = Graph("net", Level.INTEGER)
    graph.add_input("image", TensorType((1, 3, 224, 224), Quant(I8, (1.0,), (0,))))
    graph.add_input("scalar", TensorType((1, 4), Quant(I8, (1.0,), (0,))))
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(-128, 128, (2, 3, 224, 224)).astype(np.float32),
        "scalar": rng.integers(-128, 128, (2, 4)).astype(np.float32),
    }
    np.savez(tmp_path / "data.npz", **data)
    for index, case in enumerate(golden_inputs(graph, tmp_path / "data.npz")):
        small = case["image"][:, :, ::4, ::4]
        assert small.nbytes <= LARGE_INPUT_BYTES
        np.testing.assert_array_equal(case["image"], np.kron(small, np.ones((4, 4), np.int8)))
        np.testing.assert_array_equal(small[0], data["image"][index, :, ::4, ::4])
        np.testing.assert_array_equal(case["scalar"][0], data["scalar"][index])
