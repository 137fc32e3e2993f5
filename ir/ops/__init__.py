"""The op table: importing this package registers every operator."""

from bevel.ir.ops import convolution, elementwise, integer, movement, normalize, pool, recurrent, reduce, select_axis
from bevel.ir.ops.op import Call, Cost, NoAttrs, Op, PruneRule, QuantRule, Trait, lookup, table

__all__ = [
    "Call",
    "Cost",
    "NoAttrs",
    "Op",
    "PruneRule",
    "QuantRule",
    "Trait",
    "convolution",
    "elementwise",
    "integer",
    "lookup",
    "movement",
    "normalize",
    "pool",
    "recurrent",
    "reduce",
    "select_axis",
    "table",
]
