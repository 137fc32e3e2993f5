"""int8 dense convolution and GEMM with AVX2 where weights are light: pmaddubsw on bytes, sums of two in 16 bits, exact.

`bevel.backends.kernels.int16_sums` arranges the weights so that nothing saturates; light weights are those of trained layers and
any that fit seven bits. Two terms of four codes take two vpmaddubsw, a 16-bit addition, one vpmaddwd by ones and a 32-bit
addition for 64 products, where vpmaddwd on widened codes takes eight instructions. Codes and weights stay bytes.

Which terms meet, and how many there are, is data, so layers of equal shape share code. Weight buffer, bytes:

* a table with one entry for each block of channels and tap, in that order: int32 position of its terms, number of pairs, number
  of terms alone. An entry takes two bytes for each channel of the block, so that its place follows from the first channel;
* at each position: the terms `[term][channel in block][4]`, then an int32 for each term, the first reduction element it meets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.int16_sums import WIDTH, Terms, arrange, restore
from bevel.backends.kernels.micro import RegisterTile
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.ir.protocols import Target

# Bytes of the table for each channel of a block and tap.
ENTRY = 2
# Fewer pixels are bound by the weights' bytes, of which terms have more.
LEAST_PIXELS = 3


class MaddubsKernel(Avx2Kernel):
    """Broadcast four codes of each of two terms, multiply by those of 8 channels, add in 16 bits."""

    kgroup = WIDTH
    x_dtype = "uint8"
    weight_dtype = "int8"
    copy_lanes = 32

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """The table and the terms."""
        channels, taps, run = weights.shape
        whole = np.zeros((channels, taps, -(-run // WIDTH) * WIDTH), np.int8)
        whole[:, :, :run] = weights
        position = channels * taps * ENTRY
        table, parts = [], []
        for start, size in blocks:
            for tap in range(taps):
                terms = arrange(whole[start : start + size, tap])
                entry = np.zeros(size * ENTRY // 4, np.int32)
                entry[:3] = position, terms.pairs, len(terms.places) - 2 * terms.pairs
                table.append(entry.view(np.int8))
                part = np.concatenate([terms.weights.ravel(), terms.places.view(np.int8)])
                # Vectors of weights begin at multiples of their size.
                parts += [part, np.zeros(-part.size % 32, np.int8)]
                position += part.size + parts[-1].size
        return np.concatenate([*table, *parts])

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """Sums of all terms at each place."""
        channels, taps, run = shape
        whole = np.zeros((channels, taps, -(-run // WIDTH) * WIDTH), np.int8)
        for start, size in blocks:
            for tap in range(taps):
                entry = (start * taps + tap * size) * ENTRY
                position, pairs, alone = packed[entry : entry + 12].view(np.int32)
                count = 2 * pairs + alone
                places = position + count * size * WIDTH
                weights = packed[position:places].reshape(count, size, WIDTH)
                terms = Terms(packed[places : places + count * 4].view(np.int32), weights, int(pairs))
                whole[start : start + size, tap] = restore(terms, whole.shape[2])
        return whole[:, :, :run]

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """Add the pairs of terms of one tap, then the terms alone."""
        size = tile.nv * self.lanes * WIDTH
        # Channels and taps before this block and tap, each of which has an entry's share of the table.
        before = k.floordiv(tile.base, k.i32(self.padded_run(run)))
        position, pairs, alone = (self._int32(k, tile.weights, before * ENTRY + 4 * i) for i in range(3))
        places = position + (pairs * 2 + alone) * size

        def some(first: Expr, count: int) -> None:
            starts = [tile.origin + self._int32(k, tile.weights, places + (first + u) * 4) for u in range(count)]
            for i, offset in enumerate(tile.offsets):
                codes = [self._codes(k, tile.x, start + offset) for start in starts]
                for j in range(tile.nv):
                    at = position + first * size + j * self.lanes * WIDTH
                    sums = [self._products(k, code, k.load(tile.weights, at + u * size, 32)) for u, code in enumerate(codes)]
                    total = sums[0] if count == 1 else sums[0] + sums[1]
                    wide = k.call("int32x8", "llvm.x86.avx2.pmadd.wd", total, k.const(1, "int16", 16))
                    slot = (i * tile.nv + j) * self.lanes
                    value = k.wrapping_add(k.load(tile.acc, slot, 8), k.bitcast(wide, "uint32", 8), 8)
                    k.store(tile.acc, slot, value, 8)

        with k.serial(pairs) as pair:
            some(pair * 2, 2)
        with k.serial(alone) as term:
            some(pairs * 2 + term, 1)

    @staticmethod
    def _int32(k: Builder, weights: Buffer, offset: Expr) -> Expr:
        """The int32 at byte `offset`."""
        return k.bitcast(k.load(weights, offset, 4), "int32")

    def _codes(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """Broadcast of four consecutive codes."""
        return k.bitcast(k.splat(k.bitcast(k.load(x, offset, WIDTH), "int32"), self.lanes), "uint8", 32)

    @staticmethod
    def _products(k: Builder, codes: Expr, weights: Expr) -> Expr:
        """Sums of two products each, int16."""
        return k.call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", codes, weights)


class MaddubsConv(ConvGenerator):
    """Convolutions with light weights."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: vpdpbusd does the same in one instruction."""
        if target.has("avx512_vnni") or target.has("avx_vnni"):
            return f"adds products in 16 bits, {target.name} does in 32"
        return super().legal(problem, target)

    def rewrites(self, problem: Problem) -> bool:
        """Terms may be halves of weights, and their order depends on them."""
        return True

    def pays(self, problem: Problem, target: Target) -> bool:
        """Where weights are light, and met by enough pixels that multiplying costs more than loading them."""
        assert isinstance(problem, ConvProblem)
        return problem.light_weights and problem.batch * problem.oh * problem.ow >= LEAST_PIXELS


# Three instructions issue a cycle, five for 64 products of a vector.
CONV_INT8_MADDUBS = MaddubsConv(
    name="x86_conv_int8_maddubs_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=MaddubsKernel(),
    shapes=((8, 1), (10, 1)),
    pipeline=Pipeline(macs=1, loads=2, in_flight=4, unroll=1),
)
