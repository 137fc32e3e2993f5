"""Table lookup of weights of one or two bits (`bevel.backends.kernels.tables`) on NEON: tbl, planes joined by widening additions.

A vector of indices has one plane of 16 channels, or first one and then the other plane of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.arm.conv_bits import CONV_BITS
from bevel.backends.arm.conv_int8_mmla import CONV_INT8_MMLA
from bevel.backends.arm.conv_int8_neon import CONV_INT8_NEON, CONV_INT8_NEON_WIDE
from bevel.backends.arm.conv_int8_sdot import CONV_INT8_SDOT
from bevel.backends.arm.neon import half
from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernel import Array, ConvProblem, Problem
from bevel.backends.kernels.generator import Pipeline
from bevel.backends.kernels.staging import Staging
from bevel.backends.kernels.tables import GROUP, ONE_TABLE_BITS, TABLE, TableConv, TableKernel, TableStaging
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

MOST_PLANES = 2
LOOKUP = "llvm.aarch64.neon.tbl1"


@dataclass(frozen=True)
class NeonTableStaging(TableStaging):
    """Tables made by tbl."""

    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """See `FormStaging.form`."""
        with k.serial(-(-codes // TABLE)) as v:
            some = k.bitcast(k.load(x, source + v * TABLE, TABLE), "uint8", TABLE)
            self._write(k, scratch, target + v * (TABLE // GROUP * TABLE), some, TABLE // GROUP)

    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """See `FormStaging.form_border`."""
        with k.serial(pixels * self.problem.c // GROUP) as v:
            self._write(k, scratch, target + v * TABLE, k.splat(zero, TABLE), 1)

    def _write(self, k: Builder, scratch: Buffer, target: Expr, codes: Expr, tables: int) -> None:
        """Tables of the first codes of a vector."""
        lane = k.numbers(TABLE)
        for number in range(tables):
            picked = []
            for j in range(GROUP):
                taken = k.bitwise_and(k.shift_right(lane, k.const(j, "int32", TABLE)), k.const(1, "int32", TABLE))
                # Lanes beyond the vector look up zero.
                place = k.const(number * GROUP + j, "int32", TABLE)
                index = k.select(taken > k.const(0, "int32", TABLE), place, k.const(TABLE, "int32", TABLE))
                picked.append(k.call(f"uint8x{TABLE}", LOOKUP, codes, k.cast(index, "uint8", TABLE)))
            k.store(scratch, target + number * TABLE, (picked[0] + picked[1]) + (picked[2] + picked[3]), TABLE)


@dataclass(frozen=True)
class NeonTableKernel(TableKernel, NeonInteger):  # type: ignore[override]
    """16 lookups an instruction."""

    bytes = TABLE
    lookup = LOOKUP

    def staging(self, problem: ConvProblem, at: int) -> Staging:
        """See `MicroKernel.staging`."""
        return NeonTableStaging(problem, self.x_dtype, TABLE, at, sums=bool(self.code_offset), low_bits=self.low_bits)

    def arranged(self, indices: Array) -> Array:
        """Planes apart."""
        pairs = indices.reshape(*indices.shape[:-1], self.bytes // self.planes, self.planes)
        return np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(indices.shape)

    def restored(self, indices: Array) -> Array:
        """The inverse of `arranged`."""
        halves = indices.reshape(*indices.shape[:-1], self.planes, self.bytes // self.planes)
        return np.ascontiguousarray(halves.swapaxes(-1, -2)).reshape(indices.shape)

    def join_planes(self, k: Builder, acc: Buffer, slot: Expr, parts: Sequence[Expr]) -> None:
        """See `TableKernel.join_planes`."""
        first, second = (k.cast(half(k, parts[0], start), "int16", 8) for start in (0, 8))
        # The second plane of two counts -2.
        values = [first, second] if self.planes == 1 else [first - second - second]
        for number, value in enumerate(values):
            at = slot + 8 * number
            if self.wide:
                value = k.cast(value, "int32", 8)
            k.store(acc, at, k.load(acc, at, 8) + value, 8)


@dataclass(eq=False)
class NeonTableConv(TableConv):
    """Convolutions of weights of one or two bits, and codes whose sums fit a table."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the limits of tables: one table of four codes, one or two planes."""
        reason = super().legal(problem, target)
        if (
            reason is None
            and isinstance(problem, ConvProblem)
            and not (problem.weight_bits <= MOST_PLANES and problem.x_bits <= ONE_TABLE_BITS)
        ):
            return (
                f"weights of at most {MOST_PLANES} bits and inputs of {ONE_TABLE_BITS}, these have {problem.weight_bits} and "
                f"{problem.x_bits}"
            )
        return reason


# llvm-mca for a Cortex-A72: a lookup and an addition of 64 products of bits take two cycles; 15 products of two planes a cycle. A
# Cortex-A76 takes one.
CONV_TABLE = NeonTableConv(
    name="arm_conv_table",
    arch="aarch64",
    features=("neon",),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=NeonTableKernel(),
    shapes=(),
    pixels=(6, 5),
    pipeline=Pipeline(macs=1.88, loads=1, in_flight=2, unroll=1),
    rivals=(CONV_BITS, CONV_INT8_MMLA, CONV_INT8_SDOT, CONV_INT8_NEON, CONV_INT8_NEON_WIDE),
)
