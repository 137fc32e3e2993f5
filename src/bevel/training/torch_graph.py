"""Operators of FLOAT graphs as differentiable torch functions, and a float graph as a torch module.

In: a node's attributes, its symbolic dimensions bound, and its operands as tensors. Out: what the op table's reference computes,
within float32 rounding. Parameters keep their place in the graph, so nothing has to be mapped back after training.

Imports torch; callers import this file when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bevel.errors import UnsupportedOp
from bevel.ir.dims import bound_attrs
from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops.pool import window_counts
from bevel.ir.types import Codebook, Dim, Quant

Function = Callable[..., Tensor]


def _bordered(at: Any, x: Tensor, fill: float) -> tuple[Tensor, tuple[int, int]]:
    """`x` and the padding that torch can add on its own: pads that differ between sides are made here."""
    top, left, bottom, right = at.pads
    if (top, left) == (bottom, right) and fill == 0.0:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=fill), (0, 0)


def convolution(at: Any, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv of the op table, in the dtype of `x` and `w`."""
    x, padding = _bordered(at, x, 0.0)
    result: Tensor = F.conv2d(x, w, bias, at.strides, padding, at.dilations, at.groups)
    return result


def product(_at: Any, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gemm of the op table, in the dtype of `x` and `w`."""
    result: Tensor = F.linear(x, w, bias)
    return result


def _transposed(at: Any, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    full = F.conv_transpose2d(x, w, bias, at.strides, 0, 0, at.groups, at.dilations)
    height, width = (
        at.strides[i] * (x.shape[2 + i] - 1) + at.dilations[i] * (at.kernel[i] - 1) + 1 - at.pads[i] - at.pads[i + 2]
        for i in (0, 1)
    )
    # What output_padding adds lies beyond the last window where pads cut nothing off there: only the bias reaches it.
    beyond = [max(0, at.output_padding[i] - at.pads[i + 2]) for i in (0, 1)]
    if any(beyond):
        edge = torch.zeros(1) if bias is None else bias.reshape(1, -1, 1, 1)
        full = F.pad(full - edge, (0, beyond[1], 0, beyond[0])) + edge
    top, left = at.pads[:2]
    return full[:, :, top : top + height + at.output_padding[0], left : left + width + at.output_padding[1]]


def _max_pool(at: Any, x: Tensor) -> Tensor:
    if any(at.pads):
        x, _ = _bordered(at, x, -torch.inf)
    result: Tensor = F.max_pool2d(x, at.kernel, at.strides, 0, at.dilations)
    return result


def _average_pool(at: Any, x: Tensor) -> Tensor:
    counts = torch.from_numpy(window_counts(at, x.shape[2], x.shape[3])).to(x.dtype)
    ones = torch.ones(x.shape[1], 1, *at.kernel, dtype=x.dtype)
    padded, padding = _bordered(at, x, 0.0)
    return F.conv2d(padded, ones, None, at.strides, padding, at.dilations, x.shape[1]) / counts


def _slice(at: Any, x: Tensor) -> Tensor:
    return x[tuple(slice(s, None if e == -1 else e, t) for s, e, t in zip(at.starts, at.ends, at.steps, strict=True))]


def _pad(at: Any, x: Tensor) -> Tensor:
    if at.mode == "constant":
        sides = [n for pair in reversed(list(zip(at.before, at.after, strict=True))) for n in pair]
        result: Tensor = F.pad(x, sides, value=at.value)
        return result
    for axis, extent in enumerate(x.shape):
        if at.before[axis] or at.after[axis]:
            rows = np.pad(np.arange(extent), (at.before[axis], at.after[axis]), mode=at.mode)
            x = x.index_select(axis, torch.from_numpy(rows))
    return x


def _depth_to_space(at: Any, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, at.block
    if at.mode == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(at: Any, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, at.block
    parts = x.reshape(n, c, h // b, b, w // b, b)
    moved = parts.permute(0, 3, 5, 1, 2, 4) if at.mode == "DCR" else parts.permute(0, 1, 3, 5, 2, 4)
    return moved.reshape(n, c * b * b, h // b, w // b)


def _gather(at: Any, x: Tensor, indices: Tensor) -> Tensor:
    picked = x.index_select(at.axis, indices.reshape(-1) % x.shape[at.axis])
    return picked.reshape(*x.shape[: at.axis], *indices.shape, *x.shape[at.axis + 1 :])


def _batch_norm(at: Any, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    result: Tensor = F.batch_norm(x, mean, variance, scale, bias, False, 0.0, at.epsilon)
    return result


def _layer_norm(at: Any, x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    result: Tensor = F.layer_norm(x, x.shape[at.axis :], scale, bias, at.epsilon)
    return result


def _rms_norm(at: Any, x: Tensor, scale: Tensor | None = None) -> Tensor:
    normalized = x * torch.rsqrt((x * x).mean(tuple(range(at.axis, x.dim())), keepdim=True) + at.epsilon)
    return normalized if scale is None else normalized * scale


def _prelu(_at: Any, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


# The functions take a node's attributes, then its operands.
FUNCTIONS: dict[str, Function] = {
    "Conv": convolution,
    "Gemm": product,
    "MatMul": lambda _a, x, y: x @ y,
    "ConvTranspose": _transposed,
    "Add": lambda _a, x, y: x + y,
    "Sub": lambda _a, x, y: x - y,
    "Mul": lambda _a, x, y: x * y,
    "Div": lambda _a, x, y: x / y,
    "Min": lambda _a, x, y: torch.minimum(x, y),
    "Max": lambda _a, x, y: torch.maximum(x, y),
    "Pow": lambda _a, x, y: torch.pow(x, y),
    "PRelu": _prelu,
    "Relu": lambda _a, x: F.relu(x),
    "Clip": lambda a, x: torch.clamp(x, a.lo, a.hi),
    "Sigmoid": lambda _a, x: torch.sigmoid(x),
    "Tanh": lambda _a, x: torch.tanh(x),
    "Exp": lambda _a, x: torch.exp(x),
    "Erf": lambda _a, x: torch.erf(x),
    "Gelu": lambda _a, x: F.gelu(x),
    "GeluTanh": lambda _a, x: F.gelu(x, approximate="tanh"),
    "HardSwish": lambda _a, x: F.hardswish(x),
    "HardSigmoid": lambda a, x: torch.clamp(a.alpha * x + a.beta, 0.0, 1.0),
    "Silu": lambda _a, x: F.silu(x),
    "Swish": lambda a, x: x * torch.sigmoid(a.alpha * x),
    "Mish": lambda _a, x: F.mish(x),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.alpha),
    "Elu": lambda a, x: F.elu(x, a.alpha),
    "Celu": lambda a, x: F.celu(x, a.alpha),
    "Selu": lambda a, x: a.gamma * F.elu(x, a.alpha),
    "Softplus": lambda _a, x: F.softplus(x),
    "Softsign": lambda _a, x: F.softsign(x),
    "Neg": lambda _a, x: -x,
    "Abs": lambda _a, x: torch.abs(x),
    "Sqrt": lambda _a, x: torch.sqrt(x),
    "Power": lambda a, x: torch.pow(x, a.exponent),
    "Reciprocal": lambda _a, x: torch.reciprocal(x),
    "Log": lambda _a, x: torch.log(x),
    "Sin": lambda _a, x: torch.sin(x),
    "Cos": lambda _a, x: torch.cos(x),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _a, x: x.mean((2, 3), keepdim=True),
    "ReduceMean": lambda a, x: x.mean(a.axes, keepdim=a.keepdims),
    "ReduceSum": lambda a, x: x.sum(a.axes, keepdim=a.keepdims),
    "ReduceMax": lambda a, x: torch.amax(x, a.axes, keepdim=a.keepdims),
    "ReduceMin": lambda a, x: torch.amin(x, a.axes, keepdim=a.keepdims),
    "ReduceSumSquare": lambda a, x: (x * x).sum(a.axes, keepdim=a.keepdims),
    "Softmax": lambda a, x: torch.softmax(x, a.axis),
    "LogSoftmax": lambda a, x: torch.log_softmax(x, a.axis),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": lambda a, x, s, b: F.group_norm(x, a.groups, s, b, a.epsilon),
    "Reshape": lambda a, x: x.reshape(a.shape),
    "Transpose": lambda a, x: x.permute(a.perm),
    "Slice": _slice,
    "Pad": _pad,
    "Reverse": lambda a, x: torch.flip(x, a.axes),
    "Expand": lambda a, x: x.expand(a.shape),
    "Tile": lambda a, x: torch.tile(x, a.repeats),
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Concat": lambda a, *xs: torch.cat(xs, a.axis),
    "Gather": _gather,
}


def function_of(node: Node) -> Function:
    """The torch function of a node.

    Raises:
        UnsupportedOp: it has none; names the layer.
    """
    found = FUNCTIONS.get(node.op)
    if found is None or len(node.outputs) != 1:
        raise UnsupportedOp(
            f"layer {node.outputs[0].name!r}: {node.op} cannot be trained through: it has no differentiable form in "
            "bevel.training; quantize this model without training (`bevel compile --rounding gptq`)"
        )
    return found


def bound(node: Node, symbols: Mapping[str, int]) -> Any:
    """The attributes of a node, symbolic dimensions replaced by extents."""
    return bound_attrs(node.attrs, symbols) if symbols else node.attrs


def symbols_of(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Extents of the symbolic dimensions of `graph` when it takes `inputs`."""
    return {
        dim.name: extent
        for value in graph.inputs
        for dim, extent in zip(value.type.shape, inputs[value.name].shape, strict=True)
        if isinstance(dim, Dim)
    }


def constant_tensor(value: Value) -> Tensor:
    """A constant as the interpreter sees it below INTEGER level: reals of codes, everything else as stored."""
    elem = value.type.elem
    return torch.from_numpy(np.array(elem.dequantize(value.array) if isinstance(elem, Quant | Codebook) else value.array))


class FloatNet(torch.nn.Module):  # type: ignore[misc]  # torch is not typed where it is not installed
    """A FLOAT graph, not trained: the teacher.

    Args:
        graph: every operator of it must be in `FUNCTIONS`.
        dtype: of convolutions and products with constant weights; the rest is float32.

    Raises:
        UnsupportedOp: an operator is not.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._graph = graph
        self._dtype = dtype
        self._functions = [function_of(node) for node in graph.nodes]
        self._constants = {value: constant_tensor(value) for value in graph.constants}
        for node in graph.nodes:
            if node.op in ("Conv", "Gemm") and dtype != torch.float32:
                for value in node.inputs[1:]:
                    if value in self._constants:
                        self._constants[value] = self._constants[value].to(dtype)

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The graph's outputs, in order."""
        symbols = symbols_of(self._graph, inputs)
        known: dict[Value, Tensor] = {**self._constants, **{v: inputs[v.name] for v in self._graph.inputs}}
        for node, function in zip(self._graph.nodes, self._functions, strict=True):
            operands = [known[v] for v in node.inputs]
            if node.op in ("Conv", "Gemm"):
                operands[0] = operands[0].to(operands[1].dtype)
            known[node.output] = function(bound(node, symbols), *operands)
        return [known[v].float() for v in self._graph.outputs]
