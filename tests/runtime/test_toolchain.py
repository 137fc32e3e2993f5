"""Toolchain choice and its failures."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bevel.errors import ToolchainError
from bevel.runtime import toolchain
from bevel.runtime.artifact import Artifact
from bevel.runtime.codegen import model_c


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that only these programs, and zig or not, are installed, on an x86-64 machine."""

    def pretend(*programs: str, zig: bool = False) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in programs else None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if zig and name == "ziglang" else None)
        monkeypatch.setattr(toolchain, "_version", lambda command: "1.0")
        monkeypatch.setattr(toolchain, "host_arch", lambda: "x86_64")

    return pretend


def test_choice(installed: Callable[..., None]) -> None:
    """Host: the system's compiler, with zig's runner if there is zig, else zig. Cross: zig, else the distribution's gcc."""
    installed("cc", "ar", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-ar", zig=True)
    host = toolchain.find_toolchain("x86_64")
    assert (host.shared, host.static_libc) == (("/usr/bin/cc",), "musl")
    assert "x86_64-linux-musl" in host.static
    assert "runner: zig" in host.description
    cross = toolchain.find_toolchain("aarch64")
    assert "aarch64-linux-gnu.2.17" in cross.shared
    assert "aarch64-linux-musl" in cross.static
    assert cross.static_libc == "musl"
    installed("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-ar")
    cross = toolchain.find_toolchain("aarch64")
    assert (cross.shared, cross.static_libc) == (("/usr/bin/aarch64-linux-gnu-gcc",), "glibc")
    installed("cc", "ar")
    assert toolchain.find_toolchain("x86_64").static == ("/usr/bin/cc",)
    installed(zig=True)
    assert "x86_64-linux-gnu.2.17" in toolchain.find_toolchain("x86_64").shared


def test_nothing_installed(installed: Callable[..., None]) -> None:
    """The message is the command that helps."""
    installed()
    with pytest.raises(ToolchainError, match="apt install gcc libc6-dev"):
        toolchain.find_toolchain("x86_64")
    with pytest.raises(ToolchainError, match=r"pip install 'bevel\[cross\]'.*apt install gcc-aarch64-linux-gnu"):
        toolchain.find_toolchain("aarch64")
    with pytest.raises(ToolchainError, match="'sparc64'"):
        toolchain.find_toolchain("sparc64")


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-gcc"), reason="aarch64-linux-gnu-gcc is not installed")
def test_gcc_cross(monkeypatch: pytest.MonkeyPatch, tiny: Any, tmp_path: Path) -> None:
    """Without zig the distribution's gcc links the same sources, and says that its static runner is glibc's."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else find_spec(name))
    tools = toolchain.find_toolchain("aarch64")
    kernels = {kernel.symbol: _return_zero(tools, kernel.symbol, tmp_path) for kernel in tiny.schedule.kernels}
    schedule = replace(tiny.schedule, target=replace(tiny.schedule.target, arch="aarch64"))
    linked = toolchain.link(tools, model_c(schedule), kernels, tmp_path)
    assert linked.runner_linkage == "static glibc"
    assert linked.shared.stat().st_size < 80_000


def _return_zero(tools: toolchain.Toolchain, symbol: str, folder: Path) -> bytes:
    (folder / "k.c").write_text(f"int {symbol}(void) {{ return 0; }}\n")
    subprocess.run([*tools.shared, "-fPIC", "-c", "k.c", "-o", "k.o"], cwd=folder, check=True)
    return (folder / "k.o").read_bytes()


def test_bad_objects(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """An object without its symbol, or that is none, fails the link with the linker's words and leaves nothing behind."""
    for bad in (tiny.objects["bevel_k_lut"], b"not an object"):
        broken = replace(tiny, objects={**tiny.objects, "bevel_k_gemm": bad})
        with pytest.raises(ToolchainError, match="bevel_k_"):
            write_tiny(broken, tmp_path / "m.bevel")
    assert list(tmp_path.iterdir()) == []


def test_missing_compiler_binary(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """A compiler that vanished is a toolchain error, not a traceback."""
    gone = toolchain.Toolchain("gone", tiny.schedule.target.arch, ("/nonexistent/cc",), ("/nonexistent/cc",), ("ar",), "glibc")
    with pytest.raises(ToolchainError, match="/nonexistent/cc: not found"):
        write_tiny(tiny, tmp_path / "m.bevel", toolchain=gone)
    assert list(tmp_path.iterdir()) == []


def test_runtime_objects_are_reused(
    tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second artifact compiles model.c and links: the runtime comes from the cache."""
    monkeypatch.setenv("BEVEL_CACHE_DIR", str(tmp_path / "cache"))
    compiled: list[str] = []
    run = toolchain._run

    def record(command: list[str], cwd: Path) -> str:
        compiled.extend(part for part in command if part.endswith(".c"))
        return run(command, cwd)

    monkeypatch.setattr(toolchain, "_run", record)
    write_tiny(tiny, tmp_path / "a.bevel")
    assert "runtime.c" in compiled
    compiled.clear()
    write_tiny(tiny, tmp_path / "b.bevel")
    assert compiled == ["model.c"]
