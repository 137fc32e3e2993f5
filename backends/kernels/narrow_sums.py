"""Sums in narrow accumulators, which are widened before they can overflow: the reduction of kernels for few bits.

In: the reduction runs of a tile, as *steps* that every accumulator takes alike, and how many steps one can take. Out: loops that
clear the narrow accumulators, take as many steps as they may, across runs where these are short, and widen them.
"""

from __future__ import annotations

from collections.abc import Callable

from bevel.backends.kernels.micro import Taps
from bevel.backends.kernels.tiling import split
from bevel.backends.tvm import Builder, Expr

Step = Callable[[Expr, Expr, Expr], None]
"""Takes the step of a row and column of `Taps` and an index within that run."""


def sum_narrow(
    k: Builder, taps: Taps, steps: int, limit: int, unroll: int, clear: Callable[[], None], step: Step, widen: Callable[[], None]
) -> None:
    """All steps of all runs.

    Args:
        k: the kernel being written.
        taps: the reduction runs.
        steps: of one run.
        limit: steps that a narrow accumulator can take, at least 1.
        unroll: steps per loop iteration.
        clear: sets the narrow accumulators to zero.
        step: takes one step.
        widen: adds the narrow accumulators to wide ones.
    """

    def take(row: Expr, column: Expr, first: Expr, count: int) -> None:
        whole = count // unroll
        if whole > 1:
            with k.serial(whole) as turn:
                for u in range(unroll):
                    step(row, column, first + turn * unroll + u)
        done = whole * unroll if whole > 1 else 0
        for u in range(done, count):
            step(row, column, first + u)

    per_row = steps * taps.columns
    if per_row <= limit:
        for rows in split(taps.rows, limit // per_row):
            with k.serial(rows.count) as chunk:
                clear()
                with k.serial(rows.size) as r, k.serial(taps.columns) as column:
                    take(chunk * rows.size + rows.start + r, column, k.i32(0), steps)
                widen()
        return
    with k.serial(taps.rows) as row:
        if steps <= limit:
            for columns in split(taps.columns, limit // steps):
                with k.serial(columns.count) as chunk:
                    clear()
                    with k.serial(columns.size) as c:
                        take(row, chunk * columns.size + columns.start + c, k.i32(0), steps)
                    widen()
            return
        with k.serial(taps.columns) as column:
            for run in split(steps, limit):
                with k.serial(run.count) as chunk:
                    clear()
                    take(row, column, chunk * run.size + run.start, run.size)
                    widen()
