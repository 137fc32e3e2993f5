"""Pass `calibrate`: observe a float graph on data and give its values quantized types.

    %c: f32 = Conv(%x: f32, %w: f32, %b: f32)         %c: f32 = Conv(%x: q8, %w: q8, %b: q32)
    %r: f32 = Relu(%c)                          ->    %r: q8 = Relu(%c)
    %s: f32 = Softmax(%r)                             %s: q8 = Softmax(%r)

The op table's quantization rule says how each result is typed. A result that only a Relu or Clip reads stays float: the clamp
moves into its producer, so one rounding is left. Layers without an integer form, or named in `keep_float`, stay float islands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevel.errors import InvalidPlan, UsageError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import QuantRule, Trait, lookup
from bevel.ir.ops.integer import SOFTMAX_OUT
from bevel.ir.plan import CompressionPlan, LayerPlan, parse_bits
from bevel.ir.types import F32, Codebook, Int, Quant
from bevel.passes.quantize.bias_correction import InputMean, bias_correction
from bevel.passes.quantize.methods import RangeObserver, parse_method
from bevel.passes.quantize.observation import Observation
from bevel.passes.quantize.observe import Batch, Progress, require_finite, samples_of, walk
from bevel.passes.quantize.pixels import Reals, take_pixels
from bevel.passes.quantize.precision import CODE_BITS, Precision, assign_precision
from bevel.passes.quantize.scales import (
    MAX_ADD_RATIO,
    activation_type,
    bias_codes,
    bias_type,
    constant_type,
    corrected_bias_codes,
)
from bevel.passes.quantize.states import complete, join_ranges, settle, state_ends, type_source
from bevel.passes.quantize.weights import WeightForm, quantize_weights

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Calibrate:
    """Type a FLOAT graph's values from calibration data.

    Attributes:
        method: how the ranges of 8-bit values are chosen, as `parse_method` reads it.
        bits: precision of layers, as `parse_bits` reads it; this and the next four as in `CompressionPlan`.
        stream: bits of the residual stream.
        granularity: what shares a weight scale.
        scales: how weight scales are chosen.
        levels: the values that weights round to.
        low_bit_method: how the ranges of values of fewer than 8 bits are chosen: there clipping has to be weighed against
            rounding.
        bias_correction: correct biases for what rounding the weights does to means (`bias_correction.py`).
        data: batches, each a dict of float32 arrays named like the inputs; read once.
        keep_float: names of node results whose layers stay float.
        layers: what a plan says of single layers, by the names of their results.
        progress: called with "calibrate" and the number of batches done.
        report: called with what was seen and chosen, in execution order.
    """

    name: ClassVar[str] = "calibrate"
    method: str = "minmax"
    bits: str = "w8a8"
    stream: int = 8
    granularity: str = "channel"
    scales: str = "auto"
    levels: str = "uniform"
    low_bit_method: str = "mse"
    bias_correction: bool = True
    data: Iterable[Batch] = field(default=(), compare=False, repr=False)
    keep_float: frozenset[str] = frozenset()
    layers: Mapping[str, LayerPlan] = field(default_factory=dict, compare=False, repr=False)
    progress: Progress | None = field(default=None, compare=False, repr=False)
    report: Callable[[list[Observation]], None] | None = field(default=None, compare=False, repr=False)

    def run(self, graph: Graph) -> Graph:
        """The ANNOTATED graph of `graph`.

        Raises:
            UsageError: `graph` is not at FLOAT level; the method is unknown.
            InvalidPlan: `keep_float` names no layer.
            CalibrationError: see `walk`; also where a layer computes NaN or infinity.
            UnsupportedModel: weights hold NaN or infinity.
        """
        if graph.level is not Level.FLOAT:
            raise UsageError(f"calibrate: graph {graph.name!r} is at {graph.level.value} level already, expected float")
        observer, low_observer = parse_method(self.method), parse_method(self.low_bit_method)
        plan = CompressionPlan(
            "", parse_bits(self.bits), self.stream, self.method, self.granularity, self.scales, self.levels, layers=self.layers
        )
        unknown = self.keep_float - {v.name for node in graph.nodes for v in node.outputs}
        if unknown:
            raise InvalidPlan(f"layers {sorted(unknown)} do not exist in {graph.name!r}; use the names `bevel profile` prints")
        result = graph.clone()
        fixed = take_pixels(result)
        data = Reals(self.data, frozenset(v.name for v in result.inputs if v in fixed)) if fixed else self.data
        if self.bias_correction:
            _add_biases(result)
        islands = _islands(result, self.keep_float)
        precision = assign_precision(result, plan, islands)
        typed = _typed_values(result, islands)
        observers = {
            v: observer() if precision.of(v) == CODE_BITS else low_observer()
            for v in typed
            if _has_own_range(v, typed) and v not in fixed
        }
        sources = [(state, type_source(after, observers)) for state, after in state_ends(result) if state in typed]
        means = {node: InputMean(node) for node in precision.layers} if self.bias_correction else {}
        _observe(result, observers, means, data, self.progress)
        result.level = Level.ANNOTATED
        ranges = {value: watcher.range(1 << precision.of(value)) for value, watcher in observers.items()}
        join_ranges(sources, ranges)
        settle(result, lambda known: _type_values(result, typed, ranges, {**fixed, **known}, precision))
        for node in result.nodes:
            if node not in islands:
                _type_constants(result, node, means.get(node), precision.forms.get(node))
        if self.report is not None:
            self.report([_observation(value, watcher) for value, watcher in observers.items()])
        return result


def _quant(value: Value) -> Quant:
    assert isinstance(value.type.elem, Quant)
    return value.type.elem


def _observation(value: Value, watcher: RangeObserver) -> Observation:
    elem = _quant(value)
    (scale,), (zero,) = elem.scale, elem.zero_point
    lo, hi = scale * (elem.storage.min - zero), scale * (elem.storage.max - zero)
    # Half a step beyond the outermost codes rounds to them: that is no clipping.
    clipped = watcher.outside(lo - scale / 2, hi + scale / 2)
    return Observation(value.name, watcher.observed(), (lo, hi), scale, zero, clipped)


def _add_biases(graph: Graph) -> None:
    """Give every weighted layer a bias, zeros where it has none, in place."""
    for node in graph.nodes:
        if Trait.WEIGHTED in lookup(node.op).traits and len(node.inputs) == 2 and node.inputs[1].is_constant:
            zeros = graph.add_constant(f"{node.output.name}.bias", np.zeros(node.inputs[1].array.shape[0], np.float32))
            twin = graph.add_node(node.op, [*node.inputs, zeros], node.attrs, loc=node.loc, before=node)
            graph.take_name(twin.output, node.output)
            graph.remove(node)


def _observe(
    graph: Graph,
    observers: Mapping[Value, RangeObserver],
    means: Mapping[Node, InputMean],
    data: Iterable[Batch],
    progress: Progress | None,
) -> None:
    """Show all batches to `observers`, and what layers read to `means`."""
    readers: dict[Value, list[InputMean]] = {}
    for node, mean in means.items():
        readers.setdefault(node.inputs[0], []).append(mean)
    done = -1

    def watch(value: Value, array: Array) -> None:
        nonlocal done
        done += value is graph.inputs[0]
        if value in observers:
            require_finite(value, array, done)
            observers[value].update(samples_of(value, array))
        for mean in readers.get(value, ()):
            mean.update(array)

    walk(graph, data, watch, "calibrate", progress)


def _islands(graph: Graph, keep_float: frozenset[str]) -> set[Node]:
    """Nodes that stay float: no integer form, asked for, or an activation that fuses into such a node."""
    islands: set[Node] = set()
    for node in graph.nodes:
        spec = lookup(node.op)
        computed = spec.quant in (QuantRule.FLOAT, QuantRule.NONE) or any(v.name in keep_float for v in node.outputs)
        weights = bool(spec.traits & {Trait.WEIGHTED, Trait.CHANNELWISE}) and not all(v.is_constant for v in node.inputs[1:])
        # Movement takes and gives plain integers as indices beside the reals it moves.
        moves = Trait.MOVEMENT in spec.traits
        moved = [v for v in (*node.inputs, *node.outputs) if not (moves and isinstance(v.type.elem, Int))]
        plain = not moved or any(v.type.elem != F32 for v in moved)
        unbounded = any(v.data is not None and v.type.elem == F32 and not np.isfinite(v.data).all() for v in node.inputs)
        follows = Trait.ACTIVATION in spec.traits and node.inputs[0].producer in islands
        if computed or weights or plain or unbounded or (follows and graph.sole_user(node.inputs[0]) is node):
            islands.add(node)
    return islands


def _typed_values(graph: Graph, islands: set[Node]) -> list[Value]:
    """Float values that get a quantized type: what integer nodes read or leave behind, except in front of a fused clamp."""
    found = [v for v in graph.inputs if v.type.elem == F32 and any(u not in islands for u in v.users)]
    for node in graph.nodes:
        for value in node.outputs:
            if node in islands:
                typed = value.type.elem == F32 and any(u not in islands for u in value.users)
            else:
                user = graph.sole_user(value)
                fuses = user is not None and user not in islands and Trait.ACTIVATION in lookup(user.op).traits
                typed = value.type.elem == F32 and not (fuses and lookup(node.op).quant in (QuantRule.OWN, QuantRule.FUSED))
            if typed:
                found.append(value)
    return complete(graph, found)


def _has_own_range(value: Value, typed: list[Value]) -> bool:
    """True when the type comes from observation: not copied from an operand, not fixed by the operator."""
    node = value.producer
    if node is None or node.op == "Concat":
        return True
    if node.op == "Pad" and node.attrs.value != 0.0 and np.isfinite(node.attrs.value):
        return True
    rule = lookup(node.op).quant
    # What a float island moves has no type to copy.
    moves_reals = rule is QuantRule.SAME and not node.inputs[0].is_constant and node.inputs[0] not in typed
    return moves_reals or rule not in (QuantRule.SAME, QuantRule.FIXED)


def _type_values(
    graph: Graph,
    typed: list[Value],
    ranges: dict[Value, tuple[float, float]],
    fixed: Mapping[Value, Quant],
    precision: Precision,
) -> None:
    """Assign types to `typed` in execution order; those of `fixed` are known."""
    for value in typed:
        value.type = value.type.with_elem(fixed[value] if value in fixed else _type_of(graph, value, ranges, precision))


def _type_of(graph: Graph, value: Value, ranges: dict[Value, tuple[float, float]], precision: Precision) -> Quant:
    node = value.producer
    if value not in ranges:
        assert node is not None
        if lookup(node.op).quant is QuantRule.FIXED:
            return SOFTMAX_OUT
        elem = node.inputs[0].type.elem
        return elem if isinstance(elem, Quant) else constant_type(node.inputs[0].array)
    user = graph.sole_user(value)
    # What only a Concat reads takes the joined type at once: no second rounding, and codes are joined unchanged.
    joined = user.output if user is not None and user.op == "Concat" and node is not None and user.output in ranges else value
    return activation_type(*ranges[joined], floor=_add_floor(node), bits=precision.of(value))


def _add_floor(node: Node | None) -> float:
    """Least output scale for which the factors of an Add or Sub exist, seen through the activations behind it; else 0."""
    while node is not None and Trait.ACTIVATION in lookup(node.op).traits and node.inputs[0].type.elem == F32:
        node = node.inputs[0].producer
    if node is None or node.op not in ("Add", "Sub"):
        return 0.0
    elems = [constant_type(v.array) if v.is_constant else v.type.elem for v in node.inputs]
    return max(elem.scale[0] for elem in elems if isinstance(elem, Quant)) / MAX_ADD_RATIO


def _type_constants(graph: Graph, node: Node, mean: InputMean | None, form: WeightForm | None) -> None:
    """Quantize the weights and bias of a layer, or the constant operands of another operator."""
    if Trait.WEIGHTED in lookup(node.op).traits:
        x = node.inputs[0].type.elem
        assert isinstance(x, Quant)
        assert form is not None
        weights = node.inputs[1].array
        bias = node.inputs[2].array if len(node.inputs) == 3 else np.zeros(weights.shape[0], np.float32)
        chosen, w = quantize_weights(weights, bias, x.scale[0], form, node.output.name)
        retype(graph, node, 1, chosen, w)
        if len(node.inputs) == 3:
            b = bias_type(x.scale[0], w)
            codes = bias_codes(bias, b)
            if mean is not None:
                correction = bias_correction(node, weights, w.dequantize(node.inputs[1].array), mean)
                codes = corrected_bias_codes(codes, correction, b)
            retype(graph, node, 2, codes, b)
        return
    if Trait.CHANNELWISE in lookup(node.op).traits:
        return
    for i, value in enumerate(node.inputs):
        if value.is_constant and value.type.elem == F32:
            elem = constant_type(value.array)
            retype(graph, node, i, elem.quantize(value.array), elem)


def retype(graph: Graph, node: Node, index: int, codes: Array, elem: Quant | Codebook) -> None:
    """Make operand `index` a constant of `codes`; readers of the same constant elsewhere keep theirs."""
    old = node.inputs[index]
    new = graph.add_constant(old.name, codes, old.type.with_elem(elem))
    name = old.name
    graph.set_input(node, index, new)
    if name not in graph:
        graph.rename(new, name)
