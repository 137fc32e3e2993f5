"""Observation: calibration batches in, the range of every value that needs one out.

A batch is a dict of arrays named like the graph's inputs. Batches are read one at a time and only ranges are kept, so memory is
that of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bevel.errors import CalibrationError, UsageError
from bevel.ir.graph import Graph, Value
from bevel.ir.interp import check_input, run
from bevel.ir.types import Dim

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Progress = Callable[[int], None]


class RangeObserver(Protocol):
    """Accumulates what a calibration method needs of one value."""

    def update(self, array: Array) -> None:
        """Take in the value's reals of one batch."""
        ...

    def range(self) -> tuple[float, float]:
        """Least and greatest real that the quantized type shall hold."""
        ...


class MinMax:
    """The full observed range."""

    def __init__(self) -> None:
        self._lo, self._hi = np.inf, -np.inf

    def update(self, array: Array) -> None:
        """Widen the range to `array`."""
        self._lo = min(self._lo, float(array.min(initial=np.inf)))
        self._hi = max(self._hi, float(array.max(initial=-np.inf)))

    def range(self) -> tuple[float, float]:
        """Least and greatest real seen."""
        return self._lo, self._hi


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


def observe_ranges(
    graph: Graph,
    wanted: Collection[Value],
    data: Iterable[Batch],
    observer: Callable[[], RangeObserver],
    progress: Progress | None = None,
) -> dict[Value, tuple[float, float]]:
    """The range of each wanted value over all batches.

    Args:
        graph: FLOAT graph.
        wanted: graph inputs and node results to observe.
        data: batches, read once.
        observer: makes one accumulator for each value.
        progress: called with the number of batches done after each one.

    Raises:
        CalibrationError: no batch; wrong names, shapes or dtypes; NaN or infinity in an input or computed by a layer.
    """
    observers = {value: observer() for value in wanted}
    done = 0

    def observe(value: Value, array: Array) -> None:
        if value in observers:
            if not np.isfinite(array).all():
                raise CalibrationError(
                    f"calibration batch {done}: layer {value.name!r} computes NaN or infinity; check the data and the weights"
                )
            observers[value].update(array)

    for batch in data:
        arrays = _checked(graph, batch, done)
        for value in graph.inputs:
            observe(value, arrays[value.name])
        run(graph, arrays, observe=observe)
        done += 1
        if progress is not None:
            progress(done)
    if not done:
        raise CalibrationError(f"no calibration data for {graph.name!r}: give at least one batch, better 100 to 500 samples")
    return {value: watcher.range() for value, watcher in observers.items()}
