"""Import fuzzing: `python -m benchmarks.fuzz.import_onnx [--count 100000] [--seed 0] [--failures DIR]`.

Mutated ONNX files (`mutate`) are imported and canonicalized in worker processes whose memory and time are limited. A file passes
when it gives a graph or one of bevel's errors; any other exception, a time-out or a worker that dies is a failure, and its file
is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from benchmarks.fuzz.mutate import mutated

ROOT = Path(__file__).resolve().parents[2]
# Largest seed: mutations of a megabyte of weights find nothing that those of a kilobyte do not.
LARGEST_SEED = 400_000
MEMORY_BYTES = 4 << 30
SECONDS = 20
WORKER_FILES = 2500


class TooSlow(Exception):
    """A file took longer than SECONDS."""


def seeds() -> list[bytes]:
    """What is mutated: the smaller models that ship with bevel, and every node case of onnx."""
    from onnx.backend.test.case.node import collect_testcases

    files = [p.read_bytes() for p in sorted((ROOT / "models").glob("*.onnx")) if p.stat().st_size <= LARGEST_SEED]
    cases = [c.model.SerializeToString() for c in collect_testcases(None)]
    # Models of many nodes are rare among the cases: give them weight.
    return files * 40 + [c for c in cases if len(c) <= LARGEST_SEED]


def outcome(data: bytes, path: Path) -> str:
    """Judge one file: "graph", the class of bevel's error, or "FAILURE: " and what happened."""
    from bevel.errors import BevelError, VerifyError
    from bevel.frontend import import_onnx
    from bevel.passes.canonicalize import canonicalize

    path.write_bytes(data)
    signal.alarm(SECONDS)
    try:
        graph = import_onnx(path)
        canonicalize(graph)
    except VerifyError as error:
        return f"FAILURE: VerifyError: {error}"
    except BevelError as error:
        return type(error).__name__ if "\n" not in str(error) else f"FAILURE: message of several lines: {error!r}"
    except TooSlow:
        return f"FAILURE: no result after {SECONDS} s"
    except Exception as error:  # anything that is not bevel's is what this looks for
        return f"FAILURE: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "graph"


def _alarm(_signal: int, _frame: FrameType | None) -> None:
    raise TooSlow


def work(seed: int, first: int, last: int) -> None:
    """Judge files [first, last) and print one JSON line for each."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _alarm)
    known = seeds()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        for index in range(first, last):
            print(json.dumps([index, "started"]), flush=True)
            print(json.dumps([index, outcome(mutated(known, seed, index), path)]), flush=True)
    print(json.dumps([-1, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)]), flush=True)


def _ranges(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, WORKER_FILES):
        yield first, min(first + WORKER_FILES, count)


def main() -> int:
    """Judge all files with one worker for each core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for the files of failures")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.seed, *arguments.worker)
        return 0
    start = time.monotonic()
    found: Counter[str] = Counter()
    failures: dict[int, str] = {}
    largest = 0
    todo = list(_ranges(arguments.count))
    running: list[tuple[subprocess.Popen[str], tuple[int, int]]] = []
    while todo or running:
        while todo and len(running) < (os.cpu_count() or 1):
            span = todo.pop(0)
            command = [
                sys.executable,
                "-m",
                "benchmarks.fuzz.import_onnx",
                "--seed",
                str(arguments.seed),
                "--worker",
                *map(str, span),
            ]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            running.append((process, span))
        process, span = running.pop(0)
        out, _ = process.communicate()
        last = span[0] - 1
        for line in out.splitlines():
            index, result = json.loads(line)
            if index < 0:
                largest = max(largest, int(result))
            elif result == "started":
                last = index
            else:
                found[result.split(":")[0]] += 1
                if result.startswith("FAILURE"):
                    failures[index] = result
        if process.returncode:
            failures[last] = f"FAILURE: the process died with {process.returncode}"
            found["FAILURE"] += 1
            if last + 1 < span[1]:
                todo.insert(0, (last + 1, span[1]))
        print(f"{sum(found.values())} of {arguments.count}: {dict(found)}", file=sys.stderr)
    known = seeds() if failures else []
    for index, what in sorted(failures.items()):
        arguments.failures.mkdir(parents=True, exist_ok=True)
        (arguments.failures / f"{arguments.seed}-{index}.onnx").write_bytes(mutated(known, arguments.seed, index))
        print(f"{arguments.seed}-{index}: {what[:300]}")
    minutes = (time.monotonic() - start) / 60
    print(
        f"{sum(found.values())} files in {minutes:.1f} min, {len(failures)} failures, {largest >> 10} MiB at most: {dict(found)}"
    )
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
