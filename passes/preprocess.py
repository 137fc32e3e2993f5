"""Pass `preprocess`: the model takes camera pixels; resize, crop, normalization and layout become part of the graph.

%x: f32[1,3,224,224]       ->       %x: u8[1,480,640,3]
                                    %x.nchw = Transpose(%x) perm=[0,3,1,2]
                                    %x.real = Cast(%x.nchw)
                                    %x.resized = Resize(%x.real)
                                    %x.cropped = Slice(%x.resized)
                                    %x.normalized = BatchNormalization(%x.cropped, 1/std, -mean/std, 0, 1)

Calibration turns the chain into integers: pixels are codes already, Resize works in fixed point, and normalization is one
table for each channel (docs/numerics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.logic import CastAttrs
from bevel.ir.ops.movement import ConcatAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import BatchNormAttrs
from bevel.ir.ops.resize import ResizeAttrs, ResizeNearestAttrs
from bevel.ir.types import I8, U8, Dim, Float, Quant, TensorType

# Pixels as codes of a quantized type: as they arrive, and as integer operators take them.
PIXELS = Quant(U8, (1.0,), (0,))
SIGNED_PIXELS = Quant(I8, (1.0,), (I8.min,))
Array = npt.NDArray[Any]

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Preprocess:
    """What happens to a frame before the model sees it: x = (pixel * scale - mean) / std.

    Attributes:
        input: name of the image input; "" where the model has one input.
        frame: height and width of the frames that arrive; () for what the model (or the crop's resize) takes.
        layout: of the frames: "nhwc" or "nchw".
        reverse: frames hold the channels in the opposite order of what the model takes (BGR cameras).
        resize: (shorter side,) or (height, width) to resize to; () for none.
        method: "linear" (with an antialiasing filter where it shrinks) or "nearest".
        crop: (height, width) of the centre crop after resizing; () for none.
        scale: factor of pixel values.
        mean, std: one number, or one for each channel.
    """

    name: ClassVar[str] = "preprocess"
    input: str = ""
    frame: tuple[int, ...] = ()
    layout: str = "nhwc"
    reverse: bool = False
    resize: tuple[int, ...] = ()
    method: str = "linear"
    crop: tuple[int, ...] = ()
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def run(self, graph: Graph) -> Graph:
        """The graph that takes uint8 frames.

        Raises:
            UsageError: the settings contradict each other or the model's input; says which.
        """
        if graph.level is Level.INTEGER:
            raise UsageError(f"{graph.name!r} is an integer graph already: preprocess the model it was made from")
        result = graph.clone()
        old = self._image(result)
        batch, channels, height, width, last = _geometry(old)
        scale, offset = self._affine(channels)
        resized = self._resized((height, width))
        frame = self.frame or resized or (height, width)
        shape = (batch, *frame, channels) if self.layout == "nhwc" else (batch, channels, *frame)
        name, annotated = old.name, graph.level is Level.ANNOTATED
        result.rename(old, result.unique_name(f"{name}.model"))
        new = result.add_input(name, TensorType(shape, PIXELS if annotated else U8), at=result.inputs.index(old))
        chain = _Chain(result, new)
        if annotated:
            chain.add("Clip", ClipAttrs(), "signed", elem=SIGNED_PIXELS)
        if self.layout == "nhwc":
            chain.add("Transpose", TransposeAttrs((0, 3, 1, 2)), "nchw")
        if not annotated:
            chain.add("Cast", CastAttrs("f32"), "real")
        if resized and tuple(resized) != tuple(frame):
            self._add_resize(chain, (int(frame[0]), int(frame[1])), resized)
        if self.crop:
            _add_crop(chain, resized or (int(frame[0]), int(frame[1])), (self.crop[0], self.crop[-1]))
        if self.reverse and channels > 1:
            _add_reverse(chain, channels)
        end = old.type.elem if isinstance(old.type.elem, Quant) else None
        parameters = [scale, offset, np.zeros_like(scale), np.ones_like(scale)]
        constants = [result.add_constant(f"{name}.{n}", p) for n, p in zip(("scale", "shift", "0", "1"), parameters, strict=True)]
        chain.add("BatchNormalization", BatchNormAttrs(0.0), "normalized", constants, elem=end)
        if last:
            chain.add("Transpose", TransposeAttrs((0, 2, 3, 1)), "nhwc")
        if chain.value.type.shape != old.type.shape:
            raise UsageError(
                f"preprocessing makes {chain.value.type} of frames {new.type}, but input {name!r} of the model takes {old.type}: "
                "correct frame, resize or crop"
            )
        result.replace_uses(old, chain.value)
        result.drop_input(old)
        return result

    def _image(self, graph: Graph) -> Value:
        """The input that frames replace."""
        found = [v for v in graph.inputs if self.input in ("", v.name)]
        if len(found) != 1:
            names = ", ".join(repr(v.name) for v in graph.inputs)
            raise UsageError(f"preprocess: name the image input with `input`, one of {names}")
        if found[0].type.rank != 4 or not isinstance(found[0].type.elem, Float | Quant):
            raise UsageError(f"preprocess: input {found[0].name!r} is {found[0].type}, expected images of rank 4")
        for what, allowed in (("layout", ("nhwc", "nchw")), ("method", ("linear", "nearest"))):
            if getattr(self, what) not in allowed:
                raise UsageError(f"preprocess: {what} {getattr(self, what)!r}, expected one of {', '.join(allowed)}")
        for what, most in (("frame", 2), ("resize", 2), ("crop", 2)):
            sizes = getattr(self, what)
            proper = len(sizes) <= most and all(n >= 1 for n in sizes) and not (what == "frame" and len(sizes) == 1)
            if not proper:
                raise UsageError(f"preprocess: {what} {list(sizes)}, expected height and width, each at least 1")
        return found[0]

    def _affine(self, channels: int) -> tuple[Array, Array]:
        """Factor and summand of each channel, float32."""
        mean, std = (np.asarray(v, np.float64) for v in (self.mean, self.std))
        for what, values in (("mean", mean), ("std", std)):
            if values.size not in (1, channels) or not np.isfinite(values).all():
                raise UsageError(f"preprocess: {what} {values.tolist()}, expected 1 or {channels} numbers")
        if (std == 0).any() or not math.isfinite(self.scale) or self.scale == 0:
            raise UsageError(f"preprocess: scale {self.scale} and std {std.tolist()} must not be zero")
        factor = np.broadcast_to(self.scale / std, channels)
        return factor.astype(np.float32), np.broadcast_to(-mean / std, channels).astype(np.float32)

    def _resized(self, model: tuple[int, int]) -> tuple[int, int] | None:
        """Height and width after resizing; None for no resizing."""
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        if self.resize:
            height, width = self.frame or (1, 1)
            short = self.resize[0]
            return (short, round(width * short / height)) if height <= width else (round(height * short / width), short)
        return model if self.frame and not self.crop and tuple(self.frame) != model else None

    def _add_resize(self, chain: _Chain, frame: tuple[int, int], size: tuple[int, int]) -> None:
        """Half-pixel centres: result i reads (i + 1/2) * in / out - 1/2."""
        coordinates = tuple((2 * n, n - m, 2 * m) for n, m in zip(frame, size, strict=True))
        if self.method == "nearest":
            chain.add("ResizeNearest", ResizeNearestAttrs((2, 3), size, coordinates, "round_prefer_floor"), "resized")
            return
        stretch = tuple(max(1.0, n / m) for n, m in zip(frame, size, strict=True))
        shrinks = any(s > 1 for s in stretch)
        attrs = ResizeAttrs((2, 3), size, coordinates, "linear", stretch=stretch, exclude_outside=shrinks)
        chain.add("Resize", attrs, "resized")


class _Chain:
    """Nodes appended one behind the other."""

    def __init__(self, graph: Graph, value: Value) -> None:
        self.graph, self.value, self.base = graph, value, value.name
        self.first = graph.nodes[0] if graph.nodes else None

    def add(self, op: str, attrs: object, suffix: str, extra: Sequence[Value] = (), *, elem: Quant | None = None) -> Value:
        """`value` through one more node; `elem` annotates its result, else quantized operands hand theirs on."""
        own = self.value.type.elem
        name = f"{self.base}.{suffix}"
        node = self.graph.add_node(op, [self.value, *extra], attrs, names=[name], loc=name, before=self.first)
        carried = elem or (own if isinstance(own, Quant) and isinstance(node.output.type.elem, Float) else None)
        if carried is not None:
            node.output.type = node.output.type.with_elem(carried)
        self.value = node.output
        return self.value


def _geometry(value: Value) -> tuple[int | Dim, int, int, int, bool]:
    """Batch, channels, height, width of an image input, and whether its channels are last."""
    batch, *rest = value.type.shape
    if not all(isinstance(d, int) for d in rest):
        raise UsageError(f"preprocess: input {value.name!r} is {value.type}: bind height and width with --dim first")
    a, b, c = (int(d) for d in rest if isinstance(d, int))
    if a in _CHANNELS:
        return batch, a, b, c, False
    if c in _CHANNELS:
        return batch, c, a, b, True
    raise UsageError(f"preprocess: input {value.name!r} is {value.type}: neither axis 1 nor axis 3 holds 1, 3 or 4 channels")


def _add_crop(chain: _Chain, size: tuple[int, int], crop: tuple[int, int]) -> None:
    if crop == size:
        return
    if any(c > n for c, n in zip(crop, size, strict=True)):
        raise UsageError(f"preprocess: crop {list(crop)} is larger than the resized frame {list(size)}")
    # As torchvision rounds the corner.
    top, left = (round((n - c) / 2) for c, n in zip(crop, size, strict=True))
    chain.add("Slice", SliceAttrs((0, 0, top, left), (-1, -1, top + crop[0], left + crop[1]), (1, 1, 1, 1)), "cropped")


def _add_reverse(chain: _Chain, channels: int) -> None:
    source = chain.value
    planes = []
    for c in reversed(range(channels)):
        chain.value = source
        planes.append(chain.add("Slice", SliceAttrs((0, c, 0, 0), (-1, c + 1, -1, -1), (1, 1, 1, 1)), f"channel{c}"))
    chain.value = planes[0]
    chain.add("Concat", ConcatAttrs(1), "reversed", planes[1:])
