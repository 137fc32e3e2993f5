"""Convolution and matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import VerifyError
from bevel.ir.ops.elementwise import broadcast_shape
from bevel.ir.ops.op import (
    FLOAT_ONLY,
    Call,
    NoAttrs,
    PruneRule,
    QuantRule,
    Trait,
    bounded_extent,
    elements,
    register,
    require,
    require_real,
)
from bevel.ir.ops.window import output_hw, windows
from bevel.ir.types import F32, Dim, TensorType

Array = npt.NDArray[Any]

# Columns that stay in a level-2 cache: 1 MiB was best of 0.25..8 on an x86 server core with 2 MiB, 4 MiB a fifth slower.
COLUMN_BYTES = 1 << 20


@dataclass(frozen=True)
class ConvAttrs:
    """2-D convolution attributes; pads are (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class ConvTransposeAttrs:
    """Transposed convolution: pads (top, left, bottom, right) are cut off, `output_padding` extend the result below and right."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    output_padding: tuple[int, int] = (0, 0)


def conv_shape(attrs: ConvAttrs, ins: tuple[TensorType, ...]) -> tuple[int | Dim, ...]:
    """Result shape of x [N, C, H, W] with w [OC, C / groups, KH, KW] and optional bias [OC].

    Raises:
        VerifyError: ranks or channel counts do not agree.
    """
    x, w = ins[0], ins[1]
    require(x.rank == 4 and w.rank == 4, f"expected x [N,C,H,W] and w [O,I,KH,KW], found ranks {x.rank} and {w.rank}")
    require(w.is_static, f"weights {w} have symbolic dimensions")
    oc, ic, kh, kw = w.static_shape
    require(attrs.groups >= 1, f"{attrs.groups} groups: expected 1 or more")
    require((kh, kw) == attrs.kernel, f"kernel {attrs.kernel} but weights are {kh}x{kw}")
    require(x.shape[1] == ic * attrs.groups, f"input has {x.shape[1]} channels, weights take {ic} x {attrs.groups} groups")
    require(oc % attrs.groups == 0, f"{oc} output channels do not divide into {attrs.groups} groups")
    if len(ins) == 3:
        require(ins[2].shape == (oc,), f"bias is {list(ins[2].shape)}, expected [{oc}]")
    return (x.shape[0], oc, *output_hw(x.shape, attrs))


def conv_macs(attrs: ConvAttrs, ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> int:
    """One MAC for each output element, input channel of its group and tap."""
    return elements(outs) * int(np.prod(ins[1].static_shape[1:]))


def gemm_macs(_attrs: Any, ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> int:
    """One MAC for each output element and reduction index."""
    return elements(outs) * int(ins[1].static_shape[1])


def convolve(x: Array, w: Array, attrs: ConvAttrs, fill: float) -> Array:
    """Convolution in the dtype of x and w; the border holds `fill`.

    Depthwise: one multiply-add of planes for each tap, for as many channels at once as COLUMN_BYTES allow. Pointwise: one
    product. Otherwise im2col and BLAS: columns [C * KH * KW, images * OH * OW] are copied in runs of whole rows, for as many
    images at once as COLUMN_BYTES allow.
    """
    n, c = x.shape[:2]
    oc = w.shape[0]
    if attrs.groups == 1 and attrs.kernel == attrs.strides == (1, 1) and not any(attrs.pads):
        planes = x.reshape(n, c, x.shape[2] * x.shape[3])
        return np.asarray(np.matmul(w.reshape(oc, c), planes)).reshape(n, oc, *x.shape[2:])
    view = windows(x, attrs, fill)
    oh, ow, kh, kw = view.shape[2:]
    per_in, per_out = c // attrs.groups, oc // attrs.groups
    result = np.zeros((n, oc, oh, ow), x.dtype)
    if per_in == 1 and per_out == 1:
        taps = w.reshape(1, oc, 1, 1, kh, kw)
        step = max(1, COLUMN_BYTES // (4 * max(n * oh * ow, 1) * x.dtype.itemsize))
        for start in range(0, oc, step):
            block = slice(start, start + step)
            for i, j in np.ndindex(kh, kw):
                result[:, block] += view[:, block, ..., i, j] * taps[:, block, ..., i, j]
        return result
    step = max(1, COLUMN_BYTES // (per_in * kh * kw * oh * ow * x.dtype.itemsize))
    rows = w.reshape(attrs.groups, per_out, -1)
    for start in range(0, n, step):
        images = view[start : start + step]
        for g in range(attrs.groups):
            columns = images[:, g * per_in : (g + 1) * per_in].transpose(1, 4, 5, 0, 2, 3).reshape(per_in * kh * kw, -1)
            product = (rows[g] @ columns).reshape(per_out, len(images), oh, ow)
            result[start : start + step, g * per_out : (g + 1) * per_out] = product.transpose(1, 0, 2, 3)
    return result


def _conv_infer(attrs: ConvAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    return (TensorType(conv_shape(attrs, ins), F32),)


def _conv_reference(call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    result = convolve(x, w, call.attrs, 0.0)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _transposed_extent(attrs: ConvTransposeAttrs, axis: int, extent: int) -> int:
    """Result extent along a spatial axis."""
    span = attrs.dilations[axis] * (attrs.kernel[axis] - 1) + 1
    return attrs.strides[axis] * (extent - 1) + span - attrs.pads[axis] - attrs.pads[axis + 2] + attrs.output_padding[axis]


def _transpose_infer(attrs: ConvTransposeAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    x, w = ins[0], ins[1]
    require(x.rank == 4 and w.rank == 4, f"expected x [N,C,H,W] and w [C,O,KH,KW], found ranks {x.rank} and {w.rank}")
    require(w.is_static, f"weights {w} have symbolic dimensions")
    ic, oc, kh, kw = w.static_shape
    require(attrs.groups >= 1 and ic % attrs.groups == 0, f"{ic} input channels do not divide into {attrs.groups} groups")
    require((kh, kw) == attrs.kernel, f"kernel {attrs.kernel} but weights are {kh}x{kw}")
    require(x.shape[1] == ic, f"input has {x.shape[1]} channels, weights take {ic}")
    if len(ins) == 3:
        require(ins[2].shape == (oc * attrs.groups,), f"bias is {list(ins[2].shape)}, expected [{oc * attrs.groups}]")
    extents = []
    for axis in (0, 1):
        extent = x.shape[2 + axis]
        if isinstance(extent, Dim):
            raise VerifyError(f"spatial dimension {extent} must be fixed: bind it with --dim {extent.name}=N")
        require(min(*attrs.strides, *attrs.dilations, extent) >= 1, f"strides, dilations or extent below 1: {attrs}, {extent}")
        require(min(*attrs.pads, *attrs.output_padding) >= 0, f"pads or output_padding below 0: {attrs}")
        extents.append(_transposed_extent(attrs, axis, extent))
        require(extents[-1] >= 1, f"pads {attrs.pads} leave no output of an input of {extent}")
    return (TensorType((x.shape[0], oc * attrs.groups, *extents), F32),)


def _transpose_reference(call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    at: ConvTransposeAttrs = call.attrs
    n, _, h, wide = x.shape
    oh, ow = _transposed_extent(at, 0, h), _transposed_extent(at, 1, wide)
    (sh, sw), (dh, dw), (kh, kw), (top, left, _, _) = at.strides, at.dilations, at.kernel, at.pads
    # Room for every window and for what lies beyond the last one.
    full = np.zeros((n, w.shape[1] * at.groups, max(sh * h + dh * kh, oh + top), max(sw * wide + dw * kw, ow + left)), np.float32)
    parts = x.reshape(n, at.groups, -1, h, wide), w.reshape(at.groups, -1, *w.shape[1:])
    for i, j in np.ndindex(kh, kw):
        spread = np.einsum("ngchw,gco->ngohw", parts[0], parts[1][..., i, j], optimize=True)
        full[:, :, i * dh : i * dh + sh * h : sh, j * dw : j * dw + sw * wide : sw] += spread.reshape(n, -1, h, wide)
    result = full[:, :, top : top + oh, left : left + ow]
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _transpose_macs(_attrs: ConvTransposeAttrs, ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    return elements(ins) * int(np.prod(ins[1].static_shape[1:]))


def gemm_shape(ins: tuple[TensorType, ...]) -> tuple[int | Dim, ...]:
    """Result shape of x [..., K] with w [N, K] and optional bias [N].

    Raises:
        VerifyError: reduction lengths do not agree.
    """
    x, w = ins[0], ins[1]
    require(w.rank == 2 and x.rank >= 2 and w.is_static, f"expected x [...,K] and w [N,K], found {x} and {w}")
    require(x.shape[-1] == w.shape[1], f"x reduces over {x.shape[-1]}, w over {w.shape[1]}")
    if len(ins) == 3:
        require(ins[2].shape == (w.shape[0],), f"bias is {list(ins[2].shape)}, expected [{w.shape[0]}]")
    return (*x.shape[:-1], w.shape[0])


def _gemm_infer(_attrs: NoAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    return (TensorType(gemm_shape(ins), F32),)


def _gemm_reference(_call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    result = x @ w.T
    return np.asarray(result if bias is None else result + bias)


def matmul_shape(ins: tuple[TensorType, ...]) -> tuple[int | Dim, ...]:
    """Result shape of a [..., M, K] with b [..., K, N], batches broadcast.

    Raises:
        VerifyError: an operand is no matrix, or reduction lengths do not agree.
    """
    a, b = ins
    require(a.rank >= 2 and b.rank >= 2, f"expected matrices, found ranks {a.rank} and {b.rank}")
    require(a.shape[-1] == b.shape[-2], f"a reduces over {a.shape[-1]}, b over {b.shape[-2]}")
    return (*broadcast_shape(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])


def _matmul_infer(_attrs: NoAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    return (TensorType(matmul_shape(ins), F32),)


def matmul_macs(_attrs: Any, ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> int:
    """One MAC for each output element and reduction index."""
    reduced = ins[0].shape[-1]
    return elements(outs) * bounded_extent(reduced)


register(
    "Conv",
    "2-D convolution of x [N,C,H,W] with w [O,C/groups,KH,KW] and optional bias [O].",
    attrs=ConvAttrs,
    arity=(2, 3),
    infer=_conv_infer,
    reference=_conv_reference,
    macs=conv_macs,
    levels=FLOAT_ONLY,
    traits={Trait.WEIGHTED},
    quant=QuantRule.OWN,
    integer="IntConv, Requantize",
    prune=PruneRule.PRODUCES,
)
register(
    "ConvTranspose",
    "Transposed 2-D convolution of x [N,C,H,W] with w [C,O/groups,KH,KW] and optional bias [O]; a Conv where w is constant.",
    attrs=ConvTransposeAttrs,
    arity=(2, 3),
    infer=_transpose_infer,
    reference=_transpose_reference,
    macs=_transpose_macs,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
)
register(
    "Gemm",
    "x [...,K] times the transpose of w [N,K], plus optional bias [N].",
    arity=(2, 3),
    infer=_gemm_infer,
    reference=_gemm_reference,
    macs=gemm_macs,
    levels=FLOAT_ONLY,
    traits={Trait.WEIGHTED},
    quant=QuantRule.OWN,
    integer="IntGemm, Requantize",
    prune=PruneRule.PRODUCES,
)
register(
    "MatMul",
    "Batched product of two activations a [...,M,K] and b [...,K,N].",
    arity=(2, 2),
    infer=_matmul_infer,
    reference=lambda _call, a, b: a @ b,
    macs=matmul_macs,
    levels=FLOAT_ONLY,
    quant=QuantRule.OWN,
    integer="IntMatMul",
    prune=PruneRule.BLOCKS,
)
