"""Matrix-vector products of weights that are indices of a table of integers, looked up in registers, on x86.

vpshufb turns the fields of `bevel.backends.kernels.fields` into weights of eight bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from bevel.backends.kernels.fields import LookupConv, LookupDotKernel, LookupKernel
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.micro import RegisterTile, Taps
from bevel.backends.kernels.narrow_sums import sum_narrow
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.backends.x86.conv_int8_vnni import VnniKernel

GROUP = 4
HALF_BITS = 4
# Of two products of any weights of 8 bits and halves of codes, that fit 16 bits.
ADDITIONS = 32767 // (2 * 128 * ((1 << HALF_BITS) - 1))


@dataclass(frozen=True)
class LookupVnniKernel(LookupDotKernel, VnniKernel):
    """Multiply by vpdpbusd."""

    def factors(self, k: Builder, weights: Buffer, whole: Expr, f: int) -> Expr:
        """See `FieldsDotKernel.factors`."""
        return k.call("int8x64", "llvm.x86.avx512.pshuf.b.512", self.table(k, weights), self.field(k, whole, f))


@dataclass(frozen=True)
class LookupAvx2Kernel(LookupKernel, Avx2Kernel):
    """Multiply halves of codes, of four bits each, by vpmaddubsw: then 16 bits add several products, whatever the weights."""

    kgroup = GROUP
    x_dtype = "uint8"
    weight_dtype = "uint8"
    copy_lanes = 32

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`."""
        width, words = self.lanes * GROUP, self.lanes * 2
        halves = 1 if self.x_bits <= HALF_BITS else 2
        sums = k.alloc(tile.slots * halves * words, "int16")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = tile.base + (row * taps.columns + column) * taps.size + index * (tile.nv // self.unit * width)
            place = tile.origin + row * taps.row_pitch + column * taps.column_pitch + index * GROUP
            codes = [self._halves(k, k.load(tile.x, place + offset, GROUP), halves) for offset in tile.offsets]
            for q in range(tile.nv // self.unit):
                whole = k.load(tile.weights, at + q * width, width)
                for f in range(self.unit):
                    factors = k.call("int8x32", "llvm.x86.avx2.pshuf.b", self.table(k, tile.weights), self.field(k, whole, f))
                    for i, of_pixel in enumerate(codes):
                        for number, half in enumerate(of_pixel):
                            slot = ((i * tile.nv + q * self.unit + f) * halves + number) * words
                            products = k.call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", half, factors)
                            k.store(sums, slot, products if first else k.load(sums, slot, words) + products, words)

        def widen(zero: Expr | None) -> None:
            for slot in range(tile.slots):
                at = slot * self.lanes + (k.i32(0) if zero is None else zero)
                total = k.load(tile.acc, at, self.lanes)
                for number in range(halves):
                    some = k.load(sums, (slot * halves + number) * words, words)
                    total = self.mac(k, total, some, k.const(1 << (HALF_BITS * number), "int16", words))
                k.store(tile.acc, at, total, self.lanes)

        sum_narrow(k, taps, taps.run // GROUP, ADDITIONS, tile.unroll, step, widen)

    def _halves(self, k: Builder, quad: Expr, count: int) -> list[Expr]:
        """Broadcasts of the low and the high half of four codes, or of codes that are a half."""
        width = self.lanes * GROUP
        codes = k.bitcast(k.splat(k.bitcast(quad, "int32"), self.lanes), "uint8", width)
        if count == 1:
            return [codes]
        upper = k.shift_right(k.bitcast(codes, "uint16", width // 2), k.const(HALF_BITS, "uint16", width // 2))
        mask = k.const((1 << HALF_BITS) - 1, "uint8", width)
        return [k.bitwise_and(codes, mask), k.bitwise_and(k.bitcast(upper, "uint8", width), mask)]


CONV_LOOKUP_VNNI = LookupConv(
    name="x86_conv_lookup_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=LookupVnniKernel(),
    shapes=((1, 8), (2, 8), (4, 4)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10, unroll=2, convert=1, fetch=0.01),
)
CONV_LOOKUP_AVX2 = LookupConv(
    name="x86_conv_lookup_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=LookupAvx2Kernel(),
    # Two pixels by two vectors spill.
    shapes=((1, 4),),
    pipeline=Pipeline(macs=0.7, loads=2, in_flight=4, unroll=1, convert=0.8),
)
