"""Kernels to object code: one relocatable object each, cached by content, compiled by worker processes.

The cache key is the kernel's symbol (generator, problem, tile, target), the TVM version and the source of everything under
`backends/`, so an edit to a generator can never meet a stale object. Workers are `python -m bevel.backends.objects`: plain
processes with a pickled job on stdin, since TVM does not survive a fork and callers need no `__main__` guard this way.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from bevel.backends.schedule import Kernel
from bevel.backends.select import generators
from bevel.errors import ToolchainError
from bevel.ir.protocols import Target

# A worker spends about a second importing TVM and 0.15 s a kernel; below this many kernels it does not pay.
_KERNELS_PER_WORKER = 8
_DIGEST_BYTES = 32

Progress = Callable[[int, int], None]


def cache_dir() -> Path:
    """Where compiled objects and artifacts are kept: $BEVEL_CACHE_DIR, else the user's cache folder."""
    if root := os.environ.get("BEVEL_CACHE_DIR"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bevel"


@functools.cache
def generation() -> str:
    """Hash of everything that decides object code besides the kernel itself: sources under backends/ and TVM's version."""
    digest = hashlib.sha256(metadata.version("apache-tvm").encode())
    for path in sorted(Path(__file__).resolve().parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_kernels(
    kernels: Sequence[Kernel], target: Target, *, progress: Progress | None = None, workers: int | None = None
) -> dict[str, bytes]:
    """Object code of `kernels`.

    Args:
        kernels: what to compile.
        target: for which device.
        progress: called with (kernels done, kernels to compile) as batches finish; not called when all are cached.
        workers: worker processes; None decides by the amount of work and the host's cores.

    Returns:
        ELF relocatable bytes by symbol.

    Raises:
        ToolchainError: TVM is missing or rejected a kernel.
    """
    folder = cache_dir() / "objects" / generation()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)  # in use: what trims the cache goes by this
    objects: dict[str, bytes] = {}
    missing: list[Kernel] = []
    for kernel in kernels:
        code = _load(folder, kernel.symbol)
        if code is not None:
            objects[kernel.symbol] = code
        else:
            missing.append(kernel)
    if not missing:
        return objects
    count = workers if workers is not None else min(os.cpu_count() or 1, -(-len(missing) // _KERNELS_PER_WORKER))
    if count <= 1:
        for done, kernel in enumerate(missing, start=1):
            objects[kernel.symbol] = _store(folder, kernel.symbol, compile_kernel(kernel, target))
            if progress is not None:
                progress(done, len(missing))
        return objects
    done = 0
    for symbol, code in _parallel(missing, target, count):
        objects[symbol] = _store(folder, symbol, code)
        done += 1
        if progress is not None:
            progress(done, len(missing))
    return objects


def compile_kernel(kernel: Kernel, target: Target) -> bytes:
    """Object code of one kernel, without the cache."""
    from bevel.backends.tvm import compile_object

    by_name = {g.name: g for g in generators(target.arch)}
    function = by_name[kernel.generator].emit(kernel.problem, kernel.tile, target, kernel.symbol)
    return compile_object({kernel.symbol: function}, target)


def _load(folder: Path, symbol: str) -> bytes | None:
    """Cached code; None when there is none or the file is damaged."""
    try:
        data = (folder / f"{symbol}.o").read_bytes()
    except FileNotFoundError:
        return None
    code, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _store(folder: Path, symbol: str, code: bytes) -> bytes:
    """Cache `code` with its SHA-256 behind it, which readers of ELF files do not mind."""
    temporary = folder / f".{symbol}.{os.getpid()}"
    temporary.write_bytes(code + hashlib.sha256(code).digest())
    temporary.replace(folder / f"{symbol}.o")
    return code


def _parallel(kernels: Sequence[Kernel], target: Target, count: int) -> Sequence[tuple[str, bytes]]:
    """Compile in `count` processes; every one is waited for, or killed when anything fails."""
    # Convolutions take longest; dealing them out by work keeps the workers even.
    ordered = sorted(kernels, key=lambda k: -len(repr(k.problem)))
    processes = []
    results: list[tuple[str, bytes]] = []
    try:
        for i in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "bevel.backends.objects"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            processes.append((process, pickle.dumps((ordered[i::count], target))))
        for process, job in processes:
            assert process.stdin is not None
            process.stdin.write(job)
            process.stdin.close()
            process.stdin = None
        for process, _ in processes:
            out, err = process.communicate()
            if process.returncode != 0:
                raise ToolchainError(f"a kernel compiler process failed: {err.decode(errors='replace').strip()}")
            results.extend(pickle.loads(out))
    finally:
        for process, _ in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return results


def _worker() -> int:
    """Compile the pickled job on stdin; write [(symbol, object)] to stdout."""
    kernels, target = pickle.load(sys.stdin.buffer)
    # TVM may print to stdout; the result goes to the original descriptor.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        result = [(kernel.symbol, compile_kernel(kernel, target)) for kernel in kernels]
    except ToolchainError as error:
        sys.stderr.write(str(error))
        return 1
    with out:
        pickle.dump(result, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(_worker())
