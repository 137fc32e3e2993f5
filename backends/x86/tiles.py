"""Static ranking of register tiles on x86.

In: a problem and the (mr, nv) pairs that do not spill. Out: tiles ordered by a cycle estimate, which only has to compare tiles of
the same kernel: two multiply-accumulates and two loads per cycle, and no tile faster than the accumulator latency allows.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.kernel import ConvProblem, Tile
from bevel.backends.kernels.conv import Geometry, MicroKernel
from bevel.backends.kernels.tiling import split

# K-groups per loop iteration: hides the loop overhead; more was not faster on any shape measured.
UNROLL = 4
# Loop and epilogue overhead of one tile, in cycles.
TILE_OVERHEAD = 20


def rank_tiles(problem: ConvProblem, micro: MicroKernel, shapes: Sequence[tuple[int, int]], latency: int) -> list[Tile]:
    """Tiles of `shapes`, best first.

    Args:
        problem: what to compute.
        micro: the inner step.
        shapes: (mr, nv) limits that keep everything in registers.
        latency: multiply-accumulates that must be independent to fill the pipeline (throughput x latency).
    """

    def cycles(shape: tuple[int, int]) -> float:
        g = Geometry(problem, micro, *shape)
        steps = g.taps * g.padded_run // micro.kgroup
        total = 0.0
        for rows in g.rows:
            tiles = [(1, rows.size * g.shape.ow)]
            if rows.size == 1:
                tiles = [(run.count, run.size) for run in split(g.shape.ow, g.mr)]
            for count, mr in tiles:
                for columns in g.columns:
                    nv = columns.size
                    step = max(mr * nv / 2, (mr + nv) / 2, latency / 2)
                    total += rows.count * count * columns.count * (steps * step + TILE_OVERHEAD)
        return total

    ranked = sorted(shapes, key=cycles)
    return [{"mr": mr, "nv": nv, "unroll": UNROLL} for mr, nv in ranked]
