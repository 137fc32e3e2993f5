"""Contestants in turn: every engine in a process of its own, one block of one of them at a time.

In: contestants with their files prepared. Out: wall and CPU time of every block, what each computed and what ran. The
coordinator gives the turns A B C, A B C, ...; whoever has none sleeps in a read, so a machine whose clock drifts slows all
alike and nobody competes for the core. On one thread a call's wall time is its CPU time; a block in which it is not was
disturbed by other programs, and rounds go on, a bounded number of them, until everybody has enough others.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bevel.benchmarking.peers.process import WorkerProcess
from bevel.data import load_arrays, save_arrays

Array = npt.NDArray[Any]
# A block is long enough that reading clocks and the first cold call cost nothing, short enough that all see the same machine.
_BLOCK_S = 0.01
_MAX_CALLS_PER_BLOCK = 2000
_WARM_MS = 200
# Large models have fewer rounds: a process takes this long at most, unless that would leave too few.
_PROCESS_S, _LEAST_ROUNDS = 20.0, 10
# Wall time beyond CPU time by more than this share means that the process did not have its core: a context switch costs some
# microseconds of a block, a neighbour's time slice at least a millisecond.
DISTURBED = 0.05
# Rounds to measure at most, as a multiple of those asked for.
_MOST_ROUNDS = 3
# Thread pools of several threads may spin for some milliseconds after a run; they must not do it in another's turn.
_REST_S = 0.01


@dataclass(frozen=True)
class Contestant:
    """What a worker process needs.

    Attributes:
        name: in tables.
        python: interpreter of the engine's environment.
        adapter: name of the adapter.
        folder: the files it loads.
        inputs: arrays by the model's input names.
        outputs: the model's output names.
        env: variables for the process, such as a cap of the instruction set.
        capped: whether `env` caps it.
    """

    name: str
    python: Path
    adapter: str
    folder: Path
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    capped: bool = False


class Turn(Protocol):
    """Somebody who calls when told to."""

    def warm(self) -> float:
        """Warm up; seconds a call takes."""

    def block(self, calls: int) -> tuple[float, float]:
        """Wall and CPU milliseconds of one call, over `calls` calls."""


@dataclass(frozen=True)
class Measured:
    """What one process of every contestant saw.

    Attributes:
        wall_ms: milliseconds a call, one figure for each block, by contestant.
        cpu_ms: CPU milliseconds a call, of all threads of the process.
        disturbed: share of a contestant's blocks in `wall_ms` that other programs disturbed; 0 with several threads.
    """

    wall_ms: dict[str, list[float]]
    cpu_ms: dict[str, list[float]]
    disturbed: dict[str, float]


@dataclass(frozen=True)
class Round:
    """`Measured`, and what the processes said of themselves.

    Attributes:
        measured: the times.
        facts: by contestant: version, and where it is known isa.
        outputs: by contestant, in the model's order, after the last block.
    """

    measured: Measured
    facts: dict[str, dict[str, str]]
    outputs: dict[str, list[Array]]


class _WorkerTurn:
    def __init__(self, worker: WorkerProcess, rest_s: float) -> None:
        self._worker, self._rest_s = worker, rest_s

    def warm(self) -> float:
        answer = self._worker.ask("warm", ms=_WARM_MS)
        time.sleep(self._rest_s)
        return float(answer["warm_ns"]) / 1e9

    def block(self, calls: int) -> tuple[float, float]:
        answer = self._worker.ask("block", calls=calls)
        time.sleep(self._rest_s)
        return answer["wall_ns"] / 1e6, answer["cpu_ns"] / 1e6


def measure(turns: Mapping[str, Turn], rounds: int, *, single_thread: bool) -> Measured:
    """Measure contestants in interleaved rounds of one block each.

    Args:
        turns: the contestants.
        rounds: blocks of each to report. When other programs leave too few undisturbed ones, the least disturbed fill up.
        single_thread: tell disturbed blocks. With several threads CPU time says nothing about them.
    """
    lengths, expected = {}, 0.0
    for name, turn in turns.items():
        each = max(turn.warm(), 1e-9)
        lengths[name] = max(1, min(_MAX_CALLS_PER_BLOCK, int(_BLOCK_S / each)))
        # One call more goes before each block.
        expected += (lengths[name] + 1) * each
    rounds = max(min(_LEAST_ROUNDS, rounds), min(rounds, int(_PROCESS_S / expected)))
    # By contestant: what is disturbed above what is tolerable, wall and CPU time of each block.
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in turns}
    for _ in range(_MOST_ROUNDS * rounds):
        for name, turn in turns.items():
            wall, cpu = turn.block(lengths[name])
            excess = max(wall / max(cpu, 1e-12) - 1 - DISTURBED, 0.0) if single_thread else 0.0
            seen[name].append((excess, wall, cpu))
        # All take part in every round, also those that have enough: nobody is measured in another time than the others.
        if all(sum(excess == 0 for excess, _, _ in blocks) >= rounds for blocks in seen.values()):
            break
    # Sorting is stable: undisturbed blocks keep their order.
    best = {name: sorted(blocks, key=lambda block: block[0])[:rounds] for name, blocks in seen.items()}
    return Measured(
        {name: [wall for _, wall, _ in blocks] for name, blocks in best.items()},
        {name: [cpu for _, _, cpu in blocks] for name, blocks in best.items()},
        {name: sum(excess > 0 for excess, _, _ in blocks) / len(blocks) for name, blocks in best.items()},
    )


def run_round(contestants: Mapping[str, Contestant], threads: int, rounds: int) -> Round:
    """Start a process for every contestant, measure them in turn and end them.

    Raises:
        ToolchainError: a process ended; names the contestant and what it wrote last.
    """
    rest_s = _REST_S if threads > 1 else 0.0
    with tempfile.TemporaryDirectory(prefix="bevel-contest-") as scratch, contextlib.ExitStack() as stack:
        workers, facts = {}, {}
        for index, (name, contestant) in enumerate(contestants.items()):
            file = save_arrays(Path(scratch) / f"{index}.npz", contestant.inputs)
            worker = stack.enter_context(WorkerProcess(name, contestant.python, contestant.adapter, contestant.env))
            outputs = list(contestant.outputs)
            loaded = worker.ask("load", folder=str(contestant.folder), threads=threads, inputs=str(file), outputs=outputs)
            workers[name], facts[name] = worker, loaded["loaded"]
        turns = {name: _WorkerTurn(worker, rest_s) for name, worker in workers.items()}
        measured = measure(turns, rounds, single_thread=threads == 1)
        found = {}
        for name, worker in workers.items():
            file = Path(scratch) / "outputs.npz"
            count = len(worker.ask("read", file=str(file))["read"])
            arrays = load_arrays(file)
            found[name] = [np.array(arrays[f"arr_{index}"]) for index in range(count)]
        return Round(measured, facts, found)


def relative_difference(found: list[Array], reference: list[Array]) -> float:
    """max|d| / max|reference|, the largest over the outputs; infinite where they cannot be compared or are not numbers.

    Axes of extent 1 do not count: engines without a batch axis leave them out.
    """
    if len(found) != len(reference):
        return math.inf
    worst = 0.0
    for ours, theirs in zip(found, reference, strict=True):
        if [n for n in ours.shape if n != 1] != [n for n in theirs.shape if n != 1]:
            return math.inf
        right = theirs.astype(np.float64).reshape(-1)
        difference = np.abs(ours.astype(np.float64).reshape(-1) - right).max(initial=0.0)
        worst = max(worst, float(difference / max(np.abs(right).max(initial=0.0), 1e-30)))
        if not np.isfinite(difference):
            return math.inf
    return worst


def own_contestant(artifact_path: Path, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Contestant:
    """The artifact, run by the Python that runs this."""
    return Contestant("bevel", Path(sys.executable), "bevel", artifact_path, inputs, outputs)
