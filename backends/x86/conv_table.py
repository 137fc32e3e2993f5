"""Table lookup of weights of few bits (`bevel.backends.kernels.tables`) by vpshufb of AVX2 and AVX-512; vpmaddubsw joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bevel.backends.kernel import Array, ConvProblem
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.low_bit import plane_factors
from bevel.backends.kernels.staging import Staging
from bevel.backends.kernels.tables import GROUP, TABLE, TableConv, TableKernel, TableStaging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.conv_int8_amx import CONV_INT8_AMX
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.backends.x86.conv_int8_maddubs import CONV_INT8_MADDUBS
from bevel.backends.x86.conv_int8_vnni import CONV_INT8_AVX_VNNI, CONV_INT8_VNNI, VnniKernel
from bevel.backends.x86.conv_low_bit_maddubs import CONV_LOW_BIT_MADDUBS
from bevel.backends.x86.conv_unpack import CONV_UNPACK_VNNI


@dataclass(frozen=True)
class X86TableStaging(TableStaging):
    """Tables made by vpshufb."""

    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """See `FormStaging.form`."""
        step = GROUP if self.low_bits else 2 * GROUP
        with k.serial(-(-codes // step)) as v:
            some = k.load(x, source + v * step, step)
            word = k.bitcast(some, "int32" if self.low_bits else "int64")
            self._write(k, scratch, target + v * 32, k.bitcast(k.splat(word, 32 // step), "uint8", 32))

    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """See `FormStaging.form_border`."""
        with k.serial(-(-pixels * self.pixel_elements // 32)) as v:
            self._write(k, scratch, target + v * 32, k.splat(zero, 32))

    def _write(self, k: Builder, scratch: Buffer, target: Expr, codes: Expr) -> None:
        """32 bytes of tables from a vector that repeats their codes: two tables of four codes, or low and high bits of one."""
        lane = k.numbers(32)
        entry = k.shift_right(lane, k.const(1, "int32", 32)) if self.low_bits else lane
        entry = k.bitwise_and(entry, k.const(TABLE - 1, "int32", 32))
        # Of one table each half of the vector takes four codes; of two, entries are 16 bits wide, and every second byte is zero.
        if self.low_bits:
            first = k.const(0, "int32", 32)
            absent = k.bitwise_and(lane, k.const(1, "int32", 32))
        else:
            first = k.bitwise_and(k.shift_right(lane, k.const(2, "int32", 32)), k.const(GROUP, "int32", 32))
            absent = k.const(0, "int32", 32)
        picked = []
        for j in range(GROUP):
            taken = k.bitwise_and(k.shift_right(entry, k.const(j, "int32", 32)), k.const(1, "int32", 32))
            index = k.select(taken > absent, first + k.const(j, "int32", 32), k.const(0x80, "int32", 32))
            picked.append(k.call("uint8x32", "llvm.x86.avx2.pshuf.b", codes, k.cast(index, "uint8", 32)))
        if self.low_bits:
            parts = [k.bitcast(value, "uint16", 16) for value in picked]
            total = (parts[0] + parts[1]) + (parts[2] + parts[3])
            low = k.bitwise_and(total, k.const((1 << self.low_bits) - 1, "uint16", 16))
            high = k.shift_right(total, k.const(self.low_bits, "uint16", 16))
            both = k.call("uint8x32", "llvm.x86.avx2.packuswb", low, high)
            # vpackuswb works within 128-bit halves.
            value = k.shuffle([both], [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)])
        else:
            value = (picked[0] + picked[1]) + (picked[2] + picked[3])
        k.store(scratch, target, value, 32)


@dataclass(frozen=True)
class X86TableKernel(TableKernel):
    """Planes joined by vpmaddubsw."""

    join: ClassVar[str]
    add_pairs: ClassVar[str]

    def staging(self, problem: ConvProblem, at: int) -> Staging:
        """See `MicroKernel.staging`."""
        return X86TableStaging(problem, self.x_dtype, 32, at, sums=bool(self.code_offset), low_bits=self.low_bits)

    def arranged(self, indices: Array) -> Array:
        """Of one plane, channels half a vector apart are neighbours, so that even and odd bytes are whole halves."""
        if self.planes > 1:
            return indices
        halves = indices.reshape(*indices.shape[:-1], 2, self.bytes // 2)
        return np.ascontiguousarray(halves.swapaxes(-1, -2)).reshape(indices.shape)

    def restored(self, indices: Array) -> Array:
        """The inverse of `arranged`."""
        if self.planes > 1:
            return indices
        pairs = indices.reshape(*indices.shape[:-1], self.bytes // 2, 2)
        return np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(indices.shape)

    def join_planes(self, k: Builder, acc: Buffer, slot: Expr, parts: Sequence[Expr]) -> None:
        """See `TableKernel.join_planes`."""
        half = self.bytes // 2
        if self.apart:
            for t, part in enumerate(parts):
                for number, factors in enumerate(self._factors()):
                    at = slot + t * self.bytes + number * half
                    bytes_of = k.bitcast(
                        k.call(f"int16x{half}", self.join, part, _pattern(k, factors, self.bytes)), "uint16", half
                    )
                    k.store(acc, at, k.load(acc, at, half) + bytes_of, half)
            return
        for number, factors in enumerate(self._factors()):
            at = slot + number * half
            if self.planes == 4:
                scales = [k.const(1 << (self.low_bits * t), "int16", half) for t in range(len(parts))]
                pattern = _pattern(k, factors, self.bytes)
                sums = [k.call(f"int16x{half}", self.join, part, pattern) for part in parts]
                joined = [k.call(f"int32x{half // 2}", self.add_pairs, *pair) for pair in zip(sums, scales, strict=True)]
                lanes = half // 2
            else:
                # At most 2 * 2^5, the factors of high bits fit a byte, and what they make of 255 int16.
                patterns = [
                    _pattern(k, [factor << (self.low_bits * t) for factor in factors], self.bytes) for t in range(len(parts))
                ]
                joined = [k.call(f"int16x{half}", self.join, *pair) for pair in zip(parts, patterns, strict=True)]
                lanes = half
            total = joined[0] if len(joined) == 1 else joined[0] + joined[1]
            if self.planes != 4 and self.wide:
                total = k.cast(total, "int32", lanes)
            k.store(acc, at, k.load(acc, at, lanes) + total, lanes)

    def _factors(self) -> list[list[int]]:
        """Of neighbouring bytes, for each vector of joined sums."""
        if self.planes == 1:
            return [[1, 0], [0, 1]]
        return [[*plane_factors(self.weight_bits), 0][: self.planes]]


@dataclass(frozen=True)
class TableAvx2Kernel(X86TableKernel, Avx2Kernel):  # type: ignore[override]
    """32 lookups an instruction."""

    bytes = 32
    lookup = "llvm.x86.avx2.pshuf.b"
    join = "llvm.x86.avx2.pmadd.ub.sw"
    add_pairs = "llvm.x86.avx2.pmadd.wd"


@dataclass(frozen=True)
class TableAvx512Kernel(X86TableKernel, VnniKernel):  # type: ignore[override]
    """64 lookups an instruction."""

    bytes = 64
    lookup = "llvm.x86.avx512.pshuf.b.512"
    join = "llvm.x86.avx512.pmaddubs.w.512"
    add_pairs = "llvm.x86.avx512.pmaddw.d.512"


def _pattern(k: Builder, factors: Sequence[int], lanes: int) -> Expr:
    """int8 `lanes` that repeat `factors`."""
    word = int.from_bytes(np.array(factors, np.int8).tobytes(), "little", signed=True)
    return k.bitcast(k.const(word, f"int{8 * len(factors)}", lanes // len(factors)), "int8", lanes)


CONV_TABLE_AVX2 = TableConv(
    name="x86_conv_table_avx2",
    arch="x86_64",
    features=("avx2",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=TableAvx2Kernel(),
    shapes=(),
    pixels=(6, 4),
    # Measured: 74 products a cycle with two planes, four indices of 16 channels in a vector.
    pipeline=Pipeline(macs=5, loads=4, in_flight=4, unroll=1),
    rivals=(CONV_LOW_BIT_MADDUBS, CONV_INT8_MADDUBS, CONV_INT8_AVX_VNNI),
)
# One vpshufb and one addition of 64 bytes a cycle.
CONV_TABLE_AVX512 = TableConv(
    name="x86_conv_table_avx512",
    arch="x86_64",
    features=("avx512",),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=TableAvx512Kernel(),
    shapes=(),
    pixels=(12, 8, 6),
    pipeline=Pipeline(macs=3.5, loads=4, in_flight=4, unroll=1),
    rivals=(CONV_INT8_AMX, CONV_INT8_VNNI, CONV_UNPACK_VNNI, CONV_LOW_BIT_MADDUBS, CONV_INT8_MADDUBS),
)
