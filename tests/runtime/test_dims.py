"""Run-time extents in the runtime: bevel_set_dim, descriptors, HostModel and bevel-run, on a model whose kernels are plain C.

x [1, rows, cols] of uint8 -> next [1, rows, cols] (x + 1) and sums [1, cols] (uint32, over rows). Both dimensions have bounds,
and a kernel takes them in another order than the model lists them.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.backends.kernel import Extent, NodeProblem
from bevel.backends.schedule import IoTensor, Kernel, Place, Schedule, Step
from bevel.errors import ArtifactError, UsageError
from bevel.ir.protocols import Target
from bevel.ir.types import Dim
from bevel.runtime.artifact import Artifact, write_artifact
from bevel.runtime.codegen import C_DIR, check_schedule, model_c, model_h
from bevel.runtime.host import HostModel
from bevel.runtime.manifest import read_manifest
from bevel.runtime.toolchain import find_toolchain, host_arch

Array = npt.NDArray[Any]

KERNELS_C = r"""
#include <stdint.h>
int32_t bevel_k_next(const uint8_t *x, uint8_t *y, int32_t lo, int32_t hi, void *scratch) {
    for (int32_t i = lo; i < hi; i++) y[i] = x[i] + 1;
    return 0;
}
int32_t bevel_k_sums(const uint8_t *x, const int32_t *dims, uint32_t *y, int32_t lo, int32_t hi, void *scratch) {
    int32_t rows = dims[0], cols = dims[1];
    for (int32_t c = lo; c < hi; c++) {
        y[c] = 0;
        for (int32_t r = 0; r < rows; r++) y[c] += x[r * cols + c];
    }
    return 0;
}
"""
ROWS, COLS = 8, 6
SIZES = [(1, 1), (1, COLS), (3, 4), (ROWS, 2), (ROWS, COLS)]


def schedule() -> Schedule:
    problem = NodeProblem("Test", None, (), ())
    arch = host_arch()
    return Schedule(
        name="sized",
        target=Target(f"test-{arch}", arch, frozenset(), "generic", f"{arch}-linux-gnu"),
        steps=(
            Step(
                "next",
                "Next",
                "bevel_k_next",
                (Place("arena", 0), Place("arena", 64)),
                Extent(ROWS * COLS, ("rows", "cols")),
            ),
            Step(
                "sums",
                "Sums",
                "bevel_k_sums",
                (Place("arena", 0), Place("dims", 0), Place("arena", 128)),
                Extent(COLS, ("cols",)),
                dims=("rows", "cols"),
            ),
        ),
        kernels=tuple(Kernel(symbol, "generic:test", problem, {}) for symbol in ("bevel_k_next", "bevel_k_sums")),
        inputs=(IoTensor("x", (1, ROWS, COLS), "uint8", Place("arena", 0), dims=(None, "rows", "cols")),),
        outputs=(
            IoTensor("next", (1, ROWS, COLS), "uint8", Place("arena", 64), dims=(None, "rows", "cols")),
            IoTensor("sums", (1, COLS), "uint32", Place("arena", 128), dims=(None, "cols")),
        ),
        arena_bytes=192,
        scratch_bytes=0,
        weights=bytes(64),
        graph_hash="ef" * 32,
        level="integer",
        dims=(Dim("cols", 1, COLS), Dim("rows", 1, ROWS)),
    )


def inputs(rows: int, cols: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(rows * 10 + cols).integers(0, 256, (1, rows, cols), dtype=np.uint8)}


def reference(x: Array) -> dict[str, Array]:
    return {"next": x + np.uint8(1), "sums": x.sum(axis=1, dtype=np.uint32)}


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("sized")
    objects = {}
    head, *functions = KERNELS_C.replace("int32_t bevel_k_", "@int32_t bevel_k_").split("@")
    for symbol, text in zip(("bevel_k_next", "bevel_k_sums"), functions, strict=True):
        (folder / f"{symbol}.c").write_text(head + text)
        command = [*find_toolchain(host_arch()).shared, "-O1", "-fPIC", "-c", f"{symbol}.c", "-o", f"{symbol}.o"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        objects[symbol] = (folder / f"{symbol}.o").read_bytes()
    golden = [(case, reference(case["x"])) for case in (inputs(*size) for size in SIZES)]
    return write_artifact(folder / "sized.bevel", schedule(), objects, golden=golden, provenance={"made by": "test"})


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_extent(sized: Artifact, threads: int) -> None:
    """Outputs equal the reference and descriptors follow, whatever extent came before."""
    with HostModel(sized, threads) as model:
        assert model.bounds == {"cols": (1, COLS), "rows": (1, ROWS)}
        assert model.dims == {"cols": COLS, "rows": ROWS}
        for rows in range(1, ROWS + 1):
            for cols in (COLS, 1, 4):
                given = inputs(rows, cols)
                model.set_inputs(given)
                assert model.dims == {"cols": cols, "rows": rows}
                model.run()
                for name, expected in reference(given["x"]).items():
                    np.testing.assert_array_equal(model.outputs()[name], expected)


def test_instances_have_extents_of_their_own(sized: Artifact) -> None:
    with HostModel(sized) as one, HostModel(sized, 2) as other:
        one.set_dims({"rows": 2})
        other.set_dims({"cols": 3, "rows": 7})
        assert (one.dims, other.dims) == ({"cols": COLS, "rows": 2}, {"cols": 3, "rows": 7})
        one.inputs[0].array[...] = inputs(2, COLS)["x"]
        other.inputs[0].array[...] = inputs(7, 3)["x"]
        one.run()
        other.run()
        np.testing.assert_array_equal(one.outputs()["sums"], reference(inputs(2, COLS)["x"])["sums"])
        np.testing.assert_array_equal(other.outputs()["sums"], reference(inputs(7, 3)["x"])["sums"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.set_dims({"rows": 0}), r"'rows' = 0: expected 1\.\.8"),
        (lambda m: m.set_dims({"rows": 9}), r"'rows' = 9: expected 1\.\.8"),
        (lambda m: m.set_dims({"height": 2}), r"'height': the model's are \['cols', 'rows'\]"),
        (lambda m: m.set_inputs({"x": np.zeros((1, 9, 2), np.uint8)}), r"'rows' = 9"),
        (lambda m: m.set_inputs({"x": np.zeros((2, 3, 2), np.uint8)}), r"uint8\[2, 3, 2\], expected uint8\[1, 3, 2\]"),
        (lambda m: m.set_inputs({"x": np.zeros((3, 2), np.uint8)}), r"uint8\[3, 2\], expected"),
    ],
)
def test_bad_extents(sized: Artifact, change: Callable[[HostModel], None], message: str) -> None:
    with HostModel(sized) as model, pytest.raises(UsageError, match=message):
        change(model)


def test_a_refused_extent_changes_nothing(sized: Artifact) -> None:
    with HostModel(sized) as model:
        with pytest.raises(UsageError, match="expected"):
            model.set_dims({"cols": 2, "rows": 100})
        assert model.dims == {"cols": COLS, "rows": ROWS}


def test_c_api(sized: Artifact) -> None:
    """The functions as C sees them: bounds, argument checks, and descriptors whose shape and size follow."""
    library = ctypes.CDLL(str(sized.library))
    library.bevel_set_dim.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32]
    library.bevel_get_dim.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bevel_dim_at.restype = ctypes.c_void_p
    library.bevel_strerror.restype = ctypes.c_char_p
    assert library.bevel_num_dims() == 2
    assert library.bevel_dim_at(ctypes.c_size_t(2)) is None
    assert library.bevel_set_dim(None, 0, 1) == 1
    assert library.bevel_get_dim(None, 0) == 0
    with HostModel(sized) as model:
        handle = model._handle
        assert library.bevel_set_dim(handle, 2, 1) == 1
        assert library.bevel_set_dim(handle, 0, 0) == 13
        assert library.bevel_set_dim(handle, 0, COLS + 1) == 13
        assert b"bounds" in library.bevel_strerror(13)
        assert [library.bevel_get_dim(handle, i) for i in range(3)] == [COLS, ROWS, 0]


def bevel_run(artifact: Artifact, *arguments: object, code: int = 0) -> Any:
    done = subprocess.run([artifact.runner, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stderr if code >= 2 else json.loads(done.stdout.splitlines()[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_selftest_covers_every_size(sized: Artifact, threads: int) -> None:
    assert bevel_run(sized, "--selftest", "--threads", threads)["cases"] == len(SIZES)


def test_runner_takes_extents_from_files(sized: Artifact, tmp_path: Path) -> None:
    """A .npy chooses them, batches share them, --dim serves raw files; the JSON reports them."""
    given = inputs(3, 4)["x"]
    np.save(tmp_path / "x.npy", given)
    (tmp_path / "x.bin").write_bytes(given.tobytes())
    for arguments in (["--input", tmp_path / "x.npy"], ["--dim", "rows=3", "--dim", "cols=4", "--input", tmp_path / "x.bin"]):
        answer = bevel_run(sized, *arguments, "--output", f"next={tmp_path / 'y.npy'}", "--output", f"sums={tmp_path / 's.npy'}")
        assert answer["dims"] == {"cols": 4, "rows": 3}
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), reference(given)["next"])
        np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), reference(given)["sums"])
    many = np.random.default_rng(0).integers(0, 256, (5, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "many.npy", many)
    np.save(tmp_path / "wrapped.npy", many[:, None])
    for file in ("many.npy", "wrapped.npy"):
        bevel_run(sized, "--batch", "--input", tmp_path / file, "--output", f"sums={tmp_path / 's.npy'}")
        np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), many.sum(axis=1, dtype=np.uint32))


def test_runner_reports_and_refuses_extents(sized: Artifact, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", inputs(3, 4)["x"])
    np.save(tmp_path / "tall.npy", np.zeros((1, 9, 2), np.uint8))
    assert bevel_run(sized, "--info", "--dim", "rows=2")["dims"] == [
        {"name": "cols", "lo": 1, "hi": COLS, "extent": COLS},
        {"name": "rows", "lo": 1, "hi": ROWS, "extent": 2},
    ]
    assert bevel_run(sized, "--bench", "--blocks", 2, "--dim", "rows=2")["dims"] == {"cols": COLS, "rows": 2}
    assert bevel_run(sized, "--profile", "--runs", 3, "--dim", "cols=1")["dims"] == {"cols": 1, "rows": ROWS}
    for arguments, message in (
        (["--info", "--dim", "rows=9"], "dimension 'rows' is 9, expected 1..8"),
        (["--info", "--dim", "rows=0"], "dimension 'rows' is 0"),
        (["--info", "--dim", "rows=two"], "expected a number"),
        (["--info", "--dim", "row=2"], "expected NAME=N"),
        (["--info", "--dim", "rows"], "expected NAME=N"),
        (["--dim", "rows=2", "--input", tmp_path / "x.npy"], "dimension 'rows' is 3"),
        (["--input", tmp_path / "tall.npy"], "dimension 'rows' is 9, expected 1..8"),
    ):
        assert message in bevel_run(sized, *arguments, code=2)


def test_a_golden_file_beyond_the_bounds_is_a_damaged_artifact(sized: Artifact, tmp_path: Path) -> None:
    np.save(tmp_path / "0.in.0.npy", np.zeros((1, 9, 2), np.uint8))
    np.save(tmp_path / "0.out.0.npy", np.zeros((1, 9, 2), np.uint8))
    assert "dimension 'rows' is 9" in bevel_run(sized, "--selftest", "--golden", tmp_path, code=3)


def test_generated_code_has_no_warnings(tmp_path: Path) -> None:
    (tmp_path / "model.c").write_text(model_c(schedule()))
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-I", str(C_DIR), "-c", "model.c"]
    command = [*find_toolchain(host_arch()).shared, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_manifest_and_header_name_the_dimensions(sized: Artifact) -> None:
    manifest = read_manifest(sized.path)
    assert manifest["dims"] == [{"name": "cols", "lo": 1, "hi": COLS}, {"name": "rows", "lo": 1, "hi": ROWS}]
    assert manifest["inputs"][0]["dims"] == ["", "rows", "cols"]
    assert manifest["inputs"][0]["shape"] == [1, ROWS, COLS]
    header = model_h(schedule())
    assert "input 0: x, uint8 1xrowsxcols" in header
    assert "dimension 1: rows, 1 to 8" in header


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        ({"x": np.zeros((1, 9, 2), np.uint8)}, r"uint8\[1, 9, 2\]"),
        ({"x": np.zeros((1, 3, 2), np.uint8), "next": np.zeros((1, 4, 2), np.uint8)}, r"'next' is uint8\[1, 4, 2\]"),
    ],
)
def test_golden_data_must_fit(golden: dict[str, Array], message: str, tmp_path: Path) -> None:
    x = golden["x"]
    outputs = {**reference(x), **{k: v for k, v in golden.items() if k != "x"}}
    objects = {kernel.symbol: b"" for kernel in schedule().kernels}
    with pytest.raises(UsageError, match=message):
        write_artifact(tmp_path / "bad.bevel", schedule(), objects, golden=[({"x": x}, outputs)], provenance={})


def test_schedules_that_break_the_contract() -> None:
    """Unknown dimensions, and kernels whose run-time extents and arguments disagree."""
    good = schedule()
    check_schedule(good)
    first, second = good.steps
    with pytest.raises(ValueError, match="dimensions depth are not in the schedule"):
        check_schedule(replace(good, steps=(replace(first, extent=Extent(4, ("depth",))), second)))
    with pytest.raises(ValueError, match="without their place"):
        check_schedule(replace(good, steps=(first, replace(second, dims=()))))


def test_a_manifest_with_an_unknown_dimension_is_refused(sized: Artifact, tmp_path: Path) -> None:
    manifest = json.loads((sized.path / "manifest.json").read_text())
    manifest["inputs"][0]["dims"] = ["", "rows", "depth"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="tensor 'x'"):
        read_manifest(tmp_path)
