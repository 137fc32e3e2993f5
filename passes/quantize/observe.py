"""Observation: calibration batches in, what the methods and the bias correction need of them out.

A batch is a dict of arrays named like the graph's inputs. Batches are read one at a time; what is kept of them is ranges,
histograms and channel means, so memory is that of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import CalibrationError, UsageError
from bevel.ir.graph import Graph, Value
from bevel.ir.interp import check_input, run
from bevel.ir.ops import lookup
from bevel.ir.types import Dim

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Progress = Callable[[str, int], None]
# Called with each value and its reals.
Watch = Callable[[Value, Array], None]

# Larger batches save calls, not work, and leave the caches.
BATCH_BYTES = 32 << 20
MAX_SAMPLES = 64


def samples_per_batch(graph: Graph) -> int:
    """How many samples fit BATCH_BYTES at once, 1 to MAX_SAMPLES: by the operands and results of the largest node."""
    largest = max((lookup(node.op).cost(node).bytes for node in graph.nodes), default=1)
    return max(1, min(MAX_SAMPLES, BATCH_BYTES // largest))


def batches(graph: Graph, arrays: Batch, size: int = 32) -> Iterator[dict[str, Array]]:
    """Slices of `arrays` as batches for `graph`.

    Args:
        graph: an input whose first dimension is symbolic, or 1, has a batch axis and takes `size` (or 1) samples of the array at
            once; any other input takes `array[i]` of one sample.
        arrays: one array [samples, ...] for each input; others, such as labels, are ignored.
        size: samples in a batch where every input allows it.

    Raises:
        CalibrationError: an input has no array, or the arrays' sample counts differ.
    """
    missing = [v.name for v in graph.inputs if v.name not in arrays]
    if missing:
        raise CalibrationError(f"calibration data lacks {missing}; it has {sorted(arrays)}: name the arrays like the inputs")
    counts = {v.name: len(arrays[v.name]) for v in graph.inputs}
    if len(set(counts.values())) > 1:
        raise CalibrationError(f"calibration arrays have different numbers of samples: {counts}")
    shapes = {v.name: v.type.shape for v in graph.inputs}
    free = all(shape and isinstance(shape[0], Dim) for shape in shapes.values())
    most = min((s[0].hi or size for s in shapes.values() if s and isinstance(s[0], Dim)), default=1)
    step = min(size, most) if free else 1
    for i in range(0, max(counts.values(), default=0), step):
        batch = {}
        for name, shape in shapes.items():
            whole = bool(shape) and (isinstance(shape[0], Dim) or (arrays[name].ndim == len(shape) and shape[0] == 1))
            batch[name] = arrays[name][i : i + step] if whole else arrays[name][i]
        yield batch


def _checked(graph: Graph, batch: Batch, index: int) -> dict[str, Array]:
    """The arrays of batch number `index`, by input.

    Raises:
        CalibrationError: wrong names, shapes or dtypes; NaN or infinity.
    """
    expected = {v.name for v in graph.inputs}
    if set(batch) != expected:
        raise CalibrationError(
            f"calibration batch {index}: holds {sorted(batch)}, model {graph.name!r} expects {sorted(expected)}; rename them"
        )
    arrays = {}
    for value in graph.inputs:
        array = np.asarray(batch[value.name])
        if array.dtype != value.type.dtype:
            raise CalibrationError(
                f"calibration batch {index}, input {value.name!r}: dtype {array.dtype} found, {value.type.dtype} expected; "
                "store it preprocessed, as the model takes it"
            )
        if not array.size:
            raise CalibrationError(f"calibration batch {index}, input {value.name!r}: shape {list(array.shape)} holds no element")
        try:
            arrays[value.name] = check_input(value, array)
        except UsageError as error:
            raise CalibrationError(f"calibration batch {index}: {error}; correct the data") from None
    return arrays


def walk(graph: Graph, data: Iterable[Batch], watch: Watch, stage: str, progress: Progress | None = None) -> int:
    """Run `graph` over all batches in the interpreter.

    Args:
        graph: FLOAT graph.
        data: batches, read once.
        watch: called with the graph's inputs and every node result before fake quantization, batch by batch in execution order.
        stage: what `progress` calls it.
        progress: called with the stage and the number of batches done.

    Returns:
        How many batches there were.

    Raises:
        CalibrationError: no batch; wrong names, shapes or dtypes; NaN or infinity in an input.
    """
    done = 0
    for batch in data:
        arrays = _checked(graph, batch, done)
        for value in graph.inputs:
            watch(value, arrays[value.name])
        run(graph, arrays, observe=watch)
        done += 1
        if progress is not None:
            progress(stage, done)
    if not done:
        raise CalibrationError(f"no calibration data for {graph.name!r}: give at least one batch, better 100 to 500 samples")
    return done


def samples_of(value: Value, array: Array) -> Array:
    """`array` as [samples, elements]: a symbolic leading dimension counts samples, anything else is one."""
    rows = len(array) if value.type.shape and isinstance(value.type.shape[0], Dim) else 1
    return array.reshape(rows, -1)


def require_finite(value: Value, array: Array, batch: int) -> None:
    """Refuse NaN and infinity.

    Raises:
        CalibrationError: `array` holds one; names the layer and the batch.
    """
    if not np.isfinite(array).all():
        raise CalibrationError(
            f"calibration batch {batch}: layer {value.name!r} computes NaN or infinity; check the data and the weights"
        )
