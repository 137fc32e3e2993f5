"""Fixtures: an emulated board, open transports to it, and a compiler for the programs that run there."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bevel.devices.board import EmulatedBoard
from bevel.devices.resolve import resolve_transport
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError
from tests.devices.machine import Machine


@pytest.fixture(scope="session")
def board() -> Iterator[EmulatedBoard]:
    emulated = EmulatedBoard("raspberry-pi-4")
    try:
        emulated.start()
    except ToolchainError as error:
        pytest.skip(str(error))
    yield emulated
    emulated.stop()


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    try:
        with Machine(tmp_path_factory.mktemp("machine")) as running:
            yield running
    except ToolchainError as error:
        pytest.skip(str(error))


@pytest.fixture
def device(board: EmulatedBoard) -> Iterator[Transport]:
    """An open connection to the board, its work directory clean."""
    with resolve_transport(board.profile) as transport:
        yield transport
        shutil.rmtree(board.root / "work", ignore_errors=True)


def _arm_compiler() -> list[str] | None:
    if shutil.which("aarch64-linux-gnu-gcc"):
        return ["aarch64-linux-gnu-gcc"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    return None


@pytest.fixture(scope="session")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles C text to a static aarch64 program; the body of main when there is no main."""
    compiler = _arm_compiler()
    if compiler is None:
        pytest.skip("no C compiler for aarch64: apt-get install gcc-aarch64-linux-gnu, or pip install ziglang")
    folder = tmp_path_factory.mktemp("arm")

    def build(name: str, body: str, *options: str) -> Path:
        program = folder / name
        if not program.exists():
            headers = "".join(f"#include <{name}.h>\n" for name in ("stdio", "stdlib", "string", "unistd", "signal"))
            source = folder / f"{name}.c"
            source.write_text(f"{headers}int main(int argc, char **argv) {{ {body}; return 0; }}\n")
            subprocess.run([*compiler, *(options or ("-static",)), "-O1", "-o", program, source], check=True)
        return program

    return build


@pytest.fixture(scope="session")
def arm_linker() -> Callable[[Path, Path], None]:
    """Links one C file into a static aarch64 program at fixed addresses, with its symbols."""
    compiler = _arm_compiler()
    if compiler is None:
        pytest.skip("no C compiler for aarch64: apt-get install gcc-aarch64-linux-gnu, or pip install ziglang")

    def link(source: Path, program: Path) -> None:
        subprocess.run([*compiler, "-static", "-no-pie", "-O1", "-o", program, source], check=True)

    return link
