"""Derived convolution: every `ConvProblem`, on every CPU.

Loop nest: output rows of all images (the parallel axis), pixels, groups, vectors of output channels held in registers, the
taps inside the image, input channels of the group. Depthwise convolutions take vectors of channels instead of groups. Integer
problems multiply int32 by int32, so nothing depends on the instruction set.

Constant buffers, in ABI order:

* weights `[kh][kw][c / groups][oc]`, in the problem's element type (int8 for codes);
* bias `[oc]`, float32 or int32;
* requantization (only when the result is requantized): multipliers int32 `[oc]`, shifts int32 `[oc]`;
* parameters: `[lo, hi]` float32 where a float result is clamped; `[x zero point, y zero point, lo, hi]` int32 for codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.generic.elementwise import requantize
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, cut
from bevel.backends.generic.window import valid_taps
from bevel.backends.half import refuse_half, wide_dtype
from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Extent, Problem, Tile, outer_extent
from bevel.backends.tvm import Buffer, Builder, Expr, PrimFunc
from bevel.ir.protocols import Target

# Vectors of output channels per step: four independent accumulators hide most of the multiply-add latency.
_WIDTH = 4
_CODES = ("int8", "uint8")


@dataclass(frozen=True)
class GenericConv:
    """Derived kernels of convolution problems.

    Attributes:
        name: unique generator name.
    """

    name: str = "generic.conv"

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Checks element types; every shape and target will do."""
        if not isinstance(problem, ConvProblem):
            return "not a convolution"
        if (reason := refuse_half({problem.dtype, problem.out_dtype}, target)) is not None:
            return reason
        if wide_dtype(problem.dtype) == "float32":
            floats = wide_dtype(problem.out_dtype) == "float32"
            return None if floats else f"a {problem.dtype} convolution into {problem.out_dtype}"
        if problem.dtype in _CODES and problem.out_dtype in (*_CODES, "int32"):
            return None
        return f"a convolution from {problem.dtype} to {problem.out_dtype}"

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """One: derived kernels have no parameters."""
        return [{}]

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """See the module's docstring."""
        p = _conv(problem)
        if constants is None:
            raise TypeError(f"{self.name} needs the convolution's constants")
        weights = np.ascontiguousarray(constants.weights.transpose(2, 3, 1, 0))
        if wide_dtype(p.dtype) == "float32":
            packed = [weights.astype(p.dtype), constants.bias.astype(np.float32)]
            return [*packed, np.array([constants.lo, constants.hi], np.float32)] if p.clamp else packed
        packed = [weights.astype(np.int8), constants.bias.astype(np.int32)]
        limits = np.iinfo(p.out_dtype)
        lo, hi = max(constants.lo, limits.min), min(constants.hi, limits.max)
        if p.out_dtype != "int32":
            if constants.multiplier is None or constants.shift is None:
                raise TypeError(f"{self.name} needs multipliers and shifts to requantize to {p.out_dtype}")
            packed += [constants.multiplier.astype(np.int32), constants.shift.astype(np.int32)]
        return [*packed, np.array([constants.x_zero_point, constants.y_zero_point, lo, hi], np.int64).astype(np.int32)]

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Output rows of all images; pixels where images have one row."""
        p = _conv(problem)
        return p.batch * p.oh * (p.ow if _by_pixel(p) else 1)

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """The rows or pixels of the actual outermost axis."""
        extent = self.parallel_extent(problem, tile)
        return outer_extent(_conv(problem), extent, 1, extent)

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """None."""
        return 0

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        p = _conv(problem)
        with Builder(symbol) as k:
            _Kernel(p, k, 16 if target.has("avx512") else 8 if target.has("avx2") else 4).emit()
        return k.function


def _conv(problem: Problem) -> ConvProblem:
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"expected a ConvProblem, got {type(problem).__name__}")
    return problem


def _by_pixel(p: ConvProblem) -> bool:
    """Whether the parallel axis counts pixels: GEMMs are images of one row."""
    return p.oh == 1


class _Kernel:
    """One convolution being written."""

    def __init__(self, p: ConvProblem, k: Builder, lanes: int) -> None:
        self.p, self.k, self.lanes = p, k, lanes
        self.quantized = wide_dtype(p.dtype) != "float32"
        self.requantized = p.out_dtype in _CODES
        self.per_in, self.per_out = p.c // p.groups, p.oc // p.groups
        self.acc_dtype = "int32" if self.quantized else "float32"
        self.x = k.param("x", p.dtype, widened=True)
        self.weights = k.param("weights", "int8" if self.quantized else p.dtype, widened=True)
        self.bias = k.param("bias", self.acc_dtype)
        self.m: Buffer = k.param("m", "int32") if self.requantized else None
        self.n: Buffer = k.param("n", "int32") if self.requantized else None
        self.params = k.param("params", self.acc_dtype) if self.quantized or p.clamp else None
        self.y = k.param("y", p.out_dtype, widened=True)
        self.lo, self.hi, _ = k.range_params()

    def emit(self) -> None:
        """The loop nest."""
        k, p = self.k, self.p
        with k.serial(self.lo, self.hi) as index:
            if _by_pixel(p):
                image, ox = (0, index) if p.batch == 1 else (k.floordiv(index, k.i32(p.ow)), k.floormod(index, k.i32(p.ow)))
                self._pixel(image, 0, ox)
                return
            image, oy = (0, index) if p.batch == 1 else (k.floordiv(index, k.i32(p.oh)), k.floormod(index, k.i32(p.oh)))
            with k.serial(p.ow) as ox:
                self._pixel(image, oy, ox)

    def _pixel(self, image: Expr, oy: Expr, ox: Expr) -> None:
        """All channels of one output pixel."""
        k, p = self.k, self.p
        top, left = oy * p.stride_h - p.pad_top, ox * p.stride_w - p.pad_left
        rows = valid_taps(k, top, p.kh, p.dilation_h, p.h, inside=not (p.pad_top or p.pad_bottom))
        columns = valid_taps(k, left, p.kw, p.dilation_w, p.w, inside=not (p.pad_left or p.pad_right))
        out = ((image * p.oh + oy) * p.ow + ox) * p.oc

        def source(ky: Expr, kx: Expr) -> Expr:
            return ((image * p.h + top + ky * p.dilation_h) * p.w + left + kx * p.dilation_w) * p.c

        depthwise = self.per_in == self.per_out == 1
        groups, channels = (1, p.oc) if depthwise else (p.groups, self.per_out)
        widest = _WIDTH * self.lanes if channels >= SHORTEST_VECTOR else 1
        with k.serial(groups) as g:
            for block in cut(channels, widest):
                v = Lanes(k, block.lanes)
                with k.serial(block.loops) as i:
                    channel = g * self.per_out + (i * block.lanes + block.first)
                    acc = k.alloc(v.n, self.acc_dtype)
                    v.store(acc, 0, v.load(self.bias, channel))
                    with k.serial(*rows) as ky, k.serial(*columns) as kx, k.serial(self.per_in) as c:
                        weight = v.load(self.weights, ((ky * p.kw + kx) * self.per_in + c) * p.oc + channel)
                        if depthwise:
                            x = v.load(self.x, source(ky, kx) + channel)
                        else:
                            x = v.load(self.x, source(ky, kx) + g * self.per_in + c, 0)
                        v.store(acc, 0, self._accumulate(v, v.load(acc, 0), x, weight))
                    v.put(self.y, out + channel, self._result(v, v.load(acc, 0), channel), wide_dtype(p.out_dtype))

    def _parameter(self, v: Lanes, index: int) -> Expr:
        return v.load(self.params, index, 0)

    def _accumulate(self, v: Lanes, acc: Expr, x: Expr, weight: Expr) -> Expr:
        if not self.quantized:
            return acc + x * weight
        # The border holds real zero, so its taps are skipped and every other subtracts the zero point.
        return acc + (v.cast(x, "int32") - self._parameter(v, 0)) * v.cast(weight, "int32")

    def _result(self, v: Lanes, acc: Expr, channel: Expr) -> Expr:
        """The stored result of accumulators of `v.n` channels from `channel` on."""
        if self.requantized:
            m, n = (v.cast(v.load(buffer, channel), "int64") for buffer in (self.m, self.n))
            zero, lo, hi = (v.cast(self._parameter(v, i), "int64") for i in (1, 2, 3))
            return v.cast(requantize(v, v.cast(acc, "int64"), m, n, zero, lo, hi), self.p.out_dtype)
        if self.quantized:
            return acc
        if self.p.relu:
            acc = v.max(acc, v.f32(0))
        return v.min(v.max(acc, self._parameter(v, 0)), self._parameter(v, 1)) if self.p.clamp else acc
