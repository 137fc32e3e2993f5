"""Convolution of weights and inputs of two bits by tables of products, one lookup each (DeepGEMM; Ganji et al., 2023).

Reduction elements lie side by side in a vector, which belongs to one channel. An or joins codes of weights and of x to indices of
four bits, vpshufb looks up their product. Entries are moved up to be unsigned, so that bytes add as many of them as fit; vpsadbw
widens these sums to 64 bits. Tables of sums (`bevel.backends.kernels.tables`) answer for four products of a plane at once, so
no core is known where this is the faster way: docs/kernels.md compares them, and the tuner may.

Weights: `[block][tap][vector of reduction elements][channel][element]`, bytes that are `w << x_bits` as unsigned codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bevel.backends.kernel import Array, ConvProblem, Problem
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.low_bit import reductions, signed_codes, unsigned_codes
from bevel.backends.kernels.micro import HEADER, MicroKernel, RegisterTile, Taps
from bevel.backends.kernels.narrow_sums import store_zeros, sum_narrow
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.backends.x86.conv_int8_vnni import VnniKernel
from bevel.ir.protocols import Target

INDEX_BITS = 4


@dataclass(frozen=True)
class ProductsKernel(MicroKernel):
    """Look up, add in bytes, widen to 64 bits.

    Attributes:
        weight_bits, x_bits: of the problem.
        reductions: products per result.
    """

    weight_bits: int = 2
    x_bits: int = 2
    reductions: int = 0

    acc_dtype = "int64"
    x_dtype = "uint8"
    weight_dtype = "uint8"
    fetches_ahead = False
    lookup: ClassVar[str]
    add_bytes: ClassVar[str]

    @property
    def words(self) -> int:
        """Sums that vpsadbw makes of a vector."""
        return self.kgroup // 8

    @property
    def acc_lanes(self) -> int:  # type: ignore[override]
        """Of every channel its words."""
        return self.lanes * self.words

    @property
    def products(self) -> Array:
        """int64 [2^INDEX_BITS] entries before they are moved up; those of codes that do not exist are anything."""
        codes = np.arange(1 << INDEX_BITS)
        weights = signed_codes((codes >> self.x_bits & ((1 << self.weight_bits) - 1)).astype(np.uint8), self.weight_bits)
        return weights.astype(np.int64) * (codes & ((1 << self.x_bits) - 1))

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See the module's docstring."""
        return super().pack_weights(unsigned_codes(weights, self.weight_bits) << np.uint8(self.x_bits), blocks)

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        return signed_codes(super().unpack_weights(packed >> np.uint8(self.x_bits), shape, blocks), self.weight_bits)

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Sums start at zero; `result` adds the bias."""
        store_zeros(k, tile.acc, self.acc_dtype, tile.slots * self.slot, self.words)

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`."""
        width, channels = self.kgroup, tile.nv * self.lanes
        entries = (self.products - self.products.min()).astype(np.uint8)
        table = _repeated(k, entries, width)
        sums = k.alloc(tile.mr * channels * width, "uint8")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = tile.base + (row * taps.columns + column) * taps.size + index * (channels * width)
            place = tile.origin + row * taps.row_pitch + column * taps.column_pitch + index * width
            codes = [k.load(tile.x, place + offset, width) for offset in tile.offsets]
            for n in range(channels):
                factors = k.load(tile.weights, at + n * width, width)
                for i, some in enumerate(codes):
                    slot = (i * channels + n) * width
                    found = k.call(f"uint8x{width}", self.lookup, table, k.bitwise_or(some, factors))
                    k.store(sums, slot, found if first else k.load(sums, slot, width) + found, width)

        def widen(zero: Expr | None) -> None:
            for slot in range(tile.mr * channels):
                at = slot * self.words + (k.i32(0) if zero is None else zero)
                found = k.call(
                    f"int64x{self.words}", self.add_bytes, k.load(sums, slot * width, width), k.const(0, "uint8", width)
                )
                k.store(tile.acc, at, k.load(tile.acc, at, self.words) + found, self.words)

        sum_narrow(k, taps, taps.run // width, 255 // int(entries.max()), tile.unroll, step, widen)

    def result(self, k: Builder, acc: Buffer, i: Expr, j: int, nv: int, bias: Buffer, channel: Expr) -> Expr:
        """The words of every channel added up, less what entries are moved up by, plus the bias, which wraps."""
        at = i * nv * self.slot + j * self.slot
        rows = [k.cast(k.load(acc, at + n * self.words, self.words), "int32", self.words) for n in range(self.lanes)]
        columns = [k.shuffle(rows, [n * self.words + word for n in range(self.lanes)]) for word in range(self.words)]
        total = columns[0]
        for column in columns[1:]:
            total = total + column
        total = total + k.const(int(self.products.min()) * self.reductions, "int32", self.lanes)
        first = k.bitcast(k.load(bias, HEADER + channel, self.lanes), "uint32", self.lanes)
        return k.bitcast(k.wrapping_add(first, k.bitcast(total, "uint32", self.lanes), self.lanes), "int32", self.lanes)


@dataclass(frozen=True)
class ProductsAvx2Kernel(ProductsKernel, Avx2Kernel):
    """32 products an instruction."""

    kgroup = 32
    copy_lanes = 32
    lookup = "llvm.x86.avx2.pshuf.b"
    add_bytes = "llvm.x86.avx2.psad.bw"


@dataclass(frozen=True)
class ProductsAvx512Kernel(ProductsKernel, VnniKernel):
    """64 products an instruction."""

    kgroup = 64
    lookup = "llvm.x86.avx512.pshuf.b.512"
    add_bytes = "llvm.x86.avx512.psad.bw.512"


@dataclass(eq=False)
class ProductsConv(ConvGenerator):
    """Convolutions of weights and inputs whose bits make an index."""

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits of the problem."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, ProductsKernel)
        return replace(self.micro, weight_bits=problem.weight_bits, x_bits=problem.x_bits, reductions=reductions(problem))

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: indices of four bits, one group of channels, whole vectors of them."""
        reason = super().legal(problem, target)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.weight_bits + problem.x_bits > INDEX_BITS:
            return f"indices of {INDEX_BITS} bits, these have {problem.weight_bits} and {problem.x_bits}"
        if problem.groups > 1 or problem.c % self.micro.kgroup:
            return f"one group of a multiple of {self.micro.kgroup} channels, the problem has {problem.groups} of {problem.c}"
        return None

    def pays(self, problem: Problem, target: Target) -> bool:
        """Nowhere, see the module's docstring."""
        return False


def _repeated(k: Builder, entries: Array, width: int) -> Expr:
    """`width` bytes that repeat the 16 of `entries`."""
    halves = [int.from_bytes(part.tobytes(), "little", signed=True) for part in entries.reshape(2, 8)]
    parts = [k.bitcast(k.const(half, "int64", width // 8), "uint8", width) for half in halves]
    order = [lane if lane % 16 < 8 else width + lane for lane in range(width)]
    return k.shuffle(parts, order)


CONV_PRODUCTS_AVX2 = ProductsConv(
    name="x86_conv_products_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=ProductsAvx2Kernel(),
    shapes=((1, 1),),
    pipeline=Pipeline(macs=1, loads=2, in_flight=4, unroll=1),
)
CONV_PRODUCTS_AVX512 = ProductsConv(
    name="x86_conv_products_avx512",
    arch="x86_64",
    features=("avx512",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=ProductsAvx512Kernel(),
    shapes=((1, 1),),
    pipeline=Pipeline(macs=0.67, loads=2, in_flight=4, unroll=1),
)
