"""Matrix-vector products of weights of few bits, unpacked in registers (`bevel.backends.kernels.fields`), on AArch64.

With the dot product, `sdot` multiplies whole bytes and takes differences of sums: an `and` for each field but one. Without it,
fields are masked out (`and`, `ushr`) and multiplied by `smull` and `smlal2` into sums of 16 bits, which take several products, so
that `sadalp` runs once for many; on a Cortex-A72 unpacking has the pipe that it leaves. Fields of indices are looked up by `tbl`.

What that saves is the way of the weights, of which b / 8 bytes are read (three bits take the room of four); what it costs are
instructions. By llvm-mca, products a cycle of the inner loops with one row and with two, all in the first cache: Cortex-A76 20
and 24 with 4 bits, 18 and 23 with 2, where int8 has 15 and 22; A72 7.8 and 7.9 with 4 bits, where int8 has 8. So the dot
product unpacks whatever fits, and the A72 up to two rows of weights that its first cache does not hold: from the second, int8
weights come as fast as they are used, from memory a third as fast (by the bandwidths of the profiles). Tables cost more: with
one row and two, 11 and 16 products a cycle on the A76, 4.6 and 6.4 on the A72, and pay for weights from beyond the last cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bevel.backends.arm.conv_int8_neon import WideningKernel
from bevel.backends.arm.conv_int8_sdot import SdotKernel
from bevel.backends.arm.neon import half
from bevel.backends.kernel import ConvProblem, Problem
from bevel.backends.kernels.field_groups import GroupsConv, GroupsDotKernel
from bevel.backends.kernels.fields import (
    MOST_PIXELS,
    TABLE,
    FieldsConv,
    FieldsDotKernel,
    FieldsKernel,
    LookupConv,
    LookupDotKernel,
    LookupKernel,
)
from bevel.backends.kernels.generator import FIRST_CACHE_BYTES, Pipeline
from bevel.backends.kernels.micro import MicroKernel, RegisterTile, Taps
from bevel.backends.kernels.narrow_sums import store_zeros, sum_narrow
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

LOOKUP = "llvm.aarch64.neon.tbl1"
INT16 = 32767
# Of a core whose caches are not known.
UNKNOWN_CACHES = [FIRST_CACHE_BYTES, 512 * 1024]


class NeonFields(FieldsKernel):
    """Fields with shifts of bytes."""

    def field(self, k: Builder, whole: Expr, f: int) -> Expr:
        """See `FieldsKernel.field`."""
        if f:
            whole = k.shift_right(whole, k.const(f * self.field_bits, "uint8", self.width))
        return whole if f == self.unit - 1 else k.bitwise_and(whole, k.const((1 << self.field_bits) - 1, "uint8", self.width))


@dataclass(frozen=True)
class FieldsSdotKernel(FieldsDotKernel, SdotKernel):
    """Multiply by sdot."""


@dataclass(frozen=True)
class LookupSdotKernel(NeonFields, LookupDotKernel, SdotKernel):
    """Multiply by sdot."""

    def factors(self, k: Builder, weights: Buffer, whole: Expr, f: int) -> Expr:
        """See `FieldsDotKernel.factors`."""
        return k.call(f"uint8x{TABLE}", LOOKUP, self.table(k, weights), self.field(k, whole, f))


@dataclass(frozen=True)
class GroupsSdotKernel(GroupsDotKernel, SdotKernel):
    """Multiply by sdot."""


@dataclass(frozen=True)
class FieldsWideningKernel(NeonFields, WideningKernel):
    """Mask fields out, multiply, add in 16 bits."""

    @property
    def width(self) -> int:
        """Bytes of a vector of fields: a K-group of one channel."""
        return self.kgroup

    @property
    def additions(self) -> int:
        """Of two products each that fit int16."""
        largest = 128 if self.x_bits == 8 else (1 << self.x_bits) - 1
        return INT16 // (2 * ((1 << self.field_bits) - 1) * largest)

    def init(self, k: Builder, tile: RegisterTile, bias: Buffer, channel: Expr) -> None:
        """Partial sums start at zero, in memory; `result` adds the bias."""
        store_zeros(k, tile.acc, "uint32", tile.slots * self.slot, 4)

    def reduce(self, k: Builder, tile: RegisterTile, taps: Taps) -> None:
        """See `MicroKernel.reduce`."""
        slots = tile.slots * self.lanes
        sums = k.alloc(slots * 8, "int16")

        def step(row: Expr, column: Expr, index: Expr, first: bool) -> None:
            at = tile.base + (row * taps.columns + column) * taps.size + index * (tile.nv // self.unit * self.lanes * self.width)
            place = tile.origin + row * taps.row_pitch + column * taps.column_pitch + index * self.kgroup
            columns = [k.load(tile.x, place + offset, self.kgroup) for offset in tile.offsets]
            for q in range(tile.nv // self.unit):
                for c in range(self.lanes):
                    whole = k.load(tile.weights, at + (q * self.lanes + c) * self.width, self.width)
                    for f in range(self.unit):
                        codes = k.bitcast(self.field(k, whole, f), "int8", self.width)
                        for i, pixel in enumerate(columns):
                            slot = ((i * tile.nv + q * self.unit + f) * self.lanes + c) * 8
                            low, high = (self.neon.multiply(k, half(k, pixel, start), half(k, codes, start)) for start in (0, 8))
                            k.store(sums, slot, (low if first else k.load(sums, slot, 8) + low) + high, 8)

        def widen(zero: Expr | None) -> None:
            for slot in range(slots):
                at = slot * 4 + (k.i32(0) if zero is None else zero)
                k.store(tile.acc, at, self.neon.add_pairs(k, k.load(tile.acc, at, 4), k.load(sums, slot * 8, 8)), 4)

        sum_narrow(k, taps, -(-taps.run // self.kgroup), self.additions, tile.unroll, step, widen)


@dataclass(frozen=True)
class LookupWideningKernel(NeonFields, LookupKernel, WideningKernel):
    """Look weights up and multiply them as `conv_int8_neon` does."""

    @property
    def width(self) -> int:
        """Bytes of a vector of fields: a K-group of one channel."""
        return self.kgroup

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`."""
        units = tile.nv // self.unit
        with k.serial(run // self.kgroup) as index:
            # Held in an array so that every pixel is loaded once, before the first weight.
            columns = k.alloc(tile.mr * self.kgroup, "int8")
            for i, offset in enumerate(tile.offsets):
                codes = k.load(tile.x, tile.origin + offset + index * self.kgroup, self.kgroup)
                k.store(columns, i * self.kgroup, codes, self.kgroup)
            for q in range(units):
                for c in range(self.lanes):
                    whole = k.load(tile.weights, tile.base + ((index * units + q) * self.lanes + c) * self.width, self.width)
                    for f in range(self.unit):
                        looked_up = k.call(f"uint8x{TABLE}", LOOKUP, self.table(k, tile.weights), self.field(k, whole, f))
                        w = k.bitcast(looked_up, "int8", self.width)
                        for i in range(tile.mr):
                            at = ((i * tile.nv + q * self.unit + f) * self.lanes + c) * 4
                            total = k.load(tile.acc, at, 4)
                            for products in self.products(k, k.load(columns, i * self.kgroup, self.kgroup), w, self.kgroup):
                                total = self.neon.add_pairs(k, total, products)
                            k.store(tile.acc, at, total, 4)


@dataclass(eq=False)
class FewRowsConv(FieldsConv):
    """Where the way of the weights is what limits; see the module's docstring.

    Attributes:
        most_pixels: that it pays for.
        cache: number of the cache (-1 the last one) that int8 weights would have to outgrow; None where any pay.
    """

    most_pixels: int = MOST_PIXELS
    cache: int | None = None

    def pays(self, problem: Problem, target: Target) -> bool:
        """Few pixels, large weights."""
        assert isinstance(problem, ConvProblem)
        if problem.batch * problem.oh * problem.ow > self.most_pixels:
            return False
        sizes = [cache.bytes for cache in target.caches] or UNKNOWN_CACHES
        return self.cache is None or problem.oc * problem.kh * problem.kw * problem.c > sizes[self.cache]


@dataclass(eq=False)
class FieldsNeonConv(FewRowsConv):
    """Convolutions and GEMMs of few pixels on cores without a dot product."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides: eight channels in a byte have more sums than there are registers."""
        reason = super().legal(problem, target)
        if reason is None and isinstance(problem, ConvProblem) and problem.weight_bits < 2:
            return "weights of at least 2 bits, these have 1"
        return reason


@dataclass(eq=False)
class LookupArmConv(LookupConv, FewRowsConv):
    """Convolutions and GEMMs of few pixels whose weights take few values."""


@dataclass(eq=False)
class LookupNeonConv(LookupArmConv):
    """The same on cores without a dot product."""

    def kernel(self, problem: Problem) -> MicroKernel:
        """Pairs of products are added in 16 bits unless some weight is -128."""
        assert isinstance(problem, ConvProblem)
        micro = super().kernel(problem)
        assert isinstance(micro, LookupWideningKernel)
        return replace(micro, wide=problem.wide_weights)


# A Cortex-A76: two instructions per cycle; a vector of 4 bits takes half an `and` beside a multiplication for each field.
CONV_UNPACK_SDOT = FewRowsConv(
    name="arm_conv_unpack_sdot",
    arch="aarch64",
    features=("neon", "dotprod"),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=FieldsSdotKernel(),
    shapes=((1, 16), (2, 8), (4, 4), (1, 8)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=8, convert=0.25, fetch=0.06),
)
CONV_LOOKUP_SDOT = LookupArmConv(
    name="arm_conv_lookup_sdot",
    arch="aarch64",
    features=("neon", "dotprod"),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=LookupSdotKernel(),
    shapes=((1, 8), (2, 8), (4, 4)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=8, convert=1, fetch=0.06),
    cache=-1,
)
CONV_UNPACK_GROUPS_SDOT = GroupsConv(
    name="arm_conv_unpack_groups_sdot",
    arch="aarch64",
    features=("neon", "dotprod"),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=GroupsSdotKernel(),
    shapes=((1, 8), (2, 4), (1, 4)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=8, convert=0.5, fetch=0.06),
)
# A Cortex-A72: sixteen products of four channels take four multiplications of two cycles.
CONV_UNPACK_NEON = FieldsNeonConv(
    name="arm_conv_unpack_neon",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=FieldsWideningKernel(),
    shapes=((1, 2), (2, 2), (1, 4)),
    pipeline=Pipeline(macs=1 / 8, loads=1, in_flight=1, unroll=1),
    most_pixels=2,
    cache=0,
)
CONV_LOOKUP_NEON = LookupNeonConv(
    name="arm_conv_lookup_neon",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=LookupWideningKernel(),
    shapes=((1, 2), (2, 2), (1, 4)),
    pipeline=Pipeline(macs=1 / 8, loads=1, in_flight=1, unroll=1, convert=1),
    most_pixels=2,
    cache=-1,
)
