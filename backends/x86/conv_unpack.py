"""Matrix-vector products of weights of few bits, unpacked in registers (`bevel.backends.kernels.fields`), on x86.

vpdpbusd multiplies whole bytes and takes differences of sums. vpmaddubsw adds in 16 bits, where only single fields fit: these are
masked out and added as often as fits (`bevel.backends.kernels.narrow_sums`).
"""

from __future__ import annotations

from dataclasses import dataclass

from bevel.backends.kernels.fields import FieldsConv, FieldsDotKernel, FieldsKernel
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.micro import RegisterTile, Taps
from bevel.backends.kernels.narrow_sums import sum_narrow
from bevel.backends.tvm import Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.backends.x86.conv_int8_vnni import VnniKernel

INT16 = 32767
GROUP = 4


@dataclass(frozen=True)
class FieldsVnniKernel(FieldsDotKernel, VnniKernel):
    """Multiply by vpdpbusd."""


@dataclass(frozen=True)
class FieldsMaddubsKernel(FieldsKernel, Avx2Kernel):
    """Mask fields out, multiply, add in 16 bits."""

    kgroup = GROUP
    x_dtype = "uint8"
    weight_dtype = "uint8"
    copy_lanes = 32

    @property
    def additions(self) -> int:
        """Of two products each that fit int16."""
        return INT16 // (2 * ((1 << self.field_bits) - 1) * ((1 << self.x_bits) - 1))

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`."""
        width = self.lanes * GROUP
        slots = tile.slots
        sums = k.alloc(slots * 16, "int16")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = tile.base + (row * taps.columns + column) * taps.size + index * (tile.nv // self.unit * width)
            place = tile.origin + row * taps.row_pitch + column * taps.column_pitch + index * GROUP
            quads = [k.bitcast(k.load(tile.x, place + offset, GROUP), "int32") for offset in tile.offsets]
            codes = [k.bitcast(k.splat(quad, self.lanes), "uint8", width) for quad in quads]
            for q in range(tile.nv // self.unit):
                whole = k.load(tile.weights, at + q * width, width)
                for f in range(self.unit):
                    factors = self.field(k, whole, f)
                    for i, column_codes in enumerate(codes):
                        slot = (i * tile.nv + q * self.unit + f) * 16
                        products = k.call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", column_codes, factors)
                        k.store(sums, slot, products if first else k.load(sums, slot, 16) + products, 16)

        def widen(zero: Expr | None) -> None:
            # Bipolar weights are 2 u - 1.
            factor = k.const(2 if self.weight_bits == 1 else 1, "int16", 16)
            for slot in range(slots):
                at = slot * 8 + (k.i32(0) if zero is None else zero)
                wide = k.call("int32x8", "llvm.x86.avx2.pmadd.wd", k.load(sums, slot * 16, 16), factor)
                k.store(tile.acc, at, k.wrapping_add(k.load(tile.acc, at, 8), k.bitcast(wide, "uint32", 8), 8), 8)

        sum_narrow(k, taps, -(-taps.run // GROUP), self.additions, tile.unroll, step, widen)


# A vector of four bits takes half an and, one of two bits three quarters of one, beside a multiplication for each field.
CONV_UNPACK_VNNI = FieldsConv(
    name="x86_conv_unpack_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=FieldsVnniKernel(),
    shapes=((1, 8), (2, 8), (3, 8), (4, 4), (1, 16)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10, unroll=2, convert=0.1, fetch=0.005),
)
CONV_UNPACK_AVX2 = FieldsConv(
    name="x86_conv_unpack_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=FieldsMaddubsKernel(),
    shapes=((1, 8), (2, 4), (1, 4)),
    pipeline=Pipeline(macs=1.3, loads=2, in_flight=4, unroll=1, convert=0.6),
)
