"""Depthwise NHWC convolution: one loop nest for every instruction set, channels in lanes.

In: a `ConvProblem` with groups == c == oc, a tile and a `DepthwiseKernel` (how one ISA combines taps and requantizes). Out: a
PrimFunc, and the packing of weights and bias it reads.

Loop nest, outermost first::

    images, blocks of output rows       [lo, hi) counts output rows over all images
      copy the input rows of the block into scratch, padded with the zero point   (only if padded)
      channel blocks
        rows, tiles of at most `tw` neighbouring pixels
          all taps, unrolled: a column of input is combined once and used by every pixel of the tile that it touches

An integer kernel combines `kgroup` rows of a column into the operand of its dot-product instruction, whose sums may come out in
another channel order; weights, bias and parameters are packed in that order and storing the codes restores it.

Constant buffers, in ABI order: weights `[block][row group][kernel column][vector][channel][kgroup]`; bias with the header of
`bevel.backends.kernels.conv`; requantization parameters of the ISA (only when the result is requantized).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bevel.backends.half import wide_dtype
from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Extent, Problem, Tile, outer_extent
from bevel.backends.kernels.conv import is_short, pack_bias, short_factors
from bevel.backends.kernels.micro import FLOATS, HEADER
from bevel.backends.kernels.staging import BLOCK_BYTES, Staging
from bevel.backends.kernels.tiling import split, store_valid
from bevel.backends.tvm import Buffer, Builder, Expr, PrimFunc
from bevel.ir.protocols import Target


class DepthwiseKernel(abc.ABC):
    """How one ISA computes pixels of a block of channels.

    Attributes:
        widths: block widths in channels, widest first; the last is the narrowest the ISA has.
        vectors: accumulator vectors per block, each of width / vectors lanes.
        kgroup: kernel rows one multiply-accumulate consumes.
        planar: whether the weights of a row group's rows follow each other, rather than lie side by side per channel.
        acc_dtype: accumulator element ("float32", "int32", or "uint32" where additions wrap).
        weight_dtype: packed weight element.
        params_dtype: element of the packed requantization parameters.
        copy_lanes: elements per vector of the copy into scratch.
        short_requantize: whether there is `requantize_short`.
        reload_constants: whether every tile reads its weights, and every pixel its requantization parameters, from memory.
            Otherwise LLVM moves those loads out of all loops and spills what does not fit the registers, to a stack that it does
            not align to vectors: reloading from there was measured 25 % slower than reading the constants again.
    """

    widths: tuple[int, ...]
    vectors: int = 1
    kgroup: int = 1
    planar: bool = False
    acc_dtype: str = "float32"
    weight_dtype: str = "float32"
    params_dtype: str = "int64"
    copy_lanes: int = 16
    short_requantize: bool = False
    reload_constants: bool = False

    @abc.abstractmethod
    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """One multiply-accumulate operand per vector from `kgroup` input vectors of `width`; None is a row without weights."""

    @abc.abstractmethod
    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """`acc` plus the products of one operand."""

    def order(self, width: int) -> Sequence[int]:
        """Channel within the block of every accumulator element, vector by vector."""
        return range(width)

    def pack_requantize(self, constants: ConvConstants, width: int) -> Array:
        """Parameters of one block whose channels are already in accumulator order."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")

    def requantize(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, width: int) -> Expr:
        """Requantized int32 vector of the accumulators from `channel` on, not yet clamped."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer, width: int) -> Expr:
        """As `requantize` for short factors; see `MicroKernel.requantize_short`."""
        raise NotImplementedError(f"{type(self).__name__} has no short requantization")

    def pack_short(self, factors: Array) -> Array:
        """int32 parameters that `requantize_short` reads, from factors in accumulator order."""
        raise NotImplementedError(f"{type(self).__name__} has no short requantization")

    def codes(self, k: Builder, values: Sequence[Expr], width: int, limits: Sequence[Expr]) -> Expr:
        """Saturated codes of a block in channel order; `limits` are int32 scalars lo and hi, or empty."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")


@dataclass(frozen=True)
class Block:
    """Equal channel blocks.

    Attributes:
        start: first channel.
        count: number of blocks.
        width: channels per block.
        valid: channels of each that exist.
    """

    start: int
    count: int
    width: int
    valid: int


def blocks(channels: int, widths: Sequence[int]) -> tuple[Block, ...]:
    """Cover `channels` with blocks: as many of the widest as fit, then the narrowest that covers what is left."""
    found, start = [], 0
    for i, width in enumerate(widths):
        count = (channels - start) // width
        if count:
            found.append(Block(start, count, width, width))
            start += count * width
        rest = channels - start
        narrower = widths[i + 1] if i + 1 < len(widths) else 0
        if rest > narrower:
            found.append(Block(start, 1, width, rest))
            break
        if not rest:
            break
    return tuple(found)


@dataclass(frozen=True)
class Geometry:
    """A problem cut up for one ISA."""

    problem: ConvProblem
    micro: DepthwiseKernel

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Channel blocks."""
        return blocks(self.problem.oc, self.micro.widths)

    @property
    def channels(self) -> int:
        """Channels with padding."""
        return sum(block.count * block.width for block in self.blocks)

    @property
    def row_groups(self) -> int:
        """Groups of kernel rows."""
        return -(-self.problem.kh // self.micro.kgroup)

    @property
    def taps(self) -> int:
        """Packed weights per channel."""
        return self.row_groups * self.micro.kgroup * self.problem.kw

    @cached_property
    def staging(self) -> Staging:
        """Where the inner loop finds its input."""
        return Staging(self.problem, wide_dtype(self.problem.dtype), self.micro.copy_lanes)

    @cached_property
    def block_rows(self) -> int:
        """Output rows whose input is in scratch together."""
        rows = self.problem.oh
        while self.staging.needed and rows > 1 and self.staging.nbytes(rows) > BLOCK_BYTES:
            rows -= 1
        return -(-self.problem.oh // -(-self.problem.oh // rows))

    @cached_property
    def order(self) -> Array:
        """Channel of every packed accumulator element; elements >= oc are padding."""
        parts = [
            block.start + index * block.width + np.array(self.micro.order(block.width), np.int64)
            for block in self.blocks
            for index in range(block.count)
        ]
        return np.concatenate(parts)


def _in_order(values: Array, order: Array, fill: int) -> Array:
    """Rows of `values` in packed order, padding channels filled."""
    full = np.full((int(order.max()) + 1, *values.shape[1:]), fill, values.dtype)
    full[: len(values)] = values
    return full[order]


def pack(g: Geometry, constants: ConvConstants) -> list[Array]:
    """Weights, bias and requantization parameters in the layout of `emit`."""
    p, micro = g.problem, g.micro
    full = np.zeros((p.oc, g.row_groups * micro.kgroup, p.kw), np.dtype(micro.weight_dtype))
    full[:, : p.kh] = constants.weights[:, 0]
    full = _in_order(full, g.order, 0)
    parts, params, position = [], [], 0
    short = is_short(p, micro.short_requantize)
    for block in g.blocks:
        for _ in range(block.count):
            piece = full[position : position + block.width]
            piece = piece.reshape(micro.vectors, -1, g.row_groups, micro.kgroup, p.kw)
            parts.append(piece.transpose(2, 4, 0, *((3, 1) if micro.planar else (1, 3))).ravel())
            if p.out_dtype in ("uint8", "int8") and not short:
                at = g.order[position : position + block.width]
                params.append(micro.pack_requantize(_channels(constants, at), block.width))
            position += block.width
    if short:
        params = [micro.pack_short(_in_order(short_factors(constants), g.order, 0))]
    bias = pack_bias(p, g.channels, constants)
    real = bias[HEADER : HEADER + p.oc].copy()
    bias[HEADER:] = _in_order(real, g.order, 0)
    return [np.concatenate(parts), bias, *([np.concatenate(params)] if params else [])]


def _channels(constants: ConvConstants, at: Array) -> ConvConstants:
    """Multipliers and shifts of channels `at`; those that do not exist get a zero multiplier."""
    if constants.multiplier is None or constants.shift is None:
        raise TypeError("a requantized convolution was packed without multiplier and shift")
    exists = at < len(constants.multiplier)
    inside = np.where(exists, at, 0)
    return replace(
        constants,
        multiplier=np.where(exists, constants.multiplier[inside], 0),
        shift=np.where(exists, constants.shift[inside], 1),
    )


def unpack(g: Geometry, packed: Sequence[Array]) -> tuple[Array, Array]:
    """Logical weights [oc, 1, kh, kw] and bias [oc] back from `pack`."""
    p, micro = g.problem, g.micro
    full = np.zeros((int(g.order.max()) + 1, g.row_groups * micro.kgroup, p.kw), packed[0].dtype)
    position = 0
    for block in g.blocks:
        for _ in range(block.count):
            piece = packed[0][position * g.taps : (position + block.width) * g.taps]
            if micro.planar:
                piece = piece.reshape(g.row_groups, p.kw, micro.vectors, micro.kgroup, -1).swapaxes(3, 4)
            piece = piece.reshape(g.row_groups, p.kw, micro.vectors, -1, micro.kgroup).transpose(2, 3, 0, 4, 1)
            full[g.order[position : position + block.width]] = piece.reshape(block.width, -1, p.kw)
            position += block.width
    weights = full[: p.oc, None, : p.kh]
    bias = np.zeros(len(full), packed[1].dtype)
    bias[g.order] = packed[1][HEADER:]
    bias = bias[: p.oc]
    if p.dtype not in FLOATS:
        weights = weights.astype(np.int8)
        sums = weights.reshape(p.oc, -1).astype(np.int64).sum(axis=1)
        bias = (bias.astype(np.int64) + int(packed[1][0]) * sums).astype(np.uint64).astype(np.uint32).view(np.int32)
    return weights, bias


def emit(g: Geometry, tile_width: int, symbol: str) -> PrimFunc:
    """The kernel, computing up to `tile_width` neighbouring pixels together."""
    with Builder(symbol) as k:
        _Nest(k, g, tile_width).emit()
    return k.function


class _Nest:
    """Emits the loops of one kernel."""

    def __init__(self, k: Builder, g: Geometry, tile_width: int) -> None:
        self.k, self.g, self.tile_width = k, g, tile_width

    def emit(self) -> None:
        """Parameters in ABI order, then the loops."""
        k, g, p, micro = self.k, self.g, self.g.problem, self.g.micro
        self.x = k.param("x", p.dtype, widened=True)
        self.weights = k.param("w", micro.weight_dtype, widened=True)
        self.bias = k.param("b", "float32" if p.dtype in FLOATS else "int32")
        if p.out_dtype in ("uint8", "int8"):
            self.short = is_short(p, micro.short_requantize)
            self.params = k.param("q", "int32" if self.short else micro.params_dtype)
        self.y = k.param("y", p.out_dtype, widened=True)
        lo, hi, self.scratch = k.range_params(wide_dtype(p.dtype))
        self.source = self.scratch if g.staging.needed else self.x
        zero = k.f32(0.0) if p.dtype in FLOATS else k.cast(k.load(self.bias, k.i32(0)), p.dtype)
        image0, image1 = k.floordiv(lo, k.i32(p.oh)), k.floordiv(hi - 1, k.i32(p.oh)) + 1
        with k.serial(image0, image1) as image:
            first = k.max(lo - image * p.oh, k.i32(0))
            last = k.min(hi - image * p.oh, k.i32(p.oh))
            if not g.staging.needed:
                self.rows(image, first, last, first * p.stride_h + image * p.h)
                return
            with k.serial(k.floordiv(last - first + (g.block_rows - 1), k.i32(g.block_rows))) as index:
                start = first + index * g.block_rows
                stop = k.min(start + g.block_rows, last)
                g.staging.copy(k, self.x, self.scratch, zero, image, start, stop)
                self.rows(image, start, stop, k.i32(0))

    def rows(self, image: Expr, start: Expr, stop: Expr, source_row: Expr) -> None:
        """All channels of output rows [start, stop), whose first input row is `source_row` of the source."""
        k, g, p = self.k, self.g, self.g.problem
        for block in g.blocks:
            with k.serial(block.count) as index:
                channel = block.start + index * block.width
                with k.serial(stop - start) as r:
                    source = (source_row + r * p.stride_h) * g.staging.row_elements + channel
                    target = (image * p.oh + start + r) * (p.ow * p.oc) + channel
                    for run in split(p.ow, self.tile_width):
                        with k.serial(run.count) as t:
                            column = run.start + t * run.size
                            self.tile(source + column * (p.stride_w * p.c), target + column * p.oc, channel, run.size, block)

    def tile(self, source: Expr, target: Expr, channel: Expr, tw: int, block: Block) -> None:
        """`tw` neighbouring pixels of one channel block."""
        k, g, p, micro = self.k, self.g, self.g.problem, self.g.micro
        width, vectors = block.width, micro.vectors
        lanes = width // vectors
        acc = k.alloc(tw * width, micro.acc_dtype)
        for v in range(vectors):
            start = k.load(self.bias, HEADER + channel + v * lanes, lanes)
            if micro.acc_dtype == "uint32":
                start = k.bitcast(start, "uint32", lanes)
            for i in range(tw):
                k.store(acc, i * width + v * lanes, start, lanes)
        base = self.anchored(channel, target) * g.taps
        step = width * micro.kgroup
        columns = sorted({i * p.stride_w + kw * p.dilation_w for i in range(tw) for kw in range(p.kw)})
        for group in range(g.row_groups):
            for column in columns:
                users = [(i, kw) for i in range(tw) for kw in range(p.kw) if i * p.stride_w + kw * p.dilation_w == column]
                rows = [
                    k.load(self.source, source + kh * p.dilation_h * g.staging.row_elements + column * p.c, width)
                    if kh < p.kh
                    else None
                    for kh in range(group * micro.kgroup, (group + 1) * micro.kgroup)
                ]
                operands = micro.combine(k, rows, width)
                for i, kw in users:
                    for v in range(vectors):
                        at = i * width + v * lanes
                        w_at = base + (group * p.kw + kw) * step + v * lanes * micro.kgroup
                        w = k.load(self.weights, w_at, lanes * micro.kgroup)
                        k.store(acc, at, micro.mac(k, k.load(acc, at, lanes), operands[v], w, width), lanes)
        for i in range(tw):
            self.epilogue([k.load(acc, i * width + v * lanes, lanes) for v in range(vectors)], target + i * p.oc, channel, block)

    def anchored(self, channel: Expr, target: Expr) -> Expr:
        """`channel`, made to look dependent on the output offset `target` where constants shall be read anew for it."""
        if not self.g.micro.reload_constants:
            return channel
        # Offsets are never negative, which LLVM cannot see, so this adds zero.
        return channel + self.k.shift_right(target, self.k.i32(31))

    def epilogue(self, sums: list[Expr], target: Expr, channel: Expr, block: Block) -> None:
        """Turn the accumulators of one pixel into results and store those of existing channels."""
        k, p, micro = self.k, self.g.problem, self.g.micro
        width = block.width
        lanes = width // micro.vectors
        if micro.acc_dtype == "uint32":
            sums = [k.bitcast(value, "int32", lanes) for value in sums]
        if p.out_dtype in ("uint8", "int8"):
            limits = [k.load(self.bias, k.i32(1)), k.load(self.bias, k.i32(2))] if p.clamp else []
            here = self.anchored(channel, target)
            starts = [here + j * lanes for j in range(len(sums))]
            if self.short:
                values = [
                    micro.requantize_short(k, v, self.params, at, self.bias, width) for v, at in zip(sums, starts, strict=True)
                ]
            else:
                values = [micro.requantize(k, v, self.params, at, width) for v, at in zip(sums, starts, strict=True)]
            store_valid(k, self.y, target, micro.codes(k, values, width, limits), width, block.valid)
            return
        if p.out_dtype == "int32":
            # Runs of consecutive channels within a vector, as long as the packed order has them.
            order = list(micro.order(width))
            run = next((i for i in range(1, lanes) if order[i] != i), lanes)
            for at in range(0, width, run):
                valid = min(run, block.valid - order[at])
                if valid > 0:
                    piece = k.shuffle([sums[at // lanes]], range(at % lanes, at % lanes + run))
                    store_valid(k, self.y, target + order[at], piece, run, valid)
            return
        value = sums[0]
        if p.relu:
            value = k.max(value, k.splat(k.f32(0.0), lanes))
        if p.clamp:
            value = k.max(value, k.splat(k.load(self.bias, k.i32(0)), lanes))
            value = k.min(value, k.splat(k.load(self.bias, k.i32(1)), lanes))
        store_valid(k, self.y, target, value, lanes, block.valid)


@dataclass(eq=False)
class DepthwiseGenerator:
    """Depthwise convolutions of one element type on one ISA.

    Attributes:
        name: unique generator name.
        arch: `Target.arch` it runs on.
        features: ISA features it needs.
        dtype: element type of x.
        out_dtypes: result types it can store.
        micro: the inner step.
        tile_widths: pixels per tile worth trying, the best on average first.
    """

    name: str
    arch: str
    features: tuple[str, ...]
    dtype: str
    out_dtypes: tuple[str, ...]
    micro: DepthwiseKernel
    tile_widths: tuple[int, ...]

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Checks for one filter per channel, kernels up to 7x7, element types and ISA features."""
        if not isinstance(problem, ConvProblem):
            return "not a convolution"
        if target.arch != self.arch or not target.has(*self.features):
            return f"needs {self.arch} with {', '.join(self.features)}, which {target.name} lacks"
        if not problem.groups == problem.c == problem.oc or problem.groups == 1:
            return f"one filter per channel only, the problem has {problem.c} -> {problem.oc} in {problem.groups} groups"
        if problem.dtype != self.dtype or problem.out_dtype not in self.out_dtypes:
            return (
                f"computes {self.dtype} -> {' or '.join(self.out_dtypes)}, the problem is {problem.dtype} -> {problem.out_dtype}"
            )
        if problem.kh > 7 or problem.kw > 7:
            return f"kernels up to 7x7 are unrolled, this one is {problem.kh}x{problem.kw}"
        if problem.oh < 1 or problem.ow < 1 or problem.batch < 1:
            return f"empty output {problem.batch}x{problem.oh}x{problem.ow}"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Tile widths that differ on this output width."""
        width = _geometry(problem, self.micro).problem.ow
        return [{"tw": tw} for tw in dict.fromkeys(min(tw, width) for tw in self.tile_widths)]

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Weights, bias and requantization parameters."""
        if constants is None:
            raise TypeError(f"{self.name} needs the convolution's constants")
        return pack(_geometry(problem, self.micro), constants)

    def unpack(self, problem: Problem, tile: Tile, packed: Sequence[Array]) -> tuple[Array, Array]:
        """Logical weights and bias back from `pack`."""
        return unpack(_geometry(problem, self.micro), packed)

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Output rows of all images."""
        p = _geometry(problem, self.micro).problem
        return p.batch * p.oh

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """Output rows of the actual images."""
        extent = self.parallel_extent(problem, tile)
        return outer_extent(_geometry(problem, self.micro).problem, extent, 1, extent)

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """Padded input rows of one block."""
        g = _geometry(problem, self.micro)
        return g.staging.nbytes(g.block_rows) if g.staging.needed else 0

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        return emit(_geometry(problem, self.micro), tile["tw"], symbol)


def _geometry(problem: Problem, micro: DepthwiseKernel) -> Geometry:
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"expected a ConvProblem, got {type(problem).__name__}")
    return Geometry(problem, micro)
