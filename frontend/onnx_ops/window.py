"""Window attributes that convolution and pooling share: kernel, strides, dilations, pads, auto_pad, ceil_mode.

Windows of one spatial dimension are windows of height 1: `as_images` puts a unit axis into [N,C,L], `from_images` takes it out
again, and canonicalization lets the reshapes of a chain meet and vanish.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevel.frontend.builder import Codes, OnnxNode, Operand
from bevel.ir.ops.movement import ReshapeAttrs
from bevel.ir.types import Shape, TensorType

# Where the unit axis of a window of one dimension goes.
HEIGHT_AXIS = 2


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

    @property
    def all_pads(self) -> tuple[int, int, int, int]:
        """The border with what rounding up adds."""
        top, left, bottom, right = self.pads
        return top, left, bottom + self.ceil_pads[0], right + self.ceil_pads[1]


def spatial_rank(node: OnnxNode) -> int:
    """1 or 2: the spatial dimensions of operand 0 [N,C,...]; others are refused."""
    rank = len(node.shape(0)) - 2
    if rank not in (1, 2):
        node.refuse(f"input of rank {rank + 2}", "one or two spatial dimensions, [N,C,L] or [N,C,H,W]")
    return rank


def raised(shape: Shape) -> Shape:
    """[N,C,L] as [N,C,1,L]; other shapes unchanged."""
    return (*shape[:HEIGHT_AXIS], 1, *shape[HEIGHT_AXIS:]) if len(shape) == 3 else shape


def as_images(node: OnnxNode, operand: Operand, suffix: str = ".images") -> Operand:
    """An operand [N,C,L] as [N,C,1,L], weights [O,I,K] as [O,I,1,K]; operands of rank 4 as they are."""
    if isinstance(operand, np.ndarray):
        return np.expand_dims(operand, HEIGHT_AXIS) if operand.ndim == 3 else operand
    value = operand.value if isinstance(operand, Codes) else operand
    if value.type.rank != 3:
        return operand
    if value.data is not None:
        # Channel scales sit on the axes before the new one.
        type_ = TensorType(raised(value.type.shape), value.type.elem)
        constant = node.builder.graph.add_constant(f"{value.name}{suffix}", value.data.reshape(type_.static_shape), type_)
        return Codes(constant) if isinstance(operand, Codes) else constant
    return node.emit("Reshape", [operand], ReshapeAttrs(raised(value.type.shape)), suffix=suffix)


def from_images(node: OnnxNode, image: Operand, rank: int, *, result: int = 0) -> Operand:
    """Result number `result` of the ONNX node from [N,C,1,L] where the operand had one spatial dimension."""
    if rank == 2:
        return image
    if isinstance(image, np.ndarray):
        return image.squeeze(HEIGHT_AXIS)
    value = image.value if isinstance(image, Codes) else image
    shape = value.type.shape
    return node.emit("Reshape", [image], ReshapeAttrs((*shape[:HEIGHT_AXIS], *shape[HEIGHT_AXIS + 1 :])), result=result)


def before_squeeze(rank: int) -> str:
    """Suffix of a windowed node's result that `from_images` still reshapes."""
    return "" if rank == 2 else ".image"


def pair(node: OnnxNode, name: str, rank: int, default: int = 1, least: int = 1) -> tuple[int, int]:
    """A list attribute, one entry for each spatial dimension, as (height, width); a unit height gets `default`."""
    values = node.ints(name)
    if values is None:
        return default, default
    if len(values) != rank or min(values) < least:
        node.refuse(f"{name}={list(values)}", f"{rank} {name} of at least {least}")
    return (default, values[0]) if rank == 1 else (values[0], values[1])


def explicit_pads(node: OnnxNode, rank: int) -> tuple[int, int, int, int]:
    """The attribute `pads` as (top, left, bottom, right), zeros where it is absent."""
    pads = node.ints("pads") or (0,) * (2 * rank)
    if len(pads) != 2 * rank or min(pads) < 0:
        node.refuse(f"pads={list(pads)}", f"{2 * rank} pads of at least 0")
    return (0, pads[0], 0, pads[1]) if rank == 1 else (pads[0], pads[1], pads[2], pads[3])


def split_same(total: int, *, upper: bool) -> tuple[int, int]:
    """A border of `total` before and after an axis, the odd element after it for SAME_UPPER."""
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def _same_pads(extent: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    """Border before and after one axis for auto_pad SAME: output extent is ceil(extent / stride)."""
    span = dilation * (kernel - 1) + 1
    return split_same(max((-(-extent // stride) - 1) * stride + span - extent, 0), upper=upper)


def read_window(node: OnnxNode, kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or pooling node over operand 0 [N,C,L] or [N,C,H,W] with the given kernel extents."""
    rank = spatial_rank(node)
    if len(kernel) != rank or min(kernel) < 1:
        node.refuse(f"kernel_shape={list(kernel)}", f"{rank} kernel extents of at least 1")
    size = (1, kernel[0]) if rank == 1 else (kernel[0], kernel[1])
    strides, dilations = pair(node, "strides", rank), pair(node, "dilations", rank)
    border = explicit_pads(node, rank)
    auto = node.text("auto_pad", "NOTSET")
    ceil = bool(node.integer("ceil_mode", 0))
    if auto == "VALID":
        border = (0, 0, 0, 0)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        extents = _extents(node)
        (top, bottom), (left, right) = (
            _same_pads(extents[i], size[i], strides[i], dilations[i], upper=auto == "SAME_UPPER") for i in (0, 1)
        )
        border = top, left, bottom, right
    elif auto != "NOTSET":
        node.refuse(f"auto_pad={auto!r}", "NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    extra = (0, 0)
    if ceil and auto == "NOTSET":
        extents = _extents(node)
        extra = (
            _ceil_pad(extents[0], border[0], border[2], size[0], strides[0], dilations[0]),
            _ceil_pad(extents[1], border[1], border[3], size[1], strides[1], dilations[1]),
        )
    return Window(size, strides, dilations, border, extra)


def _extents(node: OnnxNode) -> tuple[int, ...]:
    return node.static(raised(node.shape(0))[2:], "spatial extents")


def _ceil_pad(extent: int, before: int, after: int, kernel: int, stride: int, dilation: int) -> int:
    """Border to add after one axis so that rounding down gives what ceil_mode gives."""
    span = dilation * (kernel - 1) + 1
    free = extent + before + after - span
    steps = -(-free // stride)
    # A window that would start beyond the input and the border before it does not count.
    if steps * stride >= extent + before:
        steps -= 1
    return max(steps * stride - free, 0)
