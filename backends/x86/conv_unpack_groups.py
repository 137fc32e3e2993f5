"""Weights of few bits in groups of inputs (`bevel.backends.kernels.field_groups`) on x86.

vpdpbusd makes sums of 32 bits. vpmaddubsw makes sums of 16, which vpmaddwd has to widen anyway: there the factors take the place
of ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from bevel.backends.kernels.factors import WIDTH
from bevel.backends.kernels.field_groups import GroupsConv, GroupsDotKernel, GroupsKernel
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.micro import RegisterTile
from bevel.backends.tvm import Builder, Expr
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.backends.x86.conv_int8_vnni import VnniKernel
from bevel.backends.x86.conv_unpack import INT16


@dataclass(frozen=True)
class GroupsVnniKernel(GroupsDotKernel, VnniKernel):
    """Multiply by vpdpbusd."""


@dataclass(frozen=True)
class GroupsMaddubsKernel(GroupsKernel, Avx2Kernel):
    """Mask fields out, multiply, add in 16 bits as often as fits; widen with the factors of the group.

    Sums of fields may wrap: with what they have too much taken off they are sums of codes, which fit.
    """

    x_dtype = "uint8"
    copy_lanes = 32

    @property
    def additions(self) -> int:
        """Of two products each that fit int16."""
        return INT16 // (2 * (1 << (self.weight_bits - 1)) * ((1 << self.x_bits) - 1))

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`."""
        layout = self.layout
        width = self.lanes * WIDTH
        units, slots = tile.nv // self.unit, tile.slots
        sums = k.alloc((slots + tile.mr) * 16, "uint16")
        excess = k.const(256 - layout.offset, "uint8", width)

        def add(slot: int, column: Expr, factors: Expr, *, first: bool) -> None:
            products = k.call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", column, factors)
            value = k.bitcast(products, "uint16", 16)
            k.store(sums, slot * 16, value if first else k.load(sums, slot * 16, 16) + value, 16)

        def step(first: Expr, codes: Expr, u: Expr, *, sets: bool) -> None:
            place = tile.origin + first + u * WIDTH
            quads = [k.bitcast(k.load(tile.x, place + offset, WIDTH), "int32") for offset in tile.offsets]
            columns = [k.bitcast(k.splat(quad, self.lanes), "uint8", width) for quad in quads]
            for i, column in enumerate(columns):
                add(slots + i, column, excess, first=sets)
            for q in range(units):
                whole = k.load(tile.weights, codes + (u * units + q) * width, width)
                for f in range(self.unit):
                    fields = self._field(k, whole, f)
                    for i, column in enumerate(columns):
                        add(i * tile.nv + q * self.unit + f, column, fields, first=sets)

        def group(first: Expr, at: Expr, steps: int) -> None:
            codes = tile.base + at + layout.factor_bytes(tile.nv)
            for start in range(0, steps, self.additions):
                count = min(self.additions, steps - start)
                step(first, codes, k.i32(start), sets=True)
                if count > 1:
                    # A trip count that LLVM does not know: it would unroll the loop, mix steps and run out of registers.
                    with k.serial(k.opaque(k.i32(count - 1), "int32")) as u:
                        step(first, codes, start + 1 + u, sets=False)
                widen(tile.base + at)

        def widen(records: Expr) -> None:
            # An index that LLVM does not know: wide sums in registers would drive the narrow ones out.
            zero = k.opaque(k.i32(1), "int32") - 1
            for q in range(units):
                for f, factor in enumerate(layout.load_factors(k, tile.weights, records + q * layout.factor_bytes(self.unit))):
                    twice = k.bitwise_or(factor, k.shift_left(factor, k.const(16, "int32", self.lanes)))
                    for i in range(tile.mr):
                        slot = i * tile.nv + q * self.unit + f
                        total = k.load(sums, slot * 16, 16) + k.load(sums, (slots + i) * 16, 16)
                        pairs = k.bitcast(total, "int16", 16), k.bitcast(twice, "int16", 16)
                        wide = k.bitcast(k.call("int32x8", "llvm.x86.avx2.pmadd.wd", *pairs), "uint32", 8)
                        place = slot * 8 + zero
                        k.store(tile.acc, place, k.wrapping_add(k.load(tile.acc, place, 8), wide, 8), 8)

        self.by_groups(k, run, tile.nv, group)

    def _field(self, k: Builder, whole: Expr, f: int) -> Expr:
        """Unsigned codes of one field."""
        width, bits = self.lanes * WIDTH, self.layout.field_bits
        if f:
            words = k.bitcast(whole, "uint16", width // 2)
            whole = k.bitcast(k.shift_right(words, k.const(f * bits, "uint16", width // 2)), "uint8", width)
        return k.bitwise_and(whole, k.const((1 << bits) - 1, "uint8", width))


CONV_UNPACK_GROUPS_VNNI = GroupsConv(
    name="x86_conv_unpack_groups_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=GroupsVnniKernel(),
    shapes=((1, 8), (2, 4), (1, 4)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10, unroll=2, convert=0.7, fetch=0.01),
)
CONV_UNPACK_GROUPS_AVX2 = GroupsConv(
    name="x86_conv_unpack_groups_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=GroupsMaddubsKernel(),
    shapes=((1, 8), (2, 4), (1, 4)),
    pipeline=Pipeline(macs=1.3, loads=2, in_flight=4, unroll=1, convert=0.7),
)
