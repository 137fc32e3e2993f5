"""Bias correction: rounding weights moves the mean of a layer's outputs; its bias moves them back.

A layer is linear in its input, so rounding its weights W to Q moves the mean of output channel o by (Q - W)[o] E[x], E[x] the
mean of what each weight meets on the calibration data, borders included. In: inputs of the float graph's layers, batch by batch.
Out: (W - Q) E[x], to add to the biases.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with the means measured
rather than derived; Finkelstein et al. 2019, "Fighting Quantization Bias With Bias". Correcting layer by layer whatever moves the
mean, clipping included (their empirical form), was measured to be worse: docs/calibration.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Node
from bevel.ir.ops.window import windows

Array = npt.NDArray[Any]


class InputMean:
    """Mean of what each weight of a layer meets: over samples and positions, zeros of the border included.

    Inputs of one shape are summed first and looked at through the windows once, so memory is that of one sample.

    Args:
        node: Conv or Gemm.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._sum: Array = np.zeros(0)
        self._samples = 0
        self._taps: Array = np.zeros(1)
        self._count = 0

    def update(self, x: Array) -> None:
        """Take in an input of the layer: [N, C, H, W] of Conv, [..., K] of Gemm."""
        rows = x if self._node.op == "Conv" else x.reshape(-1, x.shape[-1])
        if self._sum.shape != rows.shape[1:]:
            self._flush()
            self._sum = np.zeros(rows.shape[1:])
        self._sum += rows.sum(axis=0, dtype=np.float64) if len(rows) > 1 else rows[0]
        self._samples += len(rows)

    def _flush(self) -> None:
        if not self._samples:
            return
        mean, positions = self._sum / self._samples, 1
        if self._node.op == "Conv":
            view = windows(mean[None], self._node.attrs, 0.0)[0]
            positions = view.shape[1] * view.shape[2]
            mean = view.mean(axis=(1, 2))
        self._count += self._samples * positions
        self._taps = self._taps + (mean - self._taps) * (self._samples * positions / self._count)
        self._samples = 0

    def taps(self) -> Array:
        """float64 [C, KH, KW] of Conv, [K] of Gemm."""
        self._flush()
        return self._taps


def bias_correction(node: Node, weights: Array, rounded: Array, mean: InputMean) -> Array:
    """What to add to the bias of a layer: float64 [O], real units.

    Args:
        node: Conv or Gemm.
        weights: reals [O, I / groups, KH, KW], or [O, K].
        rounded: what their codes stand for.
        mean: of the layer's inputs.
    """
    groups = node.attrs.groups if node.op == "Conv" else 1
    error = (weights.astype(np.float64) - rounded).reshape(groups, weights.shape[0] // groups, -1)
    return np.asarray(np.einsum("goi,gi->go", error, mean.taps().reshape(groups, -1)).reshape(-1))
