"""The context in which ANNOTATED nodes become INTEGER nodes, and the table of rules by op.

A rule gets a `Lowering`, a node whose data operands and final result are quantized per tensor, and the node's `Epilogue`: the
value the lowered node stands for (the node's own result, or that of the activations fused behind it), its type and its clamp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UnsupportedModel
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import NoAttrs, Trait, lookup
from bevel.ir.ops.integer import OutAttrs
from bevel.ir.types import F32, I8, Codebook, Int, Quant, TensorType

Array = npt.NDArray[Any]
# Whether a number is at least 0, as codes of one bit: 1 + x, clamped, for any whole number x.
AT_LEAST_ZERO = Quant(Int(1, signed=False), (1.0,), (1,))


@dataclass(frozen=True)
class Epilogue:
    """Where a lowered node ends.

    Attributes:
        value: source value that the result replaces.
        out: its quantized type.
        lo: least code, from the type and fused clamps.
        hi: greatest code.
        fused: activation nodes between the node and `value`.
    """

    value: Value
    out: Quant
    lo: int
    hi: int
    fused: tuple[Node, ...] = ()


def quant(value: Value) -> Quant:
    """The quantized element type of `value`.

    Raises:
        UnsupportedModel: it has another type.
    """
    if not isinstance(value.type.elem, Quant):
        raise UnsupportedModel(f"value {value.name!r} has type {value.type}, expected a quantized one")
    return value.type.elem


def is_code(value: Value) -> bool:
    """True for a value of int8 or fewer bits with one scale and zero point: what integer operators take and give."""
    elem = value.type.elem
    if not isinstance(elem, Quant) or not elem.per_tensor or elem.storage.bipolar:
        return False
    return elem.storage.bits < I8.bits or elem.storage == I8


def narrows(wide: Quant, narrow: Quant) -> bool:
    """True where `narrow` holds some of the reals of `wide` and no others: rounding to both is rounding to `narrow`."""
    if wide.scale != narrow.scale or not (wide.per_tensor and narrow.per_tensor):
        return False
    shift = wide.zero_point[0] - narrow.zero_point[0]
    return wide.storage.min - shift <= narrow.storage.min and narrow.storage.max <= wide.storage.max - shift


def code_of(real: float, out: Quant) -> int:
    """The code of `real`, clamped to the storage range; infinities give its ends."""
    if np.isinf(real):
        return out.storage.min if real < 0 else out.storage.max
    return int(out.quantize(np.asarray([real], np.float32))[0])


def clamp_bounds(node: Node) -> tuple[float, float]:
    """Real bounds of an ACTIVATION node."""
    return (0.0, np.inf) if node.op == "Relu" else (float(node.attrs.lo), float(node.attrs.hi))


def operands_are_codes(node: Node) -> bool:
    """True when every operand is a code: what most rules need."""
    return all(is_code(v) for v in node.inputs)


Rule = Callable[["Lowering", Node, Epilogue], None]
Fits = Callable[[Node], bool]
_RULES: dict[str, tuple[Rule, Fits]] = {}


def lowers(*ops: str, fits: Fits = operands_are_codes) -> Callable[[Rule], Rule]:
    """Register the decorated function as the integer form of `ops`, for nodes whose operands satisfy `fits`."""

    def register(rule: Rule) -> Rule:
        for op in ops:
            _RULES[op] = rule, fits
        return rule

    return register


def rule_for(node: Node) -> Rule | None:
    """The rule that lowers `node`, None where it has no integer form."""
    rule, fits = _RULES.get(node.op, (None, operands_are_codes))
    return rule if fits(node) else None


WholeRule = Callable[["Lowering", Node], None]
_WHOLE_RULES: dict[str, WholeRule] = {}


def lowers_whole(*ops: str) -> Callable[[WholeRule], WholeRule]:
    """Register the integer form of `ops` on codes whose results are several, or plain integers: no epilogue fuses into them."""

    def register(rule: WholeRule) -> WholeRule:
        _WHOLE_RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def whole_rule_for(node: Node) -> WholeRule | None:
    """The rule of `lowers_whole` that lowers `node`, None where it has none or reads anything but codes."""
    return _WHOLE_RULES.get(node.op) if operands_are_codes(node) else None


class Lowering:
    """One run of to-integer: the source graph, the graph being built, and which value became which.

    Attributes:
        source: ANNOTATED graph, never changed.
        target: INTEGER graph under construction.
        signs: values of `source` whose type says -1 or +1 (`settle_codes`): rounding to it is taking the sign.
    """

    def __init__(self, source: Graph, signs: Set[Value] = frozenset()) -> None:
        self.source = source
        self.signs = signs
        self.target = Graph(source.name, Level.INTEGER, source.source_hash)
        self.target.states = dict(source.states)
        self._env: dict[Value, Value] = {}
        self._reals: dict[Value, Value] = {}
        for value in source.inputs:
            self._env[value] = self.target.add_input(value.name, value.type)

    def epilogue(self, node: Node) -> Epilogue | None:
        """The node's end behind fused activations, or None when it does not end in a code."""
        if len(node.outputs) != 1:
            return None
        value, lo, hi, fused = node.output, -np.inf, np.inf, list[Node]()
        while Trait.MOVEMENT not in lookup(node.op).traits and value not in self.signs:
            user = self.source.sole_user(value)
            if user is None or Trait.ACTIVATION not in lookup(user.op).traits:
                break
            # Clamping codes equals quantizing clamped reals, but only where no second type rounds in between.
            between, final = value.type.elem, user.output.type.elem
            if between not in (F32, final) and not (
                isinstance(between, Quant) and isinstance(final, Quant) and narrows(between, final)
            ):
                break
            least, most = clamp_bounds(user)
            lo, hi = min(max(lo, least), most), min(max(hi, least), most)
            value = user.output
            fused.append(user)
        if not is_code(value):
            return None
        out = quant(value)
        return Epilogue(value, out, code_of(lo, out), code_of(hi, out), tuple(fused))

    def fresh(self, hint: str) -> str:
        """A name free in both graphs, so that source names stay available to the values that carry them."""
        i, name = 0, hint
        while name in self.source or name in self.target:
            i += 1
            name = f"{hint}.{i}"
        return name

    def operand(self, value: Value) -> Value:
        """The target's value for `value`: codes where it is quantized, reals where it is not."""
        if value not in self._env:
            self._env[value] = self.target.add_constant(value.name, value.array, value.type)
        return self._env[value]

    def real(self, value: Value) -> Value:
        """`value` as float32, through one Dequantize for all its readers where it is quantized."""
        if not isinstance(value.type.elem, Quant | Codebook):
            return self.operand(value)
        if value not in self._reals:
            if value.is_constant:
                reals = value.type.elem.dequantize(value.array)
                self._reals[value] = self.target.add_constant(self.fresh(f"{value.name}.real"), reals)
            else:
                border = self.target.add_node(
                    "Dequantize", [self.operand(value)], NoAttrs(), names=[self.fresh(f"{value.name}.real")], loc=value.name
                )
                self._reals[value] = border.output
        return self._reals[value]

    def emit(self, op: str, inputs: Sequence[Value], attrs: Any, hint: str, loc: str) -> Value:
        """Add a node whose result is an intermediate named after `hint`."""
        return self.target.add_node(op, inputs, attrs, names=[self.fresh(hint)], loc=loc).output

    def finish(self, source: Value, op: str, inputs: Sequence[Value], attrs: Any, loc: str) -> None:
        """Add the node whose result replaces source value `source` and carries its name."""
        self._env[source] = self.target.add_node(op, inputs, attrs, names=[source.name], loc=loc).output

    def bind(self, source: Value, value: Value) -> None:
        """Let `value` of the target stand for `source`."""
        self._env[source] = value

    def constant(self, hint: str, data: Array, type_: TensorType | None = None) -> Value:
        """Add a derived constant."""
        return self.target.add_constant(self.fresh(hint), data, type_)

    def table(self, function: Callable[[Array], Array], x: Quant, end: Epilogue) -> Value:
        """The table of `function` over all codes of type `x`, computed in float64 and clamped to the epilogue's bounds.

        Codes where the function is undefined give the code of real zero.
        """
        codes = np.arange(x.storage.min, x.storage.max + 1, dtype=np.float64)
        with np.errstate(all="ignore"):
            y = function(x.scale[0] * (codes - x.zero_point[0]))
        steps = np.rint(np.where(np.isnan(y), 0.0, y) / end.out.scale[0]) + end.out.zero_point[0]
        return self.constant(f"{end.value.name}.table", np.clip(steps, end.lo, end.hi).astype(end.out.dtype))

    def finish_sign(self, source: Value, positive: Value, loc: str) -> None:
        """`source`, one of `signs`, from codes of AT_LEAST_ZERO."""
        out = quant(source)
        end = Epilogue(source, out, out.storage.min, out.storage.max)
        table = self.table(lambda r: np.where(r < 0, -out.scale[0], out.scale[0]), AT_LEAST_ZERO, end)
        self.finish(source, "Lut", [positive, table], OutAttrs(out), loc)

    def convert(self, value: Value, x: Quant, out: Quant, hint: str, loc: str) -> Value:
        """Codes of type `x` as codes of type `out`: unchanged where the types agree, else through a table."""
        if x == out:
            return value
        end = Epilogue(value, out, out.storage.min, out.storage.max)
        return self.emit("Lut", [value, self.table(lambda r: r, x, end)], OutAttrs(out), hint, loc)
