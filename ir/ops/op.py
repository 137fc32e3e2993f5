"""The op table's row type and its registry.

One `Op` says everything the house knows of an operator: frontend, verifier, interpreter, pruner, quantizer, cost model,
kernel derivation and the generated coverage table all read it. To add an operator, write its attribute dataclass, its row,
and its generic kernel (docs/adding.md).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy.typing as npt

from bevel.errors import UnsupportedOp, VerifyError
from bevel.ir.graph import Level, Node
from bevel.ir.types import F16, F32, Codebook, Dim, Float, Quant, TensorType

Array = npt.NDArray[Any]


class Trait(enum.Enum):
    """Structural properties that passes and backends may rely on.

    ELEMENTWISE: each result element depends on the operand elements of the same (broadcast) index only.
    UNARY: elementwise with one data operand.
    MOVEMENT: copies elements without computing; meaningful on codes as well as on reals.
    VIEW: a MOVEMENT that keeps row-major order, so it costs nothing.
    ACTIVATION: a monotone clamp that can move into the producer's epilogue.
    WEIGHTED: operand 1 is a weight, operand 2 (if any) a bias.
    CHANNELWISE: a function of one data operand with parameters for each index of axis 1 in the other operands. Constant
        parameters stay reals when the graph is quantized: they go into a table of codes.
    """

    ELEMENTWISE = "elementwise"
    UNARY = "unary"
    MOVEMENT = "movement"
    VIEW = "view"
    ACTIVATION = "activation"
    WEIGHTED = "weighted"
    CHANNELWISE = "channelwise"


class QuantRule(enum.Enum):
    """How calibration types the op's result.

    OWN: its own observed range. SAME: the data operand's type. FIXED: a constant type that the op defines.
    FUSED: its own range, and the producer's result stays unquantized because the op moves into its epilogue.
    FLOAT: no integer form: a float island. NONE: appears only after quantization.
    """

    OWN = "own"
    SAME = "same"
    FIXED = "fixed"
    FUSED = "fused"
    FLOAT = "float"
    NONE = "none"


class PruneRule(enum.Enum):
    """How channels map through the op.

    PRODUCES: makes new channels from a weight's output axis. CARRIES: result channel i is operand channel i (all data
    operands are coupled). FLATTENS: operand channels become blocks of a flattened axis. REORDERS: axes move.
    CONCATENATES: channel ranges are joined. BLOCKS: channels must not change across it.
    """

    PRODUCES = "produces"
    CARRIES = "carries"
    FLATTENS = "flattens"
    REORDERS = "reorders"
    CONCATENATES = "concatenates"
    BLOCKS = "blocks"


@dataclass(frozen=True)
class Cost:
    """Work of one node: multiply-accumulates (or scalar operations where there are none) and bytes moved once."""

    macs: int
    bytes: int


@dataclass(frozen=True)
class NoAttrs:
    """Attributes of an op that has none."""


@dataclass(frozen=True)
class Call:
    """What a reference implementation sees besides its arrays."""

    attrs: Any
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]


def real_type(type_: TensorType) -> TensorType:
    """The type of the reals that quantized elements stand for; other types unchanged."""
    return type_.with_elem(F32) if isinstance(type_.elem, Quant | Codebook) else type_


InferRule = Callable[[Any, tuple[TensorType, ...]], tuple[TensorType, ...]]
Reference = Callable[..., Any]
MacRule = Callable[[Any, tuple[TensorType, ...], tuple[TensorType, ...]], int]


def elements(types: tuple[TensorType, ...]) -> int:
    """Elements of the first type, symbolic dimensions as in `bounded_extent`."""
    return prod(bounded_extent(d) for d in types[0].shape)


def bounded_extent(dim: int | Dim) -> int:
    """An extent to count work with: a symbolic dimension's upper bound, its lower one where it has no other."""
    if isinstance(dim, int):
        return dim
    return dim.lo if dim.hi is None else dim.hi


def one_per_result(_attrs: Any, _ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> int:
    """MAC rule of elementwise ops: one operation for each result element."""
    return elements(outs)


def no_macs(_attrs: Any, _ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    """MAC rule of data movement."""
    return 0


@dataclass(frozen=True)
class Op:
    """One row of the op table.

    Attributes:
        name: the operator; FLOAT ops carry ONNX names.
        doc: one line: what it computes.
        attrs: frozen dataclass of its attributes.
        arity: fewest and most operands (None: any number).
        infer: type rule: attributes and operand types to result types; raises VerifyError on a violation.
        reference: numpy semantics: (Call, *arrays) -> array or tuple of arrays.
        macs: MAC count rule.
        levels: graph levels where the op may stand.
        traits: structural properties.
        quant: quantization rule.
        integer: INTEGER-level op(s) it becomes, for the coverage table; None where it has no integer form.
        prune: pruning rule.
        tolerance: largest max|d| / max|ref| a float backend may show against the reference.
    """

    name: str
    doc: str
    attrs: type[Any]
    arity: tuple[int, int | None]
    infer: InferRule
    reference: Reference
    macs: MacRule
    levels: frozenset[Level]
    traits: frozenset[Trait]
    quant: QuantRule
    integer: str | None
    prune: PruneRule
    tolerance: float

    def infer_node(self, node: Node, *, as_real: bool = False) -> tuple[TensorType, ...]:
        """Result types of `node` by this op's type rule.

        Args:
            node: a node of this op.
            as_real: see quantized operands as the reals they stand for, as ANNOTATED level computes.

        Raises:
            VerifyError: wrong number of operands or operand types, with the node's origin.
        """
        least, most = self.arity
        count = len(node.inputs)
        if count < least or (most is not None and count > most):
            raise VerifyError(f"{self.name} {node.loc!r}: {count} operands, expected {least}..{most or 'any'}")
        if not isinstance(node.attrs, self.attrs):
            raise VerifyError(f"{self.name} {node.loc!r}: attributes are {node.attrs!r}, expected {self.attrs.__name__}")
        operands = tuple(real_type(v.type) if as_real else v.type for v in node.inputs)
        try:
            return self.infer(node.attrs, operands)
        except VerifyError as error:
            raise VerifyError(f"{self.name} {node.loc!r}: {error}") from None

    def checked_types(self, node: Node, level: Level, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """`types` if they may be the result types of `node` at `level`.

        They must be what the type rule says; at ANNOTATED level a real result may carry a Quant annotation, and at FLOAT level a
        float32 result may be stored in half precision.

        Raises:
            VerifyError: they differ from the rule, or operand types break it.
        """
        inferred = self.infer_node(node, as_real=level is Level.ANNOTATED)
        if len(types) != len(inferred):
            raise VerifyError(f"{self.name} {node.loc!r}: {len(types)} results, expected {len(inferred)}")
        for found, rule in zip(types, inferred, strict=True):
            annotated = level is Level.ANNOTATED and isinstance(found.elem, Quant) and isinstance(rule.elem, Float)
            annotated |= level is Level.FLOAT and found.elem == F16 and rule.elem == F32
            if found != (rule.with_elem(found.elem) if annotated else rule):
                raise VerifyError(f"{self.name} {node.loc!r}: result is {found}, its type rule says {rule}")
        return tuple(types)

    def cost(self, node: Node) -> Cost:
        """MACs and bytes of `node`, symbolic dimensions at their upper bounds where they have one."""
        ins = tuple(v.type for v in node.inputs)
        outs = tuple(v.type for v in node.outputs)
        moved = sum(elements((t,)) * t.dtype.itemsize for t in (*ins, *outs))
        return Cost(self.macs(node.attrs, ins, outs), moved)


_TABLE: dict[str, Op] = {}

EVERYWHERE = frozenset(Level)
FLOAT_ONLY = frozenset({Level.FLOAT, Level.ANNOTATED})
INTEGER_ONLY = frozenset({Level.INTEGER})


def register(
    name: str,
    doc: str,
    *,
    attrs: type[Any] = NoAttrs,
    arity: tuple[int, int | None],
    infer: InferRule,
    reference: Reference,
    macs: MacRule,
    levels: frozenset[Level],
    traits: set[Trait] | frozenset[Trait] = frozenset(),
    quant: QuantRule,
    integer: str | None,
    prune: PruneRule,
    tolerance: float = 1e-5,
) -> Op:
    """Add a row to the op table.

    Raises:
        ValueError: the name is taken.
    """
    if name in _TABLE:
        raise ValueError(f"op {name} is registered twice")
    op = Op(name, doc, attrs, arity, infer, reference, macs, levels, frozenset(traits), quant, integer, prune, tolerance)
    _TABLE[name] = op
    return op


def withdraw(name: str) -> None:
    """Remove the row of `name`: a custom operator that is about to be registered anew."""
    del _TABLE[name]


def lookup(name: str) -> Op:
    """The row of `name`.

    Raises:
        UnsupportedOp: there is none.
    """
    try:
        return _TABLE[name]
    except KeyError:
        if "." in name:
            raise UnsupportedOp(f"operator {name!r} is a custom one: give its C file with --custom-op {name}=FILE.c") from None
        raise UnsupportedOp(f"operator {name!r} is not in the op table; `bevel ops` lists the known ones") from None


def table() -> tuple[Op, ...]:
    """All rows, sorted by name."""
    return tuple(_TABLE[name] for name in sorted(_TABLE))


def require_real(*types: TensorType) -> None:
    """Raise VerifyError unless every operand is a float or stands for one."""
    for t in types:
        require(isinstance(t.elem, Float | Quant | Codebook), f"operand is {t.elem}, expected a real type")


def require_per_tensor(type_: TensorType) -> None:
    """Raise VerifyError when a quantized operand has channel scales, which the op would misplace."""
    require(not isinstance(type_.elem, Quant) or type_.elem.per_tensor, f"operand {type_.elem} must be quantized per tensor")


def require_axis(axis: int, rank: int) -> None:
    """Raise VerifyError unless `axis` counts from the front into `rank` dimensions."""
    require(0 <= axis < rank, f"axis {axis} outside rank {rank}")


def require(condition: bool, message: str) -> None:
    """Raise VerifyError(message) unless `condition` holds; used by type rules."""
    if not condition:
        raise VerifyError(message)
