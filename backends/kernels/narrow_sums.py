"""Sums in narrow accumulators, which are widened before they can overflow: the reduction of kernels for few bits.

In: the reduction runs of a tile, as *steps* that every accumulator takes alike, and how many steps one can take. Out: loops that
set the narrow accumulators with one step, take as many more as they may, across runs where these are short, and widen them.
"""

from __future__ import annotations

from collections.abc import Callable

from bevel.backends.kernels.micro import Taps
from bevel.backends.kernels.tiling import split
from bevel.backends.tvm import Buffer, Builder, Expr

Step = Callable[[Expr, Expr, Expr, bool], None]
"""Takes the step of a row and column of `Taps` and an index within that run; the first of some sets the accumulators."""
Widen = Callable[[Expr | None], None]
"""Adds the narrow accumulators to the wide ones, which are in memory where that happens more than once: then an int32 of value
zero is given to add to indices, so that LLVM does not see constants. Wide sums in registers would drive the narrow ones out."""


def store_zeros(k: Builder, acc: Buffer, dtype: str, elements: int, lanes: int) -> None:
    """Set `elements` wide accumulators to zero, in vectors of `lanes`; constant ones would become a call of memset."""
    one = k.const(1, dtype, lanes)
    for at in range(0, elements, lanes):
        k.store(acc, at, k.opaque(one, dtype, lanes) - one, lanes)


def sum_narrow(k: Builder, taps: Taps, steps: int, limit: int, unroll: int, step: Step, widen: Widen) -> None:
    """All steps of all runs.

    Args:
        k: the kernel being written.
        taps: the reduction runs.
        steps: of one run.
        limit: steps that a narrow accumulator can take, at least 1.
        unroll: steps per loop iteration.
        step: takes one step.
        widen: adds the narrow accumulators to wide ones.
    """

    def take(row: Expr, column: Expr, start: Expr, count: int, *, first: bool) -> None:
        """Steps [start, start + count) of a run."""
        done = 0
        if first:
            step(row, column, start, True)
            done = 1
        whole = (count - done) // unroll
        if whole > 1:
            # A trip count that LLVM does not know: it would unroll the loop, mix steps and run out of registers.
            with k.serial(k.opaque(k.i32(whole), "int32")) as turn:
                for u in range(unroll):
                    step(row, column, start + done + turn * unroll + u, False)
            done += whole * unroll
        for u in range(done, count):
            step(row, column, start + u, False)

    def runs(row: Expr, column: Expr, count: int, *, first: bool) -> None:
        """Whole runs of columns [column, column + count) of a row."""
        if first:
            take(row, column, k.i32(0), steps, first=True)
        if count > first:
            with k.serial(count - first) as c:
                take(row, column + c + int(first), k.i32(0), steps, first=False)

    def widened(*, once: bool) -> None:
        widen(None if once else k.opaque(k.i32(1), "int32") - 1)

    per_row = steps * taps.columns
    if per_row <= limit:
        for rows in split(taps.rows, limit // per_row):
            with k.serial(rows.count) as chunk:
                row = chunk * rows.size + rows.start
                runs(row, k.i32(0), taps.columns, first=True)
                if rows.size > 1:
                    with k.serial(rows.size - 1) as r:
                        runs(row + r + 1, k.i32(0), taps.columns, first=False)
                widened(once=rows.size == taps.rows)
        return
    with k.serial(taps.rows) as row:
        if steps <= limit:
            for columns in split(taps.columns, limit // steps):
                with k.serial(columns.count) as chunk:
                    runs(row, chunk * columns.size + columns.start, columns.size, first=True)
                    widened(once=taps.rows == 1 and columns.size == taps.columns)
            return
        with k.serial(taps.columns) as column:
            for run in split(steps, limit):
                with k.serial(run.count) as chunk:
                    take(row, column, chunk * run.size + run.start, run.size, first=True)
                    widened(once=taps.rows == taps.columns == 1 and run.size == steps)
