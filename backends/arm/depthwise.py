"""Depthwise convolution on NEON: float32 and half precision, int8 with widening multiplies, and int8 with SDOT.

* Widening: the products of two kernel rows meet in int16 lanes (`smull`, `smlal`) before they are added to int32 sums
  (`saddw`). That fits unless a weight is -128 (see `conv_int8_neon`); the wide variant adds every product by itself.
* SDOT: the bytes of four kernel rows of a column are interleaved per channel (zips), shared by every pixel of the tile
  that the column touches, and multiplied by four weights per channel.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.arm.conv_int8_neon import pairing_overflow
from bevel.backends.arm.neon import A32, A64, Neon, half
from bevel.backends.arm.requantize import FIELDS, expand, narrow_codes, pack_short, requantize, requantize_short
from bevel.backends.kernel import Array, Problem
from bevel.backends.kernels.depthwise import DepthwiseGenerator, DepthwiseKernel
from bevel.backends.kernels.depthwise_direct import DirectDepthwiseGenerator
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.parameters import Fields
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target


class FmlaDepthwise(DepthwiseKernel):
    """float32, channels in lanes."""

    widths = (8, 4)
    copy_lanes = 4
    nan_wins = True

    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """The row itself."""
        return [row for row in rows if row is not None]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """`fmla`."""
        return k.fma(x, w, acc, width)


class HalfDepthwise(FmlaDepthwise):
    """Half precision in memory, float32 in registers: depthwise layers wait for memory, not for arithmetic."""

    weight_dtype = "float16"


class IntegerDepthwise(DepthwiseKernel):
    """Requantization of blocks of channels in natural order."""

    neon = A64
    weight_dtype = "int8"
    fields = FIELDS
    short_requantize = True

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int) -> list[Expr]:
        """See `bevel.backends.arm.requantize`."""
        return expand(k, multiplier, shift, zero_point, lanes)

    def requantize(self, k: Builder, sums: Expr, field: Fields, lanes: int) -> Expr:
        """Four channels at a time."""
        if lanes == 4:
            return requantize(k, self.neon, sums, field)

        def four(value: Expr, at: int) -> Expr:
            return k.shuffle([value], range(at, at + 4))

        quads = [
            requantize(k, self.neon, four(sums, at), lambda index, at=at: four(field(index), at))  # type: ignore[misc]
            for at in range(0, lanes, 4)
        ]
        return k.shuffle(quads, range(lanes))

    def pack_short(self, factors: Array) -> Array:
        """See `bevel.backends.arm.requantize`."""
        return pack_short(factors)

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer, lanes: int) -> Expr:
        """Four channels at a time."""
        starts = range(0, lanes, 4)
        parts = [sums] if len(starts) == 1 else [k.shuffle([sums], range(at, at + 4)) for at in starts]
        quads = [requantize_short(k, self.neon, part, params, channel + at, bias) for part, at in zip(parts, starts, strict=True)]
        return quads[0] if len(quads) == 1 else k.shuffle(quads, range(4 * len(quads)))

    def codes(self, k: Builder, values: Sequence[Expr], width: int, limits: Sequence[Expr]) -> Expr:
        """Eight channels at a time."""
        lanes = width // self.vectors
        quads = [k.shuffle([value], range(at, at + 4)) for value in values for at in range(0, lanes, 4)]
        octets = [narrow_codes(k, self.neon, quads[j : j + 2], limits) for j in range(0, len(quads), 2)]
        return octets[0] if len(octets) == 1 else k.shuffle(octets, range(width))


class WideningDepthwise(IntegerDepthwise):
    """Products of `rows` kernel rows meet in int16 lanes."""

    # Wider blocks would push a 3x3 kernel's weights and the requantization out of registers.
    widths = (8,)
    # Sums wrap: the bias that absorbs the zero point makes the total right modulo 2^32.
    acc_dtype = "uint32"
    planar = True

    def __init__(self, rows: int, neon: Neon = A64) -> None:
        self.kgroup = rows
        self.neon = neon

    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """The rows that have weights, as they are."""
        return [[row for row in rows if row is not None]]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """Products of the rows, their int16 sum, and the widening addition."""
        total = None
        for r, row in enumerate(x):
            product = self.neon.multiply(k, row, half(k, w, r * 8))
            total = product if total is None else total + product
        return k.wrapping_add(acc, k.bitcast(k.cast(total, "int32", 8), "uint32", 8), 8)


class SdotDepthwise(IntegerDepthwise):
    """Four kernel rows per instruction."""

    widths = (16,)
    vectors = 4
    kgroup = 4
    acc_dtype = "int32"

    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """Per four channels, the bytes of the four rows side by side."""
        a, b, c, d = (k.const(0, "int8", 16) if row is None else row for row in rows)
        quads = []
        for at in (0, 8):
            pairs = [k.bitcast(k.shuffle(pair, _interleaved(16, at)), "int16", 8) for pair in ([a, b], [c, d])]
            quads += [k.bitcast(k.shuffle(pairs, _interleaved(8, half_at)), "int8", 16) for half_at in (0, 4)]
        return quads

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """`sdot`."""
        return k.call("int32x4", "llvm.aarch64.neon.sdot", acc, x, w)


def _interleaved(lanes: int, start: int) -> list[int]:
    """Shuffle indices that alternate between two vectors of `lanes`, from lane `start` of each on: zip1 or zip2."""
    return [start + i // 2 + lanes * (i % 2) for i in range(lanes)]


class PairingDepthwise(DepthwiseGenerator):
    """The generator whose pairs of products must fit int16."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Also refuses weights of -128."""
        return super().legal(problem, target) or pairing_overflow(problem)


# Of a core with two vector units and one load per cycle. A block of eight channels is two vectors.
_FMLA = Pipeline(macs=1, loads=0.5, in_flight=8, fetch=1 / 16)
_INTEGER = Pipeline(macs=1, loads=1, in_flight=8, convert=1, result=4)

# Tile widths in the order of llvm-mca's estimates for 3x3, stride 1 and 2.
DEPTHWISE_F32 = DirectDepthwiseGenerator(
    name="arm_depthwise_f32",
    arch="aarch64",
    features=("neon",),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmlaDepthwise(),
    tile_widths=(3, 4, 2),
    pipeline=_FMLA,
)
DEPTHWISE_F16 = DirectDepthwiseGenerator(
    name="arm_depthwise_f16",
    arch="aarch64",
    features=("neon", "fp16"),
    dtype="float16",
    out_dtypes=("float16", "float32"),
    micro=HalfDepthwise(),
    tile_widths=(3, 4, 2),
    pipeline=_FMLA,
)
DEPTHWISE_INT8_SDOT = DepthwiseGenerator(
    name="arm_depthwise_int8_sdot",
    arch="aarch64",
    features=("neon", "dotprod"),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=SdotDepthwise(),
    tile_widths=(3, 4, 2),
    pipeline=_INTEGER,
)
DEPTHWISE_INT8_NEON = PairingDepthwise(
    name="arm_depthwise_int8_neon",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningDepthwise(rows=2),
    tile_widths=(4, 2, 3),
    pipeline=_INTEGER,
)
DEPTHWISE_INT8_NEON_WIDE = DepthwiseGenerator(
    name="arm_depthwise_int8_neon_wide",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningDepthwise(rows=1),
    tile_widths=(4, 2, 3),
    pipeline=_INTEGER,
)
# ARMv7 has half the registers: narrow tiles, and a few reloads of weights.
ARMV7_DEPTHWISE_F32 = DirectDepthwiseGenerator(
    name="armv7_depthwise_f32",
    arch="armv7",
    features=("neon", "vfpv4"),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmlaDepthwise(),
    tile_widths=(2, 1),
    pipeline=_FMLA,
)
ARMV7_DEPTHWISE_INT8 = PairingDepthwise(
    name="armv7_depthwise_int8",
    arch="armv7",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningDepthwise(rows=2, neon=A32),
    tile_widths=(1, 2),
    pipeline=_INTEGER,
)
ARMV7_DEPTHWISE_INT8_WIDE = DepthwiseGenerator(
    name="armv7_depthwise_int8_wide",
    arch="armv7",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=WideningDepthwise(rows=1, neon=A32),
    tile_widths=(1,),
    pipeline=_INTEGER,
)
