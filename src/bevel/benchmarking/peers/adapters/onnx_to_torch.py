"""An ONNX model of fixed shapes as a torch module, for the engines whose converters start from torch.

What depends on nothing but constants and shapes (axes, targets of Reshape, slices, tables) is computed once, when the module is
made, so that tracing and exporting see plain tensor operations with literal arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

Tensor = Any
# Longer constants are tables, not arguments such as axes or pads.
_LONGEST_ARGUMENT = 64


class Operands:
    """Inputs of one node: `x[i]` the tensors, `k[i]` the value as a Python list (or number) where it is a small constant."""

    def __init__(self, x: list[Tensor | None], k: list[Any], attributes: dict[str, Any]) -> None:
        self.x, self.k, self.attributes = x, k, attributes

    def __getitem__(self, index: int) -> Tensor:
        """The tensor at a position; None where it was left out."""
        return self.x[index] if index < len(self.x) else None

    def const(self, index: int, name: str, default: Any = None) -> Any:
        """An argument that older operator sets give as attribute `name`, newer ones as the constant input `index`."""
        if index < len(self.k) and self.k[index] is not None:
            return self.k[index]
        return self.attributes.get(name, default)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


def _pads(o: Operands, spatial: int, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Pads as torch's F.pad wants them: last axis first, begin and end."""
    pads = list(o.get("pads", [0] * 2 * spatial))
    automatic = o.get("auto_pad", b"NOTSET").decode()
    if automatic.startswith("SAME"):
        whole = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(size, kernel, strides, strict=True)]
        less = [w // 2 for w in whole]
        more = [w - b for w, b in zip(whole, less, strict=True)]
        pads = less + more if automatic == "SAME_UPPER" else more + less
    return [p for axis in reversed(range(spatial)) for p in (pads[axis], pads[axis + spatial])]


def _padded(x: Tensor, pads: list[int], value: float) -> tuple[Tensor, list[int]]:
    """The input, padded where the pads are lopsided, and the symmetric pads that are left for the operator."""
    if pads[::2] == pads[1::2]:
        return x, pads[::2][::-1]
    return F.pad(x, pads, value=value), [0] * (len(pads) // 2)


def _conv(o: Operands) -> Tensor:
    spatial = o[1].ndim - 2
    strides, dilations = o.get("strides", [1] * spatial), o.get("dilations", [1] * spatial)
    kernel = [(k - 1) * d + 1 for k, d in zip(o[1].shape[2:], dilations, strict=True)]
    x, pads = _padded(o[0], _pads(o, spatial, o[0].shape[2:], kernel, strides), 0.0)
    return (F.conv1d, F.conv2d)[spatial - 1](x, o[1], o[2], strides, pads, dilations, o.get("group", 1))


def _conv_transpose(o: Operands) -> Tensor:
    spatial = o[1].ndim - 2
    pads = o.get("pads", [0] * 2 * spatial)
    if pads[:spatial] != pads[spatial:]:
        raise NotImplementedError("ConvTranspose with lopsided pads")
    extra = o.get("output_padding", [0] * spatial)
    strides, dilations = o.get("strides", [1] * spatial), o.get("dilations", [1] * spatial)
    function = (F.conv_transpose1d, F.conv_transpose2d)[spatial - 1]
    return function(o[0], o[1], o[2], strides, pads[:spatial], extra, o.get("group", 1), dilations)


def _pool(o: Operands, largest: bool) -> Tensor:
    kernel = o.get("kernel_shape")
    spatial = len(kernel)
    strides, ceil = o.get("strides", [1] * spatial), bool(o.get("ceil_mode", 0))
    x, pads = _padded(o[0], _pads(o, spatial, o[0].shape[2:], kernel, strides), float("-inf") if largest else 0.0)
    if largest:
        return (F.max_pool1d, F.max_pool2d)[spatial - 1](x, kernel, strides, pads, o.get("dilations", [1] * spatial), ceil)
    if x is not o[0] and not o.get("count_include_pad", 0):
        raise NotImplementedError("AveragePool with lopsided pads that do not count")
    return (F.avg_pool1d, F.avg_pool2d)[spatial - 1](x, kernel, strides, pads, ceil, bool(o.get("count_include_pad", 0)))


def _gemm(o: Operands) -> Tensor:
    a = o[0].T if o.get("transA", 0) else o[0]
    b = o[1] if o.get("transB", 0) else o[1].T
    if o.get("alpha", 1.0) != 1.0 or o.get("beta", 1.0) != 1.0:
        raise NotImplementedError("Gemm with alpha or beta")
    return F.linear(a, b, o[2]) if o[2] is None or o[2].ndim == 1 else F.linear(a, b) + o[2]


def _matmul(o: Operands) -> Tensor:
    # A linear layer is what torch's converters and quantizers know.
    return F.linear(o[0], o[1].T) if o[1].ndim == 2 and isinstance(o[1], torch.nn.Parameter) else o[0] @ o[1]


def _clip(o: Operands) -> Tensor:
    lo, hi = o.const(1, "min"), o.const(2, "max")
    return F.relu6(o[0]) if (lo, hi) == (0.0, 6.0) else torch.clamp(o[0], lo, hi)


def _reduce_mean(o: Operands) -> Tensor:
    axes = o.const(1, "axes") or list(range(o[0].ndim))
    return o[0].mean(axes, bool(o.get("keepdims", 1)))


def _reshape(o: Operands) -> Tensor:
    shape = [o[0].shape[i] if n == 0 and not o.get("allowzero", 0) else n for i, n in enumerate(o.k[1])]
    return o[0].reshape(shape)


def _flatten(o: Operands) -> Tensor:
    axis = o.get("axis", 1)
    return o[0].reshape(int(np.prod(o[0].shape[:axis])), -1)


def _slice(o: Operands) -> Tensor:
    starts, ends = o.const(1, "starts"), o.const(2, "ends")
    axes, steps = o.const(3, "axes", list(range(len(starts)))), o.const(4, "steps", [1] * len(starts))
    where: list[Any] = [slice(None)] * o[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            raise NotImplementedError("Slice with a negative step")
        where[axis] = slice(start, min(end, o[0].shape[axis]), step)
    return o[0][tuple(where)]


def _pad(o: Operands) -> Tensor:
    pads, value = o.const(1, "pads"), o.const(2, "value", 0.0)
    axes = o.const(3, "axes", list(range(o[0].ndim)))
    if o.get("mode", b"constant") != b"constant":
        raise NotImplementedError("Pad that is not constant")
    begin, end = [0] * o[0].ndim, [0] * o[0].ndim
    for index, axis in enumerate(axes):
        begin[axis], end[axis] = pads[index], pads[index + len(axes)]
    return F.pad(o[0], [p for axis in reversed(range(o[0].ndim)) for p in (begin[axis], end[axis])], value=value or 0.0)


def _squeeze(o: Operands) -> Tensor:
    axes = o.const(1, "axes")
    return o[0].squeeze() if axes is None else o[0].squeeze(axes)


def _unsqueeze(o: Operands) -> Tensor:
    axes = o.const(1, "axes")
    rank = o[0].ndim + len(axes)
    x = o[0]
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(o: Operands) -> Tensor:
    axis = o.get("axis", 0)
    if isinstance(o.k[1], int):
        return o[0].select(axis, o.k[1])
    index = o[1].long()
    if axis == 0 and o[0].ndim == 2:
        return F.embedding(index, o[0])
    return o[0].index_select(axis, index.reshape(-1)).reshape([*o[0].shape[:axis], *index.shape, *o[0].shape[axis + 1 :]])


def _split(o: Operands) -> list[Tensor]:
    axis = o.get("axis", 0)
    sizes = o.const(1, "split") or -(-o[0].shape[axis] // o.get("num_outputs"))
    return list(torch.split(o[0], sizes, axis))


def _resize(o: Operands) -> Tensor:
    mode = o.get("mode", b"nearest").decode()
    if mode not in ("nearest", "linear") or o[0].ndim != 4:
        raise NotImplementedError(f"Resize {mode} of {o[0].ndim} axes")
    scales = o.k[2] if len(o.k) > 2 and o.k[2] else None
    size = o.k[3][2:] if scales is None else [round(n * s) for n, s in zip(o[0].shape[2:], scales[2:], strict=True)]
    if mode == "nearest":
        return F.interpolate(o[0], size=size)
    aligned = o.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    return F.interpolate(o[0], size=size, mode="bilinear", align_corners=aligned)


def _dequantize(o: Operands) -> Tensor:
    scale, zero = o[1], o[2]
    if scale.ndim == 1:
        shape = [-1 if axis == o.get("axis", 1) % o[0].ndim else 1 for axis in range(o[0].ndim)]
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    return (o[0].float() - (0 if zero is None else zero.float())) * scale


def _cast(o: Operands) -> Tensor:
    kind = torch.from_numpy(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(o.get("to")))).dtype
    return o[0].to(kind)


def _constant_of_shape(o: Operands) -> Tensor:
    value = o.get("value", torch.zeros(1))
    return torch.full(o.k[0], value.item(), dtype=value.dtype)


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Operands], Tensor]:
    return lambda o: function(o[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Operands], Tensor]:
    return lambda o: function(o[0], o[1])


def _hard_sigmoid(o: Operands) -> Tensor:
    alpha, beta = o.get("alpha", 0.2), o.get("beta", 0.5)
    return F.hardsigmoid(o[0]) if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5 else torch.clamp(o[0] * alpha + beta, 0, 1)


def _layer_norm(o: Operands) -> Tensor:
    return F.layer_norm(o[0], o[0].shape[o.get("axis", -1) :], o[1], o[2], o.get("epsilon", 1e-5))


def _batch_norm(o: Operands) -> Tensor:
    return F.batch_norm(o[0], o[3], o[4], o[1], o[2], eps=o.get("epsilon", 1e-5))


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "HardSwish": F.hardswish, "Identity": lambda x: x, "Dropout": lambda x: x, "Log": torch.log, "Neg": torch.neg,
    "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": F.relu, "Sigmoid": torch.sigmoid, "Sin": torch.sin,
    "Softplus": F.softplus, "Sqrt": torch.sqrt, "Tanh": torch.tanh,
}  # fmt: skip
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le, "Max": torch.maximum, "Min": torch.minimum, "Mul": torch.mul,
    "Or": torch.logical_or, "Pow": torch.pow, "Sub": torch.sub,
}  # fmt: skip
_OPS: dict[str, Callable[[Operands], Tensor | list[Tensor]]] = {
    "AveragePool": lambda o: _pool(o, largest=False),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda o: torch.cat(o.x, o.get("axis")),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantize,
    "Div": lambda o: torch.div(o[0], o[1]) if o[0].is_floating_point() else torch.div(o[0], o[1], rounding_mode="trunc"),
    "Expand": lambda o: o[0].expand(torch.broadcast_shapes(o[0].shape, tuple(o.k[1]))),
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherND": lambda o: o[0][tuple(o[1].long().unbind(-1))],
    "Gelu": lambda o: F.gelu(o[0], approximate=o.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda o: o[0].mean(list(range(2, o[0].ndim)), True),
    "HardSigmoid": _hard_sigmoid,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda o: F.leaky_relu(o[0], o.get("alpha", 0.01)),
    "MatMul": _matmul,
    "MaxPool": lambda o: _pool(o, largest=True),
    "Pad": _pad,
    "Range": lambda o: torch.arange(o.k[0], o.k[1], o.k[2]),
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": lambda o: torch.softmax(o[0], o.get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": lambda o: o[0].permute(o.get("perm", list(reversed(range(o[0].ndim))))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda o: torch.where(o[0], o[1], o[2]),
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
}


class OnnxModule(torch.nn.Module):  # type: ignore[misc]
    """The graph of an ONNX file.

    Args:
        path: the file; external data lies beside it.
        shapes: of every input.

    Attributes:
        inputs, outputs: names in the file's order.
        examples: one tensor for each input.

    Raises:
        NotImplementedError: an operator, or a form of one, that this module cannot run; names it.
    """

    def __init__(self, path: Path, shapes: dict[str, list[int]]) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        known = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in known]
        self.outputs = [value.name for value in graph.output]
        kinds = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in graph.input}
        # Ones are valid in any index, mask or table.
        self.examples = tuple(torch.from_numpy(np.ones(shapes[name], kinds[name])) for name in self.inputs)
        values = dict(zip(self.inputs, self.examples, strict=True))
        self._steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self._known: dict[str, Tensor] = known
        for node in graph.node:
            attributes = {a.name: _attribute(a) for a in node.attribute}
            names, results = list(node.input), [name for name in node.output if name]
            if node.op_type == "Constant":
                known[results[0]] = next(iter(attributes.values()))
            elif node.op_type == "Shape":
                shape = (values | known)[names[0]].shape[attributes.get("start", 0) : attributes.get("end")]
                known[results[0]] = torch.tensor(shape, dtype=torch.int64)
            else:
                if node.op_type not in _OPS:
                    raise NotImplementedError(f"operator {node.op_type} of {node.name or results[0]}")
                step = (node.op_type, names, results, attributes)
                with torch.no_grad():
                    found = self._run(step, values | known)
                if all(name in known for name in names if name):
                    known |= found
                else:
                    values |= found
                    self._steps.append(step)
        self._arguments = {name: t.tolist() for name, t in known.items() if t.numel() <= _LONGEST_ARGUMENT}
        self._buffers_of: dict[str, str] = {}
        for name in dict.fromkeys(name for _, names, _, _ in self._steps for name in names):
            if name in known:
                attribute = f"c{len(self._buffers_of)}"
                self._buffers_of[name] = attribute
                if known[name].is_floating_point() and known[name].ndim > 0:
                    setattr(self, attribute, torch.nn.Parameter(known[name], requires_grad=False))
                else:
                    self.register_buffer(attribute, known[name])
        self._known = {}

    def _run(self, step: tuple[str, list[str], list[str], dict[str, Any]], values: dict[str, Tensor]) -> dict[str, Tensor]:
        op, names, results, attributes = step
        arguments = [self._argument(name) for name in names]
        found = _OPS[op](Operands([values[name] if name else None for name in names], arguments, attributes))
        return dict(zip(results, found if isinstance(found, list) else [found], strict=False))

    def _argument(self, name: str) -> Any:
        if name in self._known:
            return self._known[name].tolist() if self._known[name].numel() <= _LONGEST_ARGUMENT else None
        return getattr(self, "_arguments", {}).get(name)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the file's order."""
        values = dict(zip(self.inputs, inputs, strict=True))
        values |= {name: getattr(self, attribute) for name, attribute in self._buffers_of.items()}
        for step in self._steps:
            values |= self._run(step, values)
        return tuple(values[name] for name in self.outputs)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return torch.from_numpy(numpy_helper.to_array(value).copy()) if isinstance(value, onnx.TensorProto) else value
