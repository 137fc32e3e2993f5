"""A small network of every kind of layer that training meets, and data on which it can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.data import DataSet, inputs_of, open_data, save_arrays
from bevel.ir.graph import Graph, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.movement import PadAttrs, ReshapeAttrs
from bevel.ir.ops.pool import PoolAttrs
from bevel.ir.types import F32, Dim, TensorType
from bevel.training.samples import require_batches

Array = npt.NDArray[Any]
CLASSES = 4


def network() -> Graph:
    """Images [N, 3, 8, 8] to [N, 4]: convolutions with uneven borders, strides and groups, a residual, pools, a product."""
    rng = np.random.default_rng(0)
    graph = Graph("net")
    batch = Dim("n")
    x = graph.add_input("x", TensorType((batch, 3, 8, 8), F32))

    def weights(*shape: int) -> Value:
        size = np.sqrt(np.prod(shape[1:]))
        return graph.add_constant(f"w{len(graph.nodes)}", (rng.standard_normal(shape) / size).astype(np.float32))

    def conv(x: Value, oc: int, kernel: int, groups: int = 1, *, bias: bool = True, **more: Any) -> Value:
        ic = x.type.shape[1]
        assert isinstance(ic, int)
        operands = [x, weights(oc, ic // groups, kernel, kernel)]
        if bias:
            operands.append(graph.add_constant(f"b{len(graph.nodes)}", rng.standard_normal(oc).astype(np.float32) / 4))
        attrs = ConvAttrs((kernel, kernel), **{"pads": (kernel // 2,) * 4, "groups": groups, **more})
        return graph.add_node("Conv", operands, attrs).output

    def relu(x: Value) -> Value:
        return graph.add_node("Relu", [x]).output

    first = relu(conv(x, 8, 3, pads=(0, 1, 2, 1)))
    deep = relu(conv(first, 8, 3, 8))
    total = relu(graph.add_node("Add", [first, conv(deep, 8, 1, bias=False)]).output)
    padded = graph.add_node("Pad", [total], PadAttrs((0, 0, 1, 1), (0, 0, 0, 0))).output
    pooled = graph.add_node("MaxPool", [padded], PoolAttrs((3, 3), (2, 2))).output
    last = graph.add_node("HardSwish", [conv(pooled, 12, 3, 2, dilations=(2, 2), pads=(2,) * 4)]).output
    mean = graph.add_node("GlobalAveragePool", [last]).output
    flat = graph.add_node("Reshape", [mean], ReshapeAttrs((batch, 12))).output
    bias = graph.add_constant("fc.bias", np.zeros(CLASSES, np.float32))
    graph.set_outputs([graph.add_node("Gemm", [flat, weights(CLASSES, 12), bias], names=["logits"]).output])
    return graph


def images(count: int, seed: int = 1) -> Array:
    """Smooth: sums of random walks along both axes."""
    noise = np.random.default_rng(seed).standard_normal((count, 3, 8, 8))
    return (noise.cumsum(axis=2).cumsum(axis=3) / 6).astype(np.float32)


def arrays(graph: Graph, count: int = 160, seed: int = 1) -> dict[str, Array]:
    """Images, and as labels what the float network says of them: so it is a perfect teacher."""
    from bevel.ir import interp

    x = images(count, seed)
    return {"x": x, "label": interp.run(graph, {"x": x})["logits"].argmax(axis=1)}


def data(graph: Graph, folder: Path, count: int = 160, seed: int = 1) -> DataSet:
    """The same as a data set."""
    path = save_arrays(folder / f"data{count}.npz", arrays(graph, count, seed))
    return require_batches(open_data(path, inputs_of(graph)))
