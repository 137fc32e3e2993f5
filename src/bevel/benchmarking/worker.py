"""One measuring process: artifacts and peers called in turn from the same Python loop on bound inputs.

`python -m bevel.benchmarking.worker` reads a JSON job on stdin and prints, per contestant, the milliseconds of every block.
Blocks are interleaved (A B A B ...), so a machine whose clock drifts slows all contestants alike. On one thread a call's wall
time is its CPU time; a round in which it is not was disturbed by other programs and is measured again, a bounded number of times.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

# A block is long enough that reading the clocks costs nothing, short enough that contestants see the same machine.
_BLOCK_SECONDS = 0.004
_MAX_CALLS_PER_BLOCK = 2000
_WARMUP_CALLS = 20
# Wall time beyond CPU time by more than this share means that the process did not have its core: a context switch costs some
# microseconds of a 4 ms block, a neighbour's time slice at least a millisecond.
DISTURBED = 0.05
# Rounds to measure at most, as a multiple of those asked for.
_MOST_ROUNDS = 3

Call = Callable[[], None]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Measured:
    """What one process saw.

    Attributes:
        wall_ms: milliseconds a call, one figure for each block, by contestant.
        cpu_ms: CPU milliseconds a call, of all threads of the process.
        disturbed: share of the blocks in `wall_ms` that other programs disturbed even when repeated; 0 with several threads.
    """

    wall_ms: dict[str, list[float]]
    cpu_ms: dict[str, list[float]]
    disturbed: float


def bevel_call(artifact: str, threads: int, inputs: str) -> Call:
    """A call of the artifact through ctypes, its inputs set once: reals are quantized, codes are copied."""
    from bevel.runtime.host import HostModel

    model = HostModel(Path(artifact), threads)
    with np.load(inputs, allow_pickle=False) as arrays:
        model.follow_shapes(arrays)
        for tensor in model.inputs:
            array = arrays[tensor.name]
            if array.dtype.kind == "f":
                model.set_input_float(tensor.name, array)
            else:
                tensor.array[...] = array
    return model.run


def onnxruntime_call(model: str, threads: int, inputs: str) -> Call:
    """A call of onnxruntime with bound inputs and outputs, all graph optimizations on."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    with np.load(inputs, allow_pickle=False) as arrays:
        for spec in session.get_inputs():
            binding.bind_cpu_input(spec.name, np.ascontiguousarray(arrays[spec.name]))
    for spec in session.get_outputs():
        binding.bind_output(spec.name, "cpu")

    def call() -> None:
        session.run_with_iobinding(binding)

    return call


_CALLS: dict[str, Callable[[str, int, str], Call]] = {"bevel": bevel_call, "onnxruntime": onnxruntime_call}


def measure(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    single_thread: bool,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.process_time,
) -> Measured:
    """Measure contestants in interleaved rounds of one block each.

    Args:
        calls: one call of each contestant.
        rounds: to measure. Undisturbed ones come first; when other programs leave too few, the least disturbed fill up.
        single_thread: repeat disturbed rounds. With several threads CPU time says nothing about them.
        wall: monotonic seconds.
        cpu: CPU seconds of this process.
    """
    lengths = {name: _block_length(call, wall) for name, call in calls.items()}
    seen: list[tuple[float, dict[str, tuple[float, float]]]] = []
    clean = 0
    for _ in range(_MOST_ROUNDS * rounds):
        if clean == rounds:
            break
        blocks = {name: _block(call, lengths[name], wall, cpu) for name, call in calls.items()}
        excess = max(w / max(c, 1e-12) - 1 for w, c in blocks.values()) if single_thread else 0.0
        seen.append((excess, blocks))
        clean += excess <= DISTURBED
    # Sorting is stable: undisturbed rounds keep their order and count as equal.
    best = sorted(seen, key=lambda entry: max(entry[0], DISTURBED))[:rounds]
    disturbed = sum(excess > DISTURBED for excess, _ in best) / len(best)
    wall_ms = {name: [blocks[name][0] for _, blocks in best] for name in calls}
    return Measured(wall_ms, {name: [blocks[name][1] for _, blocks in best] for name in calls}, disturbed)


def _block_length(call: Call, wall: Clock) -> int:
    """Calls in a block, after warming up."""
    for _ in range(_WARMUP_CALLS):
        call()
    start = wall()
    for _ in range(_WARMUP_CALLS):
        call()
    each = (wall() - start) / _WARMUP_CALLS
    return max(1, min(_MAX_CALLS_PER_BLOCK, int(_BLOCK_SECONDS / max(each, 1e-9))))


def _block(call: Call, count: int, wall: Clock, cpu: Clock) -> tuple[float, float]:
    """Wall and CPU milliseconds of one call, over `count` calls."""
    start, cpu_start = wall(), cpu()
    for _ in range(count):
        call()
    cpu_stop, stop = cpu(), wall()
    return (stop - start) / count * 1e3, (cpu_stop - cpu_start) / count * 1e3


def main() -> int:
    """Run the job on stdin."""
    job: dict[str, Any] = json.load(sys.stdin)
    # Libraries may print to stdout; the result goes to the original descriptor.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    calls = {
        name: _CALLS[spec["engine"]](spec["model"], job["threads"], spec["inputs"]) for name, spec in job["contestants"].items()
    }
    with out:
        json.dump(asdict(measure(calls, job["rounds"], single_thread=job["threads"] == 1)), out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
