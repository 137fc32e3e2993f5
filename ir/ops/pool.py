"""Pooling over NCHW tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import (
    EVERYWHERE,
    FLOAT_ONLY,
    Call,
    NoAttrs,
    PruneRule,
    QuantRule,
    Trait,
    elements,
    register,
    require,
    require_real,
)
from bevel.ir.ops.window import output_hw, require_covered, windows
from bevel.ir.types import F32, I64, Int, TensorType

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PoolAttrs:
    """Pooling window; pads are (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class AveragePoolAttrs(PoolAttrs):
    """Average pooling: whether the border counts as elements."""

    count_include_pad: bool = False


@dataclass(frozen=True)
class MaxPoolIndicesAttrs(PoolAttrs):
    """Max pooling with positions: whether those count down the columns of a plane instead of along its rows."""

    column_major: bool = False


def pool_shape(attrs: PoolAttrs, x: TensorType) -> tuple[Any, ...]:
    """Result shape of pooling x [N, C, H, W]."""
    require(x.rank == 4, f"expected [N,C,H,W], found rank {x.rank}")
    require_covered(x.shape, attrs)
    return (*x.shape[:2], *output_hw(x.shape, attrs))


def window_counts(attrs: AveragePoolAttrs, height: int, width: int) -> Array:
    """Elements each window averages over, int64 [OH, OW]."""
    fill = 1.0 if attrs.count_include_pad else 0.0
    ones = np.ones((1, 1, height, width))
    return np.asarray(windows(ones, attrs, fill).sum(axis=(-1, -2))[0, 0], dtype=np.int64)


def _pool_macs(attrs: PoolAttrs, _ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> int:
    return elements(outs) * attrs.kernel[0] * attrs.kernel[1]


def _global_macs(_attrs: Any, ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    return elements(ins)


def _average_reference(call: Call, x: Array) -> Array:
    total = windows(x, call.attrs, 0.0).sum(axis=(-1, -2), dtype=np.float64)
    return np.asarray(total / window_counts(call.attrs, x.shape[2], x.shape[3])).astype(x.dtype)


def _average_infer(attrs: AveragePoolAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    return (TensorType(pool_shape(attrs, ins[0]), F32),)


def _global_infer(_attrs: NoAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    x = ins[0]
    require(x.rank == 4, f"expected [N,C,H,W], found rank {x.rank}")
    require(all(isinstance(d, int) and d >= 1 for d in x.shape[2:]), f"height and width of {x} must be known and positive")
    return (TensorType((*x.shape[:2], 1, 1), F32),)


def _max_infer(attrs: PoolAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    elem = ins[0].elem
    if not (isinstance(elem, Int) and elem.bits == 8):
        require_real(*ins)
    return (TensorType(pool_shape(attrs, ins[0]), ins[0].elem),)


def _max_reference(call: Call, x: Array) -> Array:
    # Works on reals and on codes: the border holds the lowest value of the type.
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return np.asarray(windows(x, call.attrs, lowest).max(axis=(-1, -2)))


def _indices_infer(attrs: MaxPoolIndicesAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    shape = pool_shape(attrs, ins[0])
    require(ins[0].is_static, f"positions in {ins[0]}: expected a shape without symbolic dimensions")
    return TensorType(shape, F32), TensorType(shape, I64)


def _indices_reference(call: Call, x: Array) -> tuple[Array, Array]:
    at: MaxPoolIndicesAttrs = call.attrs
    view = windows(x, at, -np.inf)
    flat = view.reshape(*view.shape[:4], -1)
    (n, c, height, width), (oh, ow) = x.shape, view.shape[2:4]
    ky, kx = np.divmod(flat.argmax(axis=-1), at.kernel[1])
    rows = np.arange(oh)[:, None] * at.strides[0] - at.pads[0] + ky * at.dilations[0]
    columns = np.arange(ow) * at.strides[1] - at.pads[1] + kx * at.dilations[1]
    planes = np.arange(n * c).reshape(n, c, 1, 1) * (height * width)
    within = columns * height + rows if at.column_major else rows * width + columns
    return flat.max(axis=-1), (planes + within).astype(np.int64)


register(
    "AveragePool",
    "Mean of each window of [N,C,H,W]; the border counts only with count_include_pad.",
    attrs=AveragePoolAttrs,
    arity=(1, 1),
    infer=_average_infer,
    reference=_average_reference,
    macs=_pool_macs,
    levels=FLOAT_ONLY,
    quant=QuantRule.OWN,
    integer="IntAveragePool",
    prune=PruneRule.CARRIES,
)
register(
    "GlobalAveragePool",
    "Mean over height and width: [N,C,H,W] to [N,C,1,1].",
    attrs=NoAttrs,
    arity=(1, 1),
    infer=_global_infer,
    reference=lambda _call, x: x.mean(axis=(2, 3), keepdims=True, dtype=np.float64).astype(x.dtype),
    macs=_global_macs,
    levels=FLOAT_ONLY,
    quant=QuantRule.OWN,
    integer="IntAveragePool",
    prune=PruneRule.CARRIES,
)
register(
    "MaxPool",
    "Maximum of each window of [N,C,H,W], on reals or codes.",
    attrs=PoolAttrs,
    arity=(1, 1),
    infer=_max_infer,
    reference=_max_reference,
    macs=_pool_macs,
    levels=EVERYWHERE,
    traits={Trait.MOVEMENT},
    quant=QuantRule.SAME,
    integer="MaxPool",
    prune=PruneRule.CARRIES,
)
register(
    "MaxPoolIndices",
    "Maximum of each window of [N,C,H,W], and its first position in the flattened input (ONNX MaxPool with Indices).",
    attrs=MaxPoolIndicesAttrs,
    arity=(1, 1),
    infer=_indices_infer,
    reference=_indices_reference,
    macs=_pool_macs,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
)
