"""One measuring process: artifacts and peers called in turn from the same Python loop on bound inputs.

`python -m bevel.benchmarking.worker` reads a JSON job on stdin and prints, per contestant, the milliseconds of every sample.
Calls are interleaved block by block (A B A B ...), so a machine whose clock drifts slows all contestants alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# A block is long enough that reading the clock costs nothing, short enough that contestants see the same machine.
_BLOCK_SECONDS = 0.004
_MAX_CALLS_PER_BLOCK = 2000


def bevel_call(artifact: str, threads: int, inputs: str) -> Callable[[], None]:
    """A call of the artifact through ctypes, its inputs set once."""
    from bevel.runtime.host import HostModel

    model = HostModel(Path(artifact), threads)
    with np.load(inputs, allow_pickle=False) as arrays:
        for tensor in model.inputs:
            array = arrays[tensor.name]
            if array.dtype.kind == "f" and tensor.array.dtype.kind != "f":
                model.set_inputs_float({tensor.name: array})
            else:
                tensor.array[...] = array
    return model.run


def onnxruntime_call(model: str, threads: int, inputs: str) -> Callable[[], None]:
    """A call of onnxruntime with bound inputs and outputs, all graph optimizations on."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
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


_CALLS: dict[str, Callable[[str, int, str], Callable[[], None]]] = {"bevel": bevel_call, "onnxruntime": onnxruntime_call}


def measure(calls: dict[str, Callable[[], None]], blocks: int) -> dict[str, list[float]]:
    """Milliseconds per call, one figure for each block, contestants interleaved."""
    lengths = {}
    for name, call in calls.items():
        for _ in range(20):
            call()
        start = time.perf_counter()
        for _ in range(20):
            call()
        each = (time.perf_counter() - start) / 20
        lengths[name] = max(1, min(_MAX_CALLS_PER_BLOCK, int(_BLOCK_SECONDS / max(each, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(blocks):
        for name, call in calls.items():
            count = lengths[name]
            start = time.perf_counter()
            for _ in range(count):
                call()
            samples[name].append((time.perf_counter() - start) / count * 1e3)
    return samples


def main() -> int:
    """Run the job on stdin."""
    job: dict[str, Any] = json.load(sys.stdin)
    calls = {
        name: _CALLS[spec["engine"]](spec["model"], job["threads"], spec["inputs"]) for name, spec in job["contestants"].items()
    }
    json.dump(measure(calls, job["blocks"]), sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
