"""The generator of dense convolutions: the shared loop nest with the inner step of one ISA.

In: a `MicroKernel`, what it runs on and which register tiles it has. Out: an object that satisfies the `Generator` contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Extent, Problem, Tile, outer_extent
from bevel.backends.kernels import conv
from bevel.backends.kernels.conv import Geometry
from bevel.backends.kernels.micro import CODES, MicroKernel
from bevel.backends.kernels.tiling import Chunks, split
from bevel.backends.tvm import PrimFunc
from bevel.ir.protocols import Target


@dataclass(frozen=True)
class Pipeline:
    """What the inner loop of a core can do, to compare register tiles of one kernel.

    Attributes:
        macs: multiply-accumulate instructions per cycle.
        loads: vector loads (broadcasts included) per cycle.
        in_flight: independent multiply-accumulates needed to hide their latency (throughput x latency).
        unroll: K-groups per loop iteration.
        convert: cycles per vector of weights that is converted when it is loaded.
        result: cycles per vector of results, for what follows the sums.
        fetch: cycles per byte that comes from beyond the first cache.
    """

    macs: float
    loads: float
    in_flight: int
    unroll: int = 4
    convert: float = 0.0
    result: float = 0.0
    fetch: float = 0.0


# Loop and epilogue overhead of one tile, in cycles: keeps many small tiles from looking as good as few large ones.
TILE_OVERHEAD = 20
# Another number of K-groups per iteration than the pipeline's is seldom faster by more: the tuner tries other tiles before.
UNUSUAL_UNROLL = 1.08
# Share of the first cache that stays for operands which are read again; of one whose size is not known.
FIRST_CACHE_SHARE, FIRST_CACHE_BYTES = 2 / 3, 32 * 1024
# LLVM's names of cores that issue in order.
IN_ORDER_CPUS = frozenset({"cortex-a35", "cortex-a53", "cortex-a55", "cortex-a510"})


@dataclass(eq=False)
class ConvGenerator:
    """Dense convolutions and GEMMs of one element type on one ISA.

    Attributes:
        name: unique generator name.
        arch: `Target.arch` it runs on.
        features: ISA features it needs.
        dtype: element type of x.
        out_dtypes: result types it can store.
        micro: the inner step.
        shapes: (mr, nv) limits of register tiles that never spill.
        in_order_shapes: the same for cores that issue in order, where smaller tiles leave registers to keep instructions that
            depend on each other apart; empty where that makes no difference.
        pipeline: of a typical core with these features.
        spare_shapes: further register tiles that never spill, chosen only where they were measured to be faster.
        spare_unrolls: K-groups per loop iteration, likewise.
    """

    name: str
    arch: str
    features: tuple[str, ...]
    dtype: str
    out_dtypes: tuple[str, ...]
    micro: MicroKernel
    shapes: tuple[tuple[int, int], ...]
    pipeline: Pipeline
    in_order_shapes: tuple[tuple[int, int], ...] = ()
    spare_shapes: tuple[tuple[int, int], ...] = ()
    spare_unrolls: tuple[int, ...] = ()

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Checks the kind of problem, its element types, the target's features and the loop nest's limits."""
        if not isinstance(problem, ConvProblem):
            return "not a convolution"
        if target.arch != self.arch or not target.has(*self.features):
            return f"needs {self.arch} with {', '.join(self.features)}, which {target.name} lacks"
        if problem.dtype != self.dtype or problem.out_dtype not in self.out_dtypes:
            return (
                f"computes {self.dtype} -> {' or '.join(self.out_dtypes)}, the problem is {problem.dtype} -> {problem.out_dtype}"
            )
        return conv.legal(problem, self.kernel(problem))

    def kernel(self, problem: Problem) -> MicroKernel:
        """The inner step for `problem`: `micro`, unless it depends on how many bits codes need."""
        return self.micro

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Register tiles by estimated cycles, best first; then the spare ones."""
        in_order = bool(self.in_order_shapes) and target.cpu in IN_ORDER_CPUS
        usual = self._ranked(problem, target, self.in_order_shapes if in_order else self.shapes)
        tiles = [*usual, *self._ranked(problem, target, () if in_order else self.spare_shapes)]
        return [*tiles, *({**tile, "unroll": unroll} for unroll in self.spare_unrolls for tile in tiles)]

    def _ranked(self, problem: Problem, target: Target, shapes: Sequence[tuple[int, int]]) -> list[Tile]:
        """Tiles of these shapes by estimated cycles."""
        tiles: list[Tile] = [{"mr": mr, "nv": nv, "unroll": self.pipeline.unroll} for mr, nv in shapes]
        return sorted(tiles, key=lambda tile: self.cycles(problem, target, tile))

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        g = Geometry(_conv(problem), self.kernel(problem), tile["mr"], tile["nv"])
        total = self._cycles(g) + self.pipeline.result * _results(g) + self.waiting(g, target)
        return total if tile["unroll"] == self.pipeline.unroll else total * UNUSUAL_UNROLL

    def waiting(self, g: Geometry, target: Target) -> float:
        """Estimated cycles that the inner loops wait for what comes from beyond the first cache."""
        kept = kept_bytes(target)
        return self.pipeline.fetch * (fetched_inputs(g, kept) + sum(fetched_weights(g, run, kept) for run in g.columns))

    def _cycles(self, g: Geometry) -> float:
        """Cycles of the inner loops of all tiles, as the pipeline's throughputs bound them."""
        steps = g.taps * g.padded_run // g.micro.kgroup
        total = 0.0
        for rows in g.rows:
            tiles = [(1, rows.size * g.shape.ow)]
            if rows.size == 1:
                tiles = [(run.count, run.size) for run in split(g.shape.ow, g.mr)]
            for count, mr in tiles:
                for columns in g.columns:
                    step = self.step_cycles(mr, columns.size)
                    total += g.problem.groups * rows.count * count * columns.count * (steps * step + TILE_OVERHEAD)
        return total

    def step_cycles(self, mr: int, nv: int) -> float:
        """Cycles of one K-group of a tile, as the pipeline's throughputs bound them."""
        macs = max(mr * nv, self.pipeline.in_flight) / self.pipeline.macs + nv * self.pipeline.convert
        return max(macs, (mr + nv) / self.pipeline.loads)

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Weights, bias and requantization parameters; see `bevel.backends.kernels.conv`."""
        if constants is None:
            raise TypeError(f"{self.name} needs the convolution's constants")
        return conv.pack(_conv(problem), tile, self.kernel(problem), constants)

    def unpack(self, problem: Problem, tile: Tile, packed: Sequence[Array]) -> tuple[Array, Array]:
        """Logical weights and bias back from `pack`."""
        return conv.unpack(_conv(problem), tile, self.kernel(problem), packed)

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Row groups, or channel blocks when there is one row group."""
        return Geometry(_conv(problem), self.kernel(problem), tile["mr"], tile["nv"]).extent

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """The row groups that the actual rows lie in; all channel blocks when there is one row group."""
        p = _conv(problem)
        g = Geometry(p, self.kernel(problem), tile["mr"], tile["nv"])
        if g.by_columns:
            return g.extent
        if g.shape.batch == 1:
            return outer_extent(p, g.extent, min(run.size for run in g.rows), g.shape.oh)
        return outer_extent(p, g.extent, 1, g.extent)

    def unit_ends(self, problem: Problem, tile: Tile) -> Sequence[int] | None:
        """Where row groups end; see `bevel.backends.kernel.Rowwise`."""
        g = Geometry(_conv(problem), self.kernel(problem), tile["mr"], tile["nv"])
        if g.by_columns or g.problem.batch > 1:
            return None
        sizes = np.concatenate([np.full(run.count, run.size) for run in g.rows])
        return [int(end) for end in np.cumsum(sizes) * g.shape.ow]

    def sums(self, problem: ConvProblem) -> bool:
        """Whether the epilogue can add: always, but for half precision."""
        return problem.out_dtype in ("float32", *CODES)

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """Padded or converted input rows of one block."""
        return Geometry(_conv(problem), self.kernel(problem), tile["mr"], tile["nv"]).scratch_bytes

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        return conv.emit(_conv(problem), tile, self.kernel(problem), symbol)


@dataclass(eq=False)
class RivalConv(ConvGenerator):
    """Convolutions by other means, taken where they are estimated to be faster than those of other generators.

    Attributes:
        rivals: generators that may be faster.
    """

    rivals: tuple[ConvGenerator, ...] = ()

    def pays(self, problem: Problem, target: Target) -> bool:
        """Where it is estimated to take fewer cycles than every rival."""

        def least(generator: ConvGenerator) -> float:
            return min(generator.cycles(problem, target, tile) for tile in generator.tiles(problem, target))

        mine = least(self)
        return all(mine < least(rival) for rival in self.rivals if rival.legal(problem, target) is None)


def _results(g: Geometry) -> int:
    """Vectors of results."""
    p = g.problem
    return p.batch * p.oh * p.ow * p.groups * sum(run.count * run.size for run in g.columns)


def kept_bytes(target: Target) -> float:
    """What of the operands stays in the first cache."""
    return (target.caches[0].bytes if target.caches else FIRST_CACHE_BYTES) * FIRST_CACHE_SHARE


def fetched_weights(g: Geometry, run: Chunks, kept: float) -> int:
    """Bytes of weights of some blocks of channels that the inner loops read from beyond the first cache.

    Pixel tiles pass over the weights of a block, which stay in the cache if they fit.
    """
    block = g.taps * g.micro.tap_elements(g.run, run.size) * np.dtype(g.micro.weight_dtype).itemsize
    return g.problem.groups * run.count * block * (1 if block <= kept else sum(count for count, _, _ in g.bodies))


def fetched_inputs(g: Geometry, kept: float) -> int:
    """Bytes of input that the inner loops read from beyond the first cache: blocks of channels pass over it."""
    p = g.problem
    inputs = p.batch * p.h * p.w * p.c * np.dtype(p.dtype).itemsize
    return inputs * (1 if inputs <= kept else sum(run.count for run in g.columns))


def _conv(problem: Problem) -> ConvProblem:
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"expected a ConvProblem, got {type(problem).__name__}")
    return problem
