"""Kernel objects: cached by content, compiled in workers or in process with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevel.backends import objects
from bevel.backends.kernel import Buf, NodeProblem
from bevel.backends.schedule import Kernel
from bevel.devices.profile import load_profile
from bevel.errors import ToolchainError
from bevel.ir.ops import NoAttrs

TARGET = load_profile("x86-64").target()


def kernel(size: int) -> Kernel:
    buf = Buf((size,), "float32")
    problem = NodeProblem("Add", NoAttrs(), (buf, buf), (buf,), (1.0, 1.0, 1.0))
    return Kernel(f"bevel_k_add{size}", "generic", problem, {})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVEL_CACHE_DIR", str(tmp_path / "cache"))


def test_a_second_compile_reads_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    first = objects.compile_kernels([kernel(8)], TARGET)

    def refuse(*_: object) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(objects, "compile_kernel", refuse)
    assert objects.compile_kernels([kernel(8)], TARGET) == first
    with pytest.raises(AssertionError, match="compiled again"):
        objects.compile_kernels([kernel(9)], TARGET)


def test_workers_give_the_bytes_of_this_process() -> None:
    kernels = [kernel(16), kernel(17)]
    seen: list[tuple[int, int]] = []
    parallel = objects.compile_kernels(kernels, TARGET, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert {k.symbol: objects.compile_kernel(k, TARGET) for k in kernels} == parallel


def test_a_failing_worker_is_an_error_of_the_toolchain() -> None:
    buf = Buf((8,), "float32")
    broken = Kernel("bevel_k_broken", "generic", NodeProblem("NoSuchOperator", NoAttrs(), (buf,), (buf,)), {})
    with pytest.raises(ToolchainError, match="kernel compiler process failed"):
        objects.compile_kernels([broken, kernel(8)], TARGET, workers=2)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_object_is_compiled_again(damage: str, tmp_path: Path) -> None:
    good = objects.compile_kernels([kernel(8)], TARGET)
    (path,) = (tmp_path / "cache").rglob("*.o")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:90]), "empty": b""}[damage])
    assert objects.compile_kernels([kernel(8)], TARGET) == good
