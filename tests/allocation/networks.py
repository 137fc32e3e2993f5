"""A float network with a layer for every fate that `--bits auto-lowbit` has for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bevel.ir.graph import Graph, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.serialize import save_graph
from bevel.ir.types import F32, TensorType
from bevel.ir.verify import verify

SIDE = 14
IMAGES = np.random.default_rng(3).normal(size=(8, 3, SIDE, SIDE)).astype(np.float32)


def network() -> Graph:
    """stem, a residual block of "wide1" and "wide2", depthwise "deep", "narrow" with 8 output channels, "head"."""
    rng = np.random.default_rng(0)
    g = Graph("net")

    def conv(x: Value, name: str, channels: int, kernel: int, groups: int = 1) -> Value:
        w = rng.normal(size=(channels, x.type.static_shape[1] // groups, kernel, kernel)) * 0.2
        pad = kernel // 2
        attrs = ConvAttrs((kernel, kernel), pads=(pad, pad, pad, pad), groups=groups)
        y = g.add_node("Conv", [x, g.add_constant(f"{name}.w", w.astype(np.float32))], attrs, names=[name], loc=name).output
        return g.add_node("Relu", [y], names=[f"{name}.relu"]).output

    x = g.add_input("x", TensorType((1, 3, SIDE, SIDE), F32))
    stem = conv(x, "stem", 64, 3)
    block = g.add_node("Add", [stem, conv(conv(stem, "wide1", 64, 3), "wide2", 64, 3)], names=["sum"]).output
    narrow = conv(conv(block, "deep", 64, 3, groups=64), "narrow", 8, 1)
    g.set_outputs([conv(narrow, "head", 16, 1)])
    verify(g)
    return g


def write(folder: Path) -> tuple[Path, Path]:
    """The network and its calibration data, as files."""
    save_graph(network(), folder / "net.ir")
    np.savez(folder / "data.npz", x=IMAGES)
    return folder / "net.ir", folder / "data.npz"
