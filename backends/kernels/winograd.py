"""Winograd convolution of float32: 3x3 kernels with unit stride in 2.25 to 4 multiplications per result instead of 9.

In: a `ConvProblem`, a tile and the `MicroKernel` of an instruction set. Out: a PrimFunc, and the packing of weights and bias it
reads. The algorithm is F(mh x mw, 3 x 3) of Lavin & Gray (Fast Algorithms for Convolutional Neural Networks, 2016), with mh and
mw each 2 or 4; `bevel.backends.kernels.transforms` has the transforms of one axis.

A *patch* is mh x mw results. Its (mh + 2) x (mw + 2) inputs are transformed into as many *points*; at each of them, results are a
matrix product over the input channels: the register tile of direct convolution with patches in place of pixels. Loop nest,
outermost first::

    images, bands of rows of patches           [lo, hi) counts bands over all images
      chunks of CHUNK input channels
        rows of patches
          down the columns of the image, into a strip          the rows outside the image are known to be zero
          along the rows of the strip, into V[point][patch][channel]
      output channel blocks of nv vectors
        points
          register tiles of at most mr patches                 M[point][patch][channel of block]
        rows of patches, patches, vectors
          transform M, add the bias, an addend, clamp, store

When there is a single band, [lo, hi) counts output channel blocks instead. Strip, V and M lie in scratch (M in the place of V
where each is read once), with a cache line between points, because powers of two would put all points of a patch into one set of
the first cache. Columns of the strip outside the image are zero, and so is what lies beyond the image in the last patches:
results there are not stored, but their inputs enter all others.

Constant buffers, in ABI order: weights `[block][point][channel][channel of block]`, transformed in float64 and rounded once; bias
as in `bevel.backends.kernels.conv`. The bias is added to the point (1, 1), which enters every result once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Tile
from bevel.backends.kernels.conv import pack_bias
from bevel.backends.kernels.micro import HEADER, MicroKernel, RegisterTile
from bevel.backends.kernels.tiling import Chunks, chunk_count, split, store_valid
from bevel.backends.kernels.transforms import ONE, TAPS, Arithmetic, points, weight_matrix
from bevel.backends.tvm import Builder, Expr, PrimFunc

# Input channels transformed together: a cache line.
CHUNK = 16
# Elements between points, beyond what they hold.
GAP = 16


@dataclass(frozen=True)
class Geometry:
    """A problem cut up by a tile; see the module's docstring."""

    problem: ConvProblem
    micro: MicroKernel
    mh: int
    mw: int
    rows: int
    mr: int
    nv: int

    @property
    def points(self) -> int:
        """Products per patch and pair of channels."""
        return points(self.mh) * points(self.mw)

    @property
    def patch_rows(self) -> int:
        """Rows of patches in an image."""
        return -(-self.problem.oh // self.mh)

    @property
    def patch_columns(self) -> int:
        """Patches in a row of them."""
        return -(-self.problem.ow // self.mw)

    @cached_property
    def bands(self) -> tuple[Chunks, ...]:
        """Bands of one image, in rows of patches."""
        return split(self.patch_rows, self.rows)

    @property
    def most_patches(self) -> int:
        """Patches of the largest band."""
        return self.bands[0].size * self.patch_columns

    @property
    def bands_per_image(self) -> int:
        """Bands of one image."""
        return chunk_count(self.bands)

    @cached_property
    def columns(self) -> tuple[Chunks, ...]:
        """Blocks of output channels, in vectors."""
        return split(-(-self.problem.oc // self.micro.lanes), self.nv)

    @property
    def by_columns(self) -> bool:
        """Whether threads share out channel blocks instead of bands."""
        return self.problem.batch * self.bands_per_image == 1

    @property
    def extent(self) -> int:
        """Length of the parallel axis."""
        return chunk_count(self.columns) if self.by_columns else self.problem.batch * self.bands_per_image

    @property
    def channels(self) -> int:
        """Input channels of a patch in V: whole vectors."""
        return -(-self.problem.c // self.micro.lanes) * self.micro.lanes

    @property
    def chunk(self) -> int:
        """Channels of a pixel in the strip."""
        return min(self.channels, CHUNK)

    @property
    def strip_width(self) -> int:
        """Pixels in a row of the strip."""
        return self.patch_columns * self.mw + TAPS - 1

    @property
    def point_inputs(self) -> int:
        """Elements from one point to the next in V."""
        return self.most_patches * self.channels + GAP

    @property
    def point_products(self) -> int:
        """Elements from one point to the next in M."""
        return self.most_patches * self.columns[0].size * self.micro.lanes + GAP

    @property
    def in_place(self) -> bool:
        """Whether M lies where V does: products of a tile take as much as its inputs, and no other block of channels reads those.

        Measured 1.04 times as fast where scratch then fits the first cache.
        """
        return chunk_count(self.columns) == 1 and self.columns[0].size * self.micro.lanes == self.channels

    @property
    def inputs_at(self) -> int:
        """Element of scratch where V begins; the strip lies before it."""
        return -(-points(self.mh) * self.strip_width * self.chunk // GAP) * GAP

    @property
    def products_at(self) -> int:
        """Element of scratch where M begins."""
        return self.inputs_at + (0 if self.in_place else self.points * self.point_inputs)

    @property
    def scratch_bytes(self) -> int:
        """Scratch one thread needs."""
        return (self.products_at + self.points * self.point_products) * np.dtype(np.float32).itemsize

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weights."""
        return self.points * self.problem.c * self.problem.oc * np.dtype(np.float32).itemsize

    @property
    def row_kinds(self) -> list[tuple[int, int, int, int]]:
        """Runs of rows of patches with the same input rows in the image: first row, row behind the last, and those input rows."""
        p, kinds = self.problem, list[tuple[int, int, int, int]]()
        for row in range(self.patch_rows):
            top = row * self.mh - p.pad_top
            begin, end = (min(max(edge, 0), points(self.mh)) for edge in (-top, p.h - top))
            if kinds and kinds[-1][2:] == (begin, end):
                kinds[-1] = (kinds[-1][0], row + 1, begin, end)
            else:
                kinds.append((row, row + 1, begin, end))
        return kinds


def legal(problem: ConvProblem) -> str | None:
    """None when the algorithm covers `problem`, else the reason why not."""
    if (problem.kh, problem.kw) != (TAPS, TAPS) or (problem.stride_h, problem.stride_w) != (1, 1):
        return f"3x3 kernels of stride 1, the problem is {problem.kh}x{problem.kw} of {problem.stride_h}x{problem.stride_w}"
    if (problem.dilation_h, problem.dilation_w) != (1, 1) or problem.groups != 1:
        return f"neither dilation nor groups, the problem has {problem.dilation_h}x{problem.dilation_w} and {problem.groups}"
    if problem.oh < 1 or problem.ow < 1 or problem.batch < 1:
        return f"empty output {problem.batch}x{problem.oh}x{problem.ow}"
    return None


def geometry(problem: ConvProblem, tile: Tile, micro: MicroKernel) -> Geometry:
    """What a tile makes of a problem: mh, mw, rows (of patches in a band), mr (patches) and nv (vectors)."""
    return Geometry(problem, micro, tile["mh"], tile["mw"], tile["rows"], tile["mr"], tile["nv"])


def pack(problem: ConvProblem, tile: Tile, micro: MicroKernel, constants: ConvConstants) -> list[Array]:
    """Weights and bias in the layout of `emit`."""
    g = geometry(problem, tile, micro)
    down, along = weight_matrix(g.mh), weight_matrix(g.mw)
    channels = -(-problem.oc // micro.lanes) * micro.lanes
    weights = np.zeros((g.points, problem.c, channels), np.float32)
    weights[:, :, : problem.oc] = np.einsum(
        "ui,ocij,vj->uvco", down, constants.weights.astype(np.float64), along, optimize=True
    ).reshape(g.points, problem.c, problem.oc)
    blocks = [(run.start + index * run.size, run.size) for run in g.columns for index in range(run.count)]
    parts = [weights[:, :, first * micro.lanes : (first + size) * micro.lanes].ravel() for first, size in blocks]
    return [np.concatenate(parts), pack_bias(problem, channels, constants)]


def emit(problem: ConvProblem, tile: Tile, micro: MicroKernel, symbol: str) -> PrimFunc:
    """The kernel; besides what `geometry` takes, `tile` has unroll (input channels per iteration)."""
    with Builder(symbol, nan_wins=micro.nan_wins) as k:
        _Nest(k, geometry(problem, tile, micro), tile["unroll"]).emit()
    return k.function


class _Nest:
    """Emits the loops of one kernel."""

    def __init__(self, k: Builder, g: Geometry, unroll: int) -> None:
        self.k, self.g, self.unroll = k, g, unroll
        self.lanes = g.micro.lanes
        self.vectors = Arithmetic(k, g.micro.lanes)

    def emit(self) -> None:
        """Parameters in ABI order, then the loops."""
        k, g = self.k, self.g
        self.x = k.param("x", "float32")
        if g.problem.addend:
            self.addend = k.param("a", "float32")
        self.weights, self.bias, self.y = (k.param(name, "float32") for name in ("w", "b", "y"))
        lo, hi, self.scratch = k.range_params("float32")
        self.clear_edges()
        if g.by_columns:
            self.band(k.i32(0), k.i32(0), g.patch_rows, (lo, hi))
            return
        count = g.bands_per_image
        with k.serial(k.floordiv(lo, k.i32(count)), k.floordiv(hi - 1, k.i32(count)) + 1) as image:
            for run in g.bands:
                first = self.clip(lo - image * count, run.first, run.first + run.count)
                last = self.clip(hi - image * count, run.first, run.first + run.count)
                with k.serial(first, last) as index:
                    self.band(image, run.start + (index - run.first) * run.size, run.size, None)

    def clip(self, value: Expr, low: int, high: int) -> Expr:
        """`value` within [low, high]."""
        return self.k.min(self.k.max(value, self.k.i32(low)), self.k.i32(high))

    def band(self, image: Expr, row: Expr, rows: int, columns: tuple[Expr, Expr] | None) -> None:
        """`rows` rows of patches from `row` on; of all channel blocks, or those in the range `columns`."""
        k, g = self.k, self.g
        full = g.problem.c // g.chunk
        with k.serial(full) as chunk:
            self.transform_inputs(image, row, rows, chunk * g.chunk, g.chunk // self.lanes)
        if g.channels > full * g.chunk:
            self.transform_inputs(image, row, rows, k.i32(full * g.chunk), (g.channels - full * g.chunk) // self.lanes)
        for run in g.columns:
            first, last = k.i32(0), k.i32(run.count)
            if columns is not None:
                first = self.clip(columns[0] - run.first, 0, run.count)
                last = self.clip(columns[1] - run.first, 0, run.count)
            with k.serial(first, last) as index:
                channel = (run.start + index * run.size) * self.lanes
                self.products(rows, channel, run.size)
                self.transform_products(image, row, rows, channel, run)

    # Inputs ----------------------------------------------------------------------------------------------------------

    @property
    def image_columns(self) -> tuple[int, int]:
        """Columns of the strip that lie in the image: the first, and how many."""
        p, g = self.g.problem, self.g
        left = min(p.pad_left, g.strip_width)
        return left, min(p.w, g.strip_width - left)

    def clear_edges(self) -> None:
        """Zeros in the columns of the strip outside the image, which stay there."""
        k, g = self.k, self.g
        left, middle = self.image_columns
        edges = ((0, left), (left + middle, g.strip_width - left - middle))
        zero = k.const(0.0, "float32", self.lanes)
        with k.serial(points(g.mh)) as i:
            for start, pixels in edges:
                with k.serial(pixels * g.chunk // self.lanes) as v:
                    at = (i * g.strip_width + start) * g.chunk + v * self.lanes
                    k.store(self.scratch, at, k.opaque(zero, "float32", self.lanes), self.lanes)

    def transform_inputs(self, image: Expr, row: Expr, rows: int, channel: Expr, nv: int) -> None:
        """V of a band in `nv` vectors of channels from `channel` on."""
        k, g = self.k, self.g
        kinds = g.row_kinds
        with k.serial(rows) as r:
            for first, last, begin, end in kinds:
                if len(kinds) == 1:
                    self.columns_down(image, row + r, begin, end, channel, nv)
                    continue
                with k.when(k.all(row + r >= first, row + r < last)):
                    self.columns_down(image, row + r, begin, end, channel, nv)
            self.rows_along(r * g.patch_columns, channel, nv)

    def columns_down(self, image: Expr, row: Expr, begin: int, end: int, channel: Expr, nv: int) -> None:
        """The strip of one row of patches, of whose input rows those from `begin` to `end` lie in the image."""
        k, g, p = self.k, self.g, self.g.problem
        left, middle = self.image_columns
        top = (image * p.h + row * g.mh - p.pad_top) * (p.w * p.c) + channel
        with k.serial(middle) as column:
            for j in range(nv):
                source = top + column * p.c + j * self.lanes
                inputs = [
                    k.load(self.x, source + i * (p.w * p.c), self.lanes) if begin <= i < end else None
                    for i in range(points(g.mh))
                ]
                for i, value in enumerate(self.vectors.input(g.mh, [self.vectors.keep(d) for d in inputs])):
                    known = k.const(0.0, "float32", self.lanes) if value is None else value
                    at = (i * g.strip_width + left + column) * g.chunk + j * self.lanes
                    # Beside the border a value may be an input as it is.
                    k.store(self.scratch, at, k.opaque(known, "float32", self.lanes), self.lanes)

    def rows_along(self, patch: Expr, channel: Expr, nv: int) -> None:
        """V of one row of patches, the first of which is `patch`, from the strip."""
        k, g = self.k, self.g
        with k.serial(points(g.mh)) as i, k.serial(g.patch_columns) as column:
            for j in range(nv):
                source = (i * g.strip_width + column * g.mw) * g.chunk + j * self.lanes
                inputs = [self.vectors.keep(k.load(self.scratch, source + v * g.chunk, self.lanes)) for v in range(points(g.mw))]
                target = g.inputs_at + (patch + column) * g.channels + channel + j * self.lanes
                for v, value in enumerate(self.vectors.input(g.mw, inputs)):
                    k.store(self.scratch, target + (i * points(g.mw) + v) * g.point_inputs, value, self.lanes)

    # Products --------------------------------------------------------------------------------------------------------

    def products(self, rows: int, channel: Expr, nv: int) -> None:
        """M of a band for one block of channels."""
        k, g, p, lanes = self.k, self.g, self.g.problem, self.lanes
        block = p.c * nv * lanes
        with k.serial(g.points) as point:
            for tiles in split(rows * g.patch_columns, g.mr):
                offsets = [i * g.channels for i in range(tiles.size)]
                with k.serial(tiles.count) as index:
                    patch = tiles.start + index * tiles.size
                    acc = k.alloc(tiles.size * nv * lanes, "float32")
                    for slot in range(tiles.size * nv):
                        k.store(acc, k.i32(slot * lanes), k.const(0.0, "float32", lanes), lanes)
                    source = g.inputs_at + point * g.point_inputs + patch * g.channels
                    # Blocks before this one hold `channel` output channels.
                    base = channel * (g.points * p.c) + point * block
                    sums = RegisterTile(acc, self.scratch, source, offsets, self.weights, base, nv, self.unroll)
                    g.micro.accumulate(k, sums, p.c)
                    target = g.products_at + point * g.point_products + patch * (nv * lanes)
                    for slot in range(tiles.size * nv):
                        value = k.load(acc, k.i32(slot * lanes), lanes)
                        k.store(self.scratch, target + slot * lanes, value, lanes)

    # Results ---------------------------------------------------------------------------------------------------------

    def transform_products(self, image: Expr, row: Expr, rows: int, channel: Expr, block: Chunks) -> None:
        """Results of a band for one block of channels."""
        k, g, p = self.k, self.g, self.g.problem
        whole_rows, left_rows = divmod(p.oh, g.mh)
        whole, left = divmod(p.ow, g.mw)

        def one_row(r: Expr, height: int) -> None:
            target = ((image * p.oh + (row + r) * g.mh) * p.ow) * p.oc + channel
            patch = r * g.patch_columns
            with k.serial(whole) as column:
                self.vectors_of(patch + column, target + column * (g.mw * p.oc), channel, block, height, g.mw)
            if left:
                self.vectors_of(patch + whole, target + whole * g.mw * p.oc, channel, block, height, left)

        with k.serial(rows) as r:
            if not left_rows:
                one_row(r, g.mh)
                return
            if not whole_rows:
                one_row(r, left_rows)
                return
            with k.when_else(row + r < whole_rows) as (then, otherwise):
                with then:
                    one_row(r, g.mh)
                with otherwise:
                    one_row(r, left_rows)

    def vectors_of(self, patch: Expr, target: Expr, channel: Expr, block: Chunks, height: int, width: int) -> None:
        """Results of a patch, of which `height` x `width` exist, in all vectors of a block of channels."""
        k, p, lanes = self.k, self.g.problem, self.lanes
        partial = p.oc % lanes
        last = partial and block.start + block.count * block.size == -(-p.oc // lanes)
        with k.serial(block.size - 1 if last else block.size) as j:
            self.results(patch, target + j * lanes, channel, j, block.size, height, width, lanes)
        if not last:
            return
        j = k.i32(block.size - 1)
        at = patch, target + j * lanes, channel, j, block.size, height, width
        if block.count == 1:
            self.results(*at, partial)
            return
        with k.when_else(channel + block.size * lanes > p.oc) as (then, otherwise):
            with then:
                self.results(*at, partial)
            with otherwise:
                self.results(*at, lanes)

    def results(self, patch: Expr, target: Expr, channel: Expr, j: Expr, nv: int, height: int, width: int, valid: int) -> None:
        """One vector of channels of a patch: the first `valid` lanes of `height` x `width` results."""
        k, g, p, lanes = self.k, self.g, self.g.problem, self.lanes
        source = g.products_at + (patch * nv + j) * lanes
        along = points(g.mw)
        half: list[list[Expr]] = []
        for v in range(along):
            column = [k.load(self.scratch, source + (i * along + v) * g.point_products, lanes) for i in range(points(g.mh))]
            if v == ONE:
                column[ONE] = column[ONE] + k.load(self.bias, HEADER + channel + j * lanes, lanes)
            half.append([self.vectors.keep(s) for s in self.vectors.output(g.mh, [self.vectors.keep(m) for m in column])])
        for i in range(height):
            for v, value in enumerate(self.vectors.output(g.mw, [column[i] for column in half])[:width]):
                at = target + (i * p.ow + v) * p.oc
                value = self.vectors.keep(value)
                if p.addend:
                    value = value + k.load(self.addend, at, lanes)
                if p.relu:
                    value = k.max(value, k.splat(k.f32(0.0), lanes))
                if p.clamp:
                    value = k.max(value, k.splat(k.load(self.bias, k.i32(0)), lanes))
                    value = k.min(value, k.splat(k.load(self.bias, k.i32(1)), lanes))
                store_valid(k, self.y, at, value, lanes, valid)
