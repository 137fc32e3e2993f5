"""Pass `fuse-norms`: the operators that exporters write layer, RMS, instance and group normalization with become one.

%m = ReduceMean(%x) axes=[2]
%d = Sub(%x, %m)
%v = ReduceMean(Mul(%d, %d)) axes=[2]
%n = Div(%d, Sqrt(Add(%v, 1e-5)))
%y = Add(Mul(%n, %scale), %bias)                     ->      %y = LayerNormalization(%x, %scale, %bias) axis=2

%n = Div(%x, Sqrt(Add(ReduceMean(Mul(%x, %x)), 1e-6)))
%y = Mul(%scale, %n)                                 ->      %y = RMSNormalization(%x, %scale) axis=2

%r = Reshape(%x: f32[1,8,6,6]) shape=[1,2,144]
%n = GroupNormalization(%r, 1, 0) groups=2
%s = Reshape(%n) shape=[1,8,6,6]
%y = Add(Mul(%s, %scale), %bias)                     ->      %y = GroupNormalization(%x, %scale, %bias) groups=2

The quotient may be a product with Reciprocal(Sqrt), Sqrt(Reciprocal) or a power of -1/2. Statistics over the channels of images
are layer normalization between two Transposes, those over height and width group normalization of single channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops.movement import TransposeAttrs
from bevel.ir.ops.normalize import GroupNormAttrs, LayerNormAttrs, RmsNormAttrs
from bevel.ir.types import Shape
from bevel.passes.rewrite import float_data, is_float, replace, uniform

Array = npt.NDArray[Any]
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class FuseNorms:
    """Recognise LayerNorm (Ba et al., 2016), RMSNorm (Zhang and Sennrich, 2019), InstanceNorm and GroupNorm (Wu and He, 2018)."""

    name: ClassVar[str] = "fuse-norms"

    def run(self, graph: Graph) -> Graph:
        """The graph with one node for each normalization; equal up to float32 rounding."""
        result = graph.clone()
        for node in result.nodes:
            if node.op in ("Div", "Mul") and (found := _normalization(node)) is not None:
                _rewrite(result, node, found)
            elif node.op == "Reshape":
                _merge_groups(result, node)
        result.prune_dead()
        return result


@dataclass(frozen=True)
class _Found:
    """A normalization without its scale and bias: of `x` over `axes`, with or without taking off the mean."""

    x: Value
    axes: tuple[int, ...]
    epsilon: float
    centered: bool


@dataclass
class _Affine:
    """What follows a normalization: `value` times `scale` plus `bias`, over the extents that these have.

    Attributes:
        last: the last node that is part of it.
        extents: of scale and bias.
        axes: of the result, that scale and bias lie along.
        taken: number of nodes that scale and bias came from.
    """

    last: Node
    extents: tuple[int, ...]
    axes: tuple[int, ...]
    taken: int = 0
    scale: Array = field(init=False)
    bias: Array = field(init=False)

    def __post_init__(self) -> None:
        self.scale, self.bias = np.ones(self.extents), np.zeros(self.extents)

    def take(self, graph: Graph, *ops: str) -> None:
        """Follow products with and sums of constants (those of `ops`) as far as nothing else reads the values between."""
        while is_float(self.last.output) and (user := graph.sole_user(self.last.output)) is not None:
            other = user.inputs[1 if user.inputs[0] is self.last.output else 0] if user.op in ops else None
            row = None if other is None else _along(other, user.output.type.shape, self.axes)
            if row is None or user.output.type.shape != self.last.output.type.shape:
                return
            if user.op == "Mul":
                self.scale, self.bias = self.scale * row, self.bias * row
            else:
                self.bias = self.bias + row
            self.last, self.taken = user, self.taken + 1

    def constants(self, graph: Graph, *, always: bool) -> list[Value]:
        """Scale and bias as constants, as few as needed unless `always` both."""
        name = self.last.output.name
        count = 2 if always or self.bias.any() else 1 if (self.scale != 1).any() else 0
        parts = (("scale", self.scale), ("bias", self.bias))[:count]
        return [graph.add_constant(graph.unique_name(f"{name}.{what}"), data.astype(np.float32)) for what, data in parts]


def _along(value: Value, shape: Shape, axes: tuple[int, ...]) -> Array | None:
    """A constant that broadcasts to `shape` as float64 over `axes`, None where it varies along others or is none."""
    data = float_data(value)
    if data is None or data.ndim > len(shape):
        return None
    data = data.astype(np.float64).reshape((1,) * (len(shape) - data.ndim) + data.shape)
    if any(extent != 1 for axis, extent in enumerate(data.shape) if axis not in axes):
        return None
    extents = tuple(d for d in (shape[axis] for axis in axes) if isinstance(d, int))
    return np.broadcast_to(data.reshape([data.shape[axis] for axis in axes]), extents)


# Recognition ---------------------------------------------------------------------------------------------------------------


def _made_by(value: Value, *ops: str) -> Node | None:
    """The producer of an unquantized value if it is one of `ops`."""
    return value.producer if value.producer is not None and value.producer.op in ops and is_float(value) else None


def _square_root(value: Value) -> Value | None:
    node = _made_by(value, "Sqrt")
    return node.inputs[0] if node is not None else None


def _inverse_root(value: Value) -> Value | None:
    """What `value` is the reciprocal square root of."""
    node = _made_by(value, "Reciprocal", "Div", "Sqrt", "Power")
    if node is None:
        return None
    if node.op == "Power":
        return node.inputs[0] if node.attrs.exponent == -0.5 else None
    if node.op == "Sqrt":
        inner = _made_by(node.inputs[0], "Reciprocal")
        return inner.inputs[0] if inner is not None else None
    if node.op == "Div":
        return _square_root(node.inputs[1]) if uniform(node.inputs[0]) == 1.0 else None
    return _square_root(node.inputs[0])


def _quotient(node: Node) -> tuple[Value, Value] | None:
    """(numerator, radicand) where `node` divides by a square root."""
    a, b = node.inputs
    if node.op == "Div":
        radicand = _square_root(b)
        return None if radicand is None else (a, radicand)
    for numerator, factor in ((a, b), (b, a)):
        if (radicand := _inverse_root(factor)) is not None:
            return numerator, radicand
    return None


def _mean_square(value: Value) -> tuple[Node, Value] | None:
    """The ReduceMean node and the value whose squares it averages."""
    mean = _made_by(value, "ReduceMean")
    square = _made_by(mean.inputs[0], "Mul") if mean is not None and mean.attrs.keepdims else None
    if mean is None or square is None or square.inputs[0] is not square.inputs[1]:
        return None
    return mean, square.inputs[0]


def _centered(value: Value) -> tuple[Value, tuple[int, ...]] | None:
    """(x, axes) where `value` is x less its mean over axes."""
    node = _made_by(value, "Sub")
    mean = _made_by(node.inputs[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or mean.inputs[0] is not node.inputs[0] or not mean.attrs.keepdims:
        return None
    return node.inputs[0], mean.attrs.axes


def _normalization(node: Node) -> _Found | None:
    """The normalization that ends in the quotient `node`."""
    parts = _quotient(node)
    raised = _made_by(parts[1], "Add") if parts is not None else None
    if parts is None or raised is None:
        return None
    numerator = parts[0]
    for variance, number in (raised.inputs, raised.inputs[::-1]):
        epsilon, squares = uniform(number), _mean_square(variance)
        if epsilon is None or squares is None:
            continue
        mean, squared = squares
        above, below = _centered(numerator), _centered(squared)
        if above is not None and above == below and above[1] == mean.attrs.axes:
            return _Found(above[0], mean.attrs.axes, epsilon, centered=True)
        if squared is numerator:
            return _Found(numerator, mean.attrs.axes, epsilon, centered=False)
    return None


# Rewriting -----------------------------------------------------------------------------------------------------------------


def _static(shape: Shape, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    extents = tuple(d for d in (shape[axis] for axis in axes) if isinstance(d, int))
    return extents if len(extents) == len(axes) else None


def _affine(graph: Graph, node: Node, axes: tuple[int, ...], *ops: str) -> _Affine | None:
    """What follows `node` along `axes`, None where their extents are symbolic."""
    extents = _static(node.output.type.shape, axes)
    if extents is None or not axes:
        return None
    affine = _Affine(node, extents, axes)
    affine.take(graph, *ops)
    return affine


def _rewrite(graph: Graph, node: Node, found: _Found) -> None:
    rank, axes = found.x.type.rank, found.axes
    images = rank == 4 and axes == (1,)
    trailing = axes == tuple(range(rank - len(axes), rank))
    affine = _affine(graph, node, axes, *(("Mul", "Add") if found.centered else ("Mul",))) if images or trailing else None
    if found.centered and rank >= 3 and axes == tuple(range(2, rank)):
        # Rows and planes are normalized alike; where the parameters fit both, three axes are a sequence and four an image.
        planes = _affine(graph, node, (1,), "Mul", "Add")
        if planes is not None and (affine is None or (planes.taken, rank) > (affine.taken, 3)):
            operands = [found.x, *planes.constants(graph, always=True)]
            replace(graph, planes.last, "GroupNormalization", operands, GroupNormAttrs(planes.extents[0], found.epsilon))
            return
    if affine is None:
        return
    op = "LayerNormalization" if found.centered else "RMSNormalization"
    axis = 3 if images else axes[0]
    attrs = LayerNormAttrs(axis, found.epsilon) if found.centered else RmsNormAttrs(axis, found.epsilon)
    parameters = affine.constants(graph, always=False)
    last = affine.last
    if not images:
        replace(graph, last, op, [found.x, *parameters], attrs)
        return
    name = last.output.name
    turned = graph.add_node(
        "Transpose", [found.x], TransposeAttrs(NHWC), names=[graph.unique_name(f"{name}.nhwc")], loc=node.loc, before=last
    )
    done = graph.add_node(
        op, [turned.output, *parameters], attrs, names=[graph.unique_name(f"{name}.rows")], loc=node.loc, before=last
    )
    replace(graph, last, "Transpose", [done.output], TransposeAttrs(NCHW))


def _merge_groups(graph: Graph, node: Node) -> None:
    """Normalization of [N, groups, ...] between two Reshapes becomes that of the groups of channels."""
    norm = _made_by(node.inputs[0], "GroupNormalization")
    split = _made_by(norm.inputs[0], "Reshape") if norm is not None else None
    if norm is None or split is None or not is_float(split.inputs[0]):
        return
    x, rows = split.inputs[0], split.output.type.shape
    shape, groups = x.type.shape, norm.attrs.groups
    channels, spatial = _static(shape, (1,)), _static(shape, tuple(range(2, len(shape))))
    if channels is None or spatial is None or shape != node.output.type.shape or shape[0] != rows[0] or rows[1] != groups:
        return
    parameters = [float_data(v) for v in norm.inputs[1:]]
    if channels[0] % groups or prod(spatial) == 0 or any(p is None for p in parameters):
        return
    affine = _Affine(node, channels, (1,))
    affine.scale, affine.bias = (np.repeat(p.astype(np.float64), channels[0] // groups) for p in parameters if p is not None)
    affine.take(graph, "Mul", "Add")
    replace(graph, affine.last, "GroupNormalization", [x, *affine.constants(graph, always=True)], norm.attrs)
