"""Dense int8 convolution with SMMLA: cores with the int8 matrix multiply extension (Cortex-X2, A510, A710 and later).

One instruction multiplies two pixels by two channels, eight elements deep: 32 products where `sdot` has 16. Pixels are taken in
pairs: a row of codes each, side by side in one register; an odd last pixel is paired with itself. An accumulator then holds the
four sums of a pair of pixels and a pair of channels, and `finish` sorts them by pixel. Weights `[block][tap][K/8][channel][8]`.

Reference: Arm Architecture Reference Manual for A-profile, SMMLA (vector).
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernel import ConvProblem, Problem
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import HEADER, RegisterTile
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target


class MatrixKernel(NeonInteger):
    """Rows 2p and 2p + 1 of `acc` belong to the pair p: first the sums of channels 0 and 1, then those of channels 2 and 3."""

    kgroup = 8

    def acc_rows(self, offsets: Sequence[int]) -> Sequence[int]:
        """One for each pixel; that of an odd last one is the second of its pair."""
        count = len(offsets)
        return range(count) if count % 2 == 0 else [*range(count - 1), count]

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Start at the biases: those of a pair of channels, for both pixels."""
        for j in range(tile.nv):
            value = k.load(bias, HEADER + channel + j * self.lanes, self.lanes)
            for pair in range(_pairs(tile.offsets)):
                for half in (0, 1):
                    both = k.shuffle([value], [2 * half, 2 * half + 1] * 2)
                    k.store(tile.acc, ((2 * pair + half) * tile.nv + j) * self.lanes, both, self.lanes)

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`; a load of 16 codes serves two K-groups, the last may read past the run."""
        groups = -(-run // self.kgroup)
        pairs = [(tile.offsets[i], tile.offsets[min(i + 1, tile.mr - 1)]) for i in range(0, tile.mr, 2)]

        def some(first: Expr, count: int) -> None:
            columns = []
            for both in pairs:
                codes = [k.load(tile.x, tile.origin + offset + first * self.kgroup, 8 * count) for offset in both]
                starts = [(8 * u, 8 * (count + u)) for u in range(count)]
                columns.append([k.shuffle(codes, [*range(a, a + 8), *range(b, b + 8)]) for a, b in starts])
            for u in range(count):
                at = tile.base + (first + u) * (tile.nv * self.lanes * self.kgroup)
                for j in range(tile.nv):
                    for half in (0, 1):
                        w = k.load(tile.weights, at + (2 * j + half) * 16, 16)
                        for pair, column in enumerate(columns):
                            slot = ((2 * pair + half) * tile.nv + j) * self.lanes
                            total = k.load(tile.acc, slot, self.lanes)
                            total = k.call("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", total, column[u], w)
                            k.store(tile.acc, slot, total, self.lanes)

        if groups >= 4:
            with k.serial(groups // 2) as g:
                some(g * 2, 2)
        else:
            for u in range(0, groups - 1, 2):
                some(k.i32(u), 2)
        if groups % 2:
            some(k.i32(groups - 1), 1)

    def finish(self, k: Builder, tile: RegisterTile) -> None:
        """Sums of one pixel and four channels side by side."""
        for pair in range(_pairs(tile.offsets)):
            for j in range(tile.nv):
                slots = [((2 * pair + half) * tile.nv + j) * self.lanes for half in (0, 1)]
                # Loads are evaluated where they are used, which is after the first slot has been written.
                first = k.alloc(self.lanes, self.acc_dtype)
                k.store(first, k.i32(0), k.load(tile.acc, slots[0], self.lanes), self.lanes)
                sums = [k.load(first, k.i32(0), self.lanes), k.load(tile.acc, slots[1], self.lanes)]
                for pixel, slot in enumerate(slots):
                    k.store(tile.acc, slot, k.shuffle(sums, [2 * pixel, 2 * pixel + 1, 2 * pixel + 4, 2 * pixel + 5]), self.lanes)


def _pairs(offsets: Sequence[int]) -> int:
    return -(-len(offsets) // 2)


class MatrixConv(ConvGenerator):
    """Convolutions of more than one pixel: half of the products of a single one would be the same twice."""

    def pays(self, problem: Problem, target: Target) -> bool:
        """Where there are pairs of pixels."""
        assert isinstance(problem, ConvProblem)
        return problem.batch * problem.oh * problem.ow > 1


# Cortex-X3 starts four smmla per cycle, with a latency of three. At most 18 accumulators, two registers per pair of pixels.
CONV_INT8_MMLA = MatrixConv(
    name="arm_conv_int8_mmla",
    arch="aarch64",
    features=("neon", "dotprod", "i8mm"),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=MatrixKernel(),
    shapes=((6, 3), (8, 2), (4, 4)),
    pipeline=Pipeline(macs=4, loads=3, in_flight=12),
)
