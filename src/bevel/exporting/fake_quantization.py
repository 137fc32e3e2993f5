"""How PyTorch's fake quantization is spelled in ONNX, which torch's exporter does not know.

    fake_quantize(x, s, z, -8, 7)   ->   QuantizeLinear(s, z) -> Clip(-8, 7) -> DequantizeLinear(s, z)

In: calls of a module under export. Out: what the importer reads as a type of as few bits as the range needs
(`bevel.frontend.onnx_ops.quantize`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from bevel.errors import ExportError

# ONNX element types of codes, and what they hold.
_UINT8, _INT8 = 2, 3
_RANGES = {_UINT8: (0, 255), _INT8: (-128, 127)}


# What torch computes behind its operators, and cannot trace with symbolic extents because it lacks their result's shape.
_UNSHAPED = (
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
)


@cache
def _shapes() -> Any:
    """Tell torch the shapes of `_UNSHAPED`; what is returned keeps them told."""
    import torch

    def shaped(x: Any, *_parameters: Any) -> tuple[Any, Any]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    library = torch.library.Library("aten", "IMPL", "Meta")
    for name in _UNSHAPED:
        library.impl(name, shaped)
    return library


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """PyTorch operator -> function that writes it with ONNX operators, for `torch.onnx.export`."""
    import torch
    from onnxscript import opset18

    op: Any = opset18
    _shapes()

    def constant(number: Any) -> Any:
        return op.Constant(value_float=number) if isinstance(number, float) else op.Constant(value_int=number)

    def fake_quantize(x: Any, scale: Any, zero_point: Any, low: int, high: int, axis: int) -> Any:
        codes = _UINT8 if low >= 0 else _INT8
        least, most = _RANGES[codes]
        if not least <= low < high <= most:
            raise ExportError(f"fake quantization to {low}..{high}: ONNX has 8-bit codes for it, so -128..127 or 0..255 at most")
        s = constant(float(scale)) if isinstance(scale, int | float) else scale
        z = op.Cast(constant(zero_point) if isinstance(zero_point, int) else zero_point, to=codes)
        q = op.QuantizeLinear(x, s, z, axis=axis)
        if (low, high) != (least, most):
            q = op.Clip(q, op.Cast(constant(low), to=codes), op.Cast(constant(high), to=codes))
        return op.DequantizeLinear(q, s, z, axis=axis)

    def per_tensor(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        return fake_quantize(x, scale, zero_point, quant_min, quant_max, 1)

    def per_channel(x: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int) -> Any:
        return fake_quantize(x, scale, zero_point, quant_min, quant_max, axis)

    aten = torch.ops.aten
    return {
        aten.fake_quantize_per_tensor_affine.default: per_tensor,
        aten.fake_quantize_per_tensor_affine.tensor_qparams: per_tensor,
        aten.fake_quantize_per_channel_affine.default: per_channel,
    }
