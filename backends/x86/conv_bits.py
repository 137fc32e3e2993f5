"""Convolution and GEMM of weights and inputs of one or two bits by counting bits, with vpopcntq of AVX-512.

A product of codes is a sum over pairs of bit planes. 64 products of bits for each of 8 channels take an and with a broadcast word
of inputs, a count and an addition; sums are 64 bits wide and need no care. Rows of inputs are turned into planes once
(`bevel.backends.kernels.low_bit`): of every 64 codes, the words of their planes follow each other.

Weights: `[block][tap][word][vector of 8 channels][plane][channel]`, words of 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.conv import Geometry
from bevel.backends.kernels.generator import Pipeline, RivalConv
from bevel.backends.kernels.low_bit import (
    FormStaging,
    plane_factors,
    planes_of,
    signed_codes,
    sum_of_codes,
    unsigned_codes,
)
from bevel.backends.kernels.micro import HEADER, MicroKernel, RegisterTile
from bevel.backends.kernels.staging import Staging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_amx import CONV_INT8_AMX
from bevel.backends.x86.conv_int8_vnni import CONV_INT8_VNNI, VnniKernel
from bevel.backends.x86.conv_table import CONV_TABLE_AVX512
from bevel.backends.x86.conv_unpack import CONV_UNPACK_VNNI
from bevel.ir.protocols import Target

WORD = 64
WORD_BYTES = 8
# Channels of a vector of words.
VECTOR = 8
# Pairs of planes beyond which products of bytes, or tables, are as fast.
MOST_PAIRS = 2


@dataclass(frozen=True)
class WordStaging(FormStaging):
    """Rows of bit planes in words.

    Attributes:
        planes: of a code.
    """

    planes: int = 1

    @property
    def pixel_elements(self) -> int:
        """Bytes of the planes of a pixel."""
        return self.problem.c // WORD * self.planes * WORD_BYTES

    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """See `FormStaging.form`."""
        with k.serial(codes // WORD) as v:
            halves = [k.load(x, source + v * WORD + at, WORD // 2) for at in (0, WORD // 2)]
            self._write(k, scratch, target + v * (self.planes * WORD_BYTES), halves)

    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """See `FormStaging.form_border`."""
        with k.serial(pixels * self.problem.c // WORD) as v:
            self._write(k, scratch, target + v * (self.planes * WORD_BYTES), [k.splat(zero, WORD // 2)] * 2)

    def row_sums(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """See `FormStaging.row_sums`."""
        return sum_of_codes(k, x, offset, self.problem.c)

    def _write(self, k: Builder, scratch: Buffer, target: Expr, halves: Sequence[Expr]) -> None:
        """The planes of 64 codes in two vectors."""
        for p in range(self.planes):
            for number, half in enumerate(halves):
                # The bit becomes a byte's uppermost; what comes from the byte below does not reach it.
                words = k.shift_left(k.bitcast(half, "uint16", WORD // 4), k.const(7 - p, "uint16", WORD // 4))
                bits = k.call("int32", "llvm.x86.avx2.pmovmskb", k.bitcast(words, "uint8", WORD // 2))
                k.store(scratch, target + p * WORD_BYTES + number * 4, k.bitcast(bits, "uint8", 4), 4)


@dataclass(frozen=True)
class WordsKernel(VnniKernel):
    """Count the bits of planes, 8 channels a vector.

    Attributes:
        weight_bits, x_bits: of the problem.
    """

    weight_bits: int = 1
    x_bits: int = 1

    kgroup = WORD
    acc_dtype = "int64"
    weight_dtype = "uint8"
    fetches_ahead = False

    @property
    def acc_lanes(self) -> int:  # type: ignore[override]
        """Sums of every pair of planes."""
        return self.lanes * self.weight_bits * self.x_bits

    @property
    def code_offset(self) -> int:  # type: ignore[override]
        """Bipolar weights are 2 u - 1."""
        return 1 if self.weight_bits == 1 else 0

    def staging(self, problem: ConvProblem, at: int) -> Staging:
        """See `MicroKernel.staging`."""
        return WordStaging(problem, self.x_dtype, WORD, at, sums=bool(self.code_offset), planes=self.x_bits)

    def tap_elements(self, run: int, nv: int) -> int:
        """See `MicroKernel.tap_elements`."""
        return run // WORD * nv * self.lanes * self.weight_bits * WORD_BYTES

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """See `MicroKernel.block_start`."""
        return channel * (taps * run // WORD * self.weight_bits * WORD_BYTES)

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See the module's docstring."""
        channels, taps, run = weights.shape
        codes = unsigned_codes(weights, self.weight_bits)
        planes = [np.packbits(plane, axis=-1, bitorder="little") for plane in planes_of(codes, self.weight_bits)]
        words = np.stack(planes, axis=2).reshape(channels // VECTOR, VECTOR, taps, self.weight_bits, run // WORD, WORD_BYTES)
        return np.concatenate(
            [words[start // VECTOR : (start + size) // VECTOR].transpose(2, 4, 0, 3, 1, 5).ravel() for start, size in blocks]
        )

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        _, taps, run = shape
        whole = np.zeros(shape, np.int8)
        position = 0
        for start, size in blocks:
            count = taps * self.tap_elements(run, size // self.lanes)
            block = packed[position : position + count]
            position += count
            words = block.reshape(taps, run // WORD, size // VECTOR, self.weight_bits, VECTOR, WORD_BYTES)
            planes = words.transpose(2, 4, 0, 3, 1, 5).reshape(size, taps, self.weight_bits, run // 8)
            bits = np.unpackbits(planes, axis=-1, bitorder="little")
            codes = (bits << np.arange(self.weight_bits, dtype=np.uint8)[:, None]).sum(axis=2, dtype=np.uint8)
            whole[start : start + size] = signed_codes(codes, self.weight_bits)
        return whole

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Counts start at zero; `result` adds the bias."""
        for at in range(0, tile.slots * self.slot, VECTOR):
            k.store(tile.acc, at, k.const(0, "int64", VECTOR), VECTOR)

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`."""
        vectors = tile.nv * self.lanes // VECTOR
        size = VECTOR * WORD_BYTES
        # A trip count that LLVM does not know: it would unroll short loops and run out of registers.
        with k.serial(k.opaque(k.i32(run // WORD), "int32")) as word:
            at = tile.base + word * (vectors * self.weight_bits * size)
            starts = [at + n * size for n in range(vectors * self.weight_bits)]
            planes = [k.bitcast(k.load(tile.weights, start, size), "int64", VECTOR) for start in starts]
            for i, offset in enumerate(tile.offsets):
                for p in range(self.x_bits):
                    place = tile.origin + offset + (word * self.x_bits + p) * WORD_BYTES
                    bits = k.splat(k.bitcast(k.load(tile.x, place, WORD_BYTES), "int64"), VECTOR)
                    for n, plane in enumerate(planes):
                        slot = i * tile.nv * self.slot + (n * self.x_bits + p) * VECTOR
                        count = k.call(f"int64x{VECTOR}", "llvm.ctpop", k.bitwise_and(bits, plane))
                        k.store(tile.acc, slot, k.load(tile.acc, slot, VECTOR) + count, VECTOR)

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """Counts times what their planes count, plus the bias, which wraps: it absorbs the zero point."""
        parts = []
        for vector in range(self.lanes // VECTOR):
            total = None
            for q, factor in enumerate(plane_factors(self.weight_bits)):
                for p in range(self.x_bits):
                    pair = ((j * self.lanes // VECTOR + vector) * self.weight_bits + q) * self.x_bits + p
                    value = k.load(acc, i * nv * self.slot + pair * VECTOR, VECTOR)
                    scaled = value if factor << p == 1 else value * k.const(factor << p, "int64", VECTOR)
                    total = scaled if total is None else total + scaled
            parts.append(k.cast(total, "int32", VECTOR))
        sums = k.shuffle(parts, range(self.lanes))
        if self.weight_bits == 1:
            sums = k.shift_left(sums, k.const(1, "int32", self.lanes))
        first = k.bitcast(k.load(bias, HEADER + channel, self.lanes), "uint32", self.lanes)
        return k.bitcast(k.wrapping_add(first, k.bitcast(sums, "uint32", self.lanes), self.lanes), "int32", self.lanes)


class WordsConv(RivalConv):
    """Convolutions of weights and inputs of one or two bits."""

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits of the problem."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, WordsKernel)
        return replace(self.micro, weight_bits=problem.weight_bits, x_bits=problem.x_bits)

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: few pairs of planes, one group of channels, whole words of bits."""
        reason = super().legal(problem, target)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.weight_bits * problem.x_bits > MOST_PAIRS:
            return f"at most {MOST_PAIRS} pairs of planes, these are {problem.weight_bits} by {problem.x_bits}"
        if problem.groups > 1 or problem.c % WORD:
            return f"one group of a multiple of {WORD} channels, the problem has {problem.groups} of {problem.c}"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """As many pixels as leave registers to the sums of all pairs."""
        assert isinstance(problem, ConvProblem)
        pairs = problem.weight_bits * problem.x_bits
        return self._ranked(problem, target, [(mr // pairs, nv) for mr, nv in self.shapes])

    def _cycles(self, g: Geometry) -> float:
        """Every pair of planes is counted."""
        return super()._cycles(g) * g.problem.weight_bits * g.problem.x_bits


# Two of and, vpopcntq and addition a cycle, of which only additions wait for each other; fitted beside the estimates of rivals.
CONV_BITS_AVX512 = WordsConv(
    name="x86_conv_bits_avx512",
    arch="x86_64",
    features=("avx512", "avx512_vpopcntdq"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=WordsKernel(),
    shapes=((12, 1), (6, 2), (8, 1)),
    pipeline=Pipeline(macs=1 / 2.6, loads=2, in_flight=2, unroll=1, result=6),
    rivals=(CONV_INT8_AMX, CONV_INT8_VNNI, CONV_UNPACK_VNNI, CONV_TABLE_AVX512),
)
