"""Products of two activations on integer codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.convolution import matmul_macs, matmul_shape
from bevel.ir.ops.integer import IntMulAttrs, centered, requantize
from bevel.ir.ops.op import INTEGER_ONLY, Call, PruneRule, QuantRule, register, require
from bevel.ir.types import Dim, Quant, TensorType

Array = npt.NDArray[Any]

# Longest reduction whose sums of products of two 8-bit differences, each up to 255, fit int32.
MAX_REDUCTION = (2**31 - 1) // 255**2


def reduction_fits(shape: TensorType) -> bool:
    """Whether sums along the last axis of `shape` have at most MAX_REDUCTION terms, symbolic extents at their upper bound."""
    extent = shape.shape[-1]
    most = extent.hi if isinstance(extent, Dim) else extent
    return most is not None and most <= MAX_REDUCTION


def _infer(attrs: IntMulAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    for t in ins:
        elem = t.elem
        fits = isinstance(elem, Quant) and elem.per_tensor and elem.storage.bits <= 8
        require(fits, f"operand is {elem}, expected codes of at most 8 bits quantized per tensor")
    require(attrs.out.per_tensor, f"result {attrs.out} must be quantized per tensor")
    require(reduction_fits(ins[0]), f"reduction over {ins[0].shape[-1]}: expected at most {MAX_REDUCTION}")
    return (TensorType(matmul_shape(ins), attrs.out),)


def _reference(call: Call, a: Array, b: Array) -> Array:
    at: IntMulAttrs = call.attrs
    # Exact in float64: sums stay below 2^31.
    x, y = (centered(codes, type_).astype(np.float64) for codes, type_ in zip((a, b), call.inputs, strict=True))
    total = (x @ y).astype(np.int64)
    m, n = np.asarray(at.m, np.int64), np.asarray(at.n, np.int64)
    return requantize(total, m, n, at.out.zero_point[0], at.lo, at.hi).astype(at.out.dtype)


register(
    "IntMatMul",
    "Batched product of two activations: int32 sums of (a - za) * (b - zb), rescaled.",
    attrs=IntMulAttrs,
    arity=(2, 2),
    infer=_infer,
    reference=_reference,
    macs=matmul_macs,
    levels=INTEGER_ONLY,
    quant=QuantRule.NONE,
    integer="IntMatMul",
    prune=PruneRule.BLOCKS,
    tolerance=0.0,
)
