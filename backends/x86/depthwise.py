"""Depthwise convolution on x86: float32 by FMA, int8 by vpdpbusd (AVX-512 VNNI, AVX-VNNI) or pmaddwd (AVX2, SSE2), all exact.

The integer kernels interleave the bytes (words) of four (two) input rows, so that one dot-product instruction sums several
kernel rows of the same channel. Unpacking works within 128-bit lanes, which permutes channels; the two packs that narrow the
result undo the permutation for free.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.kernel import Array
from bevel.backends.kernels.depthwise import DepthwiseGenerator, DepthwiseKernel
from bevel.backends.kernels.depthwise_direct import DirectDepthwiseGenerator
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.parameters import Fields
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86 import requantize, requantize_sse2
from bevel.backends.x86.conv_int8_madd import madd


class FmaDepthwise(DepthwiseKernel):
    """One kernel row at a time."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self.widths = widths
        self.copy_lanes = widths[0]

    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """The row itself."""
        return [row for row in rows if row is not None]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """Fused multiply-add."""
        return k.fma(x, w, acc, width)


def _unpack_lanes(count: int, unit: int, lane: int) -> tuple[list[int], list[int]]:
    """Shuffle indices of unpack-low and unpack-high for vectors of `count` elements, `lane` of which fill 128 bits."""
    halves: tuple[list[int], list[int]] = ([], [])
    for start in range(0, count, lane):
        for half, indices in enumerate(halves):
            for at in range(start + half * lane // 2, start + (half + 1) * lane // 2, unit):
                for vector in (0, count):
                    indices.extend(range(vector + at, vector + at + unit))
    return halves


class VnniDepthwise(DepthwiseKernel):
    """Four kernel rows at a time, blocks of 64, 32 or 16 channels in four accumulator vectors."""

    widths: tuple[int, ...] = (64, 32, 16)
    vectors = 4
    kgroup = 4
    acc_dtype = "int32"
    weight_dtype = "int8"
    copy_lanes = 64
    fields = requantize.FIELDS
    short_requantize = True
    reload_constants = True
    tails = True

    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """Bytes of four rows side by side."""
        a, b, c, d = (k.const(0, "uint8", width) if row is None else row for row in rows)
        bytes_, words = _unpack_lanes(width, 1, 16), _unpack_lanes(width, 2, 16)
        top = [k.shuffle([a, b], half) for half in bytes_]
        bottom = [k.shuffle([c, d], half) for half in bytes_]
        return [k.shuffle([top[v // 2], bottom[v // 2]], words[v % 2]) for v in range(4)]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """Four products per lane."""
        return k.call(f"int32x{width // 4}", f"llvm.x86.avx512.vpdpbusd.{width * 8}", acc, x, w)

    def order(self, width: int) -> Sequence[int]:
        """Vector v holds bytes 4v..4v+3 of every 128-bit lane."""
        return [lane * 16 + v * 4 + i for v in range(4) for lane in range(width // 16) for i in range(4)]

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int) -> list[Expr]:
        """See `bevel.backends.x86.requantize`."""
        return requantize.expand(k, multiplier, shift, zero_point, lanes, lifted=False)

    def requantize(self, k: Builder, sums: Expr, field: Fields, lanes: int) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize(k, sums, field, lanes, lifted=False)

    def pack_short(self, factors: Array) -> Array:
        """See `bevel.backends.x86.requantize`."""
        return requantize.pack_short(factors)

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer, lanes: int) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize_short(k, sums, params, channel, bias, lanes)

    def codes(self, k: Builder, values: Sequence[Expr], width: int, limits: Sequence[Expr]) -> Expr:
        """Saturate to words, then to bytes."""
        words, bytes_ = {
            64: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
            32: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
            16: ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
        }[width]
        pairs = [k.call(f"int16x{width // 2}", words, values[j], values[j + 1]) for j in (0, 2)]
        codes = k.bitcast(k.call(f"int8x{width}", bytes_, *pairs), "uint8", width)
        return requantize.clamp_codes(k, codes, width, limits)


class AvxVnniDepthwise(VnniDepthwise):
    """Blocks of 32 or 16 channels, with the epilogue of AVX2."""

    widths = (32, 16)
    copy_lanes = 32

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int) -> list[Expr]:
        """See `bevel.backends.x86.requantize`."""
        return requantize.expand(k, multiplier, shift, zero_point, lanes, lifted=True)

    def requantize(self, k: Builder, sums: Expr, field: Fields, lanes: int) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize(k, sums, field, lanes, lifted=True)


class MaddDepthwise(DepthwiseKernel):
    """Two kernel rows at a time, one block of channels in two accumulator vectors."""

    vectors = 2
    kgroup = 2
    acc_dtype = "uint32"
    weight_dtype = "int16"
    copy_lanes = 32
    reload_constants = True

    def combine(self, k: Builder, rows: Sequence[Expr | None], width: int) -> list[Expr]:
        """Words of two rows side by side."""
        a, b = (k.const(0, "int16", width) if row is None else k.cast(row, "int16", width) for row in rows)
        return [k.shuffle([a, b], half) for half in _unpack_lanes(width, 1, 8)]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr, width: int) -> Expr:
        """Two products per lane."""
        return madd(k, acc, x, w, width // 2)

    def order(self, width: int) -> Sequence[int]:
        """Vector v holds words 4v..4v+3 of every 128-bit lane."""
        return [lane * 8 + v * 4 + i for v in range(2) for lane in range(width // 8) for i in range(4)]


class Avx2Depthwise(MaddDepthwise):
    """Blocks of 16 channels."""

    widths = (16,)
    fields = requantize.FIELDS
    short_requantize = True

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int) -> list[Expr]:
        """See `bevel.backends.x86.requantize`."""
        return requantize.expand(k, multiplier, shift, zero_point, lanes, lifted=True)

    def requantize(self, k: Builder, sums: Expr, field: Fields, lanes: int) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize(k, sums, field, lanes, lifted=True)

    def pack_short(self, factors: Array) -> Array:
        """See `bevel.backends.x86.requantize`."""
        return requantize.pack_short(factors)

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer, lanes: int) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize_short(k, sums, params, channel, bias, lanes)

    def codes(self, k: Builder, values: Sequence[Expr], width: int, limits: Sequence[Expr]) -> Expr:
        """Saturate to words, then to bytes."""
        words = k.call("int16x16", "llvm.x86.avx2.packssdw", *values)
        halves = [k.shuffle([words], range(h * 8, h * 8 + 8)) for h in range(2)]
        codes = k.bitcast(k.call("int8x16", "llvm.x86.sse2.packuswb.128", *halves), "uint8", 16)
        return requantize.clamp_codes(k, codes, width, limits)


class Sse2Depthwise(MaddDepthwise):
    """Blocks of 8 channels, in order."""

    widths = (8,)
    fields = requantize_sse2.FIELDS
    # The stack is aligned to these vectors: spilled constants are memory operands, those read again are loads of their own.
    reload_constants = False

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int) -> list[Expr]:
        """See `bevel.backends.x86.requantize_sse2`."""
        return requantize_sse2.expand(k, multiplier, shift, zero_point)

    def requantize(self, k: Builder, sums: Expr, field: Fields, lanes: int) -> Expr:
        """See `bevel.backends.x86.requantize_sse2`."""
        return requantize_sse2.requantize(k, sums, field)

    def codes(self, k: Builder, values: Sequence[Expr], width: int, limits: Sequence[Expr]) -> Expr:
        """See `bevel.backends.x86.requantize_sse2`."""
        return k.shuffle([requantize_sse2.saturate(k, values, limits)], range(width))


# Two FMAs per cycle with a latency of four; the second cache hands out a line in about a cycle.
_FMA = Pipeline(macs=2, loads=2, in_flight=8, fetch=1 / 64)
# One port shuffles and one multiplies besides.
_VNNI = Pipeline(macs=2, loads=2, in_flight=8, convert=2, result=7)
# Codes are widened, and two rows take one product.
_MADD = Pipeline(macs=2, loads=2, in_flight=8, convert=2, result=7)

DEPTHWISE_F32_AVX512 = DirectDepthwiseGenerator(
    name="x86_depthwise_f32_avx512",
    arch="x86_64",
    features=("avx512",),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmaDepthwise((16, 8)),
    tile_widths=(8, 14, 4),
    pipeline=_FMA,
)
DEPTHWISE_F32_AVX2 = DirectDepthwiseGenerator(
    name="x86_depthwise_f32_avx2",
    arch="x86_64",
    features=("avx2", "fma"),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmaDepthwise((8, 4)),
    tile_widths=(8, 4),
    pipeline=_FMA,
)
DEPTHWISE_INT8_VNNI = DepthwiseGenerator(
    name="x86_depthwise_int8_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=VnniDepthwise(),
    tile_widths=(3, 2, 1),
    pipeline=_VNNI,
)
DEPTHWISE_INT8_AVX_VNNI = DepthwiseGenerator(
    name="x86_depthwise_int8_avxvnni",
    arch="x86_64",
    features=("avx2", "avx_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=AvxVnniDepthwise(),
    tile_widths=(2, 1),
    pipeline=_VNNI,
)
DEPTHWISE_INT8_AVX2 = DepthwiseGenerator(
    name="x86_depthwise_int8_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=Avx2Depthwise(),
    tile_widths=(3, 1),
    pipeline=_MADD,
)
DEPTHWISE_INT8_SSE2 = DepthwiseGenerator(
    name="x86_depthwise_int8_sse2",
    arch="x86_64",
    features=("sse2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=Sse2Depthwise(),
    tile_widths=(3, 2, 1),
    pipeline=_MADD,
)
