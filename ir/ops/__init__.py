"""The op table: importing this package registers every operator."""

from bevel.ir.ops import (
    convolution,
    elementwise,
    functions,
    index,
    integer,
    logic,
    movement,
    normalize,
    pool,
    recurrent,
    reduce,
    resize,
    select_axis,
)
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
    "functions",
    "index",
    "integer",
    "logic",
    "lookup",
    "movement",
    "normalize",
    "pool",
    "recurrent",
    "reduce",
    "resize",
    "select_axis",
    "table",
]
