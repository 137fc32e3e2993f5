"""Depthwise NHWC convolution of floats: input is read where it lies, and taps in the border are left out.

In: what `bevel.backends.kernels.depthwise` takes, and its packing. Out: a PrimFunc.

Loop nest, outermost first::

    images                              [lo, hi) counts output rows over all images
      strips of neighbouring channel blocks
        output rows, the last one first
          channel blocks of the strip, tiles of at most `tw` neighbouring pixels
            kernel rows, unrolled where none of them is in the border; all columns of the tile

An input element that is zero by definition adds nothing, so there is no copy of the input with a border around it: such a copy
takes longer than the products in all but small layers. Which columns of a tile are in the border is known when the kernel is
written; which rows are is found out row by row.

The layers around this one go through their rows from the first to the last. Going the other way begins with what the layer before
wrote last, and ends with what the layer behind reads first: of both, the nearer caches hold what fits.

A strip is as wide as its input rows stay in the first cache from one output row to the next, and several blocks wide, because the
second cache hands out neighbouring lines faster than single ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import ConvProblem, Problem, Tile
from bevel.backends.kernels.depthwise import DepthwiseGenerator, Geometry, parts
from bevel.backends.kernels.generator import FIRST_CACHE_BYTES
from bevel.backends.kernels.micro import HEADER
from bevel.backends.kernels.tiling import split, store_valid
from bevel.backends.tvm import Buffer, Builder, Expr, PrimFunc
from bevel.ir.protocols import Target

# Channel blocks of a strip, and the share of the first cache that its input rows and weights may take.
STRIP, STRIP_SHARE = 4, 0.8
# Products of a tile that are unrolled over kernel rows; larger tiles loop over them, which is up to a tenth slower, and shorter.
UNROLLED_PRODUCTS = 400
# Cycles per byte of strips from beyond the second cache, and what single lines cost there and in the second cache, in lines.
FAR_FETCH, FAR_JUMP, NEAR_JUMP = 1 / 16, 4.0, 1.0
# Of a second cache whose size is not known.
SECOND_CACHE_BYTES = 512 * 1024


@dataclass(frozen=True)
class Columns:
    """Equal tiles of an output row, one after the other.

    Attributes:
        start: output column where the first begins.
        count: how many there are.
        size: output columns of each.
        taps: of each column of a tile the kernel columns that are not in the border.
    """

    start: int
    count: int
    size: int
    taps: tuple[tuple[int, ...], ...]

    @property
    def products(self) -> int:
        """Products of one kernel row of a tile."""
        return sum(len(inside) for inside in self.taps)


def tile_columns(p: ConvProblem, tile_width: int) -> list[Columns]:
    """The tiles of an output row, those with the same taps together."""
    found: list[Columns] = []
    for run in split(p.ow, tile_width):
        for index in range(run.count):
            start = run.start + index * run.size
            firsts = [(start + i) * p.stride_w - p.pad_left for i in range(run.size)]
            taps = tuple(tuple(kw for kw in range(p.kw) if 0 <= first + kw * p.dilation_w < p.w) for first in firsts)
            last = found[-1] if found else None
            if last is not None and (last.size, last.taps) == (run.size, taps):
                found[-1] = Columns(last.start, last.count + 1, last.size, taps)
            else:
                found.append(Columns(start, 1, run.size, taps))
    return found


@dataclass(eq=False)
class DirectDepthwiseGenerator(DepthwiseGenerator):
    """Depthwise convolutions of floats on one ISA."""

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Tile widths and strips that differ on this problem, by estimated cycles; equal ones in the generator's order."""
        g = parts(problem, self.micro)[0]
        widths = dict.fromkeys(min(width, g.problem.ow) for width in self.tile_widths)
        strips = dict.fromkeys(min(strip, g.blocks) for strip in (STRIP, g.blocks))
        tiles: list[Tile] = [{"tw": width, "strip": strip} for width in widths for strip in strips]
        return sorted(tiles, key=lambda tile: self.cycles(problem, target, tile))

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        g = parts(problem, self.micro)[0]
        p, pipeline = g.problem, self.pipeline
        vector = g.width * np.dtype(p.dtype).itemsize
        row = 0.0
        for columns in tile_columns(p, tile["tw"]):
            inputs = (columns.size - 1) * p.stride_w + p.dilation_w * (p.kw - 1) + 1
            row += columns.count * p.kh * max(columns.products / pipeline.macs, inputs / pipeline.loads)
        rows = p.batch * p.oh
        near = target.caches[0].bytes if target.caches else FIRST_CACHE_BYTES
        far = target.caches[1].bytes if len(target.caches) > 1 else SECOND_CACHE_BYTES
        window = p.dilation_h * (p.kh - 1) + 1
        stays = tile["strip"] * vector * (window * p.w + g.taps) <= near * STRIP_SHARE
        x_bytes, y_bytes = (count * p.c * np.dtype(p.dtype).itemsize for count in (p.batch * p.h * p.w, rows * p.ow))
        read = x_bytes if stays else rows * p.kh * p.w * p.c * np.dtype(p.dtype).itemsize
        jumps = 0.0 if tile["strip"] == g.blocks else 64 / (tile["strip"] * vector)
        fetched = read * (1 + NEAR_JUMP * jumps) * pipeline.fetch
        if x_bytes + y_bytes > far:
            fetched += x_bytes * (1 + FAR_JUMP * jumps) * FAR_FETCH
        return rows * g.blocks * row + fetched

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """None is needed."""
        return 0

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        with Builder(symbol, nan_wins=self.micro.nan_wins) as k:
            _Nest(k, parts(problem, self.micro)[0], tile["tw"], tile["strip"]).emit()
        return k.function


@dataclass(frozen=True)
class _Row:
    """A row of output and the input under it.

    Attributes:
        source: element of x of the first kernel row's input column 0, which may be in the border.
        target: element of y of output column 0.
        first, count: kernel rows that are not in the border.
    """

    source: Expr
    target: Expr
    first: Expr
    count: Expr


class _Nest:
    """Emits the loops of one kernel."""

    def __init__(self, k: Builder, g: Geometry, tile_width: int, strip: int) -> None:
        self.k, self.g, self.strip = k, g, strip
        self.columns = tile_columns(g.problem, tile_width)

    def emit(self) -> None:
        """Parameters in ABI order, then the loops."""
        k, g, p = self.k, self.g, self.g.problem
        self.x = k.param("x", p.dtype, widened=True)
        self.weights = k.param("w", g.micro.weight_dtype, widened=True)
        self.bias = k.param("b", "float32")
        self.y = k.param("y", p.out_dtype, widened=True)
        lo, hi, _ = k.range_params()
        with k.serial(k.floordiv(lo, k.i32(p.oh)), k.floordiv(hi - 1, k.i32(p.oh)) + 1) as image:
            first = k.max(lo - image * p.oh, k.i32(0))
            last = k.min(hi - image * p.oh, k.i32(p.oh))
            with k.serial(-(-g.blocks // self.strip)) as strip, k.serial(last - first) as index:
                row = last - 1 - index
                start = strip * self.strip
                stop = start + self.strip if g.blocks % self.strip == 0 else k.min(start + self.strip, k.i32(g.blocks))
                with k.serial(start, stop) as block:
                    self.row(image, row, block)

    def row(self, image: Expr, row: Expr, block: Expr) -> None:
        """One block of channels of one row of output."""
        k, g, p, d = self.k, self.g, self.g.problem, self.g.problem.dilation_h
        channel = k.min(block * g.width, k.i32(g.last))
        top = row * p.stride_h - p.pad_top
        first = k.floordiv(k.max(-top, k.i32(0)) + (d - 1), k.i32(d))
        count = k.max(k.min(k.floordiv(p.h - 1 - top, k.i32(d)) + 1, k.i32(p.kh)) - first, k.i32(0))
        source = (image * p.h + top) * (p.w * p.c) + channel
        target = (image * p.oh + row) * (p.ow * p.oc) + channel
        # A trip count that LLVM does not know: it would unroll the loop over kernel rows.
        at = _Row(source, target, first, k.opaque(count, "int32"))
        if p.kh * max(columns.products for columns in self.columns) > UNROLLED_PRODUCTS:
            self.tiles(at, block, unrolled=False)
        elif p.pad_top == 0 and p.pad_bottom == 0:
            self.tiles(at, block, unrolled=True)
        else:
            with k.when_else(k.all(top >= 0, top + (p.kh - 1) * d < p.h)) as (inside, outside):
                with inside:
                    self.tiles(at, block, unrolled=True)
                with outside:
                    self.tiles(at, block, unrolled=False)

    def tiles(self, row: _Row, block: Expr, unrolled: bool) -> None:
        """All tiles of one block of channels of a row; `unrolled` says that no kernel row is in the border."""
        for columns in self.columns:
            with self.k.serial(columns.count) as index:
                column = columns.start + index * columns.size
                self.tile(row, column, block, columns, unrolled)

    def tile(self, row: _Row, column: Expr, block: Expr, columns: Columns, unrolled: bool) -> None:
        """Neighbouring pixels, from output column `column` on, of one block of channels."""
        k, g, p = self.k, self.g, self.g.problem
        acc = k.alloc(columns.size * g.width, "float32")
        start = k.load(self.bias, HEADER + block * g.width, g.width)
        for i in range(columns.size):
            k.store(acc, i * g.width, start, g.width)
        source = row.source + (column * p.stride_w - p.pad_left) * p.c
        if unrolled:
            for kh in range(p.kh):
                self.kernel_row(acc, source, block, k.i32(kh), columns)
        elif columns.products:
            with k.serial(row.count) as kh:
                self.kernel_row(acc, source, block, row.first + kh, columns)
        for i in range(columns.size):
            self.epilogue(k.load(acc, i * g.width, g.width), row.target + (column + i) * p.oc)

    def kernel_row(self, acc: Buffer, source: Expr, block: Expr, kh: Expr, columns: Columns) -> None:
        """Add the products of one kernel row to the sums of a tile whose first pixel's input begins at `source`."""
        k, g, p, width = self.k, self.g, self.g.problem, self.g.width
        at = (block * g.taps + kh * p.kw) * width
        weights = [k.load(self.weights, at + kw * width, width) for kw in range(p.kw)]
        users: dict[int, list[tuple[int, int]]] = {}
        for i, inside in enumerate(columns.taps):
            for kw in inside:
                users.setdefault(i * p.stride_w + kw * p.dilation_w, []).append((i, kw))
        for offset in sorted(users):
            x = k.load(self.x, source + kh * (p.dilation_h * p.w * p.c) + offset * p.c, width)
            for i, kw in users[offset]:
                sums = k.load(acc, i * width, width)
                k.store(acc, i * width, g.micro.mac(k, sums, x, weights[kw], width), width)

    def epilogue(self, value: Expr, target: Expr) -> None:
        """Clamp the sums of one pixel and store those of existing channels."""
        k, g, p = self.k, self.g, self.g.problem
        if p.relu:
            value = k.max(value, k.splat(k.f32(0.0), g.width))
        if p.clamp:
            value = k.max(value, k.splat(k.load(self.bias, k.i32(0)), g.width))
            value = k.min(value, k.splat(k.load(self.bias, k.i32(1)), g.width))
        store_valid(k, self.y, target, value, g.width, g.valid)
