"""Empirical bias correction: quantization moves the mean of a layer's outputs; its bias moves them back.

In: per-channel means of the float graph's layers, batch by batch, and the annotated graph with the same data. Out: biases such
that each layer's mean over the calibration data is the float one, with all layers before it quantized and corrected.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", appendix D (the empirical form);
Finkelstein et al. 2019, "Fighting Quantization Bias With Bias". Theirs walks the data once for each layer. Here all layers are
corrected in one walk: behind batch k a layer's correction is the mean of the k differences seen so far, and a batch runs with
the corrections that hold when it reaches a layer. With one batch that is the layer by layer procedure itself; with more, what is
left is the effect of the first, coarser corrections, which their weight 1/k takes out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Graph, Node, Value
from bevel.passes.quantize.observe import Batch, Progress, walk

Array = npt.NDArray[Any]

# Channel means of about 400 samples of a network of 20,000 channels; what is beyond goes to a file.
_IN_MEMORY = 32 << 20


def channel_axis(node: Node) -> int:
    """Axis of a weighted node's result that its bias runs along."""
    return -1 if node.op == "Gemm" else 1


def channel_means(node: Node, array: Array) -> Array:
    """float64 [channels]: means of a weighted node's result over all other axes."""
    axis = channel_axis(node) % array.ndim
    return np.asarray(array.mean(axis=tuple(i for i in range(array.ndim) if i != axis), dtype=np.float64))


class MeanLog:
    """Channel means in the order they were computed, to be read back in that order; bounded memory.

    The file behind it has no name, so nothing stays however the program ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, means: Array) -> None:
        """Add float64 [channels]."""
        self._file.write(np.ascontiguousarray(means, np.float64).tobytes())

    def rewind(self) -> None:
        """Read from the start."""
        self._file.seek(0)

    def next(self, channels: int) -> Array:
        """The next entry."""
        return np.frombuffer(self._file.read(8 * channels), np.float64)


def bias_corrections(
    graph: Graph, layers: Collection[Node], means: MeanLog, data: Iterable[Batch], progress: Progress | None = None
) -> Mapping[Node, Array]:
    """What to add to the bias of each layer.

    Args:
        graph: ANNOTATED graph.
        layers: its weighted nodes to correct.
        means: for each batch and, in execution order, each layer: `channel_means` of the float graph.
        data: the batches that `means` comes from, in the same order.
        progress: see `walk`.

    Returns:
        float64 [channels] in real units, by layer.
    """
    means.rewind()
    seen = dict.fromkeys(layers, 0)
    found = {node: np.zeros(node.inputs[2].type.size) for node in layers}

    def correct(value: Value, array: Array) -> Array | None:
        node = value.producer
        if node is None or node not in found:
            return None
        correction = found[node]
        weight = array.size // len(correction)
        seen[node] += weight
        difference = means.next(len(correction)) - channel_means(node, array)
        correction += (difference - correction) * (weight / seen[node])
        shape = [1] * array.ndim
        shape[channel_axis(node)] = -1
        return np.asarray(array + correction.reshape(shape).astype(array.dtype))

    walk(graph, data, correct, "bias correction", progress)
    return found
