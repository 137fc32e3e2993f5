"""Weights that are codes, with their output channels multiplied: the scales take the factors, so the codes stay what they are.

w: q<i4, scale=[s0,s1], axis=0>  times [2, -3]   ->   w': q<i4, scale=[2*s0,3*s1], axis=0>, the codes of channel 1 negated
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Node
from bevel.ir.types import Codebook, Int, Quant

Array = npt.NDArray[Any]


def scaled_codes(layer: Node, factor: Array) -> tuple[Array, Quant | Codebook] | None:
    """Codes and type of `layer`'s weights times `factor`.

    Args:
        layer: Conv or Gemm with constant weights [O, ...].
        factor: float64 [O].

    Returns:
        None where scales and codes cannot express it: asymmetric weights, other axes, codes that have no negative.
    """
    value = layer.inputs[1]
    elem = value.type.elem
    if layer.op not in ("Conv", "Gemm") or not value.is_constant or not isinstance(elem, Quant | Codebook):
        return None
    if elem.axis not in (None, 0) or (isinstance(elem, Quant) and (any(elem.zero_point) or elem.block is not None)):
        return None
    scales = np.broadcast_to(np.asarray(elem.scale), factor.shape)
    # A factor of 0 leaves no scale: codes of 0 do it.
    products = tuple(float(s) for s in np.where(factor == 0, scales, np.abs(factor) * scales).astype(np.float32))
    signs = np.sign(factor).astype(np.int16).reshape(-1, *[1] * (value.array.ndim - 1))
    if isinstance(elem, Codebook):
        return (value.array, Codebook(elem.codes, elem.table, products, 0)) if (signs > 0).all() else None
    codes = value.array * signs
    storage = elem.storage
    if codes.max(initial=0) > storage.max:
        # -2^(b-1) has its negative in the next number of bits.
        storage = Int(storage.bits + 1)
    if storage.bits > 8 or (storage.bipolar and not codes.all()):
        return None
    return codes.astype(storage.dtype), Quant(storage, products, (0,), 0)
