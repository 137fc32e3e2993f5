"""Derived loop kernels: every operator of the op table on every CPU.

Importing this package registers the definitions. `GENERATORS` are, in order of preference: "vector" (explicit vector loops
over contiguous elements), "generic" (any layout) and "generic.conv" (convolutions and GEMMs).
"""

from bevel.backends.generic import (
    border,
    channel,
    conv_computed,
    elementwise,
    fold,
    grid_sample,
    index,
    logic,
    matmul,
    movement,
    nms,
    norm,
    product,
    recurrent,
    reduction,
    resize,
    topk,
    window,
)
from bevel.backends.generic.conv import GenericConv
from bevel.backends.generic.definition import DEFINITIONS, define
from bevel.backends.generic.generator import NodeGenerator

VECTOR = NodeGenerator("vector", vector=True)
GENERIC = NodeGenerator("generic", vector=False)
GENERIC_CONV = GenericConv()
GENERATORS = (VECTOR, GENERIC, GENERIC_CONV)

__all__ = [
    "DEFINITIONS",
    "GENERATORS",
    "GENERIC",
    "VECTOR",
    "NodeGenerator",
    "border",
    "channel",
    "conv_computed",
    "define",
    "elementwise",
    "fold",
    "grid_sample",
    "index",
    "logic",
    "matmul",
    "movement",
    "nms",
    "norm",
    "product",
    "recurrent",
    "reduction",
    "resize",
    "topk",
    "window",
]
