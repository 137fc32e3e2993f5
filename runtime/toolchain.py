"""Finds a C compiler for a target and links kernels, generated code and the runtime into libraries and the runner.

The kernels are compiled for the device's CPU, everything here for the architecture's baseline. Host: the system's C compiler, and
zig for the runner where it is installed: musl makes static programs that are 700 KB smaller than glibc's. Cross: zig (extra
`cross`: no other installation, old glibc, static musl), else the distribution's cross gcc.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from bevel.backends.objects import cache_dir
from bevel.errors import ToolchainError
from bevel.runtime.codegen import C_DIR

_log = logging.getLogger(__name__)

# Sources of the library without and with floating-point arithmetic, and of the runner likewise. Integer sources are compiled so
# that the compiler itself refuses floating point in them (_NO_FLOAT).
_INTEGER_SOURCES = ("runtime", "weights", "pool", "isa", "sha256")
_FLOAT_SOURCES = ("convert",)
_RUNNER_INTEGER_SOURCES = (
    "bevel_run",
    "run_options",
    "run_data",
    "run_bench",
    "run_profile",
    "run_start",
    "measure",
    "sensors",
    "npy",
)
_RUNNER_FLOAT_SOURCES = ("run_float",)

_COMPILE = (
    *(
        "-std=c11",
        "-Os",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffunction-sections",
        "-fdata-sections",
        "-fno-asynchronous-unwind-tables",
        "-fno-unwind-tables",
        # 32-bit systems refuse to open large files, or files with large inode numbers, without it.
        "-D_FILE_OFFSET_BITS=64",
    ),
    # One rounding for each operation: no fused multiply-add where the source has two operations.
    "-ffp-contract=off",
)
_NO_FLOAT = {"x86_64": ("-mgeneral-regs-only",), "aarch64": ("-mgeneral-regs-only",), "armv7": ()}
_LINK = ("-Wl,--gc-sections", "-Wl,-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack")
_LIBRARIES = ("-lm", "-lpthread")
_DISCARD = "SECTIONS { /DISCARD/ : { *(.debug_*) *(.rela.debug_*) *(.text.tvm.fp16.conv) *(.rela.text.tvm.fp16.conv) } }\n"

# The oldest C library zig knows for every board: Debian 8, CentOS 7 and everything since.
_ZIG_GLIBC = {"x86_64": "x86_64-linux-gnu.2.17", "aarch64": "aarch64-linux-gnu.2.17", "armv7": "arm-linux-gnueabihf.2.17"}
_ZIG_MUSL = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl", "armv7": "arm-linux-musleabihf"}
_GNU_TRIPLE = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf"}
_DEBIAN_PACKAGES = {
    "x86_64": "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
    "aarch64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "armv7": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
}

# zig builds its C library on first use: 35 s on two idle cores, minutes on a busy small machine.
_TIMEOUT_S = 900


@dataclass(frozen=True)
class Toolchain:
    """Commands that make programs for one architecture.

    Attributes:
        description: name and version, for the manifest.
        arch: "x86_64", "aarch64" or "armv7".
        shared: compiler command for libmodel.so and libmodel.a (glibc).
        static: compiler command for the statically linked runner.
        ar: archiver command.
        static_libc: "musl" or "glibc"; glibc cannot be both static and small.
    """

    description: str
    arch: str
    shared: tuple[str, ...]
    static: tuple[str, ...]
    ar: tuple[str, ...]
    static_libc: str


@dataclass(frozen=True)
class Linked:
    """Files a link made.

    Attributes:
        shared, archive, runner: paths of libmodel.so, libmodel.a and bevel-run.
        runner_linkage: "static musl", "static glibc" or "dynamic glibc".
    """

    shared: Path
    archive: Path
    runner: Path
    runner_linkage: str


def host_arch() -> str:
    """Architecture of this machine as targets spell it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "armv7", "armv8l": "armv7"}.get(machine, machine)


def find_toolchain(arch: str) -> Toolchain:
    """Return the toolchain for `arch`.

    Raises:
        ToolchainError: none is installed; says what to install.
    """
    if arch not in _GNU_TRIPLE:
        raise ToolchainError(f"no C toolchain for architecture {arch!r}: expected one of {', '.join(_GNU_TRIPLE)}")
    if arch == host_arch():
        cc = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
        if cc and shutil.which("ar"):
            gnu = _gnu(arch, cc, "ar")
            return _with_small_runner(gnu) if importlib.util.find_spec("ziglang") else gnu
    if importlib.util.find_spec("ziglang"):
        return _zig(arch)
    cc, ar = shutil.which(f"{_GNU_TRIPLE[arch]}-gcc"), shutil.which(f"{_GNU_TRIPLE[arch]}-ar")
    if cc and ar:
        return _gnu(arch, cc, ar)
    if arch == host_arch():
        raise ToolchainError("no C compiler on this machine: run `apt install gcc libc6-dev` (or `pip install ziglang`)")
    raise ToolchainError(
        f"no C cross compiler for {arch}: run `pip install 'bevel[cross]'` (zig), or `apt install {_DEBIAN_PACKAGES[arch]}`"
    )


def link(toolchain: Toolchain, model_c: str, objects: dict[str, bytes], out: Path, user_sources: Sequence[Path] = ()) -> Linked:
    """Compile `model_c`, link it with kernel `objects` (symbol -> relocatable ELF) and the runtime, write three files into `out`.

    `user_sources` are the C files of custom operators: optimized, and free to use floating point.

    Raises:
        ToolchainError: a command failed or ran out of time; shows its message.
    """
    out = out.absolute()  # commands run in a directory of their own
    with tempfile.TemporaryDirectory(prefix="bevel-link-") as temporary:
        work = Path(temporary)
        (work / "model.c").write_text(model_c)
        (work / "exports").write_text(_exports())
        no_float = _NO_FLOAT[toolchain.arch]
        # All of model.c is used: sections of its own for every step would only cost headers.
        whole = ("-fno-function-sections", "-fno-data-sections", "-I", str(C_DIR))
        _run([*toolchain.shared, *_COMPILE, *no_float, *whole, "-c", "model.c", "-o", "model.o"], work)
        generated = []
        for symbol, code in sorted(objects.items()):
            (work / f"{symbol}.o").write_bytes(code)
            generated.append(f"{symbol}.o")
        kernels = [*generated, *_user_objects(toolchain.shared, user_sources, "custom", work)]
        library = _runtime_objects(toolchain.shared, no_float, (_INTEGER_SOURCES, _FLOAT_SOURCES))
        parts = ["model.o", *kernels, *library]

        shared, archive, runner = out / "libmodel.so", out / "libmodel.a", out / "bevel-run"
        # -Bsymbolic: two models in one process must each call their own bevel_input.
        flags = ("-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--version-script=exports", "-Wl,-soname,libmodel.so", *_LINK)
        _run([*toolchain.shared, *flags, *parts, "-o", str(shared), *_LIBRARIES], work)

        # One object of all kernels, without what TVM adds to each: debug information, larger than the code, and fp16 helpers.
        if kernels:
            (work / "discard.ld").write_text(_DISCARD)
            _run([*toolchain.shared, "-nostdlib", "-r", "-Wl,-T,discard.ld", *kernels, "-o", "kernels.o"], work)
        members = ["model.o", *(["kernels.o"] if kernels else []), *library]
        _run([*toolchain.ar, "rcsD", str(archive), *members], work)

        sources = (_INTEGER_SOURCES + _RUNNER_INTEGER_SOURCES, _FLOAT_SOURCES + _RUNNER_FLOAT_SOURCES)
        # Headers of one C library may name functions that another does not have.
        user = _user_objects(toolchain.static, user_sources, "runner", work)
        program = ["model.o", *generated, *user, *_runtime_objects(toolchain.static, no_float, sources)]
        linkage = f"static {toolchain.static_libc}"
        try:
            _run([*toolchain.static, "-static", *_LINK, *program, "-o", str(runner), *_LIBRARIES], work)
        except ToolchainError:
            # Some distributions ship no static C library; the manifest tells what was made.
            linkage = f"dynamic {toolchain.static_libc}"
            _run([*toolchain.static, *_LINK, *program, "-o", str(runner), *_LIBRARIES], work)
    return Linked(shared, archive, runner, linkage)


def link_program(toolchain: Toolchain, archive: Path, source: Path, program: Path) -> None:
    """Link a C program against an artifact's model, statically and with symbols, to look at what its kernels do.

    Args:
        toolchain: for the artifact's architecture.
        archive: the artifact's libmodel.a, whose model and kernels are taken as they are.
        source: the program; it may include the runtime's headers.
        program: file to write; its code is at the addresses its symbols name.

    Raises:
        ToolchainError: a command failed; shows its message.
    """
    with tempfile.TemporaryDirectory(prefix="bevel-link-") as temporary:
        work = Path(temporary)
        members = _run([*toolchain.ar, "t", str(archive.absolute())], work).split()
        model = [member for member in members if member in ("model.o", "kernels.o")]
        _run([*toolchain.ar, "x", str(archive.absolute()), *model], work)
        library = _runtime_objects(toolchain.static, _NO_FLOAT[toolchain.arch], (_INTEGER_SOURCES, _FLOAT_SOURCES))
        _run([*toolchain.static, *_COMPILE, "-I", str(C_DIR), "-c", str(source.absolute()), "-o", "main.o"], work)
        flags = ("-static", "-no-pie", "-Wl,--gc-sections")
        _run([*toolchain.static, *flags, "main.o", *model, *library, "-o", str(program.absolute()), *_LIBRARIES], work)


def link_bench(toolchain: Toolchain, table_c: str, objects: Mapping[str, bytes], program: Path) -> None:
    """Link the program that times kernels, runtime/c/kernel_bench.c, statically where that is possible.

    Args:
        toolchain: for the kernels' architecture.
        table_c: C source of the table of kernels.
        objects: their machine code, symbol -> relocatable ELF.
        program: file to write.

    Raises:
        ToolchainError: a command failed; shows its message.
    """
    with tempfile.TemporaryDirectory(prefix="bevel-link-") as temporary:
        work = Path(temporary)
        (work / "table.c").write_text(table_c)
        _run([*toolchain.static, *_COMPILE, "-I", str(C_DIR), "-c", "table.c", "-o", "table.o"], work)
        for symbol, code in objects.items():
            (work / f"{symbol}.o").write_bytes(code)
        parts = ["table.o", *(f"{symbol}.o" for symbol in sorted(objects))]
        parts += _runtime_objects(toolchain.static, _NO_FLOAT[toolchain.arch], (("kernel_bench", "measure", "isa"), ()))
        try:
            _run([*toolchain.static, "-static", *_LINK, *parts, "-o", str(program.absolute()), *_LIBRARIES], work)
        except ToolchainError:
            _run([*toolchain.static, *_LINK, *parts, "-o", str(program.absolute()), *_LIBRARIES], work)


def runtime_digest() -> str:
    """SHA-256 over the runtime's C sources: part of the key of everything measured or cached with it."""
    digest = hashlib.sha256()
    for path in sorted(C_DIR.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _user_objects(compiler: tuple[str, ...], sources: Sequence[Path], name: str, work: Path) -> list[str]:
    """Objects of custom operators in the folder `work`."""
    paths = [f"{name}{i}.o" for i in range(len(sources))]
    for source, path in zip(sources, paths, strict=True):
        _run([*compiler, *_COMPILE, "-O2", "-I", str(C_DIR), "-c", str(source), "-o", path], work)
    return paths


def _exports() -> str:
    """Version script of libmodel.so: the functions bevel.h marks BEVEL_API, and nothing else."""
    names = re.findall(r"^BEVEL_API .*?(bevel_\w+)\(", (C_DIR / "bevel.h").read_text(), re.MULTILINE)
    return "{ global: " + " ".join(f"{name};" for name in names) + " local: *; };\n"


def _runtime_objects(compiler: tuple[str, ...], no_float: tuple[str, ...], sources: Sequence[Sequence[str]]) -> list[str]:
    """Objects of the integer and float sources, from the cache or compiled into it."""
    integer, floating = sources
    key = hashlib.sha256(repr((runtime_digest(), compiler, _version(compiler), _COMPILE, no_float)).encode()).hexdigest()[:24]
    folder = cache_dir() / "runtime" / key
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in (*integer, *floating):
        path = folder / f"{name}.o"
        paths.append(str(path))
        if path.exists():
            continue
        # Two processes may compile the same file: each writes its own and the last rename wins.
        handle, partial = tempfile.mkstemp(suffix=".o", dir=folder)
        os.close(handle)
        flags = no_float if name in integer else ()
        try:
            _run([*compiler, *_COMPILE, *flags, "-c", f"{name}.c", "-o", partial], C_DIR)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
    return paths


def _gnu(arch: str, cc: str, ar: str) -> Toolchain:
    return Toolchain(_version((cc,)), arch, (cc,), (cc,), (ar,), "glibc")


def _zig(arch: str) -> Toolchain:
    zig = (sys.executable, "-m", "ziglang")
    # zig defaults to the checks and symbols of a debug build.
    cc = (*zig, "cc", "-fno-sanitize=all", "-g0")
    version = _version((*zig, "version"))
    return Toolchain(
        f"zig {version} ({_ZIG_GLIBC[arch]})",
        arch,
        (*cc, "-target", _ZIG_GLIBC[arch]),
        (*cc, "-target", _ZIG_MUSL[arch]),
        (*zig, "ar"),
        "musl",
    )


def _with_small_runner(gnu: Toolchain) -> Toolchain:
    """The toolchain with the runner of zig's."""
    zig = _zig(gnu.arch)
    description = f"{gnu.description}; runner: {zig.description.split(' (')[0]} ({_ZIG_MUSL[gnu.arch]})"
    return replace(gnu, description=description, static=zig.static, static_libc=zig.static_libc)


@cache
def _version(command: tuple[str, ...]) -> str:
    """First line of a compiler's version (zig prints its own with the command `version`)."""
    full = command if command[-1] == "version" else (*command, "--version")
    return _run(list(full), Path.cwd()).splitlines()[0].strip()


def _run(command: list[str], cwd: Path) -> str:
    """Run a command and return its standard output."""
    _log.debug("%s", " ".join(command))
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise ToolchainError(f"{command[0]}: not found ({error}); reinstall the C compiler") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{' '.join(command[:6])}: no result after {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        message = (done.stderr or done.stdout).strip()
        raise ToolchainError(f"{' '.join(command[:6])} ... failed with exit code {done.returncode}:\n{message[-4000:]}")
    return done.stdout
