"""Transposed convolution and max pooling with positions, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np

from bevel.ir.ops.convolution import ConvTransposeAttrs
from bevel.ir.ops.pool import MaxPoolIndicesAttrs
from tests.ir.float_case import Case


def cases() -> list[Case]:
    """All of them."""
    return [*_transposed(), *_positions()]


def _transposed() -> list[Case]:
    found = []
    for at in (
        ConvTransposeAttrs((2, 2), (2, 2)),
        ConvTransposeAttrs((3, 3), (2, 2), (1, 1, 1, 1), output_padding=(1, 1)),
        ConvTransposeAttrs((4, 3), (2, 1), (1, 0, 2, 1), (1, 2)),
        ConvTransposeAttrs((2, 3), (3, 4), (0, 1, 0, 0), (1, 1), 2, (2, 0)),
        ConvTransposeAttrs((3, 3), (1, 1), (2, 2, 2, 2)),
    ):
        onnx: dict[str, Any] = {
            "kernel_shape": at.kernel,
            "strides": at.strides,
            "pads": at.pads,
            "dilations": at.dilations,
            "group": at.groups,
            "output_padding": at.output_padding,
        }
        shapes = [(2, 4, 5, 6), (4, 3, *at.kernel), (3 * at.groups,)]
        found += [Case("ConvTranspose", shapes[:count], at, onnx) for count in (2, 3)]
    return found


def _positions() -> list[Case]:
    ties = np.random.default_rng(4).integers(0, 3, (2, 3, 9, 7)).astype(np.float32)
    found = []
    for at in (
        MaxPoolIndicesAttrs((2, 2), (2, 2)),
        MaxPoolIndicesAttrs((3, 2), (2, 1), (1, 1, 0, 0)),
        MaxPoolIndicesAttrs((2, 3), (1, 2), column_major=True),
    ):
        onnx = {"kernel_shape": at.kernel, "strides": at.strides, "pads": at.pads, "storage_order": int(at.column_major)}
        found.append(Case("MaxPoolIndices", [ties], at, onnx, onnx_op="MaxPool", outputs=2))
    return found
