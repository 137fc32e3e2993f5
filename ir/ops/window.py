"""Sliding windows: the index arithmetic that convolution and pooling share."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bevel.errors import VerifyError
from bevel.ir.ops.op import require
from bevel.ir.types import Dim, Shape

Array = npt.NDArray[Any]


class WindowAttrs(Protocol):
    """Attributes of any windowed op: pads are (top, left, bottom, right)."""

    @property
    def kernel(self) -> tuple[int, int]:
        """Window height and width."""
        ...

    @property
    def strides(self) -> tuple[int, int]:
        """Steps between windows."""
        ...

    @property
    def dilations(self) -> tuple[int, int]:
        """Steps between taps."""
        ...

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Border added at top, left, bottom, right."""
        ...


def output_hw(shape: Shape, attrs: WindowAttrs) -> tuple[int, int]:
    """Output height and width over an NCHW `shape`.

    Raises:
        VerifyError: symbolic spatial dimensions, or a window larger than the padded input.
    """
    result = []
    for axis in (0, 1):
        require(attrs.kernel[axis] >= 1, f"kernel {attrs.kernel}: expected 1 or more")
        require(attrs.strides[axis] >= 1, f"strides {attrs.strides}: expected 1 or more")
        require(attrs.dilations[axis] >= 1, f"dilations {attrs.dilations}: expected 1 or more")
        require(min(attrs.pads) >= 0, f"pads {attrs.pads}: expected 0 or more")
        extent = shape[2 + axis]
        if isinstance(extent, Dim):
            raise VerifyError(f"spatial dimension {extent} must be fixed: bind it with --dim {extent.name}=N")
        span = attrs.dilations[axis] * (attrs.kernel[axis] - 1) + 1
        free = extent + attrs.pads[axis] + attrs.pads[axis + 2] - span
        require(free >= 0, f"window of {span} does not fit input of {extent} with pads {attrs.pads}")
        result.append(free // attrs.strides[axis] + 1)
    return result[0], result[1]


def require_covered(shape: Shape, attrs: WindowAttrs) -> None:
    """Raise VerifyError when some window of an NCHW `shape` lies wholly in the border: its mean or maximum has no meaning."""
    output_hw(shape, attrs)
    for axis in (0, 1):
        extent, dilation = shape[2 + axis], attrs.dilations[axis]
        assert isinstance(extent, int)
        span = dilation * (attrs.kernel[axis] - 1) + 1
        most = max(attrs.pads[axis], attrs.pads[axis + 2])
        # A pad below the span leaves a tap in the first `dilation` elements, or in the last, of every window.
        covered = extent >= (dilation if most else 1) and most < span
        require(covered, f"a window of {attrs.kernel} with pads {attrs.pads} may see no element of an extent of {extent}")


def windows(x: Array, attrs: WindowAttrs, fill: float) -> Array:
    """All windows of an NCHW array as a view [N, C, OH, OW, KH, KW]; the border holds `fill`."""
    top, left, bottom, right = attrs.pads
    if any(attrs.pads):
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    (kh, kw), (sh, sw), (dh, dw) = attrs.kernel, attrs.strides, attrs.dilations
    view = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]
