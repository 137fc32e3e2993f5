"""A tiny hand-made model: kernels in plain C, compiled here, so that these tests need no kernel generator.

`x` (uint8 codes) goes through a 256-entry table, a [64 x 16] x [16 x 8] int8 matrix product with requantization that keeps its
accumulators in scratch, and a serial column maximum. Everything is integer and has a numpy twin below.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.backends.kernel import NodeProblem
from bevel.backends.schedule import IoTensor, Kernel, Place, Schedule, Step
from bevel.errors import ToolchainError
from bevel.ir.protocols import Target
from bevel.runtime.artifact import Artifact, write_artifact
from bevel.runtime.toolchain import find_toolchain, host_arch

KERNELS_C = r"""
#include <stdint.h>
int32_t bevel_k_lut(const uint8_t *x, const uint8_t *table, uint8_t *y, int32_t lo, int32_t hi, void *scratch) {
    for (int32_t i = lo * 16; i < hi * 16; i++) y[i] = table[x[i]];
    return 0;
}
int32_t bevel_k_gemm(const uint8_t *x, const int8_t *w, uint8_t *y, int32_t lo, int32_t hi, void *scratch) {
    int32_t *acc = scratch;
    for (int32_t r = lo; r < hi; r++) {
        for (int32_t o = 0; o < 8; o++) acc[o] = 0;
        for (int32_t o = 0; o < 8; o++)
            for (int32_t k = 0; k < 16; k++) acc[o] += (x[r * 16 + k] - 128) * w[k * 8 + o];
        for (int32_t o = 0; o < 8; o++) {
            int64_t q = 128 + (((int64_t)acc[o] * 1090519041 + ((int64_t)1 << 36)) >> 37);
            y[r * 8 + o] = q < 0 ? 0 : q > 255 ? 255 : q;
        }
    }
    return 0;
}
int32_t bevel_k_max(const uint8_t *x, uint8_t *y, int32_t lo, int32_t hi, void *scratch) {
    for (int32_t o = 0; o < 8; o++) {
        uint8_t m = 0;
        for (int32_t r = 0; r < 64; r++) m = x[r * 8 + o] > m ? x[r * 8 + o] : m;
        y[o] = m;
    }
    return 0;
}
int32_t bevel_k_fail(const uint8_t *x, uint8_t *y, int32_t lo, int32_t hi, void *scratch) {
    return x[0] == 255 && lo == 0 ? 7 : (y[0] = 1, 0);
}
int32_t bevel_k_half(const float *x, float *y, int32_t lo, int32_t hi, void *scratch) {
    for (int32_t i = lo; i < hi; i++) y[i] = x[i] * 0.5f;
    return 0;
}
int32_t bevel_k_place(const uint8_t *x, uint16_t *y, int32_t lo, int32_t hi, void *scratch) {
    volatile char here;
    for (int32_t i = lo; i < hi; i++) y[i] = (uintptr_t)&here % 4096;
    return 0;
}
int32_t bevel_k_mine(const uint8_t *x, uint8_t *y, int32_t lo, int32_t hi, void *scratch) {
    volatile int32_t *mine = scratch;
    for (int32_t i = 0; i < 16; i++) mine[i] = lo;
    for (volatile int32_t wait = 0; wait < 1000000; wait++) ;
    for (int32_t i = 0; i < 16; i++)
        if (mine[i] != lo) return 1;
    return (uintptr_t)scratch % 64 ? 2 : 0;
}
"""
SYMBOLS = ("bevel_k_lut", "bevel_k_gemm", "bevel_k_max", "bevel_k_fail", "bevel_k_half", "bevel_k_place", "bevel_k_mine")
ARCH_FEATURES = {"x86_64": frozenset({"sse2"}), "aarch64": frozenset({"neon"})}

Array = npt.NDArray[Any]


def compile_kernels(arch: str, folder: Path) -> dict[str, bytes]:
    """Each kernel of KERNELS_C as an object of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    head, *functions = KERNELS_C.replace("int32_t bevel_k_", "@int32_t bevel_k_").split("@")
    objects = {}
    for symbol, text in zip(SYMBOLS, functions, strict=True):
        (folder / f"{symbol}.c").write_text(head + text)
        command = [*find_toolchain(arch).shared, "-O1", "-g", "-fPIC", "-c", f"{symbol}.c", "-o", f"{symbol}.o"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        objects[symbol] = (folder / f"{symbol}.o").read_bytes()
    return objects


@dataclass(frozen=True)
class Tiny:
    """The model, its code and its reference."""

    schedule: Schedule
    objects: dict[str, bytes]
    table: Array
    weights: Array

    def reference(self, x: Array) -> dict[str, Array]:
        hidden = self.table[x].astype(np.int64).reshape(64, 16) - 128
        acc = hidden @ self.weights.astype(np.int64)
        q = np.clip(128 + ((acc * 1090519041 + (1 << 36)) >> 37), 0, 255).astype(np.uint8)
        return {"rows": q.reshape(1, 64, 8), "max": q.max(axis=0).reshape(1, 8)}

    def inputs(self, seed: int = 0) -> dict[str, Array]:
        return {"x": np.random.default_rng(seed).integers(0, 256, (1, 64, 16), dtype=np.uint8)}

    def golden(self, count: int = 2) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        return [(case, self.reference(case["x"])) for case in map(self.inputs, range(count))]

    def with_steps(self, *steps: Step, **changes: Any) -> Tiny:
        return replace(self, schedule=replace(self.schedule, steps=tuple(steps), **changes))


def tiny_model(arch: str, objects: dict[str, bytes], name: str = "tiny", extra_weights: int = 0) -> Tiny:
    rng = np.random.default_rng(7)
    table = rng.permutation(256).astype(np.uint8)
    weights = rng.integers(-127, 128, (16, 8), dtype=np.int8)
    payload = table.tobytes() + weights.tobytes() + rng.bytes(extra_weights) + bytes(64)

    def arena(offset: int) -> Place:
        return Place("arena", offset)

    def const(offset: int) -> Place:
        return Place("weights", offset)

    problem = NodeProblem("Test", None, (), ())
    schedule = Schedule(
        name=name,
        target=Target(f"test-{arch}", arch, ARCH_FEATURES[arch], "generic", f"{arch}-linux-gnu"),
        steps=(
            Step("table", "Table", "bevel_k_lut", (arena(0), const(0), arena(1024)), 64, 0, 0, 2048, "w8a8"),
            Step(
                "gemm", "IntGemm+Requantize", "bevel_k_gemm", (arena(1024), const(256), arena(2112)), 64, 64, 8192, 1664, "w8a8"
            ),
            Step("max", "ReduceMax", "bevel_k_max", (arena(2112), arena(2624)), 1, 0, 0, 520, "w8a8"),
        ),
        kernels=tuple(Kernel(symbol, "generic:test", problem, {}) for symbol in SYMBOLS[:3]),
        inputs=(IoTensor("x", (1, 64, 16), "uint8", Place("arena", 0), 0.1, 128),),
        outputs=(
            IoTensor("rows", (1, 64, 8), "uint8", Place("arena", 2112), 0.25, 128),
            IoTensor("max", (1, 8), "uint8", Place("arena", 2624), 0.25, 128),
        ),
        arena_bytes=2688,
        scratch_bytes=64,
        weights=payload,
        graph_hash="ab" * 32,
        level="integer",
    )
    return Tiny(schedule, objects, table, weights)


def write(tiny: Tiny, path: Path, **options: Any) -> Artifact:
    options.setdefault("golden", tiny.golden())
    return write_artifact(path, tiny.schedule, tiny.objects, provenance={"made by": "test"}, integer_only=True, **options)


@pytest.fixture(scope="session")
def host_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return compile_kernels(host_arch(), tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def tiny(host_objects: dict[str, bytes]) -> Tiny:
    return tiny_model(host_arch(), host_objects)


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Artifact]:
    """`write(tiny, path, **options)`."""
    return write


@pytest.fixture(scope="session")
def built(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model for this machine, shared: tests must not change it."""
    return write(tiny, tmp_path_factory.mktemp("built") / "tiny.bevel", graph_bytes=b"graph")


@pytest.fixture
def copied(built: Artifact, tmp_path: Path) -> Artifact:
    """A copy of `built` that a test may damage."""
    path = tmp_path / "copy.bevel"
    shutil.copytree(built.path, path)
    return Artifact.open(path)


@pytest.fixture(scope="session")
def built_arm(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model for aarch64 with as many bytes of weights as a small int8 network."""
    try:
        find_toolchain("aarch64")
    except ToolchainError as error:
        pytest.skip(str(error))
    objects = compile_kernels("aarch64", tmp_path_factory.mktemp("kernels-arm"))
    return write(tiny_model("aarch64", objects, extra_weights=78_000), tmp_path_factory.mktemp("built-arm") / "tiny.bevel")


@pytest.fixture(scope="session")
def run_arm() -> list[str]:
    """The command that runs aarch64 programs here."""
    if host_arch() == "aarch64":
        return []
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed: apt install qemu-user")
    return [emulator, "-cpu", "cortex-a72"]
