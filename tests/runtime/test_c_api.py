"""The C side: the API against a real model, the example program, and the same code under the compiler's sanitizers."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.runtime.artifact import Artifact
from bevel.runtime.codegen import C_DIR, model_c
from bevel.runtime.toolchain import find_toolchain, host_arch

HERE = Path(__file__).parent
WRAP = "-Wl,--wrap=malloc,--wrap=calloc,--wrap=posix_memalign,--wrap=pthread_create"


def build(artifact: Artifact, source: Path, out: Path, *flags: str) -> None:
    command = [*find_toolchain(host_arch()).shared, "-std=c11", "-Wall", "-Wextra", "-Werror", str(source)]
    command += ["-I", str(artifact.path / "include"), str(artifact.path / "lib" / "libmodel.a"), *flags, "-lm", "-lpthread"]
    subprocess.run([*command, "-o", str(out)], check=True)


def test_api(built: Artifact, tmp_path: Path) -> None:
    """Arguments, descriptors, instances, threads, damaged weights, and not one allocation in caller's memory or after open."""
    build(built, HERE / "api_test.c", tmp_path / "api", WRAP)
    # A lost wake-up would hang, not fail.
    done = subprocess.run([tmp_path / "api", built.weights], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout


def test_no_warnings(tiny: Any, tmp_path: Path) -> None:
    """The runtime and the generated C are clean under the strictest usual warnings."""
    (tmp_path / "model.c").write_text(model_c(tiny.schedule))
    sources = [str(path) for path in C_DIR.glob("*.c") if path.name != "example.c"]
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    command = [*find_toolchain(host_arch()).shared, *flags, "-I", str(C_DIR), "-c", str(tmp_path / "model.c"), *sources]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sha256(tmp_path: Path) -> None:
    """Every length around the block and padding boundaries, against hashlib."""
    command = [
        *find_toolchain(host_arch()).shared,
        "-shared",
        "-fPIC",
        str(C_DIR / "sha256.c"),
        "-o",
        str(tmp_path / "sha256.so"),
    ]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(tmp_path / "sha256.so"))
    data = np.random.default_rng(0).bytes(1000)
    digest = ctypes.create_string_buffer(32)
    for length in (*range(260), 1000):
        library.bevel_sha256(data, ctypes.c_size_t(length), digest)
        assert digest.raw == hashlib.sha256(data[:length]).digest(), length


def test_example_compiles_and_runs(built: Artifact, tiny: Any, tmp_path: Path) -> None:
    """The program shipped in every artifact prints the right first bytes."""
    build(built, built.path / "example.c", tmp_path / "example")
    done = subprocess.run([tmp_path / "example", built.weights], capture_output=True, text=True, check=True)
    expected = tiny.reference(np.zeros((1, 64, 16), np.uint8))
    for name, array in expected.items():
        assert f"{name}: {array.nbytes} bytes, first {' '.join(f'{b:02x}' for b in array.ravel()[:8])}\n" in done.stdout


def test_header_is_cplusplus(built: Artifact, tmp_path: Path) -> None:
    """C++ programs can include model.h."""
    (tmp_path / "use.cpp").write_text('#include "model.h"\nextern "C" int f() { return (int)bevel_num_inputs(); }\n')
    cc = find_toolchain(host_arch()).shared
    flags = ["-x", "c++", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", str(built.path / "include")]
    command = [*cc, *flags, str(tmp_path / "use.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cc1plus" in done.stderr:
        pytest.skip("the C compiler has no C++ front end")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sanitized(tiny: Any, built: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds bevel-run of the tiny model with a sanitizer."""

    def make(sanitizer: str) -> Path:
        folder = tmp_path_factory.mktemp("sanitized")
        (folder / "model.c").write_text(model_c(tiny.schedule))
        for symbol, code in tiny.objects.items():
            (folder / f"{symbol}.o").write_bytes(code)
        kernels = [str(folder / f"{kernel.symbol}.o") for kernel in tiny.schedule.kernels]
        sources = [str(path) for path in C_DIR.glob("*.c") if path.name != "example.c"]
        command = [
            *find_toolchain(host_arch()).shared,
            "-std=c11",
            "-O1",
            "-g",
            f"-fsanitize={sanitizer}",
            "-fno-sanitize-recover=all",
        ]
        command += ["-I", str(C_DIR), str(folder / "model.c"), *sources, *kernels, "-lm", "-lpthread", "-o", str(folder / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"the compiler cannot link -fsanitize={sanitizer}")
        return folder / "run"

    return make


def test_no_undefined_behaviour(sanitized: Callable[[str], Path], built: Artifact, tmp_path: Path) -> None:
    """Address and undefined-behaviour sanitizers stay silent in every mode and on mutilated .npy files."""
    run = sanitized("address,undefined")
    # The runner leaves its buffers to the operating system when it exits.
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    common = ["--weights", str(built.weights), "--golden", str(built.path / "selftest")]
    for mode in (
        "--selftest",
        "--selftest --threads 3",
        "--bench --blocks 3",
        "--bench --cold --blocks 3 --evict-kib 64",
        "--profile --runs 3",
        "--start 2",
        "--info",
    ):
        done = subprocess.run([run, *mode.split(), *common], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    good = (built.path / "selftest" / "0.in.0.npy").read_bytes()
    rng = np.random.default_rng(3)
    file = tmp_path / "x.npy"
    for case in range(120):
        bad = bytearray(good)
        for position in rng.integers(0, 128, 1 + case % 3):
            bad[position] = rng.choice(np.frombuffer(b"0129,()'<i: \xff\0", np.uint8)) if case % 2 else rng.integers(0, 256)
        file.write_bytes(bad[: rng.integers(0, 200)] if case % 4 == 3 else bad)
        command = [str(run), *common, "--input", str(file), *["--batch"] * (case % 2)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        assert done.returncode in (0, 2), (bytes(bad[:128]), done.stderr)


def test_threads_do_not_race(sanitized: Callable[[str], Path], built: Artifact) -> None:
    """The thread sanitizer sees no data race between steps, runs, start and stop."""
    run = sanitized("thread")
    files = ["--weights", str(built.weights), "--golden", str(built.path / "selftest")]
    command = [str(run), "--bench", "--threads", "3", "--blocks", "3", "--block-ms", "1", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer cannot run on this kernel's memory layout")
    assert done.returncode == 0, done.stderr
