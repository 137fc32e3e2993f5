"""Pass `subpixel`: a transposed convolution with constant weights becomes an ordinary one whose channels are then interleaved.

    %y = ConvTranspose(%x: f32[n,c,h,w], %k) strides=[2,2]
    ->
    %y.conv = Conv(%x, %k') channels=[2,2,o]          one channel for each phase of the stride
    %y.phases = Reshape(Transpose(%y.conv))           [n,h,w,2,2,o], a view of NHWC memory
    %y = Transpose(Reshape(Transpose(%y.phases)))     [n,o,2h,2w]: one copy, and a Slice where the result is cut

Output coordinate s * q + r takes input q - j times kernel tap j * s + r', so each phase r is a convolution with every s-th tap
(Shi et al., 2016, in reverse); it is exact in integers, uses the fast kernels and multiplies no inserted zeros. Phases share
one window; where to begin counting them is chosen so that the window is smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.convolution import ConvAttrs, ConvTransposeAttrs
from bevel.ir.ops.movement import ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.types import Quant, TensorType
from bevel.passes.rewrite import is_float, replace

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Phases:
    """One axis of a transposed convolution as a convolution with `stride` phases.

    Attributes:
        stride: number of phases.
        taps: window of the convolution.
        before, after: its border.
        count: its outputs.
        crop: leading results that are cut after interleaving.
        kernel: for each phase and window tap, the tap of the transposed kernel, or -1 for none.
    """

    stride: int
    taps: int
    before: int
    after: int
    count: int
    crop: int
    kernel: tuple[tuple[int, ...], ...]


def phases(extent: int, out: int, kernel: int, stride: int, dilation: int, pad: int) -> Phases:
    """The smallest window over all ways to begin counting phases, and of those the one that cuts least."""
    found = [_phases_from(crop, extent, out, kernel, stride, dilation, pad) for crop in range(stride)]
    return min(found, key=lambda p: (p.taps * p.count, p.crop))


def _phases_from(crop: int, extent: int, out: int, kernel: int, stride: int, dilation: int, pad: int) -> Phases:
    """Result o is phase (o + crop) mod s of position (o + crop) div s; its windows start at o + pad in the spread input."""
    reach: list[dict[int, int]] = []
    for r in range(stride):
        place = r + pad - crop
        # Tap t of the kernel reaches input q + offset where place - t * dilation is offset * stride.
        taps = {(place - t * dilation) // stride: t for t in range(kernel) if (place - t * dilation) % stride == 0}
        reach.append(taps)
    offsets = [o for taps in reach for o in taps]
    low, high = min([*offsets, 0]), max([*offsets, 0])
    # Positions past the result are cut, so that the window never leaves less than the whole input unused.
    count = max(-(-(out + crop) // stride), extent - high)
    table = tuple(tuple(taps.get(o, -1) for o in range(low, high + 1)) for taps in reach)
    return Phases(stride, high - low + 1, -low, count - extent + high, count, crop, table)


@dataclass(frozen=True)
class Subpixel:
    """Write ConvTranspose as Conv."""

    name: ClassVar[str] = "subpixel"

    def run(self, graph: Graph) -> Graph:
        """The graph with no ConvTranspose over constant weights; results are sums of the same products."""
        result = graph.clone()
        for node in result.nodes:
            if node.op == "ConvTranspose" and all(v.is_constant and _repeats(v) for v in node.inputs[1:]):
                _rewrite(result, node)
        result.prune_dead()
        return result


def _repeats(constant: Value) -> bool:
    """True for constants that can be repeated for each phase: reals, and codes scaled per tensor or output channel."""
    elem = constant.type.elem
    return not isinstance(elem, Quant) or elem.per_tensor or (elem.axis == constant.type.rank // 4 and elem.block is None)


def _rewrite(graph: Graph, node: Node) -> None:
    at: ConvTransposeAttrs = node.attrs
    x, result = node.inputs[0], node.output
    shape, out = x.type.shape, result.type.shape
    axes = []
    for i in (0, 1):
        extent, size = shape[2 + i], out[2 + i]
        assert isinstance(extent, int)
        assert isinstance(size, int)
        axes.append(phases(extent, size, at.kernel[i], at.strides[i], at.dilations[i], at.pads[i]))
    rows, columns = axes
    operands = [x, _weights(graph, node, rows, columns)]
    if len(node.inputs) == 3:
        operands.append(_bias(graph, node.inputs[2], at.groups, rows.stride * columns.stride))
    pads = (rows.before, columns.before, rows.after, columns.after)
    attrs = ConvAttrs((rows.taps, columns.taps), (1, 1), pads, (1, 1), at.groups)
    last, value = node, graph.add_node("Conv", operands, attrs, names=[f"{result.name}.conv"], loc=node.loc, before=node).output
    # Activations go before the interleaving, where the layer takes them into its epilogue.
    while is_float(last.output) and (user := graph.sole_user(last.output)) and Trait.ACTIVATION in lookup(user.op).traits:
        value = graph.add_node(user.op, [value], user.attrs, names=[f"{user.output.name}.conv"], loc=user.loc, before=node).output
        last = user
    steps = _interleave(value, at, rows, columns, out)
    for i, (op, step) in enumerate(steps[:-1]):
        value = graph.add_node(op, [value], step, names=[f"{result.name}.phases{i}"], loc=node.loc, before=node).output
    op, step = steps[-1]
    replace(graph, last, op, [value], step, loc=node.loc)


def _interleave(
    value: Value, at: ConvTransposeAttrs, rows: Phases, columns: Phases, out: tuple[Any, ...]
) -> list[tuple[str, Any]]:
    """Data movement from [n, g * s * s * o, q, q] to the result's shape."""
    batch, channels = out[:2]
    inner = (at.groups, rows.stride, columns.stride, channels // at.groups)
    steps: list[tuple[str, Any]] = []
    if (rows.stride, columns.stride) != (1, 1):
        joined = (batch, rows.count * rows.stride, columns.count * columns.stride, channels)
        steps = [
            ("Transpose", TransposeAttrs((0, 2, 3, 1))),
            ("Reshape", ReshapeAttrs((batch, rows.count, columns.count, *inner))),
            ("Transpose", TransposeAttrs((0, 1, 4, 2, 5, 3, 6))),
            ("Reshape", ReshapeAttrs(joined)),
            ("Transpose", TransposeAttrs((0, 3, 1, 2))),
        ]
    starts, sizes = (rows.crop, columns.crop), (rows.count * rows.stride, columns.count * columns.stride)
    if sizes != out[2:] or not steps:
        ends = tuple(-1 if s + o == size else s + o for s, o, size in zip(starts, out[2:], sizes, strict=True))
        steps.append(("Slice", SliceAttrs((0, 0, *starts), (-1, -1, *ends), (1, 1, 1, 1))))
    return steps


def _weights(graph: Graph, node: Node, rows: Phases, columns: Phases) -> Value:
    """Weights [g * s * s * o, c / g, taps, taps] from [c, o, kh, kw]; taps that no phase has are zero."""
    weight, groups = node.inputs[1], node.attrs.groups
    elem, data = weight.type.elem, weight.array
    _, per_out, *_ = data.shape
    grouped = data.reshape(groups, -1, *data.shape[1:])
    zero = elem.zero_point[0] if isinstance(elem, Quant) else 0
    shape = (groups, rows.stride, columns.stride, per_out, grouped.shape[1], rows.taps, columns.taps)
    full = np.full(shape, zero, data.dtype)
    for r, i, s, j in np.ndindex(rows.stride, rows.taps, columns.stride, columns.taps):
        ky, kx = rows.kernel[r][i], columns.kernel[s][j]
        if ky >= 0 and kx >= 0:
            full[:, r, s, :, :, i, j] = grouped[..., ky, kx].swapaxes(1, 2)
    flat = full.reshape(-1, *shape[4:])
    if isinstance(elem, Quant):
        elem = _per_phase(elem, groups, rows.stride * columns.stride, per_out)
    return graph.add_constant(f"{weight.name}.phases", flat, weight.type.with_shape(flat.shape).with_elem(elem))


def _per_phase(elem: Quant, groups: int, count: int, width: int) -> Quant:
    """The type of a constant along [groups, phases, width] from that along [width] or [groups, width]."""
    if elem.per_tensor:
        return elem
    scales = np.asarray(elem.scale).reshape(-1, 1, width)
    wide = np.broadcast_to(scales, (groups, count, width))
    return replace_fields(elem, scale=tuple(float(s) for s in wide.reshape(-1)), axis=0)


def _bias(graph: Graph, bias: Value, groups: int, count: int) -> Value:
    """Bias [g * s * s * o] from [g * o]."""
    data, elem = bias.array.reshape(groups, 1, -1), bias.type.elem
    flat = np.broadcast_to(data, (groups, count, data.shape[-1])).reshape(-1)
    if isinstance(elem, Quant):
        elem = _per_phase(elem, groups, count, data.shape[-1])
    return graph.add_constant(f"{bias.name}.phases", flat, TensorType(flat.shape, elem))
