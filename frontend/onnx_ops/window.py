"""Window attributes that Conv and pooling share: kernel, strides, dilations, pads, auto_pad, ceil_mode."""

from __future__ import annotations

from dataclasses import dataclass

from bevel.frontend.builder import OnnxNode


@dataclass(frozen=True)
class Window:
    """Resolved window attributes; pads are (top, left, bottom, right).

    Attributes:
        kernel: height and width.
        strides: steps between windows.
        dilations: steps between taps.
        pads: explicit border.
        ceil_pads: rows and columns that rounding the output size up adds at bottom and right.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    ceil_pads: tuple[int, int] = (0, 0)


def _pair(node: OnnxNode, name: str, default: tuple[int, int]) -> tuple[int, int]:
    values = node.ints(name)
    if values is None:
        return default
    if len(values) != 2 or min(values) < 1:
        node.refuse(f"{name}={list(values)}", f"two {name} of at least 1")
    return values[0], values[1]


def _same_pads(extent: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    """Border before and after one axis for auto_pad SAME: output extent is ceil(extent / stride)."""
    span = dilation * (kernel - 1) + 1
    total = max((-(-extent // stride) - 1) * stride + span - extent, 0)
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def read_window(node: OnnxNode, kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or pooling node over operand 0 [N,C,H,W] with the given kernel extents."""
    if len(kernel) != 2 or min(kernel) < 1:
        node.refuse(f"kernel_shape={list(kernel)}", "two kernel extents of at least 1")
    size = kernel[0], kernel[1]
    strides, dilations = _pair(node, "strides", (1, 1)), _pair(node, "dilations", (1, 1))
    pads = node.ints("pads") or (0, 0, 0, 0)
    auto = node.text("auto_pad", "NOTSET")
    if len(pads) != 4 or min(pads) < 0:
        node.refuse(f"pads={list(pads)}", "four pads of at least 0")
    border = pads[0], pads[1], pads[2], pads[3]
    if auto == "VALID":
        border = (0, 0, 0, 0)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        extents = node.static(node.shape(0)[2:], "spatial extents")
        (top, bottom), (left, right) = (
            _same_pads(extents[i], size[i], strides[i], dilations[i], upper=auto == "SAME_UPPER") for i in (0, 1)
        )
        border = top, left, bottom, right
    elif auto != "NOTSET":
        node.refuse(f"auto_pad={auto!r}", "NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    extra = (0, 0)
    if node.integer("ceil_mode", 0) and auto == "NOTSET":
        extents = node.static(node.shape(0)[2:], "spatial extents")
        extra = (
            _ceil_pad(extents[0], border[0], border[2], size[0], strides[0], dilations[0]),
            _ceil_pad(extents[1], border[1], border[3], size[1], strides[1], dilations[1]),
        )
    return Window(size, strides, dilations, border, extra)


def _ceil_pad(extent: int, before: int, after: int, kernel: int, stride: int, dilation: int) -> int:
    """Border to add after one axis so that rounding down gives what ceil_mode gives."""
    span = dilation * (kernel - 1) + 1
    free = extent + before + after - span
    steps = -(-free // stride)
    # A window that would start beyond the input and the border before it does not count.
    if steps * stride >= extent + before:
        steps -= 1
    return max(steps * stride - free, 0)
