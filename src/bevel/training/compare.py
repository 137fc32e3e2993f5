"""What a trained net computes in torch, held against the INTEGER graph written of it in the interpreter.

The two differ where a sum lies within a dyadic factor's error of a rounding threshold, and nowhere else.

Imports torch; callers import this file when it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevel.compiler import Say
from bevel.data import DataSet
from bevel.ir import interp
from bevel.ir.graph import Graph
from bevel.ir.types import Quant
from bevel.training.fake_quant import Coded, FakeQuantNet
from bevel.training.qat import as_tensors
from bevel.training.torch_graph import FloatNet

Array = npt.NDArray[Any]

BATCH = 100


@dataclass(frozen=True)
class Comparison:
    """The same samples three times.

    Attributes:
        samples: how many.
        outputs: output elements compared.
        differing: of them.
        largest: difference of an element, in steps of its type (in reals where an output is no code).
        top1: of the integer graph; this and the next two are None without labels.
        top1_torch: of the net.
        top1_float: of the float graph.
    """

    samples: int
    outputs: int
    differing: int
    largest: float
    top1: float | None
    top1_torch: float | None
    top1_float: float | None


def compare(net: FakeQuantNet, integer: Graph, source: Graph, data: DataSet, limit: int, say: Say | None = None) -> Comparison:
    """Run all three on the first `limit` samples.

    Args:
        net: trained.
        integer: INTEGER graph of `net.annotated()`.
        source: FLOAT graph.
        data: what `require_batches` let pass.
        limit: samples to use at most.
        say: progress.
    """
    teacher, count = FloatNet(source), min(limit, len(data))
    elements = differing = 0
    largest, hits = 0.0, np.zeros(3, np.int64)
    for begin in range(0, count, BATCH):
        arrays = data.take(begin, min(begin + BATCH, count))
        inputs = as_tensors(arrays)
        with torch.no_grad():
            found, wanted = net.run(inputs), teacher(inputs)
        exact = interp.run(integer, arrays)
        ours = [exact[value.name] for value in integer.outputs]
        theirs = [_stored(x, value.type.elem) for x, value in zip(found, integer.outputs, strict=True)]
        for a, b in zip(ours, theirs, strict=True):
            distance = np.abs(a.astype(np.float64) - b)
            elements, differing = elements + distance.size, differing + int((distance > 0).sum())
            largest = max(largest, float(distance.max(initial=0.0)))
        if data.labels is not None:
            label = np.asarray(data.labels[begin : begin + len(inputs[next(iter(inputs))])])
            outputs = (ours[0], theirs[0], wanted[0].numpy())
            hits += [int((x.reshape(len(label), -1).argmax(1) == label).sum()) for x in outputs]
        if say is not None:
            say("compare", min(begin + BATCH, count), count)
    shares = [None] * 3 if data.labels is None else [float(h) / count for h in hits]
    return Comparison(count, elements, differing, largest, *shares)


def _stored(x: torch.Tensor | Coded, elem: object) -> Array:
    """What the INTEGER graph stores for an output of the net."""
    if isinstance(x, Coded):
        assert isinstance(elem, Quant)
        return np.asarray(x.codes.numpy().astype(np.float64) + elem.zero_point[0])
    return np.asarray(x.numpy().astype(np.float64))
