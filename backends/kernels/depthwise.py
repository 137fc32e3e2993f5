"""Depthwise NHWC convolution: one loop nest for every instruction set, channels in lanes.

In: a `ConvProblem` with groups == c == oc, a tile and a `DepthwiseKernel` (how one ISA combines taps and requantizes). Out: a
PrimFunc, and the packing of weights and bias it reads. Floats have the same packing and a nest of their own,
`bevel.backends.kernels.depthwise_direct`.

Loop nest, outermost first::

    images, blocks of output rows       [lo, hi) counts output rows over all images
      copy the input rows of the block into scratch, padded with the zero point   (only if padded)
      channel blocks
        rows, tiles of at most `tw` neighbouring pixels
          all taps, unrolled: a column of input is combined once and used by every pixel of the tile that it touches

An integer kernel combines `kgroup` rows of a column into the operand of its dot-product instruction, whose sums may come out in
another channel order; weights, bias and parameters are packed in that order and storing the codes restores it.

Constant buffers, in ABI order: weights `[block][row group][kernel column][vector][channel][kgroup]`, in a partial last row group
(and in all groups of planar kernels) `[row][channel]` instead of the last two; bias with the header of
`bevel.backends.kernels.conv`; requantization parameters (only when the result is requantized), see
`bevel.backends.kernels.parameters`. What is compact there is expanded into scratch when a kernel begins.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Extent, Problem, Tile, outer_extent
from bevel.backends.kernels import parameters
from bevel.backends.kernels.conv import is_short, pack_bias, short_factors
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.micro import CODES, FLOATS, HEADER
from bevel.backends.kernels.parameters import Fields
from bevel.backends.kernels.scratch import Vectors, vector_bytes
from bevel.backends.kernels.staging import BLOCK_BYTES, Staging
from bevel.backends.kernels.tiling import split, store_valid
from bevel.backends.memory import align
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
        fields: of a record of requantization parameters (`bevel.backends.kernels.parameters`).
        copy_lanes: elements per vector of the copy into scratch.
        short_requantize: whether there is `requantize_short`.
        reload_constants: whether every tile reads its weights, and every pixel its requantization parameters, from memory.
            Otherwise LLVM moves those loads out of all loops and spills what does not fit the registers, to a stack that it does
            not align to vectors: reloading from there was measured 25 % slower than reading the constants again.
        nan_wins: see `Builder`.
        tails: whether channels that do not fill blocks take narrower ones; else the last block overlaps the one before.
    """

    widths: tuple[int, ...]
    vectors: int = 1
    kgroup: int = 1
    planar: bool = False
    acc_dtype: str = "float32"
    weight_dtype: str = "float32"
    fields: int = 0
    short_requantize: bool = False
    copy_lanes: int = 16
    reload_constants: bool = False
    nan_wins: bool = False
    tails: bool = False

    @abc.abstractmethod
    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """One multiply-accumulate operand per vector from `kgroup` input vectors of `width`; None is a row without weights."""

    @abc.abstractmethod
    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """`acc` plus the products of one operand."""

    def order(self, width: int) -> Sequence[int]:
        """Channel within the block of every accumulator element, vector by vector."""
        return range(width)

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int) -> list[Expr]:
        """The record of `lanes` accumulators from int32 vectors of multipliers and shifts and the int32 zero point."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")

    def requantize(self, k: Builder, sums: Expr, field: Fields, lanes: int) -> Expr:
        """Requantized int32 vector of the `lanes` accumulators whose record is given, not yet clamped."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer, lanes: int) -> Expr:
        """As `requantize` for short factors; see `MicroKernel.requantize_short`."""
        raise NotImplementedError(f"{type(self).__name__} has no short requantization")

    def pack_short(self, factors: Array) -> Array:
        """int32 parameters that `requantize_short` reads, from factors in accumulator order."""
        raise NotImplementedError(f"{type(self).__name__} has no short requantization")

    def codes(self, k: Builder, values: Sequence[Expr], width: int, limits: Sequence[Expr]) -> Expr:
        """Saturated codes of a block in channel order; `limits` are int32 scalars lo and hi, or empty."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")


@dataclass(frozen=True)
class Geometry:
    """A part of a problem cut up for one ISA: neighbouring blocks of channels of one width.

    Attributes:
        problem: the whole problem.
        micro: of the ISA.
        first: first channel.
        count: channels from there on.
        before: packed channels of the parts before.
        total: packed channels of all parts.
    """

    problem: ConvProblem
    micro: DepthwiseKernel
    first: int
    count: int
    before: int
    total: int

    @cached_property
    def width(self) -> int:
        """Channels per block: the widest that there are."""
        return block_width(self.micro, self.count)

    @property
    def blocks(self) -> int:
        """Channel blocks. The last one ends with the last channel: it computes again what it shares with the one before."""
        return -(-self.count // self.width)

    @property
    def last(self) -> int:
        """First channel that a block may begin at the latest."""
        return max(self.problem.oc - self.width, 0)

    @property
    def valid(self) -> int:
        """Channels of a block that exist: all, unless even the narrowest is wider than the problem."""
        return min(self.width, self.problem.oc)

    @property
    def lanes(self) -> int:
        """Accumulators per vector."""
        return self.width // self.micro.vectors

    @property
    def row_groups(self) -> int:
        """Groups of kernel rows."""
        return -(-self.problem.kh // self.micro.kgroup)

    @property
    def spread_rows(self) -> int:
        """Kernel rows of the last group, where that is a partial one whose weights must lie side by side; 0 otherwise."""
        return 0 if self.micro.planar else self.problem.kh % self.micro.kgroup

    @property
    def taps(self) -> int:
        """Packed weights per channel."""
        return self.problem.kh * self.problem.kw

    @cached_property
    def staging(self) -> Staging:
        """Where the inner loop finds its input."""
        return Staging(self.problem, self.problem.dtype, self.micro.copy_lanes, self.rows_at)

    @cached_property
    def block_rows(self) -> int:
        """Output rows whose input is in scratch together."""
        rows = self.problem.oh
        while self.staging.needed and rows > 1 and self.staging.nbytes(rows) > BLOCK_BYTES:
            rows -= 1
        return -(-self.problem.oh // -(-self.problem.oh // rows))

    @property
    def rows_at(self) -> int:
        """Byte in scratch, behind spread weights, where staged rows begin."""
        return self._spread_at + (align(vector_bytes(self.problem.kw, self.total)) if self.spread_rows else 0)

    @property
    def spread_at(self) -> int:
        """Byte in scratch where spread weights of this part begin."""
        return self._spread_at + vector_bytes(self.problem.kw, self.before)

    @property
    def records_at(self) -> int:
        """Byte in scratch where records of requantization parameters of this part begin."""
        return vector_bytes(self.micro.fields, self.before)

    @property
    def _spread_at(self) -> int:
        """Byte in scratch, behind the records of all requantization parameters, where spread weights begin."""
        return align(vector_bytes(self.micro.fields, self.total)) if self.expanded else 0

    @property
    def expanded(self) -> bool:
        """Whether results are requantized with records in scratch."""
        return self.problem.out_dtype in CODES and not is_short(self.problem, self.micro.short_requantize)

    @property
    def scratch_bytes(self) -> int:
        """Scratch one thread needs."""
        return self.rows_at + (self.staging.nbytes(self.block_rows) if self.staging.needed else 0)

    @cached_property
    def order(self) -> Array:
        """Channel of every packed accumulator element; elements >= oc are padding."""
        order = np.array(self.micro.order(self.width), np.int64)
        return np.concatenate([min(self.first + index * self.width, self.last) + order for index in range(self.blocks)])

    def taps_in_order(self, block: Array) -> list[Array]:
        """Views of a block's weights [width, kh, kw], channels in packed order, such that their elements are in packed order."""
        groups = []
        for first in range(0, self.problem.kh, self.micro.kgroup):
            rows = block[:, first : first + self.micro.kgroup].reshape(self.micro.vectors, self.lanes, -1, self.problem.kw)
            beside = rows.shape[2] == self.micro.kgroup and not self.micro.planar
            groups.append(rows.transpose(3, 0, *((1, 2) if beside else (2, 1))))
        return groups


def block_width(micro: DepthwiseKernel, channels: int) -> int:
    """Channels of the widest block that `channels` fill, or of the narrowest."""
    return next((width for width in micro.widths if width <= channels), micro.widths[-1])


def parts(problem: Problem, micro: DepthwiseKernel) -> list[Geometry]:
    """A problem, which must be a convolution, cut up for an ISA."""
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"expected a ConvProblem, got {type(problem).__name__}")
    counts, rest = [], problem.oc
    while rest:
        width = block_width(micro, rest)
        counts.append(rest // width * width if micro.tails and width != micro.widths[-1] else rest)
        rest -= counts[-1]
    widths = [block_width(micro, count) for count in counts]
    packed = [-(-count // width) * width for count, width in zip(counts, widths, strict=True)]
    return [
        Geometry(problem, micro, sum(counts[:index]), count, sum(packed[:index]), sum(packed))
        for index, count in enumerate(counts)
    ]


def _in_order(values: Array, order: Array, fill: int) -> Array:
    """Rows of `values` in packed order, padding channels filled."""
    full = np.full((max(int(order.max()) + 1, len(values)), *values.shape[1:]), fill, values.dtype)
    full[: len(values)] = values
    return full[order]


def pack(cut: Sequence[Geometry], constants: ConvConstants) -> list[Array]:
    """Weights, bias and requantization parameters in the layout of `emit`."""
    p, micro = cut[0].problem, cut[0].micro
    order = np.concatenate([g.order for g in cut])
    weights = []
    for g in cut:
        full = _in_order(constants.weights[:, 0].astype(np.dtype(micro.weight_dtype)), g.order, 0)
        blocks = full.reshape(g.blocks, g.width, p.kh, p.kw)
        weights += [group.ravel() for block in blocks for group in g.taps_in_order(block)]
    bias = pack_bias(p, p.oc, constants)
    header, real = bias[:HEADER], bias[HEADER:]
    packed = [np.concatenate(weights), np.concatenate([header, _in_order(real, order, 0)])]
    if p.out_dtype in CODES:
        if cut[0].expanded:
            packed.append(np.concatenate([parameters.pack(_channels(constants, g.order), g.lanes) for g in cut]))
        else:
            packed.append(micro.pack_short(_in_order(short_factors(constants), order, 0)))
    return packed


def _channels(constants: ConvConstants, at: Array) -> ConvConstants:
    """Multipliers and shifts of channels `at`; those that do not exist get a zero multiplier."""
    if constants.multiplier is None or constants.shift is None:
        raise TypeError("a requantized convolution was packed without multiplier and shift")
    exists = at < len(constants.multiplier)
    inside = np.where(exists, at, 0)
    return replace(
        constants,
        multiplier=np.where(exists, constants.multiplier[inside], 0),
        shift=np.where(exists, constants.shift[inside], parameters.LONGEST),
    )


def unpack(cut: Sequence[Geometry], packed: Sequence[Array]) -> tuple[Array, Array]:
    """Logical weights [oc, 1, kh, kw] and bias [oc] back from `pack`."""
    p = cut[0].problem
    order = np.concatenate([g.order for g in cut])
    full = np.zeros((int(order.max()) + 1, p.kh, p.kw), packed[0].dtype)
    for g in cut:
        blocks = np.zeros((g.blocks, g.width, p.kh, p.kw), packed[0].dtype)
        # Numbers of elements in packed order say where each belongs.
        number = np.arange(blocks.size).reshape(blocks.shape)
        places = np.concatenate([group.ravel() for block in number for group in g.taps_in_order(block)])
        blocks.reshape(-1)[places] = packed[0][g.before * g.taps :][: blocks.size]
        full[g.order] = blocks.reshape(-1, p.kh, p.kw)
    weights = full[: p.oc, None]
    bias = np.zeros(len(full), packed[1].dtype)
    bias[order] = packed[1][HEADER:]
    bias = bias[: p.oc]
    if p.dtype not in FLOATS:
        weights = weights.astype(np.int8)
        sums = weights.reshape(p.oc, -1).astype(np.int64).sum(axis=1)
        bias = (bias.astype(np.int64) + int(packed[1][0]) * sums).astype(np.uint64).astype(np.uint32).view(np.int32)
    return weights, bias


def emit(cut: Sequence[Geometry], tile_width: int, symbol: str) -> PrimFunc:
    """The kernel, computing up to `tile_width` neighbouring pixels together."""
    with Builder(symbol, nan_wins=cut[0].micro.nan_wins) as k:
        _emit(k, cut, tile_width)
    return k.function


def _emit(k: Builder, cut: Sequence[Geometry], tile_width: int) -> None:
    """Parameters in ABI order, then the loops around the parts."""
    g, p, micro = cut[0], cut[0].problem, cut[0].micro
    x = k.param("x", p.dtype)
    weights = k.param("w", micro.weight_dtype)
    bias = k.param("b", "int32")
    params = k.param("q", "int32") if p.out_dtype in CODES else None
    y = k.param("y", p.out_dtype)
    lo, hi, scratch = k.range_params(p.dtype)
    nests = [_Nest(k, part, tile_width, x, weights, bias, params, y, scratch) for part in cut]
    zero = k.cast(k.load(bias, k.i32(0)), p.dtype)
    for nest in nests:
        nest.prepare()
    image0, image1 = k.floordiv(lo, k.i32(p.oh)), k.floordiv(hi - 1, k.i32(p.oh)) + 1
    with k.serial(image0, image1) as image:
        first = k.max(lo - image * p.oh, k.i32(0))
        last = k.min(hi - image * p.oh, k.i32(p.oh))
        if not g.staging.needed:
            for nest in nests:
                nest.rows(image, first, last, first * p.stride_h + image * p.h)
            return
        with k.serial(k.floordiv(last - first + (g.block_rows - 1), k.i32(g.block_rows))) as index:
            start = first + index * g.block_rows
            stop = k.min(start + g.block_rows, last)
            g.staging.copy(k, x, scratch, zero, image, start, stop)
            for nest in nests:
                nest.rows(image, start, stop, k.i32(0))


class _Nest:
    """Emits the loops over the blocks of one part."""

    def __init__(
        self,
        k: Builder,
        g: Geometry,
        tile_width: int,
        x: Buffer,
        weights: Buffer,
        bias: Buffer,
        params: Buffer | None,
        y: Buffer,
        scratch: Buffer,
    ) -> None:
        self.k, self.g, self.tile_width = k, g, tile_width
        self.weights, self.bias, self.params, self.y = weights, bias, params, y
        self.source = scratch if g.staging.needed else x
        self.records = Vectors(k, scratch, g.problem.dtype, g.records_at, g.lanes)
        self.spread = Vectors(k, scratch, g.problem.dtype, g.spread_at, g.lanes)

    def prepare(self) -> None:
        """Expand into scratch what is compact in the constants."""
        k, g = self.k, self.g
        # Trip counts that LLVM does not know: it would unroll the loops.
        if g.expanded:
            with k.serial(k.opaque(k.i32(g.blocks * g.micro.vectors), "int32")) as vector:
                self.expand(vector)
        if g.spread_rows:
            with k.serial(k.opaque(k.i32(g.blocks), "int32")) as block:
                self.spread_weights(block)

    def expand(self, vector: Expr) -> None:
        """Write the record of a vector of accumulators."""
        k, g, micro = self.k, self.g, self.g.micro
        factors = parameters.load(k, self.params, g.before + vector * g.lanes, g.lanes)
        record = micro.expand(k, *factors, k.load(self.bias, k.i32(3)), g.lanes)
        parameters.write(self.records, vector * micro.fields, record)

    def spread_weights(self, block: Expr) -> None:
        """Write the weights of a block's partial group of kernel rows side by side, as the multiply-accumulate takes them."""
        k, g, p, micro = self.k, self.g, self.g.problem, self.g.micro
        unsigned, bits = f"u{micro.weight_dtype}", 8 * np.dtype(micro.weight_dtype).itemsize
        start = self.weights_of(block) + g.width * (p.kh - g.spread_rows) * p.kw
        with k.serial(k.opaque(k.i32(p.kw * micro.vectors), "int32")) as at:
            value = None
            for row in range(g.spread_rows):
                weights = k.load(self.weights, start + (at * g.spread_rows + row) * g.lanes, g.lanes)
                raw = k.cast(k.bitcast(weights, unsigned, g.lanes), "uint32", g.lanes)
                placed = k.shift_left(raw, k.const(row * bits, "uint32", g.lanes))
                value = placed if value is None else k.bitwise_or(value, placed)
            self.spread.put(block * (p.kw * micro.vectors) + at, value)

    def weights_of(self, block: Expr) -> Expr:
        """Element where a block's weights begin."""
        return self.g.before * self.g.taps + block * (self.g.width * self.g.taps)

    def rows(self, image: Expr, start: Expr, stop: Expr, source_row: Expr) -> None:
        """The part's channels of output rows [start, stop), whose first input row is `source_row` of the source."""
        k, g, p = self.k, self.g, self.g.problem
        with k.serial(g.blocks) as block:
            channel = k.min(g.first + block * g.width, k.i32(g.last))
            with k.serial(stop - start) as r:
                source = (source_row + r * p.stride_h) * g.staging.row_elements + channel + g.staging.first
                target = (image * p.oh + start + r) * (p.ow * p.oc) + channel
                for run in split(p.ow, self.tile_width):
                    with k.serial(run.count) as t:
                        column = run.start + t * run.size
                        self.tile(source + column * (p.stride_w * p.c), target + column * p.oc, block, run.size)

    def tile(self, source: Expr, target: Expr, block: Expr, tw: int) -> None:
        """`tw` neighbouring pixels of one channel block."""
        k, g, p, micro, lanes = self.k, self.g, self.g.problem, self.g.micro, self.g.lanes
        acc = k.alloc(tw * g.width, micro.acc_dtype)
        for v in range(micro.vectors):
            start = k.load(self.bias, HEADER + g.before + block * g.width + v * lanes, lanes)
            if micro.acc_dtype == "uint32":
                start = k.bitcast(start, "uint32", lanes)
            for i in range(tw):
                k.store(acc, i * g.width + v * lanes, start, lanes)
        here = self.anchored(block, target)
        columns = sorted({i * p.stride_w + kw * p.dilation_w for i in range(tw) for kw in range(p.kw)})
        for group in range(g.row_groups):
            for column in columns:
                users = [(i, kw) for i in range(tw) for kw in range(p.kw) if i * p.stride_w + kw * p.dilation_w == column]
                rows = [
                    k.load(self.source, source + kh * p.dilation_h * g.staging.row_elements + column * p.c, g.width)
                    if kh < p.kh
                    else None
                    for kh in range(group * micro.kgroup, (group + 1) * micro.kgroup)
                ]
                operands = micro.combine(k, rows, g.width)
                for i, kw in users:
                    for v in range(micro.vectors):
                        at = i * g.width + v * lanes
                        w = self.tap(here, group, kw, v)
                        k.store(acc, at, micro.mac(k, k.load(acc, at, lanes), operands[v], w, g.width), lanes)
        for i in range(tw):
            self.epilogue([k.load(acc, i * g.width + v * lanes, lanes) for v in range(micro.vectors)], target + i * p.oc, block)

    def tap(self, block: Expr, group: int, kw: int, vector: int) -> Expr:
        """The weights of a group of kernel rows in one column, for a vector of a block's accumulators."""
        k, g, p, micro = self.k, self.g, self.g.problem, self.g.micro
        first = group * micro.kgroup
        rows = min(micro.kgroup, p.kh - first)
        if rows == g.spread_rows:
            spread = self.spread.get((block * p.kw + kw) * micro.vectors + vector)
            return k.bitcast(spread, micro.weight_dtype, g.lanes * micro.kgroup)
        at = g.width * first * p.kw + (kw * micro.vectors + vector) * g.lanes * rows
        return k.load(self.weights, self.weights_of(block) + at, g.lanes * rows)

    def anchored(self, offset: Expr, target: Expr) -> Expr:
        """`offset`, made to look dependent on the output offset `target` where constants shall be read anew for it."""
        if not self.g.micro.reload_constants:
            return offset
        # Offsets are never negative, which LLVM cannot see, so this adds zero.
        return offset + self.k.shift_right(target, self.k.i32(31))

    def epilogue(self, sums: list[Expr], target: Expr, block: Expr) -> None:
        """Turn the accumulators of one pixel into results and store those of existing channels."""
        k, g, p, micro = self.k, self.g, self.g.problem, self.g.micro
        width, lanes = g.width, g.lanes
        if micro.acc_dtype == "uint32":
            sums = [k.bitcast(value, "int32", lanes) for value in sums]
        if p.out_dtype in CODES:
            limits = [k.load(self.bias, k.i32(1)), k.load(self.bias, k.i32(2))] if p.clamp else []
            here = self.anchored(block, target) * micro.vectors
            if g.expanded:
                records = [parameters.fields(self.records, (here + v) * micro.fields) for v in range(micro.vectors)]
                values = [micro.requantize(k, *pair, lanes) for pair in zip(sums, records, strict=True)]
            else:
                values = [
                    micro.requantize_short(k, value, self.params, g.before + (here + v) * lanes, self.bias, lanes)
                    for v, value in enumerate(sums)
                ]
            store_valid(k, self.y, target, micro.codes(k, values, width, limits), width, g.valid)
            return
        # Runs of consecutive channels within a vector, as long as the packed order has them.
        order = list(micro.order(width))
        run = next((i for i in range(1, lanes) if order[i] != i), lanes)
        for at in range(0, width, run):
            valid = min(run, g.valid - order[at])
            if valid > 0:
                piece = k.shuffle([sums[at // lanes]], range(at % lanes, at % lanes + run))
                store_valid(k, self.y, target + order[at], piece, run, valid)


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
        pipeline: of a typical core with these features.
    """

    name: str
    arch: str
    features: tuple[str, ...]
    dtype: str
    out_dtypes: tuple[str, ...]
    micro: DepthwiseKernel
    tile_widths: tuple[int, ...]
    pipeline: Pipeline

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
        width = parts(problem, self.micro)[0].problem.ow
        return [{"tw": tw} for tw in dict.fromkeys(min(tw, width) for tw in self.tile_widths)]

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        cut, pipeline = parts(problem, self.micro), self.pipeline
        g, p, micro = cut[0], cut[0].problem, self.micro
        row = 0.0
        for run in split(p.ow, tile["tw"]):
            columns = len({i * p.stride_w + kw * p.dilation_w for i in range(run.size) for kw in range(p.kw)})
            loads = columns * p.kh / pipeline.loads
            combining = columns * g.row_groups * micro.vectors * pipeline.convert
            macs = run.size * p.kw * g.row_groups * micro.vectors / pipeline.macs
            results = run.size * micro.vectors * pipeline.result
            row += run.count * (max(loads, combining + macs) + results)
        return p.batch * p.oh * sum(part.blocks for part in cut) * row

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Weights, bias and requantization parameters."""
        if constants is None:
            raise TypeError(f"{self.name} needs the convolution's constants")
        return pack(parts(problem, self.micro), constants)

    def unpack(self, problem: Problem, tile: Tile, packed: Sequence[Array]) -> tuple[Array, Array]:
        """Logical weights and bias back from `pack`."""
        return unpack(parts(problem, self.micro), packed)

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Output rows of all images."""
        p = parts(problem, self.micro)[0].problem
        return p.batch * p.oh

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """Output rows of the actual images."""
        extent = self.parallel_extent(problem, tile)
        return outer_extent(parts(problem, self.micro)[0].problem, extent, 1, extent)

    def unit_ends(self, problem: Problem, tile: Tile) -> Sequence[int] | None:
        """Where rows end; see `bevel.backends.kernel.Rowwise`."""
        p = parts(problem, self.micro)[0].problem
        return None if p.batch > 1 else range(p.ow, (p.oh + 1) * p.ow, p.ow)

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """The requantization parameters and the padded input rows of one block."""
        return parts(problem, self.micro)[0].scratch_bytes

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        return emit(parts(problem, self.micro), tile["tw"], symbol)
