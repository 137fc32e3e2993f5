"""Learned step sizes: quantization whose rounding passes gradients, to what is rounded and to the step.

Esser et al. 2020, "Learned Step Size Quantization". With u = x / s, bounds lo and hi of the codes and c = clamp(rint(u), lo, hi),

    dx^/dx = 1 where lo < u < hi, else 0          dx^/ds = c - u where lo < u < hi, else c          x^ = s c

and the gradient of s is multiplied by 1 / sqrt(n max(|lo|, |hi|)), n elements sharing the step. The codes here are centred: those
of the element type less its zero point. The forward is that of `Quant.quantize`, bit for bit.

The function returns codes, not x^: they are exact in bfloat16 up to 8 bits, and a layer of codes is multiplied as integers. What
reads them multiplies by the step as a constant; the gradient of s that belongs to that product is added here, where it costs one
sum over codes instead of one over every reader's results.

Imports torch; callers import this file when it is used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Quantize(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed where it is not installed
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, lo: float, hi: float, factor: float, dtype: torch.dtype) -> Tensor:
        u = x / step
        codes = torch.round(u).clamp_(lo, hi)
        ctx.save_for_backward(u, codes, step)
        ctx.bounds, ctx.factor = (lo, hi), factor
        return codes.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        u, codes, step = ctx.saved_tensors
        # The reader multiplied by the step: what reaches x^ is less by it.
        wide = _like(gradient, u)
        inside = torch.ops.aten.hardtanh_backward(wide, u, *ctx.bounds)
        # hi - u of a clipped value does not count, c does.
        of_step = (_summed(wide, codes, step) - _summed(inside, u, step)) / step
        return inside.div_(step), of_step * ctx.factor, None, None, None, None


class _Signs(torch.autograd.Function):  # type: ignore[misc]
    """Bipolar codes: -1 where x < 0, else +1; within one step of zero the slope is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
        u = x / step
        codes = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
        ctx.save_for_backward(u, codes, step)
        ctx.factor = factor
        return codes.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        u, codes, step = ctx.saved_tensors
        wide = _like(gradient, u)
        inside = torch.ops.aten.hardtanh_backward(wide, u, -1.0, 1.0)
        of_step = (_summed(wide, codes, step) - _summed(inside, u, step)) / step
        return inside.div_(step), of_step * ctx.factor, None, None


def _like(gradient: Tensor, u: Tensor) -> Tensor:
    """`gradient` in the dtype of `u` and its order in memory: operands of different orders make everything behind them slow."""
    last = u.dim() == 4 and u.is_contiguous(memory_format=torch.channels_last)
    return gradient.to(u.dtype, memory_format=torch.channels_last if last else torch.preserve_format)


def _summed(a: Tensor, b: Tensor, step: Tensor) -> Tensor:
    """Sum of a * b over the elements that share each entry of `step`."""
    if step.numel() == 1:
        if b.dim() == 4 and b.is_contiguous(memory_format=torch.channels_last):
            a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
        return torch.dot(a.reshape(-1), b.reshape(-1)).reshape(step.shape)
    axes = [i for i in range(a.dim()) if step.shape[i] == 1]
    return (a * b).sum(axes, keepdim=True)


def gradient_factor(lo: float, hi: float, count: int) -> float:
    """What the gradient of a step is multiplied by, for codes of lo..hi and `count` elements sharing it."""
    return 1.0 / math.sqrt(max(abs(lo), abs(hi), 1.0) * max(count, 1))


def quantize(
    x: Tensor, step: Tensor, lo: float, hi: float, *, count: int, bipolar: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Centred codes of `x`; multiply them by `step.detach()`, as the module's docstring says.

    Args:
        x: float32 reals.
        step: positive, one element or broadcastable to `x` with one entry for each index of one axis.
        lo: least code less the zero point.
        hi: greatest code less the zero point.
        count: elements that share a step: weights of a channel, or activations of one sample.
        bipolar: codes are -1 and +1, whatever `lo` and `hi` say.
        dtype: of the result; bfloat16 holds codes of up to 8 bits exactly.
    """
    factor = gradient_factor(-1.0, 1.0, count) if bipolar else gradient_factor(lo, hi, count)
    codes: Tensor = _Signs.apply(x, step, factor, dtype) if bipolar else _Quantize.apply(x, step, lo, hi, factor, dtype)
    return codes


class _Rounded(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def rounded(x: Tensor) -> Tensor:
    """The nearest integers, ties to even; gradients pass unchanged (Bengio et al. 2013)."""
    result: Tensor = _Rounded.apply(x)
    return result


class _Rescaled(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, sums: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.axis, ctx.dtype = (1 if sums.dim() == 4 else sums.dim() - 1), sums.dtype
        return (sums.float().add_(bias)).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        scaled = gradient * scale
        others = [i for i in range(gradient.dim()) if i != ctx.axis]
        return scaled.to(ctx.dtype), scaled.sum(others).reshape(scale.shape), None


def rescaled(sums: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """(sums + bias) * scale in float32: reals of integer accumulators, exact up to the one product below 2^24.

    Args:
        sums: of products of codes, of any float dtype: images [N, C, H, W], else channels last.
        bias: codes of each channel, shaped to broadcast.
        scale: of each channel, shaped like `bias`; a constant.
    """
    result: Tensor = _Rescaled.apply(sums, bias, scale)
    return result
