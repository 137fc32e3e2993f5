"""Epilogues of tiles whose sums are in memory, done while the next tile multiplies (software pipelining).

In: where the sums of finished tiles lie. Out: calls of an epilogue, one for each pixel of the tile before, spread over the
reduction of the next one. Tile multiplications leave most of a core's issue slots free; an epilogue on its own would wait for the
last of them, and the next tile for the epilogue.

Sums are in scratch: a local array would not be aligned to cache lines. Their place is free again when the next tile is done.
Which tile is pending is known at run time alone, so that one tile may follow another of a different size, in the next row of the
image or in the next block of channels; blocks of other widths do not follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bevel.backends.tvm import Builder, Expr

# What is known of the pending tile: its place in the output and first channel; its next and last pixel, none being left where
# the next one is behind the last; the row of its first pixel's sums; and where in the table those of others are.
_TARGET, _CHANNEL, _NEXT, _LAST, _ROW, _START, _FIELDS = range(7)

# Row of sums, output element and first channel of a pixel.
Epilogue = Callable[[Expr, Expr, Expr], None]


class Pending:
    """The one tile that waits for its epilogue.

    Args:
        k: builder; the kernel's loops have not begun.
        shapes: of every kind of tile, the row of sums of each pixel.
        place: where sums are: its first row.
        pitch: elements between pixels in the output.
    """

    def __init__(self, k: Builder, shapes: Sequence[Sequence[int]], place: int, pitch: int) -> None:
        self.k, self._place, self._pitch = k, place, pitch
        self._state = k.alloc(_FIELDS, "int32")
        self._starts: dict[tuple[int, ...], int] = {}
        self._table = None
        distances = {tuple(row - rows[0] for row in rows) for rows in shapes}
        if any(rows != tuple(range(len(rows))) for rows in distances):
            table: list[int] = []
            for rows in sorted(distances):
                self._starts[rows] = len(table)
                table += rows
            self._table = k.alloc(len(table), "int32")
            for i, row in enumerate(table):
                k.store(self._table, k.i32(i), k.i32(row))
        self.clear()

    def _get(self, field: int) -> Expr:
        return self.k.load(self._state, self.k.i32(field))

    def _set(self, field: int, value: Expr) -> None:
        self.k.store(self._state, self.k.i32(field), value)

    def clear(self) -> None:
        """Nothing is pending."""
        for field in range(_FIELDS):
            self._set(field, self.k.i32(1 if field == _NEXT else 0))

    def work(self, times: int, epilogue: Epilogue) -> None:
        """The epilogues of the next `times` pixels, or of those left.

        The loop ends as often after as many steps of every tile: a core learns that, and epilogues without need cost more.
        """
        k = self.k
        left = self._get(_LAST) + 1 - self._get(_NEXT)
        # LLVM would unroll a loop whose longest trip it knows, and spill what the pixels share.
        with k.serial(k.opaque(k.min(k.i32(times), left), "int32")):
            self._pixel(self._get(_NEXT), epilogue)
            self._set(_NEXT, self._get(_NEXT) + 1)

    def push(self, target: Expr, channel: Expr, rows: Sequence[int]) -> None:
        """A tile's sums are in their place; the one before is done."""
        self._set(_ROW, self.k.i32(self._place + rows[0]))
        self._set(_TARGET, target)
        self._set(_CHANNEL, channel)
        self._set(_NEXT, self.k.i32(0))
        self._set(_LAST, self.k.i32(len(rows) - 1))
        if self._table is not None:
            self._set(_START, self.k.i32(self._starts[tuple(row - rows[0] for row in rows)]))

    def drain(self, epilogue: Epilogue) -> None:
        """The epilogues of all pixels left."""
        with self.k.serial(self._get(_NEXT), self._get(_LAST) + 1) as pixel:
            self._pixel(pixel, epilogue)
        self.clear()

    def _pixel(self, pixel: Expr, epilogue: Epilogue) -> None:
        row = pixel if self._table is None else self.k.load(self._table, self._get(_START) + pixel)
        epilogue(self._get(_ROW) + row, self._get(_TARGET) + pixel * self._pitch, self._get(_CHANNEL))
