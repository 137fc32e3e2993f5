"""How one instruction set computes a register tile of a dense convolution: the contract between `conv` and the ISAs.

In: `Builder`, buffers and offsets of one tile. Out: instructions that multiply, accumulate and requantize, and the packing of the
parameters they read. The loops around a tile are in `bevel.backends.kernels.conv`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.kernel import Array, ConvProblem
from bevel.backends.kernels.parameters import Fields
from bevel.backends.kernels.staging import Staging
from bevel.backends.tvm import Buffer, Builder, Expr

# Elements of the bias buffer before the first channel: one 64-byte vector of 4-byte elements.
HEADER = 16
# Where its parameters of a sum of codes begin.
SUM = 6
FLOATS = ("float32", "float16")
CODES = ("uint8", "int8")
# Reduction runs of fewer K-groups are unrolled whole: a loop of two iterations costs more than it saves.
UNROLLED_GROUPS = 7
# Of a cache.
LINE_BYTES = 64
# A model's weights rarely stay in the second cache from one run to the next. Fetching ahead was measured 1.03 to 1.34
# times as fast for weights from beyond it, and 0.9 to 1.03 times for weights in it.
FETCHED_BYTES = 64 * 1024


@dataclass(frozen=True)
class Taps:
    """The reduction runs of a tile.

    Attributes:
        rows, columns: how many there are; one column unless kernel columns are separate runs.
        row_pitch, column_pitch: elements between them in the input.
        size: elements of one in the packed weights of a block.
        run: reduction elements of one.
        meanwhile: emits what a kernel whose sums go through memory does in a pause.
    """

    rows: int
    columns: int
    row_pitch: int
    column_pitch: int
    size: int
    run: int
    meanwhile: Callable[[], None] | None = None

    def loop(self, k: Builder, tap: Callable[[Expr, Expr], None]) -> None:
        """Loops over the runs; `tap` gets the number of one and where it begins in the input."""
        with k.serial(self.rows) as kh:
            row = kh * self.row_pitch
            if self.columns > 1:
                with k.serial(self.columns) as kw:
                    tap(kh * self.columns + kw, row + kw * self.column_pitch)
            else:
                tap(kh, row)


@dataclass(frozen=True, eq=False)
class RegisterTile:
    """The sums of some pixels and vectors of channels, what they are made from, and how; places are in elements of a buffer.

    Attributes:
        acc: the sums, or scratch where they go through memory; slot (i * nv + j) belongs to pixel i and result vector j.
        x: input, of the kernel's `x_dtype`.
        origin: where a reduction run of a pixel at offset 0 begins in `x`.
        offsets: of each pixel from there.
        weights: packed weights.
        base: where that run of these channels begins there.
        nv: result vectors.
        unroll: K-groups per loop iteration.
        ahead: how far behind these weights those of the next block are, which are fetched meanwhile; 0 for none.
    """

    acc: Buffer
    x: Buffer
    origin: Expr
    offsets: Sequence[int]
    weights: Buffer
    base: Expr
    nv: int
    unroll: int
    ahead: int = 0

    @property
    def mr(self) -> int:
        """Pixels."""
        return len(self.offsets)

    @property
    def slots(self) -> int:
        """Accumulators: one for each pixel and result vector."""
        return self.mr * self.nv

    def at(self, position: Expr, weights: Expr) -> RegisterTile:
        """The same sums, made from what lies `position` elements further on in `x` and `weights` further on in the weights."""
        return replace(self, origin=self.origin + position, base=self.base + weights)


class MicroKernel(abc.ABC):
    """How one ISA computes a tile of `mr` pixels x `nv` vectors of output channels.

    Subclasses set the attributes and implement `operands` and `mac` (outer products: one broadcast pixel by one vector of
    channels), or override `init`, `accumulate` and `result` (other register layouts, such as the reduction in lanes). Integer
    subclasses also implement `expand`, `requantize` and `store_codes`.

    Attributes:
        lanes: output channels per result vector.
        kgroup: reduction elements one step consumes (1 float, 2 pmaddwd, 4 vpdpbusd and sdot, 16 smull + sadalp).
        acc_lanes: accumulator elements per pixel and result vector; more than `lanes` when partial sums stay apart.
        acc_dtype: accumulator element ("float32", "int32", or "uint32" where additions wrap).
        x_dtype: element the inner loop reads; where it differs from the problem's, input rows are converted into scratch.
        weight_dtype: packed weight element.
        fields: of a record of requantization parameters (`bevel.backends.kernels.parameters`).
        copy_lanes: elements per vector of the copy into scratch.
        fetches_ahead: whether a block's weights fetch those of the next one.
        fetched_bytes: where all weights take at least so much.
        short_requantize: whether there is `requantize_short`.
        sums_bytes: scratch for the sums of a tile where they go through memory, so that the epilogue is a loop over pixels, done
            while the next tile multiplies (`bevel.backends.kernels.pending`); 0 where they stay in registers and it is unrolled.
        sums_row_bytes: of a row of sums there.
        unit: vectors of channels that are packed together; blocks are whole units.
        code_offset: what stored weight codes exceed the weights by. The epilogue takes that many times the sum of the inputs
            under a pixel (`Staging.input_sum`) off its sums.
        nan_wins: see `Builder`.
    """

    lanes: int
    kgroup: int = 1
    acc_lanes: int = 0
    acc_dtype: str = "float32"
    x_dtype: str = "float32"
    weight_dtype: str = "float32"
    fields: int = 0
    copy_lanes: int = 16
    fetches_ahead: bool = False
    fetched_bytes: int = FETCHED_BYTES
    short_requantize: bool = False
    sums_bytes: int = 0
    sums_row_bytes: int = 64
    unit: int = 1
    code_offset: int = 0
    nan_wins: bool = False

    @property
    def slot(self) -> int:
        """Accumulator elements per pixel and result vector."""
        return self.acc_lanes or self.lanes

    def padded_run(self, run: int) -> int:
        """Elements per reduction run in the packed weights: whole K-groups."""
        return -(-run // self.kgroup) * self.kgroup

    def tap_elements(self, run: int, nv: int) -> int:
        """Elements that one reduction run of `nv` vectors of channels takes in the packed weights."""
        return self.padded_run(run) * nv * self.lanes

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """Element of the packed weights where the block that begins at `channel` does."""
        return channel * (taps * self.padded_run(run))

    def staging(self, problem: ConvProblem, at: int) -> Staging:
        """How the inner loop finds its input, in scratch from byte `at` on where it is copied."""
        return Staging(problem, self.x_dtype, self.copy_lanes, at)

    def unfolded_bytes(self, run: int, taps: int, nv: int, visits: int) -> int:
        """Scratch for the weights of a block as the inner loop wants them; 0 where it reads them as they are packed.

        Args:
            run: reduction elements of a tap.
            taps: reduction runs.
            nv: vectors of channels.
            visits: tiles of pixels that meet them in one image.
        """
        return 0

    def unfold(self, k: Builder, weights: Buffer, base: Expr, scratch: Buffer, at: int, elements: int) -> None:
        """Write `elements` packed weights from `base` on to byte `at` of scratch, as the inner loop wants them."""
        raise NotImplementedError(f"{type(self).__name__} reads weights as they are packed")

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """The weight buffer.

        Args:
            weights: [channels, taps, run], channels padded with zeros to whole vectors.
            blocks: first channel and number of channels of every block, in the order in which they lie in the buffer.
        """
        channels, taps, run = weights.shape
        full = np.zeros((channels, taps, self.padded_run(run)), np.dtype(self.weight_dtype))
        full[:, :, :run] = weights
        full = full.reshape(channels, taps, -1, self.kgroup)
        return np.concatenate([full[start : start + size].transpose(1, 2, 0, 3).ravel() for start, size in blocks])

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`: weights of `shape`."""
        channels, taps, run = shape
        length = taps * self.padded_run(run)
        full = np.zeros((channels, taps, self.padded_run(run)), packed.dtype)
        for start, size in blocks:
            block = packed[start * length : (start + size) * length].reshape(taps, -1, size, self.kgroup)
            full[start : start + size] = block.transpose(2, 0, 1, 3).reshape(size, taps, -1)
        return full[:, :, :run]

    def acc_rows(self, offsets: Sequence[int]) -> Sequence[int]:
        """Where the accumulators of each pixel of a tile lie, counted in rows of nv * slot elements."""
        return range(len(offsets))

    def enter(self, k: Builder, offsets: Sequence[int], nv: int, run: int) -> None:
        """Prepare the core for tiles whose pixels begin at `offsets`; before the loops over such tiles. By default nothing."""
        return

    def leave(self, k: Builder) -> None:
        """Undo what `enter` did; once, at the end of a kernel. By default nothing."""
        return

    def finish(self, k: Builder, tile: RegisterTile) -> None:
        """Put the sums where `result` reads them, after the last reduction run. By default they are there."""
        return

    def pauses(self, taps: Taps) -> int:
        """How often a tile calls `meanwhile`."""
        raise NotImplementedError(f"{type(self).__name__} keeps sums in registers")

    def store_sums(self, k: Builder, tile: RegisterTile, row: int) -> None:
        """Instead of `finish`, where sums go through memory: write them to `acc` from `row` on, as `result` reads them."""
        raise NotImplementedError(f"{type(self).__name__} keeps sums in registers")

    def store_results(self, k: Builder, tile: RegisterTile, y: Buffer, target: Expr, pitch: int) -> None:
        """Instead of `store_sums`, where sums are results: write them to `y` from `target` on, pixels `pitch` elements apart."""
        raise NotImplementedError(f"{type(self).__name__} keeps sums in registers")

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Input of one pixel for `groups` consecutive K-groups from element `offset`, each as `mac` takes it."""
        raise NotImplementedError(f"{type(self).__name__} overrides accumulate")

    def load_weights(self, k: Builder, weights: Buffer, offset: Expr) -> Expr:
        """One vector of weights: `lanes` channels x `kgroup`."""
        return k.load(weights, offset, self.lanes * self.kgroup)

    def fetch(self, k: Builder, weights: Buffer, offset: Expr) -> None:
        """Bring a cache line of weights into the second cache. Nothing is read, so it may lie behind the last weights."""
        k.effect("llvm.prefetch", k.address(weights, offset), k.i32(0), k.i32(2), k.i32(1))

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """`acc` plus the products of one K-group."""
        raise NotImplementedError(f"{type(self).__name__} overrides accumulate")

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Start the accumulators of a tile; by default at the bias of channels [channel, channel + nv * lanes)."""
        for j in range(tile.nv):
            value = k.load(bias, HEADER + channel + j * self.lanes, self.lanes)
            if self.acc_dtype == "uint32":
                value = k.bitcast(value, "uint32", self.lanes)
            for i in range(tile.mr):
                k.store(tile.acc, (i * tile.nv + j) * self.lanes, value, self.lanes)

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """Add all reduction runs to every accumulator; `tile` begins at the first."""
        taps.loop(k, lambda index, position: self.accumulate(k, tile.at(position, index * taps.size), taps.run))

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """Add one reduction run of `run` elements to every accumulator; the last K-group may be partly padding."""
        groups = -(-run // self.kgroup)
        nv, vector = tile.nv, self.lanes * self.kgroup
        vectors_per_line = max(1, LINE_BYTES // (vector * np.dtype(self.weight_dtype).itemsize))

        def some(first: Expr, count: int) -> None:
            columns = [self.operands(k, tile.x, tile.origin + offset + first * self.kgroup, count) for offset in tile.offsets]
            for u in range(count):
                places = [tile.base + (first + u) * (nv * vector) + j * vector for j in range(nv)]
                w = [self.load_weights(k, tile.weights, place) for place in places]
                if tile.ahead:
                    for j, place in enumerate(places):
                        if (u * nv + j) % vectors_per_line == 0:
                            self.fetch(k, tile.weights, place + tile.ahead)
                for i, column in enumerate(columns):
                    for j in range(nv):
                        at = (i * nv + j) * self.slot
                        value = self.mac(k, k.load(tile.acc, at, self.slot), column[u], w[j])
                        k.store(tile.acc, at, value, self.slot)

        done = 0
        if groups >= max(2 * tile.unroll, UNROLLED_GROUPS):
            done = groups // tile.unroll * tile.unroll
            with k.serial(groups // tile.unroll) as g:
                some(g * tile.unroll, tile.unroll)
        if groups > done:
            some(k.i32(done), groups - done)

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """Sums of the pixel in row i of `acc`, vector j (whose first channel is `channel`): `lanes` float32 or int32."""
        value = k.load(acc, (i * nv + j) * self.lanes, self.lanes)
        return k.bitcast(value, "int32", self.lanes) if self.acc_dtype == "uint32" else value

    def without_offset(self, k: Builder, sums: Expr, inputs: Expr, j: int) -> Expr:
        """`sums` of vector j less what `code_offset` adds to them; `inputs` is the int32 sum of the inputs under the pixel."""
        return sums - k.splat(inputs * self.code_offset, self.lanes)

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr) -> list[Expr]:
        """The record of `lanes` channels from int32 vectors of multipliers and shifts and the int32 zero point."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")

    def requantize(self, k: Builder, sums: Expr, field: Fields) -> Expr:
        """Requantized int32 `lanes` of the channels whose record is given, zero point added, not yet clamped."""
        raise NotImplementedError(f"{type(self).__name__} does not requantize")

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer) -> Expr:
        """As `requantize` for short factors (`ConvConstants.short_factors`); the zero point is in the header of `bias`."""
        raise NotImplementedError(f"{type(self).__name__} has no short requantization")

    def pack_short(self, factors: Array) -> Array:
        """int32 parameters that `requantize_short` reads."""
        raise NotImplementedError(f"{type(self).__name__} has no short requantization")

    def store_codes(
        self, k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, limits: Sequence[Expr]
    ) -> None:
        """Saturate int32 vectors of one pixel to codes and store the first `valid` of them.

        Args:
            k: builder.
            y: buffer of codes.
            offset: element of the first code.
            values: int32 vectors of `lanes`, for consecutive channels.
            valid: number of channels that exist.
            limits: int32 scalars lo and hi to clamp to, or empty for the limits of the code type.
        """
        raise NotImplementedError(f"{type(self).__name__} does not requantize")
