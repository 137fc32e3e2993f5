"""int8 dense convolution and GEMM with AMX: tdpbusd multiplies a tile of uint8 codes by a tile of int8 weights into int32 tiles.

One instruction does 16 pixels x 16 channels x 64 reduction elements. Sums are exact modulo 2^32, as with vpdpbusd. The registers
are eight tiles of up to 16 rows of 64 bytes: pixels lie in *bands*, runs of pixels at one distance in memory, a band being a tile
that is loaded straight from the input. Pixels of several short image rows share a band where the border between the rows is whole
pixels; the sums of what lies between are computed and not stored.

Weights are packed as for vpdpbusd, tile by tile. Sums pass through memory to the requantization, which is done while the next
tile multiplies (`bevel.backends.kernels.pending`). A thread needs the operating
system's permission for tiles (runtime/c/isa.c asks for it); a kernel leaves no tile configuration behind.

Reference: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.conv import Geometry
from bevel.backends.kernels.generator import ConvGenerator, Pipeline, fetched_inputs, fetched_weights, kept_bytes
from bevel.backends.kernels.micro import HEADER, RegisterTile, Taps
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_vnni import CONV_INT8_VNNI, VnniKernel
from bevel.ir.protocols import Target

TILES = 8
ROWS = 16
ROW_BYTES = 64


@dataclass
class Band:
    """Pixels of one tile: at `first`, first + pitch, ... elements; some of the `rows` may lie between images' rows.

    Attributes:
        first: offset of the first pixel.
        pitch: elements from one row of the tile to the next; 0 while there is one.
        rows: of the tile.
    """

    first: int
    pitch: int = 0
    rows: int = 1

    def place(self, offset: int) -> int | None:
        """Row of the pixel at `offset`, None when this band cannot hold it."""
        distance = offset - self.first
        pitch = self.pitch or distance
        if distance <= 0 or distance % pitch or distance // pitch >= ROWS:
            return None
        self.pitch, self.rows = pitch, distance // pitch + 1
        return self.rows - 1


def bands(offsets: Sequence[int]) -> tuple[list[Band], list[int]]:
    """The bands of a tile of pixels, and each pixel's row, counting 16 rows to a band."""
    found: list[Band] = []
    rows: list[int] = []
    for offset in offsets:
        row = found[-1].place(offset) if found else None
        if row is None:
            found.append(Band(offset))
            row = 0
        rows.append(ROWS * (len(found) - 1) + row)
    return found, rows


class AmxKernel(VnniKernel):
    """Tiles b * nv + j hold the sums of band b and vector j, the next ones the bands' codes, the rest take turns for weights."""

    sums_bytes = TILES * ROWS * ROW_BYTES
    sums_row_bytes = ROW_BYTES
    # Loading tiles takes all that the load ports do: fetching costs 9 to 17 % where the second cache holds the weights.
    fetched_bytes = 1024 * 1024

    def padded_run(self, run: int) -> int:
        """Whole steps: of at most 64 elements, balanced, so that a run of 96 is twice 48."""
        return -(-run // self.step(run)) * self.step(run)

    def step(self, run: int) -> int:
        """Reduction elements of one tile multiplication, a multiple of 4."""
        steps = -(-run // ROW_BYTES)
        return -(-run // (4 * steps)) * 4

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """Tile after tile: [block][tap][step][vector], each of step / 4 rows of 16 channels of 4 elements.

        Rows that follow each other instead of alternating with another tile's: measured 1.0 to 1.6 times as fast.
        """
        channels, taps, run = weights.shape
        full = np.zeros((channels, taps, self.padded_run(run)), np.int8)
        full[:, :, :run] = weights
        return np.concatenate([self._tiles(full[start : start + size], self.step(run)).ravel() for start, size in blocks])

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`: weights of `shape`."""
        channels, taps, run = shape
        full = np.zeros((channels, taps, self.padded_run(run)), np.int8)
        at = 0
        for start, size in blocks:
            tiles = self._tiles(full[start : start + size], self.step(run))
            tiles[...] = packed[at : at + tiles.size].reshape(tiles.shape)
            at += tiles.size
        return full[:, :, :run]

    def _tiles(self, block: Array, step: int) -> Array:
        """A view of a block's weights [channels, taps, padded run] as [tap, step, vector, row, channel, element]."""
        size, taps, run = block.shape
        shape = size // self.lanes, self.lanes, taps, run // step, step // self.kgroup, self.kgroup
        return block.reshape(shape).transpose(2, 3, 0, 4, 1, 5)

    def acc_rows(self, offsets: Sequence[int]) -> Sequence[int]:
        """See `bands`."""
        return bands(offsets)[1]

    def enter(self, k: Builder, offsets: Sequence[int], nv: int, run: int) -> None:
        """Load the tile configuration: palette 1, then the bytes of a row and the rows of each tile."""
        found, _ = bands(offsets)
        step = self.step(run)
        tiles = [(band.rows, ROW_BYTES) for band in found for _ in range(nv)] + [(band.rows, step) for band in found]
        tiles += [(step // 4, ROW_BYTES)] * (TILES - len(tiles))
        configuration = np.zeros(ROW_BYTES, np.uint8)
        configuration[0] = 1
        configuration[16:32:2] = [width for _, width in tiles]
        configuration[48:56] = [rows for rows, _ in tiles]
        memory = k.alloc(8, "int64")
        for i, word in enumerate(configuration.view(np.int64).tolist()):
            k.store(memory, k.i32(i), k.const(word, "int64"))
        k.effect("llvm.x86.ldtilecfg", k.address(memory, k.i32(0)))

    def leave(self, k: Builder) -> None:
        """Threads that use no tiles are switched faster."""
        k.effect("llvm.x86.tilerelease")

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Every row of a tile of sums is the same 16 biases: rows 0 bytes apart."""
        found, _ = bands(tile.offsets)
        for b in range(len(found)):
            for j in range(tile.nv):
                address = k.address(bias, HEADER + channel + j * self.lanes)
                k.effect("llvm.x86.tileloadd64", _tile(k, b * tile.nv + j), address, k.const(0, "int64"))

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`; `unroll` counts steps, in which each band and vector is multiplied once."""
        found, _ = bands(tile.offsets)
        step = self.step(taps.run)
        steps = self.padded_run(taps.run) // step
        codes, first_weights = len(found) * tile.nv, len(found) * (tile.nv + 1)
        turns = TILES - first_weights
        tile_bytes = step // self.kgroup * ROW_BYTES
        pitches, row_bytes = [k.const(band.pitch or step, "int64") for band in found], k.const(ROW_BYTES, "int64")
        looped = steps // tile.unroll * tile.unroll if steps >= 2 * tile.unroll else 0

        def load_codes(part: RegisterTile, b: int, index: Expr) -> None:
            address = k.address(part.x, part.origin + found[b].first + index * step)
            k.effect("llvm.x86.tileloadd64", _tile(k, codes + b), address, pitches[b])

        def load_weights(j: int, place: Expr) -> None:
            k.effect("llvm.x86.tileloadd64", _tile(k, first_weights + j % turns), k.address(tile.weights, place), row_bytes)
            # A row of a tile of weights is a cache line.
            for row in range(step // self.kgroup if tile.ahead else 0):
                self.fetch(k, tile.weights, place + (row * ROW_BYTES + tile.ahead))

        def one(part: RegisterTile, index: Expr) -> None:
            # The other bands' codes are loaded, and results made, while tiles that are there multiply.
            load_codes(part, 0, index)
            for first in range(0, tile.nv, turns):
                vectors = range(first, min(first + turns, tile.nv))
                for j in vectors:
                    load_weights(j, part.base + index * (tile.nv * tile_bytes) + j * tile_bytes)
                if first == 0 and taps.meanwhile is not None:
                    taps.meanwhile()
                for b in range(len(found)):
                    if b > 0 and first == 0:
                        load_codes(part, b, index)
                    for j in vectors:
                        operands = _tile(k, codes + b), _tile(k, first_weights + j % turns)
                        k.effect("llvm.x86.tdpbusd", _tile(k, b * tile.nv + j), *operands)

        def tap(number: Expr, position: Expr) -> None:
            part = tile.at(position, number * taps.size)
            if looped:
                with k.serial(looped // tile.unroll) as g:
                    for u in range(tile.unroll):
                        one(part, g * tile.unroll + u)
            for u in range(looped, steps):
                one(part, k.i32(u))

        taps.loop(k, tap)

    def pauses(self, taps: Taps) -> int:
        """One after every step."""
        return taps.rows * taps.columns * self.padded_run(taps.run) // self.step(taps.run)

    def store_sums(self, k: Builder, tile: RegisterTile, row: int) -> None:
        """Tile after tile: the bands of the first vector of channels, then those of the next."""
        found, _ = bands(tile.offsets)
        for b in range(len(found)):
            for j in range(tile.nv):
                address = k.address(tile.acc, k.i32((row + j * _rows(tile.nv) + b * ROWS) * ROW_BYTES))
                k.effect("llvm.x86.tilestored64", _tile(k, b * tile.nv + j), address, k.const(ROW_BYTES, "int64"))

    def store_results(self, k: Builder, tile: RegisterTile, y: Buffer, target: Expr, pitch: int) -> None:
        """See `MicroKernel.store_results`."""
        found, _ = bands(tile.offsets)
        for b in range(len(found)):
            for j in range(tile.nv):
                address = k.address(y, target + (b * ROWS * pitch + j * self.lanes))
                k.effect("llvm.x86.tilestored64", _tile(k, b * tile.nv + j), address, k.const(pitch * 4, "int64"))

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """Sums as they are in memory; a loop that stores them unchanged must not become a call of memcpy."""
        sums = k.load(acc, (i + j * _rows(nv)) * ROW_BYTES, ROW_BYTES)
        return k.opaque(k.bitcast(sums, "int32", self.lanes), "int32", self.lanes)


def _rows(nv: int) -> int:
    """Rows of sums of one of `nv` vectors of channels: of as many bands as there are tiles for."""
    return (TILES - 1) // (nv + 1) * ROWS


def _tile(k: Builder, index: int) -> Expr:
    """A tile register as an operand."""
    return k.const(index, "int8")


class AmxConv(ConvGenerator):
    """Register arrangements that a problem's image fits, and when tile multiplication is the faster way."""

    def _ranked(self, problem: Problem, target: Target, shapes: Sequence[tuple[int, int]]) -> list[Tile]:
        """For each arrangement of registers the most pixels that fit its bands, by estimated cycles, best first."""
        assert isinstance(problem, ConvProblem)
        found = []
        for most, nv in shapes:
            sizes = (Geometry(problem, self.micro, mr, nv) for mr in range(most * ROWS, 0, -1))
            found.append((next(g.mr for g in sizes if _fits(g, most)), nv))
        return super()._ranked(problem, target, list(dict.fromkeys(found)))

    def pays(self, problem: Problem, target: Target) -> bool:
        """Against vpdpbusd, which needs no detour through memory: few pixels are better there."""
        assert isinstance(problem, ConvProblem)
        if CONV_INT8_VNNI.legal(problem, target) is not None:
            return True
        mine, other = (g.cycles(problem, target, g.tiles(problem, target)[0]) for g in (self, CONV_INT8_VNNI))
        return mine < other

    def _cycles(self, g: Geometry) -> float:
        """Cycles of all tiles (Sapphire Rapids): one per row of pixels multiplied, half of one per row loaded; and of results."""
        assert isinstance(self.micro, AmxKernel)
        step = self.micro.step(g.run)
        steps = g.taps * g.padded_run // step
        total = 0.0
        for count, rows, width in g.bodies:
            sizes = [band.rows for band in bands(g.offsets(rows, width))[0]]
            for columns in g.columns:
                multiply = columns.size * sum(max(size, LEAST_CYCLES) for size in sizes)
                load = (sum(sizes) + columns.size * step / 4) / self.pipeline.loads
                parts = WAIT * steps * max(multiply, load) + AMX_TILE_OVERHEAD, RESULT * rows * width * columns.size
                total += count * columns.count * (max(parts) + BESIDE * min(parts))
        if not g.uniform:
            total += CONFIGURE * len(g.bodies) * sum(columns.count for columns in g.columns)
        return g.problem.groups * g.shape.batch * total

    def waiting(self, g: Geometry, target: Target) -> float:
        """Several vectors' tiles in a row come from the second cache more slowly than with a tile of codes between them."""
        kept = kept_bytes(target)
        waits = INPUT_FETCH * fetched_inputs(g, kept)
        for run in g.columns:
            waits += (WIDE_FETCH if run.size > NARROW else WEIGHT_FETCH) * fetched_weights(g, run, kept)
        return waits


def _fits(g: Geometry, most: int) -> bool:
    """Whether every tile of the image lies in at most `most` bands."""
    return all(len(bands(g.offsets(rows, width))[0]) <= most for _, rows, width in g.bodies)


# A tile multiplication of few rows still passes all rows of weights.
LEAST_CYCLES = 8
# Cycles of a multiplication over those of its rows: it waits for its tiles. Cycles of a tile besides, and of a vector of results;
# what the shorter of multiplying and requantizing costs beside the longer; and cycles to prepare for tiles of another size.
WAIT, AMX_TILE_OVERHEAD, RESULT, BESIDE, CONFIGURE = 1.6, 65, 7, 0.4, 400
# Cycles per byte from the second cache: of input, of weights, and of weights of more than NARROW vectors. All these numbers are
# fitted to 138 kernels, six of each of 23 layers and products.
INPUT_FETCH, WEIGHT_FETCH, WIDE_FETCH, NARROW = 0.015, 0.008, 0.012, 2
CONV_INT8_AMX = AmxConv(
    name="x86_conv_int8_amx",
    arch="x86_64",
    features=("avx512", "amx_int8"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=AmxKernel(),
    shapes=((2, 2), (1, 4), (1, 3), (3, 1), (1, 1)),
    pipeline=Pipeline(macs=1, loads=2, in_flight=4, unroll=1),
    spare_shapes=((2, 1), (1, 2)),
    spare_unrolls=(2, 4),
)
