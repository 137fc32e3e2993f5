"""Graphs before canonicalization: for each rewrite the smallest graph it applies to, and ones it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.convolution import ConvAttrs, ConvTransposeAttrs
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.functions import HardSigmoidAttrs, PowerAttrs
from bevel.ir.ops.movement import PadAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import BatchNormAttrs, ReduceAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.types import F32, Dim, Int, Quant, TensorType

N = Dim("batch")
NCHW, NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


class Sketch:
    """A graph in few words: values by name, constants from numbers."""

    def __init__(self, level: Level = Level.FLOAT) -> None:
        self.graph = Graph("before", level)
        self.rng = np.random.default_rng(11)

    def input(self, *shape: int | Dim, name: str = "x") -> Value:
        return self.graph.add_input(name, TensorType(shape, F32))

    def const(self, name: str, *shape: int) -> Value:
        return self.graph.add_constant(name, self.rng.normal(size=shape).astype(np.float32))

    def number(self, name: str, value: float) -> Value:
        return self.graph.add_constant(name, np.asarray(value, np.float32))

    def op(self, name: str, op: str, *inputs: Value, attrs: Any = None, elem: Quant | None = None) -> Value:
        node = self.graph.add_node(op, inputs, attrs, names=[name], loc=name)
        if elem is not None:
            node.output.type = node.output.type.with_elem(elem)
        return node.output

    def done(self, *outputs: Value) -> Graph:
        self.graph.set_outputs(outputs)
        return self.graph


def norm(s: Sketch, x: Value, channels: int) -> Value:
    variance = s.graph.add_constant("var", s.rng.uniform(0.5, 2, channels).astype(np.float32))
    statistics = (s.const("scale", channels), s.const("shift", channels), s.const("mean", channels), variance)
    return s.op("y", "BatchNormalization", x, *statistics, attrs=BatchNormAttrs(1e-3))


def bn_after_conv() -> Graph:
    s = Sketch()
    conv = s.op("c", "Conv", s.input(N, 2, 5, 5), s.const("w", 3, 2, 3, 3), s.const("b", 3), attrs=ConvAttrs((3, 3)))
    return s.done(norm(s, conv, 3))


def bn_after_gemm() -> Graph:
    s = Sketch()
    return s.done(norm(s, s.op("g", "Gemm", s.input(N, 4), s.const("w", 3, 4)), 3))


def bn_alone() -> Graph:
    s = Sketch()
    return s.done(norm(s, s.op("r", "Relu", s.input(N, 3, 4, 4)), 3))


def bn_after_shared_conv() -> Graph:
    """The convolution is read elsewhere too, so the normalization stays a layer of its own."""
    s = Sketch()
    conv = s.op("c", "Conv", s.input(N, 2, 5, 5), s.const("w", 3, 2, 3, 3), attrs=ConvAttrs((3, 3)))
    return s.done(s.op("z", "Add", norm(s, conv, 3), conv))


def bias_after_gemm() -> Graph:
    s = Sketch()
    return s.done(s.op("y", "Add", s.op("g", "Gemm", s.input(N, 4), s.const("w", 3, 4)), s.const("b", 3)))


def scale_and_shift_after_conv() -> Graph:
    s = Sketch()
    conv = s.op("c", "Conv", s.input(N, 2, 5, 5), s.const("w", 3, 2, 3, 3), s.const("b", 3), attrs=ConvAttrs((3, 3)))
    return s.done(s.op("y", "Add", s.op("m", "Mul", s.const("k", 1, 3, 1, 1), conv), s.number("half", 0.5)))


def quantized_bias_after_gemm() -> Graph:
    s = Sketch(Level.ANNOTATED)
    x = s.input(N, 4)
    x.type = x.type.with_elem(Quant(Int(8), (0.05,), (3,)))
    w = s.graph.add_constant("w", s.rng.integers(-127, 128, (3, 4)).astype(np.int8), TensorType((3, 4), Quant(Int(8), (0.02,))))
    b = s.graph.add_constant("b", np.asarray([100, -200, 300], np.int32), TensorType((3,), Quant(Int(32), (0.001,))))
    return s.done(s.op("y", "Add", s.op("g", "Gemm", x, w), b, elem=Quant(Int(8), (0.04,))))


def spatial_add_after_conv() -> Graph:
    """Not per channel: stays."""
    s = Sketch()
    conv = s.op("c", "Conv", s.input(N, 2, 5, 5), s.const("w", 3, 2, 3, 3), attrs=ConvAttrs((3, 3)))
    return s.done(s.op("y", "Add", conv, s.const("b", 1, 3, 3, 3)))


def constant_transpose() -> Graph:
    s = Sketch()
    turned = s.op("t", "Transpose", s.const("w", 4, 3), attrs=TransposeAttrs((1, 0)))
    return s.done(s.op("y", "Gemm", s.input(N, 4), turned))


def pad_before_conv() -> Graph:
    s = Sketch()
    pad = s.op("p", "Pad", s.input(N, 2, 5, 5), attrs=PadAttrs((0, 0, 0, 1), (0, 0, 2, 1)))
    return s.done(s.op("y", "Conv", pad, s.const("w", 3, 2, 3, 3), attrs=ConvAttrs((3, 3), pads=(1, 0, 0, 0))))


def pad_before_average() -> Graph:
    s = Sketch()
    pad = s.op("p", "Pad", s.input(N, 2, 5, 5), attrs=PadAttrs((0, 0, 1, 1), (0, 0, 1, 1)))
    return s.done(s.op("y", "AveragePool", pad, attrs=AveragePoolAttrs((2, 2), (2, 2))))


def pad_before_max_after_relu() -> Graph:
    s = Sketch()
    relu = s.op("r", "Relu", s.input(N, 2, 5, 5))
    pad = s.op("p", "Pad", relu, attrs=PadAttrs((0, 0, 1, 1), (0, 0, 1, 1)))
    return s.done(s.op("y", "MaxPool", pad, attrs=PoolAttrs((3, 3), (2, 2))))


def pad_before_max() -> Graph:
    """Zeros could be the maximum of negative elements: stays."""
    s = Sketch()
    pad = s.op("p", "Pad", s.input(N, 2, 5, 5), attrs=PadAttrs((0, 0, 1, 1), (0, 0, 1, 1)))
    return s.done(s.op("y", "MaxPool", pad, attrs=PoolAttrs((3, 3), (2, 2))))


def nonzero_pad_before_conv() -> Graph:
    """A border of ones is not what Conv pads with: stays."""
    s = Sketch()
    pad = s.op("p", "Pad", s.input(N, 2, 5, 5), attrs=PadAttrs((0, 0, 1, 1), (0, 0, 1, 1), 1.0))
    return s.done(s.op("y", "Conv", pad, s.const("w", 3, 2, 3, 3), attrs=ConvAttrs((3, 3))))


def reshape_chain() -> Graph:
    s = Sketch()
    a = s.op("a", "Reshape", s.input(N, 2, 6), attrs=ReshapeAttrs((N, 12)))
    b = s.op("b", "Reshape", a, attrs=ReshapeAttrs((N, 3, 4)))
    return s.done(s.op("y", "Relu", s.op("c", "Reshape", b, attrs=ReshapeAttrs((N, 3, 4)))))


def reshape_there_and_back() -> Graph:
    s = Sketch()
    r = s.op("r", "Relu", s.input(N, 2, 6))
    a = s.op("a", "Reshape", r, attrs=ReshapeAttrs((N, 12)))
    return s.done(s.op("y", "Reshape", a, attrs=ReshapeAttrs((N, 2, 6))))


def transposes_around_residual() -> Graph:
    s = Sketch()
    x = s.input(N, 4, 4, 3)
    left = s.op("l", "Transpose", s.op("a", "Relu", x), attrs=TransposeAttrs(NCHW))
    right = s.op("r", "Transpose", s.op("b", "Sigmoid", x), attrs=TransposeAttrs(NCHW))
    total = s.op("t", "Tanh", s.op("s", "Add", left, right))
    return s.done(s.op("y", "Transpose", total, attrs=TransposeAttrs(NHWC)))


def transpose_of_one_channel() -> Graph:
    s = Sketch()
    return s.done(s.op("y", "Transpose", s.input(N, 49, 10, 1), attrs=TransposeAttrs(NCHW)))


def slice_chain() -> Graph:
    s = Sketch()
    a = s.op("a", "Slice", s.input(N, 3, 9, 9), attrs=SliceAttrs((0, 0, 1, 0), (-1, -1, 8, -1), (1, 1, 2, 1)))
    b = s.op("b", "Slice", a, attrs=SliceAttrs((0, 0, 1, 2), (-1, -1, -1, 7), (1, 1, 1, 3)))
    return s.done(s.op("y", "Slice", b, attrs=SliceAttrs((0,) * 4, (-1,) * 4, (1,) * 4)))


def average_of_everything() -> Graph:
    s = Sketch()
    return s.done(s.op("y", "AveragePool", s.input(N, 3, 4, 5), attrs=AveragePoolAttrs((4, 5), (4, 5))))


def mean_of_images() -> Graph:
    s = Sketch()
    return s.done(s.op("y", "ReduceMean", s.input(N, 3, 4, 5), attrs=ReduceAttrs((2, 3), keepdims=False)))


def mean_of_nhwc_images() -> Graph:
    s = Sketch()
    turned = s.op("t", "Transpose", s.op("r", "Relu", s.input(N, 3, 4, 5)), attrs=TransposeAttrs(NHWC))
    return s.done(s.op("y", "ReduceMean", turned, attrs=ReduceAttrs((1, 2), keepdims=False)))


def mean_of_rows() -> Graph:
    """Not a mean over images: stays."""
    s = Sketch()
    return s.done(s.op("y", "ReduceMean", s.input(N, 3, 4, 5), attrs=ReduceAttrs((3,))))


def relu_then_min() -> Graph:
    s = Sketch()
    return s.done(s.op("y", "Clip", s.op("r", "Relu", s.input(N, 9)), attrs=ClipAttrs(hi=6.0)))


def clip_that_is_relu() -> Graph:
    s = Sketch()
    free = s.op("f", "Clip", s.op("e", "Exp", s.input(N, 9)), attrs=ClipAttrs())
    return s.done(s.op("y", "Clip", free, attrs=ClipAttrs(lo=0.0)))


def quantized_relu_then_clip() -> Graph:
    """The Relu's own type rounds between them: stays."""
    s = Sketch(Level.ANNOTATED)
    relu = s.op("r", "Relu", s.input(N, 9), elem=Quant(Int(8), (0.25,), (-128,)))
    return s.done(s.op("y", "Clip", relu, attrs=ClipAttrs(hi=1.1), elem=Quant(Int(8), (0.01,), (-128,))))


def silu() -> Graph:
    s = Sketch()
    x = s.op("x2", "Neg", s.input(N, 9))
    return s.done(s.op("y", "Mul", s.op("g", "Sigmoid", x), x))


def hard_swish() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    scaled = s.op("k", "Add", s.op("m", "Mul", x, s.number("sixth", 1 / 6)), s.number("half", 0.5))
    return s.done(s.op("y", "Mul", x, s.op("c", "Clip", scaled, attrs=ClipAttrs(0.0, 1.0))))


def hard_swish_of_relu6() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    gate = s.op("c", "Clip", s.op("k", "Add", x, s.number("three", 3.0)), attrs=ClipAttrs(0.0, 6.0))
    return s.done(s.op("y", "Mul", x, s.op("d", "Div", gate, s.number("six", 6.0))))


def gelu() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    erf = s.op("e", "Erf", s.op("d", "Div", x, s.number("root", float(np.sqrt(2.0)))))
    product = s.op("p", "Mul", x, s.op("a", "Add", erf, s.number("one", 1.0)))
    return s.done(s.op("y", "Mul", product, s.number("half", 0.5)))


def swish_of_a_product() -> Graph:
    """The gated value is itself a product, which the gate must not look through."""
    s = Sketch()
    x = s.op("d", "Mul", s.input(N, 9), s.number("two", 2.0))
    gate = s.op("g", "Sigmoid", s.op("k", "Mul", x, s.number("slope", 1.702)))
    return s.done(s.op("y", "Mul", gate, x))


def mish_by_log() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    soft = s.op("l", "Log", s.op("a", "Add", s.number("one", 1.0), s.op("e", "Exp", x)))
    return s.done(s.op("y", "Mul", x, s.op("t", "Tanh", soft)))


def gelu_by_tanh_of_power() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    cube = s.op("c", "Mul", s.op("p", "Power", x, attrs=PowerAttrs(3.0)), s.number("share", 0.044715))
    scaled = s.op("s", "Mul", s.op("a", "Add", x, cube), s.number("root", float(np.sqrt(2 / np.pi))))
    raised = s.op("r", "Add", s.op("t", "Tanh", scaled), s.number("one", 1.0))
    return s.done(s.op("y", "Mul", s.op("h", "Mul", x, s.number("half", 0.5)), raised))


def gelu_by_tanh_of_products() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    square = s.op("q", "Mul", s.op("k", "Mul", x, s.number("share", 0.044715)), x)
    line = s.op("s", "Mul", x, s.number("root", float(np.sqrt(2 / np.pi))))
    inner = s.op("i", "Mul", line, s.op("a", "Add", square, s.number("one", 1.0)))
    raised = s.op("r", "Add", s.number("unit", 1.0), s.op("t", "Tanh", inner))
    return s.done(s.op("y", "Mul", s.op("p", "Mul", x, raised), s.number("half", 0.5)))


def hard_swish_by_hard_sigmoid() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    gate = s.op("g", "HardSigmoid", x, attrs=HardSigmoidAttrs(float(np.float32(1 / 6)), 0.5))
    return s.done(s.op("y", "Mul", gate, x))


def hard_sigmoid_of_relu6() -> Graph:
    s = Sketch()
    clipped = s.op("c", "Clip", s.op("k", "Add", s.input(N, 9), s.number("three", 3.0)), attrs=ClipAttrs(0.0, 6.0))
    return s.done(s.op("y", "Mul", clipped, s.number("sixth", 1 / 6)))


def leaky_relu_by_max() -> Graph:
    s = Sketch()
    x = s.input(N, 9)
    return s.done(s.op("y", "Max", s.op("m", "Mul", x, s.number("slope", 0.1)), x))


def steep_max() -> Graph:
    """A slope above 1 keeps the other half: stays."""
    s = Sketch()
    x = s.input(N, 9)
    return s.done(s.op("y", "Max", s.op("m", "Mul", x, s.number("slope", 1.5)), x))


def cubic_of_other_share() -> Graph:
    """GELU's form with another coefficient: stays."""
    s = Sketch()
    x = s.input(N, 9)
    cube = s.op("c", "Mul", s.op("p", "Power", x, attrs=PowerAttrs(3.0)), s.number("share", 0.05))
    scaled = s.op("s", "Mul", s.op("a", "Add", x, cube), s.number("root", float(np.sqrt(2 / np.pi))))
    raised = s.op("r", "Add", s.op("t", "Tanh", scaled), s.number("one", 1.0))
    return s.done(s.op("y", "Mul", s.op("h", "Mul", x, s.number("half", 0.5)), raised))


def not_quite_gelu() -> Graph:
    """The gate of another value: stays."""
    s = Sketch()
    x, z = s.input(N, 9), s.input(N, 9, name="z")
    erf = s.op("e", "Erf", s.op("d", "Div", z, s.number("root", float(np.sqrt(2.0)))))
    product = s.op("p", "Mul", x, s.op("a", "Add", erf, s.number("one", 1.0)))
    return s.done(s.op("y", "Mul", product, s.number("half", 0.5)))


def constant_arithmetic() -> Graph:
    s = Sketch()
    x = s.op("d", "Div", s.op("s", "Sub", s.input(N, 3, 2, 2), s.const("mean", 3, 1, 1)), s.number("two", 2.0))
    return s.done(s.op("y", "Relu", s.op("o", "Mul", s.op("n", "Add", x, s.number("zero", 0.0)), s.number("one", 1.0))))


def broadcasting_add_of_zero() -> Graph:
    """The zeros change the shape: stays."""
    s = Sketch()
    zeros = s.graph.add_constant("zeros", np.zeros((1, 3), np.float32))
    return s.done(s.op("y", "Add", s.input(N, 1), zeros))


def chain_of_sequence_convs() -> Graph:
    """Conv, BatchNormalization and Relu over [N,C,L], a residual sum with a bias per channel, and a Conv behind it."""
    s = Sketch()
    x = s.input(N, 3, 8)
    image = s.op("i", "Reshape", x, attrs=ReshapeAttrs((N, 3, 1, 8)))
    pads = (0, 1, 0, 1)
    conv = s.op("c", "Conv", image, s.const("w", 3, 3, 1, 3), s.const("b", 3), attrs=ConvAttrs((1, 3), pads=pads))
    squeezed = s.op("r", "Reshape", conv, attrs=ReshapeAttrs((N, 3, 8)))
    variance = s.graph.add_constant("var", s.rng.uniform(0.5, 2, 3).astype(np.float32))
    statistics = (s.const("scale", 3), s.const("shift", 3), s.const("mean", 3), variance)
    relu = s.op("a", "Relu", s.op("n", "BatchNormalization", squeezed, *statistics, attrs=BatchNormAttrs()))
    again = s.op("j", "Reshape", relu, attrs=ReshapeAttrs((N, 3, 1, 8)))
    other = s.op("e", "Conv", again, s.const("v", 3, 3, 1, 3), attrs=ConvAttrs((1, 3), pads=pads))
    total = s.op("t", "Add", s.op("f", "Reshape", other, attrs=ReshapeAttrs((N, 3, 8))), relu)
    return s.done(s.op("y", "Mul", total, s.const("gain", 3, 1)))


def elementwise_after_other_reshape() -> Graph:
    """The Reshape splits an axis: stays."""
    s = Sketch()
    reshaped = s.op("r", "Reshape", s.input(N, 3, 8), attrs=ReshapeAttrs((N, 3, 2, 4)))
    return s.done(s.op("y", "Relu", reshaped))


def upsampling() -> Graph:
    s = Sketch()
    up = s.op("u", "ConvTranspose", s.input(N, 4, 3, 3), s.const("w", 4, 2, 2, 2), attrs=ConvTransposeAttrs((2, 2), (2, 2)))
    return s.done(s.op("y", "Relu", up))


def grouped_upsampling() -> Graph:
    """Windows overlap, borders are cut and the result is extended; the clamp stays with the layer."""
    s = Sketch()
    at = ConvTransposeAttrs((4, 3), (2, 3), (1, 0, 1, 2), (1, 1), 2, (0, 1))
    up = s.op("u", "ConvTranspose", s.input(N, 4, 3, 5), s.const("w", 4, 3, 4, 3), s.const("b", 6), attrs=at)
    return s.done(s.op("y", "Clip", up, attrs=ClipAttrs(-1, 2)))


def bn_after_upsampling() -> Graph:
    s = Sketch()
    at = ConvTransposeAttrs((3, 3), (2, 2), (1, 1, 1, 1), groups=2, output_padding=(1, 1))
    return s.done(norm(s, s.op("u", "ConvTranspose", s.input(N, 4, 3, 5), s.const("w", 4, 3, 3, 3), attrs=at), 6))


def computed_upsampling() -> Graph:
    """The model computes the weights: stays."""
    s = Sketch()
    up = s.op("y", "ConvTranspose", s.input(N, 4, 3, 3), s.input(4, 2, 2, 2, name="w"), attrs=ConvTransposeAttrs((2, 2), (2, 2)))
    return s.done(up)


# Pass -> graphs that it rewrites.
REWRITES: dict[str, tuple[Callable[[], Graph], ...]] = {
    "fold-constants": (constant_transpose,),
    "fold-bn": (bn_after_conv, bn_after_upsampling, bn_after_gemm, bn_alone, bn_after_shared_conv),
    "fold-affine": (bias_after_gemm, scale_and_shift_after_conv, quantized_bias_after_gemm),
    "lift-elementwise": (chain_of_sequence_convs,),
    "subpixel": (upsampling, grouped_upsampling),
    "fold-pad": (pad_before_conv, pad_before_average, pad_before_max_after_relu),
    "merge-reshapes": (reshape_chain, reshape_there_and_back),
    "merge-transposes": (transposes_around_residual, transpose_of_one_channel),
    "merge-slices": (slice_chain,),
    "globalize-pools": (average_of_everything, mean_of_images, mean_of_nhwc_images),
    "fuse-activations": (
        relu_then_min,
        clip_that_is_relu,
        silu,
        swish_of_a_product,
        mish_by_log,
        hard_swish,
        hard_swish_of_relu6,
        hard_swish_by_hard_sigmoid,
        hard_sigmoid_of_relu6,
        gelu,
        gelu_by_tanh_of_power,
        gelu_by_tanh_of_products,
        leaky_relu_by_max,
    ),
    "simplify-arithmetic": (constant_arithmetic,),
}

# Pass -> graphs that look alike and must not change.
LEFT_ALONE: dict[str, tuple[Callable[[], Graph], ...]] = {
    "fold-affine": (spatial_add_after_conv,),
    "lift-elementwise": (elementwise_after_other_reshape,),
    "subpixel": (computed_upsampling,),
    "fold-pad": (pad_before_max, nonzero_pad_before_conv),
    "globalize-pools": (mean_of_rows,),
    "fuse-activations": (quantized_relu_then_clip, not_quite_gelu, steep_max, cubic_of_other_share),
    "simplify-arithmetic": (broadcasting_add_of_zero,),
}
