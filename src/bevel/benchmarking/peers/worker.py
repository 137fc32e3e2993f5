"""The process of one contestant: converts or loads a model through an adapter and runs blocks of calls when told to.

`python worker.py ENGINE` runs in the environment of the engine, so it needs numpy and the standard library only. Commands
arrive as lines of JSON on stdin, answers leave as lines of JSON on stdout; between commands the process sleeps in a read, so of
several workers only the one whose turn it is takes a core. An exception of the engine ends the process; whoever started it reads
the last line of stderr.

| command | answer |
|---|---|
| `{"do": "prepare", "files", "precision", "shapes", "samples", "folder"}` | `{"prepared": FOLDER}` |
| `{"do": "load", "folder", "threads", "inputs": NPZ, "outputs": [NAME]}` | `{"loaded": FACTS, "open_ns", "first_run_ns"}` |
| `{"do": "warm", "ms"}` | `{"warm_ns": nanoseconds a call}` |
| `{"do": "block", "calls"}` | `{"block": i, "calls", "wall_ns", "cpu_ns", "switches"}`, times per call |
| `{"do": "read", "file": NPZ}` | `{"read": [shape]}`, the outputs as arrays named arr_0, arr_1, ... |
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

Call = Callable[[], Any]
# Calls of a warm-up at least, however long one takes: the first runs of an engine choose algorithms and fault in memory.
_WARM_CALLS = 3


class Adapter(Protocol):
    """What `bevel.benchmarking.peers.adapters` describes."""

    def prepare(self, files: list[Path], precision: str, shapes: dict[str, list[int]], samples: list[Path], folder: Path) -> None:
        """Write the engine's files into `folder`."""

    def load(
        self, folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
    ) -> tuple[Call, Callable[[], list[Any]], dict[str, str]]:
        """Open them with inputs bound."""


def load_adapter(name: str) -> Adapter:
    """The adapter of an engine, as the module it is in bevel.

    Where bevel is not installed, its packages above the adapters are stood for by empty ones, so none of its dependencies is
    needed. The folder of this file must not be searched: a file beside it would stand for an engine's own module.
    """
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != here]
    if name != "bevel":
        folder = here
        for package in ("bevel.benchmarking.peers", "bevel.benchmarking", "bevel"):
            module = sys.modules[package] = ModuleType(package)
            module.__path__ = [str(folder)]
            folder = folder.parent
    return importlib.import_module(f"bevel.benchmarking.peers.adapters.{name}")


class Contestant:
    """One engine with one model.

    Args:
        adapter: how the engine is used.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._blocks = 0

    def prepare(self, command: dict[str, Any]) -> dict[str, Any]:
        """Convert the model."""
        folder = Path(command["folder"])
        files, samples = ([Path(p) for p in command[key]] for key in ("files", "samples"))
        self._adapter.prepare(files, command["precision"], command["shapes"], samples, folder)
        return {"prepared": str(folder)}

    def load(self, command: dict[str, Any]) -> dict[str, Any]:
        """Open the model and run it once."""
        with np.load(command["inputs"], allow_pickle=False) as arrays:
            # Kept: engines that share the arrays' memory do not all keep the arrays.
            self._inputs = {name: np.ascontiguousarray(arrays[name]) for name in arrays.files}
        start = time.perf_counter_ns()
        self._call, self._read, facts = self._adapter.load(
            Path(command["folder"]), command["threads"], self._inputs, command["outputs"]
        )
        opened = time.perf_counter_ns()
        self._call()
        return {"loaded": facts, "open_ns": opened - start, "first_run_ns": time.perf_counter_ns() - opened}

    def warm(self, command: dict[str, Any]) -> dict[str, Any]:
        """Call for `ms` milliseconds; the median of the second half is what a call takes."""
        times: list[int] = []
        start = time.perf_counter_ns()
        while len(times) < _WARM_CALLS or time.perf_counter_ns() - start < command["ms"] * 1e6:
            before = time.perf_counter_ns()
            self._call()
            times.append(time.perf_counter_ns() - before)
        return {"warm_ns": statistics.median(times[len(times) // 2 :])}

    def block(self, command: dict[str, Any]) -> dict[str, Any]:
        """Time `calls` calls. One more goes first: caches hold what the contestant before left in them."""
        call, count = self._call, int(command["calls"])
        call()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
        for _ in range(count):
            call()
        cpu_stop, stop = time.process_time_ns(), time.perf_counter_ns()
        index, self._blocks = self._blocks, self._blocks + 1
        return {
            "block": index,
            "calls": count,
            "wall_ns": (stop - start) / count,
            "cpu_ns": (cpu_stop - cpu_start) / count,
            "switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before,
        }

    def read(self, command: dict[str, Any]) -> dict[str, Any]:
        """Store the outputs of the last call."""
        outputs = [np.asarray(array) for array in self._read()]
        np.savez(command["file"], *outputs)
        return {"read": [list(array.shape) for array in outputs]}


def main() -> int:
    """Obey commands until stdin ends."""
    # Engines print to stdout; answers go to the original descriptor.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestant = Contestant(load_adapter(sys.argv[1]))
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(contestant, command["do"])(command)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
