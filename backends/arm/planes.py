"""Rows of bit planes on NEON: what kernels that count bits read instead of codes.

In: uint8 codes. Out: in scratch, their planes, side by side (`PlaneStaging`) or in vectors of their own (`ApartStaging`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bevel.backends.arm.neon import A64, Neon
from bevel.backends.kernels.low_bit import FormStaging, sum_of_codes
from bevel.backends.tvm import Buffer, Builder, Expr

WIDTH = 16
# Codes whose planes are made together.
CHUNK = 64


def plane_count(bits: int) -> int:
    """Planes that codes of `bits` are laid out as: a power of two, so that they fill vectors."""
    return 1 << (bits - 1).bit_length()


@dataclass(frozen=True)
class PlaneStaging(FormStaging):
    """Rows of bit planes.

    Attributes:
        planes: of a code, a power of two.
        granule: codes whose planes follow each other; a divisor of the channels.
        neon: instructions of the target.
    """

    planes: int = 1
    granule: int = CHUNK
    neon: Neon = A64

    @property
    def pixel_elements(self) -> int:
        """Bytes of the planes of a pixel."""
        return self.problem.c // 8 * self.planes

    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """See `FormStaging.form`."""
        with k.serial(-(-codes // CHUNK)) as v:
            parts = [k.bitcast(k.load(x, source + v * CHUNK + i * WIDTH, WIDTH), "uint8", WIDTH) for i in range(CHUNK // WIDTH)]
            self._write(k, scratch, target + v * (CHUNK // 8 * self.planes), parts)

    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """See `FormStaging.form_border`."""
        with k.serial(-(-pixels * self.problem.c // CHUNK)) as v:
            self._write(k, scratch, target + v * (CHUNK // 8 * self.planes), [k.splat(zero, WIDTH)] * (CHUNK // WIDTH))

    def row_sums(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """See `FormStaging.row_sums`."""
        return sum_of_codes(k, x, offset, self.problem.c)

    def _write(self, k: Builder, scratch: Buffer, target: Expr, parts: Sequence[Expr]) -> None:
        """The planes of 64 codes in four vectors."""
        quarters = [plane_of(k, self.neon, parts, p) for p in range(self.planes)]
        size = CHUNK // 8 * self.planes
        if self.planes == 1:
            k.store(scratch, target, k.shuffle([self.neon.sums_of_neighbours(k, quarters[0], quarters[0], 8)], range(size)), size)
            return
        pairs = [self.neon.sums_of_neighbours(k, quarters[p], quarters[p + 1], 8) for p in range(0, self.planes, 2)]
        # Byte b of plane p is in vector p // 2, at 8 * (p % 2) + b.
        width = min(self.granule, CHUNK) // 8
        order = [p * 8 + first + b for first in range(0, 8, width) for p in range(self.planes) for b in range(width)]
        for at in range(0, size, WIDTH):
            value = pairs[0] if len(pairs) == 1 and order == list(range(size)) else k.shuffle(pairs, order[at : at + WIDTH])
            k.store(scratch, target + at, value, WIDTH)


@dataclass(frozen=True)
class ApartStaging(FormStaging):
    """Rows of vectors of one bit plane each, those of the same codes one after the other.

    Attributes:
        planes: of a code.
        copies: of every plane side by side; 1, or 2 for half as many codes.
        neon: instructions of the target.
    """

    planes: int = 1
    copies: int = 1
    neon: Neon = A64

    @property
    def pixel_elements(self) -> int:
        """Bytes of the planes of a pixel."""
        return self.problem.c // 8 * self.planes * self.copies

    @property
    def codes(self) -> int:
        """Of a vector."""
        return 8 * WIDTH // self.copies

    def form(self, k: Builder, x: Buffer, source: Expr, scratch: Buffer, target: Expr, codes: int) -> None:
        """See `FormStaging.form`."""
        with k.serial(codes // self.codes) as v:
            some = [k.load(x, source + v * self.codes + at, WIDTH) for at in range(0, self.codes, WIDTH)]
            self._write(k, scratch, target + v * (self.planes * WIDTH), [k.bitcast(part, "uint8", WIDTH) for part in some])

    def form_border(self, k: Builder, scratch: Buffer, target: Expr, zero: Expr, pixels: int) -> None:
        """See `FormStaging.form_border`."""
        with k.serial(pixels * self.problem.c // self.codes) as v:
            self._write(k, scratch, target + v * (self.planes * WIDTH), [k.splat(zero, WIDTH)] * (self.codes // WIDTH))

    def row_sums(self, k: Builder, x: Buffer, offset: Expr) -> Expr:
        """See `FormStaging.row_sums`."""
        return sum_of_codes(k, x, offset, self.problem.c)

    def _write(self, k: Builder, scratch: Buffer, target: Expr, parts: Sequence[Expr]) -> None:
        """The vectors of all planes of codes in vectors."""
        per_chunk = CHUNK // WIDTH
        for p in range(self.planes):
            chunks = [plane_of(k, self.neon, parts[at : at + per_chunk], p) for at in range(0, len(parts), per_chunk)]
            k.store(scratch, target + p * WIDTH, self.neon.sums_of_neighbours(k, chunks[0], chunks[-1], 8), WIDTH)


def plane_of(k: Builder, neon: Neon, parts: Sequence[Expr], plane: int) -> Expr:
    """Pairs of neighbours of these 16 bytes add up to the 64 bits of `plane` of codes in four vectors."""
    place = k.bitwise_and(k.numbers(WIDTH), k.const(7, "int32", WIDTH))
    bit = k.cast(k.shift_left(k.const(1, "int32", WIDTH), place), "uint8", WIDTH)
    none = k.const(0, "uint8", WIDTH)
    chosen = [k.select(k.bitwise_and(v, k.const(1 << plane, "uint8", WIDTH)) > none, bit, none) for v in parts]
    low, high = (neon.sums_of_neighbours(k, chosen[at], chosen[at + 1], 8) for at in (0, 2))
    return neon.sums_of_neighbours(k, low, high, 8)
