"""Dense NHWC convolution and GEMM: one loop nest for every instruction set.

In: a `ConvProblem`, a tile and a `MicroKernel` (how one ISA multiplies, accumulates and requantizes). Out: a PrimFunc, and the
packing of weights and bias it reads.

Loop nest, outermost first::

    images, blocks of row groups        [lo, hi) counts row groups over all images
      copy the input rows of the block into scratch, padded with the zero point   (only if padded or converted)
      output channel blocks of nv vectors                           (of each group of channels)
        row groups, pixel tiles of at most mr pixels
          kernel rows (and columns if dilated or grouped)
            reduction run: kw * c contiguous elements, in K-groups
          epilogue

A row group is one output row, or as many whole rows as fit in a tile when rows are short. A GEMM (1x1, unpadded, unstrided) is
seen as rows of one pixel, so tiles of it ignore image borders. [lo, hi) counts output channel blocks, or groups of channels,
instead when there is a single row group; and output channel blocks when weights are larger than the input, since then threads
read less, if there are as many blocks and scratch holds all staged rows. Every tile body is static: axes are split into
chunks of two sizes that differ by one.

Reduction runs are padded to whole K-groups with zero weights; integer kernels may read past a run (the codes are multiplied
by zero, buffers are readable for 64 bytes past their end), float kernels have K-groups of one element and read exactly the run.

Constant buffers, in ABI order:

* weights `[block][tap][group][channel in block][K-group]`, a tap being a kernel row, or one (row, column) if dilated (an ISA may
  arrange them otherwise: `MicroKernel.pack_weights`);
* bias: a header of HEADER elements, then one element per channel, padded to whole vectors. Header of float problems: lo, hi; of
  integer problems: x zero point, lo, hi, y zero point, the int64 (y zero point << 32) + 2^31, and from SUM on what `Sum` needs,
  ma, mb, -ma * za, 2^(n-1) - mb * zb, n, zero point, lo, hi. Integer bias has
  x_zero_point * sum(weights) subtracted, exactly;
* requantization parameters (only when the result is requantized): short factors in the layout of the ISA, else those of
  `bevel.backends.kernels.parameters`, which are expanded into scratch for each block of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Tile, is_dynamic
from bevel.backends.kernels import parameters
from bevel.backends.kernels.micro import CODES, FLOATS, HEADER, SUM, MicroKernel, RegisterTile, Taps
from bevel.backends.kernels.pending import Epilogue, Pending
from bevel.backends.kernels.scratch import Vectors, vector_bytes
from bevel.backends.kernels.staging import Staging
from bevel.backends.kernels.tiling import Chunks, chunk_count, split, store_valid
from bevel.backends.memory import align
from bevel.backends.tvm import Buffer, Builder, Expr, PrimFunc
from bevel.errors import CheckFailed

# Groups of fewer channels waste the K-groups of integer kernels; from 8 on, 2.2 to 5 times the derived loops' speed (AVX-512).
LEAST_GROUP_CHANNELS = 8
# All weights are read once per block of rows: the larger they are, the larger the block, up to what an L2 cache holds.
LARGE_BLOCK_BYTES = 192 * 1024
# Tiles of pixels beyond which waiting in the first of them is little of the whole.
FETCHING_VISITS = 4


@dataclass(frozen=True)
class Geometry:
    """A problem cut up by a tile; see the module's docstring."""

    problem: ConvProblem
    micro: MicroKernel
    mr: int
    nv: int

    @cached_property
    def shape(self) -> ConvProblem:
        """The problem, a GEMM seen as rows of one pixel."""
        p = self.problem
        if (p.kh, p.kw, p.stride_h, p.stride_w) == (1, 1, 1, 1) and not p.padded:
            return replace(p, batch=1, h=p.batch * p.h * p.w, w=1)
        return p

    @cached_property
    def rows(self) -> tuple[Chunks, ...]:
        """Row groups of one image."""
        return split(self.shape.oh, max(1, min(self.mr // self.shape.ow, self.shape.oh)))

    @property
    def groups(self) -> int:
        """Row groups of one image."""
        return chunk_count(self.rows)

    @property
    def group_channels(self) -> int:
        """Output channels of one group of channels."""
        return self.problem.oc // self.problem.groups

    @property
    def scattered(self) -> bool:
        """Whether the pixels of a kernel row are separate reduction runs: other elements lie between them."""
        return self.problem.dilation_w > 1 or self.problem.groups > 1

    @cached_property
    def columns(self) -> tuple[Chunks, ...]:
        """Blocks of output channels of one group of channels, in vectors."""
        unit = self.micro.unit
        runs = split(self.vectors // unit, max(1, self.nv // unit))
        return tuple(replace(run, start=run.start * unit, size=run.size * unit) for run in runs)

    @property
    def vectors(self) -> int:
        """Vectors of output channels of one group of channels, whole units."""
        width = self.micro.unit * self.micro.lanes
        return -(-self.group_channels // width) * self.micro.unit

    @property
    def padded_channels(self) -> int:
        """Output channels with those that fill up the last unit."""
        width = self.micro.unit * self.micro.lanes
        return -(-self.problem.oc // width) * width

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First channel and channels (whole vectors) of every block of output channels, in order."""
        lanes = self.micro.lanes
        return [
            (group * self.group_channels + (run.start + index * run.size) * lanes, run.size * lanes)
            for group, run in product(range(self.problem.groups), self.columns)
            for index in range(run.count)
        ]

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weights."""
        elements = self.taps * self.micro.tap_elements(self.run, -(-self.problem.oc // self.micro.lanes))
        return elements * np.dtype(self.micro.weight_dtype).itemsize

    @property
    def fetches_ahead(self) -> bool:
        """Whether weights of the next block are fetched while one computes: they come from beyond the second cache."""
        visits = sum(count for count, _, _ in self.bodies)
        return self.micro.fetches_ahead and self.weight_bytes >= self.micro.fetched_bytes and 1 < visits <= FETCHING_VISITS

    @property
    def by_columns(self) -> bool:
        """Whether threads share out channel blocks instead of row groups; see the module's docstring."""
        p, rows = self.shape, self.shape.batch * self.groups
        if rows == 1 or p.batch > 1 or p.groups > 1 or p.weight_bits < 8 or is_dynamic(self.problem) or self.block < rows:
            return rows == 1
        return self.weight_bytes > p.h * p.w * p.c * np.dtype(p.dtype).itemsize and chunk_count(self.columns) >= rows

    @property
    def extent(self) -> int:
        """Length of the parallel axis."""
        if not self.by_columns:
            return self.shape.batch * self.groups
        return self.problem.groups if self.problem.groups > 1 else chunk_count(self.columns)

    @cached_property
    def staging(self) -> Staging:
        """Where the inner loop finds its input."""
        return self.micro.staging(self.shape, self.rows_at)

    @cached_property
    def block(self) -> int:
        """Row groups whose input rows are in scratch together."""
        if not self.staging.needed:
            return self.groups
        limit = max(self.staging.block_bytes, min(self.weight_bytes // 4, LARGE_BLOCK_BYTES))
        block = self.groups
        while block > 1 and self.staging.nbytes(block * self.rows[0].size) > limit:
            block -= 1
        return -(-self.groups // -(-self.groups // block))

    @property
    def scratch_bytes(self) -> int:
        """Scratch one thread needs."""
        if not self.staging.needed:
            return self.rows_at
        return self.rows_at + self.staging.nbytes(min(self.block * self.rows[0].size, self.shape.oh))

    @property
    def expanded(self) -> bool:
        """Whether results are requantized with records in scratch."""
        return self.problem.out_dtype in CODES and not is_short(self.problem, self.micro.short_requantize)

    @property
    def rows_at(self) -> int:
        """Byte in scratch, behind what belongs to a channel block and to tiles, where staged rows begin."""
        return self.sums_at + self.micro.sums_bytes

    @property
    def sums_at(self) -> int:
        """Byte in scratch of a tile's sums."""
        return self.unfolded_at + align(self.unfolded_bytes)

    @property
    def unfolded_at(self) -> int:
        """Byte in scratch, behind the records of a channel block's requantization parameters, of its unfolded weights."""
        return align(vector_bytes(self.columns[0].size * self.micro.fields, self.micro.lanes)) if self.expanded else 0

    @cached_property
    def unfolded_bytes(self) -> int:
        """Scratch for the weights of a block of channels as the inner loop wants them."""
        visits = sum(count for count, _, _ in self.bodies)
        return self.micro.unfolded_bytes(self.run, self.taps, self.columns[0].size, visits)

    @property
    def taps(self) -> int:
        """Reduction runs per output."""
        p = self.problem
        return p.kh * p.kw if self.scattered else p.kh

    @property
    def run(self) -> int:
        """Elements per reduction run."""
        p = self.problem
        return p.c // p.groups if self.scattered else p.kw * p.c

    @property
    def padded_run(self) -> int:
        """Elements per reduction run in the packed weights."""
        return self.micro.padded_run(self.run)

    def offsets(self, rows: int, width: int) -> list[int]:
        """Element offset of every pixel of a tile in the input, from its first; before them those of its lead."""
        p, pitch = self.shape, self.shape.stride_h * self.staging.row_elements
        found = [r * pitch + c * p.stride_w * self.staging.pixel_elements for r in range(rows) for c in range(width)]
        lead = self.lead(rows, width)
        return [at - found[lead] for at in found[:lead]] + found

    def lead(self, rows: int, width: int) -> int:
        """Pixels before a tile that it computes too and does not store, so that it is as large as the tiles before it.

        There is such a tile before it. Kernels whose sums go through memory need not prepare the core for another size.
        """
        if not self.micro.sums_bytes:
            return 0
        if self.shape.ow == 1:
            return 0 if self.staging.needed else self.rows[0].size - rows
        return split(self.shape.ow, self.mr)[0].size - width if rows == 1 and self.rows[0].size == 1 else 0

    @property
    def keeps_sums(self) -> bool:
        """Whether results are the sums themselves."""
        p = self.problem
        return p.out_dtype == self.micro.acc_dtype and not (p.relu or p.addend)

    @cached_property
    def uniform(self) -> bool:
        """Whether all tiles of a block of channels have the same offsets."""
        found = (self.offsets(rows, width) for _, rows, width in self.bodies)
        return len({tuple(at - offsets[0] for at in offsets) for offsets in found}) == 1

    @property
    def bodies(self) -> list[tuple[int, int, int]]:
        """Tiles of one block of channels over one image: how many, and their rows and width."""
        found = []
        for run in self.rows:
            if run.size > 1:
                found.append((run.count, run.size, self.shape.ow))
            else:
                found += [(run.count * pixels.count, 1, pixels.size) for pixels in split(self.shape.ow, self.mr)]
        return found


def legal(problem: ConvProblem, micro: MicroKernel) -> str | None:
    """None when the loop nest covers `problem`, else the reason why not."""
    if problem.groups != 1:
        taken, made = problem.c // problem.groups, problem.oc // problem.groups
        if taken < LEAST_GROUP_CHANNELS or made % micro.lanes:
            return (
                f"groups of at least {LEAST_GROUP_CHANNELS} channels that make whole vectors of {micro.lanes}, the problem has "
                f"{problem.groups} groups of {taken} -> {made}"
            )
    if problem.oh < 1 or problem.ow < 1 or problem.batch < 1:
        return f"empty output {problem.batch}x{problem.oh}x{problem.ow}"
    return None


def pack(problem: ConvProblem, tile: Tile, micro: MicroKernel, constants: ConvConstants) -> list[Array]:
    """Weights, bias and requantization parameters in the layout of `emit`."""
    g = Geometry(problem, micro, tile["mr"], tile["nv"])
    channels = g.padded_channels
    weights = np.zeros((channels, g.taps, g.run), constants.weights.dtype)
    weights[: problem.oc] = constants.weights.transpose(0, 2, 3, 1).reshape(problem.oc, g.taps, g.run)
    packed = [micro.pack_weights(weights, g.blocks), pack_bias(problem, channels, constants)]
    if problem.out_dtype in CODES:
        if g.expanded:
            packed.append(parameters.pack(constants, micro.lanes, channels))
        else:
            factors = short_factors(constants)
            packed.append(micro.pack_short(np.concatenate([factors, np.zeros(channels - problem.oc, np.int64)])))
    return packed


def is_short(problem: ConvProblem, possible: bool) -> bool:
    """Whether a kernel requantizes with short factors, given that its instruction set can."""
    return possible and problem.short_factors and problem.out_dtype in CODES


def short_factors(constants: ConvConstants) -> Array:
    """The short factors of constants that a problem says have them."""
    factors = constants.short_factors
    if factors is None:
        raise CheckFailed("a convolution with short factors was packed with others")
    return factors


def pack_bias(problem: ConvProblem, channels: int, constants: ConvConstants) -> Array:
    """Header and bias; integer biases absorb the input zero point modulo 2^32, which is exact because sums wrap."""
    if problem.dtype in FLOATS:
        bias = np.zeros(HEADER + channels, np.float32)
        bias[:2] = constants.lo, constants.hi
        bias[HEADER : HEADER + problem.oc] = constants.bias
        return bias
    sums = constants.weights.reshape(problem.oc, -1).astype(np.int64).sum(axis=1)
    wide = np.zeros(HEADER + channels, np.int64)
    info = np.iinfo(np.dtype(problem.dtype))
    # The last two are the halves of an int64: zero point and rounding of products whose high half is the result.
    zero, half = constants.y_zero_point, -(1 << 31)
    wide[:6] = constants.x_zero_point, max(constants.lo, info.min), min(constants.hi, info.max), zero, half, zero
    if constants.sum is not None:
        s = constants.sum
        # Every partial sum fits int32 in the order in which these are added.
        wide[SUM : SUM + 8] = s.ma, s.mb, -s.ma * s.za, (1 << (s.n - 1)) - s.mb * s.zb, s.n, s.zero_point, s.lo, s.hi
    wide[HEADER : HEADER + problem.oc] = constants.bias.astype(np.int64) - constants.x_zero_point * sums
    return wide.astype(np.uint64).astype(np.uint32).view(np.int32)


def unpack(problem: ConvProblem, tile: Tile, micro: MicroKernel, packed: Sequence[Array]) -> tuple[Array, Array]:
    """Logical weights [oc, c, kh, kw] and bias [oc] back from `pack`."""
    g = Geometry(problem, micro, tile["mr"], tile["nv"])
    channels = g.padded_channels
    full = micro.unpack_weights(packed[0], (channels, g.taps, g.run), g.blocks)[: problem.oc]
    weights = full.reshape(problem.oc, problem.kh, problem.kw, -1).transpose(0, 3, 1, 2)
    bias = packed[1][HEADER : HEADER + problem.oc]
    if problem.dtype not in FLOATS:
        sums = weights.reshape(problem.oc, -1).astype(np.int64).sum(axis=1)
        bias = (bias.astype(np.int64) + int(packed[1][0]) * sums).astype(np.uint64).astype(np.uint32).view(np.int32)
        weights = weights.astype(np.int8)
    return weights, bias


def emit(problem: ConvProblem, tile: Tile, micro: MicroKernel, symbol: str) -> PrimFunc:
    """The kernel; `tile` has mr (pixels), nv (vectors) and unroll (K-groups per iteration)."""
    g = Geometry(problem, micro, tile["mr"], tile["nv"])
    with Builder(symbol, nan_wins=micro.nan_wins) as k:
        _Nest(k, g, tile["unroll"]).emit()
    return k.function


class _Nest:
    """Emits the loops of one kernel."""

    def __init__(self, k: Builder, g: Geometry, unroll: int) -> None:
        self.k, self.g, self.unroll = k, g, unroll

    def emit(self) -> None:
        """Parameters in ABI order, then the loops."""
        k, g, problem, micro = self.k, self.g, self.g.problem, self.g.micro
        self.x = k.param("x", problem.dtype)
        if problem.addend:
            self.addend = k.param("a", problem.out_dtype)
        self.weights = k.param("w", micro.weight_dtype)
        self.bias = k.param("b", "float32" if problem.dtype in FLOATS else "int32")
        if problem.out_dtype in CODES:
            self.params = k.param("q", "int32")
        self.y = k.param("y", problem.out_dtype, widened=True)
        lo, hi, self.scratch = k.range_params(micro.x_dtype)
        self.source = self.scratch if g.staging.needed else self.x
        self.records = Vectors(k, self.scratch, micro.x_dtype, 0, micro.lanes)
        if micro.sums_bytes:
            shapes = [self.acc_rows(rows, width) for _, rows, width in g.bodies]
            self.pending = Pending(k, shapes, g.sums_at // micro.sums_row_bytes, problem.oc)
        self.units(lo, hi)
        micro.leave(k)

    def units(self, lo: Expr, hi: Expr) -> None:
        """Units [lo, hi) of the parallel axis."""
        k, g = self.k, self.g
        if g.by_columns:
            if g.staging.needed:
                g.staging.copy(k, self.x, self.scratch, self.zero(), k.i32(0), k.i32(0), k.i32(g.shape.oh))
            self.channel_blocks(k.i32(0), k.i32(0), k.i32(g.groups), k.i32(0), lo, hi)
            return
        image0, image1 = k.floordiv(lo, k.i32(g.groups)), k.floordiv(hi - 1, k.i32(g.groups)) + 1
        with k.serial(image0, image1) as image:
            first = k.max(lo - image * g.groups, k.i32(0))
            last = k.min(hi - image * g.groups, k.i32(g.groups))
            if not g.staging.needed:
                self.channel_blocks(image, first, last, k.i32(0), None, None)
                return
            with k.serial(k.floordiv(last - first + (g.block - 1), k.i32(g.block))) as block:
                start = first + block * g.block
                stop = k.min(start + g.block, last)
                row = self.first_row(start)
                g.staging.copy(k, self.x, self.scratch, self.zero(), image, row, self.first_row(stop))
                self.channel_blocks(image, start, stop, row, None, None)

    def zero(self) -> Expr:
        """What borders are filled with: one element of the staged type."""
        k, micro = self.k, self.g.micro
        if micro.x_dtype in FLOATS:
            return k.const(0.0, micro.x_dtype)
        return k.cast(k.load(self.bias, k.i32(0)), micro.x_dtype)

    def first_row(self, group: Expr) -> Expr:
        """Output row where a row group begins."""
        rows = self.g.rows
        if len(rows) == 1:
            return group * rows[0].size
        # The second run's groups are one row shorter than the first's.
        return group * rows[0].size - self.k.max(group - rows[1].first, self.k.i32(0))

    def channel_blocks(self, image: Expr, start: Expr, stop: Expr, staged_row: Expr, lo: Expr | None, hi: Expr | None) -> None:
        """All channel blocks of row groups [start, stop) of one image; of [lo, hi) of them, or of the groups of channels."""
        k, p = self.k, self.g.problem
        if p.groups == 1:
            self.group_blocks(image, start, stop, staged_row, lo, hi, k.i32(0), k.i32(0))
            return
        with k.serial(k.i32(0) if lo is None else lo, k.i32(p.groups) if hi is None else hi) as group:
            leads = group * self.g.group_channels, group * (p.c // p.groups)
            self.group_blocks(image, start, stop, staged_row, None, None, *leads)

    def group_blocks(
        self,
        image: Expr,
        start: Expr,
        stop: Expr,
        staged_row: Expr,
        lo: Expr | None,
        hi: Expr | None,
        first_channel: Expr,
        first_input: Expr,
    ) -> None:
        """The channel blocks (or [lo, hi) of them) of the group of channels that begins at `first_channel` and `first_input`."""
        k, g, lanes = self.k, self.g, self.g.micro.lanes
        for run in g.columns:
            last = run.start + run.count * run.size == g.vectors
            ragged = last and g.group_channels % (lanes * g.micro.unit)
            # The block that holds the ragged vector gets a body of its own.
            pieces = [(0, run.count - 1, False), (run.count - 1, run.count, True)] if ragged else [(0, run.count, False)]
            for begin, end, tail in pieces:
                if begin == end:
                    continue
                valid = g.group_channels - (run.start + begin * run.size) * lanes if tail else run.size * lanes
                bounds: tuple[Expr, Expr] = (k.i32(begin), k.i32(end))
                if lo is not None and hi is not None:
                    first = k.min(k.max(lo - run.first, bounds[0]), bounds[1])
                    bounds = (first, k.max(k.min(hi - run.first, bounds[1]), first))
                if g.uniform:
                    g.micro.enter(k, g.offsets(*g.bodies[0][1:]), run.size, g.run)
                with k.serial(*bounds) as index:
                    channel = first_channel + (run.start + index * run.size) * lanes
                    if g.expanded:
                        self.expand(channel, run.size)
                    if g.unfolded_bytes:
                        start_of_block = g.micro.block_start(channel, g.taps, g.run)
                        elements = g.taps * g.micro.tap_elements(g.run, run.size)
                        g.micro.unfold(k, self.weights, start_of_block, self.scratch, g.unfolded_at, elements)
                    self.row_groups(image, start, stop, staged_row, channel, first_input, run.size, valid)
                    if g.micro.sums_bytes and g.expanded:
                        self.pending.drain(self.pixel(run.size, valid))
                if g.micro.sums_bytes and not g.expanded:
                    self.pending.drain(self.pixel(run.size, valid))

    def expand(self, channel: Expr, nv: int) -> None:
        """Write the records of `nv` vectors of channels from `channel` on."""
        k, micro = self.k, self.g.micro
        zero_point = k.load(self.bias, k.i32(3))
        # A trip count that LLVM does not know: it would unroll the loop.
        with k.serial(k.opaque(k.i32(nv), "int32")) as j:
            factors = parameters.load(k, self.params, channel + j * micro.lanes, micro.lanes)
            parameters.write(self.records, j * micro.fields, micro.expand(k, *factors, zero_point))

    def row_groups(
        self, image: Expr, start: Expr, stop: Expr, staged_row: Expr, channel: Expr, first_input: Expr, nv: int, valid: int
    ) -> None:
        """All pixel tiles of row groups [start, stop) for one block of channels."""
        k, g, p = self.k, self.g, self.g.shape
        for run in g.rows:
            bounds = (start, stop)
            if len(g.rows) > 1:
                first = k.min(k.max(start, k.i32(run.first)), k.i32(run.first + run.count))
                bounds = (first, k.max(k.min(stop, k.i32(run.first + run.count)), first))
            tiles = split(p.ow, p.ow if run.size > 1 else g.mr)
            if len(tiles) == 1 and not g.uniform:
                g.micro.enter(k, g.offsets(run.size, tiles[0].size), nv, g.run)
            with k.serial(*bounds) as group:
                row = run.start + (group - run.first) * run.size
                source_row = (row - staged_row) * p.stride_h
                if not g.staging.needed:
                    source_row = image * p.h + row * p.stride_h
                source = source_row * g.staging.row_elements + first_input + g.staging.first
                target = (image * p.oh + row) * (p.ow * p.oc) + channel
                for pixels in tiles:
                    if len(tiles) > 1 and not g.uniform:
                        g.micro.enter(k, g.offsets(1, pixels.size), nv, g.run)
                    with k.serial(pixels.count) as index:
                        column = pixels.start + index * pixels.size
                        at = source + column * (p.stride_w * g.staging.pixel_elements), target + column * p.oc
                        self.tile(*at, channel, run.size, pixels.size, nv, valid)

    def tile(self, source: Expr, target: Expr, channel: Expr, rows: int, width: int, nv: int, valid: int) -> None:
        """One register tile: `rows` x `width` pixels by `nv` vectors."""
        k, g, p, micro = self.k, self.g, self.g.shape, self.g.micro
        offsets, acc_rows = g.offsets(rows, width), self.acc_rows(rows, width)
        taps = Taps(
            rows=p.kh,
            columns=p.kw if g.scattered else 1,
            row_pitch=p.dilation_h * g.staging.row_elements,
            column_pitch=p.dilation_w * g.staging.pixel_elements,
            size=micro.tap_elements(g.run, nv),
            run=g.run,
        )
        if g.unfolded_bytes:
            weights, base = self.scratch, k.i32(g.unfolded_at)
        else:
            weights, base = self.weights, micro.block_start(channel, g.taps, g.run)
        ahead = g.taps * taps.size if g.fetches_ahead else 0
        acc = self.scratch if micro.sums_bytes else k.alloc((max(acc_rows) + 1) * nv * micro.slot, micro.acc_dtype)
        tile = RegisterTile(acc, self.source, source, offsets, weights, base, nv, self.unroll, ahead)
        # A tile's pixels follow each other in the output: it is one row wide or has all columns.
        whole = valid == nv * micro.lanes and list(micro.acc_rows(offsets)) == list(range(len(offsets)))
        kept = micro.sums_bytes > 0 and g.keeps_sums and whole
        if micro.sums_bytes and not kept:
            times = -(-max(rows * width for _, rows, width in g.bodies) // micro.pauses(taps))
            taps = replace(taps, meanwhile=lambda: self.pending.work(times, self.pixel(nv, valid)))
        micro.init(k, tile, self.bias, channel)
        micro.reduce(k, tile, taps)
        if kept:
            micro.store_results(k, tile, self.y, target - g.lead(rows, width) * p.oc, p.oc)
        elif micro.sums_bytes:
            micro.store_sums(k, tile, g.sums_at // micro.sums_row_bytes)
            self.pending.push(target, channel, acc_rows)
        else:
            micro.finish(k, tile)
            for i, row in enumerate(acc_rows):
                inputs = g.staging.input_sum(k, self.source, source + offsets[i]) if micro.code_offset else None
                self.epilogue(acc, k.i32(row), target + i * p.oc, channel, nv, valid, inputs)

    def acc_rows(self, rows: int, width: int) -> Sequence[int]:
        """Where the sums of each pixel of a tile are, in rows from its first; without the lead's."""
        return self.g.micro.acc_rows(self.g.offsets(rows, width))[self.g.lead(rows, width) :]

    def pixel(self, nv: int, valid: int) -> Epilogue:
        """The epilogue of one pixel of a pending tile."""
        return lambda row, target, channel: self.epilogue(self.scratch, row, target, channel, nv, valid)

    def epilogue(
        self, acc: Buffer, row: Expr, target: Expr, channel: Expr, nv: int, valid: int, inputs: Expr | None = None
    ) -> None:
        """Turn the accumulators of one pixel, in a row of `acc`, into results, and store those of existing channels.

        `inputs` is the sum of the inputs under the pixel, where the sums hold `code_offset` times as much too many.
        """
        k, problem, micro = self.k, self.g.problem, self.g.micro
        lanes = micro.lanes
        existing = -(-valid // lanes)
        sums = [micro.result(k, acc, row, j, nv, self.bias, channel + j * lanes) for j in range(existing)]
        if inputs is not None:
            sums = [micro.without_offset(k, value, inputs, j) for j, value in enumerate(sums)]
        if problem.out_dtype in CODES:
            if self.g.expanded:
                records = [parameters.fields(self.records, k.i32(j * micro.fields)) for j in range(existing)]
                codes = [micro.requantize(k, *pair) for pair in zip(sums, records, strict=True)]
            else:
                starts = [channel + j * lanes for j in range(existing)]
                codes = [micro.requantize_short(k, v, self.params, at, self.bias) for v, at in zip(sums, starts, strict=True)]
            limits = [k.load(self.bias, k.i32(1)), k.load(self.bias, k.i32(2))] if problem.clamp else []
            if problem.addend:
                codes, limits = self.sums(codes, target)
            micro.store_codes(k, self.y, target, codes, valid, limits)
            return
        for j, value in enumerate(sums):
            if problem.addend:
                value = value + k.load(self.addend, target + j * lanes, lanes)
            if problem.relu:
                value = k.max(value, k.splat(k.f32(0.0), lanes))
            if problem.clamp and problem.out_dtype in FLOATS:
                value = k.max(value, k.splat(k.load(self.bias, k.i32(0)), lanes))
                value = k.min(value, k.splat(k.load(self.bias, k.i32(1)), lanes))
            store_valid(k, self.y, target + j * lanes, value, lanes, min(lanes, valid - j * lanes))

    def sums(self, codes: Sequence[Expr], target: Expr) -> tuple[list[Expr], list[Expr]]:
        """Codes with those of the addend added, not yet clamped, and their limits."""
        k, lanes = self.k, self.g.micro.lanes

        def header(index: int) -> Expr:
            return k.splat(k.load(self.bias, k.i32(index)), lanes)

        totals = []
        for j, code in enumerate(codes):
            clamped = k.min(k.max(code, header(1)), header(2))
            other = k.cast(k.load(self.addend, target + j * lanes, lanes), "int32", lanes)
            total = clamped * header(SUM) + header(SUM + 2) + other * header(SUM + 1) + header(SUM + 3)
            totals.append(k.shift_right(total, header(SUM + 4)) + header(SUM + 5))
        return totals, [k.load(self.bias, k.i32(SUM + 6)), k.load(self.bias, k.i32(SUM + 7))]
