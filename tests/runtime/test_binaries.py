"""What is in the binaries: no floating-point arithmetic, few dependencies, `bevel_*` alone exported, small; and aarch64 runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.runtime.artifact import Artifact
from bevel.runtime.codegen import C_DIR
from bevel.runtime.toolchain import find_toolchain

FLOAT_X86 = re.compile(
    r"\t(v?(add|sub|mul|div|sqrt|min|max|round|rndscale|cmp\w*|dp|hadd|hsub|addsub|rcp\w*|rsqrt\w*|u?comi)[sp][sdh]"
    r"|v?cvt\w+|vfn?m(add|sub)\w+|f(add|sub|mul|div|ild|ist|sqrt|rndint|com)\w*)\b"
)
FLOAT_ARM = re.compile(
    r"\t(f(add|sub|n?mul|div|n?m(add|sub)|sqrt|abs|neg|max|min|rint|cvt|cmp|ml[as]|cm|ac|rec|rsqrt)\w*|[su]cvtf)\b"
)


def disassemble(file: Path, arch: str) -> str:
    tools = ("llvm-objdump", "objdump") if arch == "x86_64" else ("llvm-objdump", "aarch64-linux-gnu-objdump")
    tool = next(filter(None, map(shutil.which, tools)), None)
    if tool is None:
        pytest.skip(f"no disassembler for {arch}: apt install llvm")
    return subprocess.run([tool, "-d", str(file)], capture_output=True, text=True, check=True).stdout


def floats(file: Path, arch: str) -> list[str]:
    """Lines of floating-point arithmetic in an object's disassembly."""
    pattern = FLOAT_X86 if arch == "x86_64" else FLOAT_ARM
    return [line for line in disassemble(file, arch).splitlines() if pattern.search(line)]


def check_members(artifact: Artifact, folder: Path) -> None:
    ar = find_toolchain(artifact.arch).ar
    archive = (artifact.path / "lib" / "libmodel.a").resolve()
    subprocess.run([*ar, "x", str(archive)], cwd=folder, check=True)
    members = {file.name: floats(file, artifact.arch) for file in folder.glob("*.o")}
    assert members.pop("convert.o"), "the check must see the conversion's divisions"
    assert members.keys() == {"model.o", "kernels.o", "runtime.o", "weights.o", "pool.o", "isa.o", "sha256.o"}
    assert {name: lines for name, lines in members.items() if lines} == {}


def dynamic(artifact: Artifact) -> tuple[set[str], set[str]]:
    """Needed libraries and exported symbols of libmodel.so."""
    tool = next(filter(None, map(shutil.which, ("llvm-readelf", "readelf"))), None)
    if tool is None:
        pytest.skip("no readelf: apt install binutils")
    text = subprocess.run([tool, "-d", "-W", "--dyn-syms", artifact.library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"Shared library: \[(\S+)\]", text))
    exported = {m[1] for m in re.findall(r" (GLOBAL|WEAK)\s+DEFAULT\s+\d+\s+(\S+)", text)}
    return needed, exported


def check_dynamic(artifact: Artifact) -> None:
    needed, exported = dynamic(artifact)
    assert {name.split(".so")[0] for name in needed} <= {"libc", "libm", "libpthread"}
    header = set(re.findall(r"^BEVEL_API .*?(bevel_\w+)\(", (C_DIR / "bevel.h").read_text(), re.MULTILINE))
    assert exported == header


def test_no_float_arithmetic(built: Artifact, tmp_path: Path) -> None:
    """Kernels, graph code and runtime hold none; convert.o, which may, shows that the check can fail."""
    check_members(built, tmp_path)


def test_exports_and_dependencies(built: Artifact) -> None:
    """libc, libm and libpthread only, and exactly the functions of the header."""
    check_dynamic(built)


def test_host_sizes(built: Artifact) -> None:
    """The runtime around kernels and weights stays small, and so does the runner, where zig makes it."""
    assert built.library.stat().st_size <= 40_000
    if "glibc" in built.manifest["runner"]:
        pytest.skip("the small static runner needs zig: pip install ziglang")
    assert built.runner.stat().st_size <= 150_000


@pytest.mark.qemu
def test_arm_runs(built_arm: Artifact, tiny: Any, run_arm: list[str], tmp_path: Path) -> None:
    """The cross-compiled static runner proves its golden vectors, and gives the host's bytes on other inputs."""
    for threads in ("1", "3"):
        done = subprocess.run(
            [*run_arm, built_arm.runner, "--selftest", "--threads", threads], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    x = np.random.default_rng(5).integers(0, 256, (50, 64, 16), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
    subprocess.run([*run_arm, built_arm.runner, "--batch", *files], check=True, capture_output=True)
    expected = np.concatenate([tiny.reference(row[None])["rows"] for row in x])
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


@pytest.mark.qemu
def test_arm_shared_library_runs(built_arm: Artifact, run_arm: list[str], tmp_path: Path) -> None:
    """The example program, linked against libmodel.so, runs in a glibc userland."""
    sysroot = Path("/usr/aarch64-linux-gnu")
    if run_arm and not (sysroot / "lib" / "ld-linux-aarch64.so.1").exists():
        pytest.skip("no aarch64 C library: apt install libc6-dev-arm64-cross")
    command = [*find_toolchain("aarch64").shared, str(built_arm.path / "example.c"), "-I", str(built_arm.path / "include")]
    command += ["-L", str(built_arm.path / "lib"), "-l:libmodel.so", "-o", str(tmp_path / "example")]
    subprocess.run(command, check=True)
    run = [*run_arm, "-L", str(sysroot), "-E", f"LD_LIBRARY_PATH={built_arm.path / 'lib'}"] if run_arm else []
    done = subprocess.run([*run, tmp_path / "example", built_arm.weights], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rows: 512 bytes")


@pytest.mark.qemu
def test_arm_refuses_missing_instructions(
    built_arm: Artifact, tiny: Any, write_tiny: Callable[..., Artifact], run_arm: list[str], tmp_path: Path
) -> None:
    """Code for a CPU with dot products opens there; on one without it is refused with exit code 4, not by a signal."""
    if not run_arm:
        pytest.skip("needs an emulator that can leave instructions out")
    target = replace(tiny.schedule.target, arch="aarch64", features=frozenset({"neon", "dotprod"}))
    arm = replace(tiny, objects=_members(built_arm, tmp_path), schedule=replace(tiny.schedule, target=target))
    artifact = write_tiny(arm, tmp_path / "dot.bevel")
    for cpu, code in (("cortex-a76", 0), ("cortex-a72", 4)):
        done = subprocess.run(
            [run_arm[0], "-cpu", cpu, artifact.runner, "--selftest"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    assert "lacks an instruction set" in done.stderr


def _members(artifact: Artifact, folder: Path) -> dict[str, bytes]:
    """The kernels of an artifact, as one object under the first symbol and empty ones under the rest."""
    tools = find_toolchain(artifact.arch)
    subprocess.run([*tools.ar, "x", str(artifact.path / "lib" / "libmodel.a"), "kernels.o"], cwd=folder, check=True)
    (folder / "empty.c").write_text("")
    subprocess.run([*tools.shared, "-c", "empty.c", "-o", "empty.o"], cwd=folder, check=True)
    symbols = [layer["symbol"] for layer in artifact.manifest["layers"]]
    return {symbol: (folder / ("empty.o" if i else "kernels.o")).read_bytes() for i, symbol in enumerate(symbols)}


def test_arm_no_float_arithmetic(built_arm: Artifact, tmp_path: Path) -> None:
    """The same for the cross-compiled objects."""
    check_members(built_arm, tmp_path)


def test_arm_exports_and_dependencies(built_arm: Artifact) -> None:
    """The same for the cross-compiled library."""
    check_dynamic(built_arm)


def test_arm_sizes(built_arm: Artifact) -> None:
    """With 78 KB of weights: library and weights within 130 KB, the static runner within 150 KB."""
    assert built_arm.library.stat().st_size + built_arm.weights.stat().st_size <= 130_000
    if "glibc" in built_arm.manifest["runner"]:
        pytest.skip("the small static runner needs zig: pip install ziglang")
    assert built_arm.runner.stat().st_size <= 150_000
