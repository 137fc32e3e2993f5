"""The generator of Winograd convolutions: the loop nest of `winograd` with the inner step of one ISA, where it is the faster way.

In: the generator of direct convolutions of the same ISA, whose inner step, register tiles and pipeline are used. Out: an object
that satisfies the `Generator` contract and says for which problems it pays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Problem, Tile
from bevel.backends.kernels import conv, winograd
from bevel.backends.kernels.generator import FIRST_CACHE_BYTES, IN_ORDER_CPUS, TILE_OVERHEAD, ConvGenerator
from bevel.backends.kernels.tiling import chunk_count, split
from bevel.backends.kernels.transforms import INPUT_OPERATIONS, OUTPUT_OPERATIONS, POINTS, points
from bevel.backends.kernels.winograd import Geometry
from bevel.backends.tvm import PrimFunc
from bevel.ir.protocols import Target

# Size of a second cache that is not known, and the share of it that scratch may take.
SECOND_CACHE_BYTES, SCRATCH_SHARE = 256 * 1024, 1 / 2
# Layers of a network that share the second cache with one: so many times its size in weights come from beyond it.
NEIGHBOURS = 2
# Cycles of a kernel over those of one whose parallel axis is long enough for all cores.
TOO_FEW_UNITS = 1.05
# Cycles per byte from the second cache, and the share of the first that stays for weights: fitted to AVX-512 kernels of 16 to 512
# channels.
NEAR, FIRST_CACHE_SHARE = 0.01, 1 / 2
FLOAT = 4
# Cycles over those of direct convolution below which transforms are worth their memory.
WORTH = 0.9
# Tiles for each size of patches: the tuner measures all.
TILES_PER_SIZE = 2


@dataclass(eq=False)
class WinogradGenerator:
    """3x3 convolutions of float32 on one ISA.

    Attributes:
        name: unique generator name.
        direct: direct convolutions of the same instruction set.
        far: cycles per byte of weights that comes from beyond the second cache.
    """

    name: str
    direct: ConvGenerator
    far: float

    def legal(self, problem: Problem, target: Target) -> str | None:
        """What direct convolutions need, and the limits of the algorithm."""
        reason = self.direct.legal(problem, target)
        if reason is not None or not isinstance(problem, ConvProblem):
            return reason
        return winograd.legal(problem)

    def rewrites(self, problem: Problem) -> bool:
        """Weights are transformed."""
        return True

    def pays(self, problem: Problem, target: Target) -> bool:
        """Whether transforms and larger weights cost less than the multiplications they save, by the estimated cycles."""
        p = _conv(problem)
        tile = self.direct.tiles(p, target)[0]
        g = conv.Geometry(p, self.direct.micro, tile["mr"], tile["nv"])
        direct = max(p.batch * self.direct.cycles(p, target, tile), self._far_weights(g.weight_bytes, 1, target))
        return self.cycles(p, target, self.tiles(p, target)[0]) < WORTH * direct

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """By estimated cycles, best first."""
        found: list[Tile] = []
        for mh, mw in product(POINTS, POINTS):
            tiles = sorted(self._tiles(_conv(problem), target, mh, mw), key=lambda tile: self.cycles(problem, target, tile))
            found += tiles[:TILES_PER_SIZE]
        return sorted(found, key=lambda tile: self.cycles(problem, target, tile))

    def _tiles(self, p: ConvProblem, target: Target, mh: int, mw: int) -> Iterator[Tile]:
        """Tiles whose scratch stays in the second cache; bands of one row of patches in any case."""
        direct = self.direct
        in_order = bool(direct.in_order_shapes) and target.cpu in IN_ORDER_CPUS
        for mr, nv in direct.in_order_shapes if in_order else direct.shapes:
            whole = Geometry(p, direct.micro, mh, mw, 1, mr, nv).patch_rows
            for rows in sorted({-(-whole // bands) for bands in range(1, whole + 1)}):
                g = Geometry(p, direct.micro, mh, mw, rows, mr, nv)
                if rows == 1 or g.scratch_bytes <= _second_cache(target) * SCRATCH_SHARE:
                    yield {"mh": mh, "mw": mw, "rows": rows, "mr": mr, "nv": nv, "unroll": direct.pipeline.unroll}

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles; see `bevel.backends.kernel.Estimated`."""
        g = winograd.geometry(_conv(problem), tile, self.direct.micro)
        bands = [(g.problem.batch * band.count, band.size) for band in g.bands]
        products = sum(count * self._products(g, rows) for count, rows in bands)
        total = max(products, self._far_weights(g.weight_bytes, g.problem.batch * g.bands_per_image, target))
        total += sum(count * (self._transforms(g, rows) + self._near_operands(g, rows, target)) for count, rows in bands)
        return total if g.extent >= target.cores else total * TOO_FEW_UNITS

    def _products(self, g: Geometry, rows: int) -> float:
        """Cycles of the matrix products of a band."""
        pipeline, total = self.direct.pipeline, 0.0
        for tiles in split(rows * g.patch_columns, g.mr):
            for block in g.columns:
                macs = max(tiles.size * block.size, pipeline.in_flight) / pipeline.macs
                step = max(macs, (tiles.size + block.size) / pipeline.loads)
                total += tiles.count * block.count * (g.problem.c * step + TILE_OVERHEAD)
        return g.points * total

    def _transforms(self, g: Geometry, rows: int) -> float:
        """Cycles of the transforms of a band: every vector instruction takes as long as a multiply-accumulate."""
        high, wide = points(g.mh), points(g.mw)
        down = g.strip_width * (INPUT_OPERATIONS[g.mh] + 2 * high)
        along = g.patch_columns * high * (INPUT_OPERATIONS[g.mw] + 2 * wide)
        results = wide * (OUTPUT_OPERATIONS[g.mh] + high) + g.mh * (OUTPUT_OPERATIONS[g.mw] + 2 * g.mw)
        lanes = self.direct.micro.lanes
        vectors = g.channels // lanes * (down + along) + -(-g.problem.oc // lanes) * g.patch_columns * results
        return rows * vectors / self.direct.pipeline.macs

    @staticmethod
    def _near_operands(g: Geometry, rows: int, target: Target) -> float:
        """Cycles in which operands come from the second cache: inputs for each block of channels, weights for each tile."""
        first = target.caches[0].bytes if target.caches else FIRST_CACHE_BYTES
        patches = rows * g.patch_columns
        nbytes = max(0, g.points * patches * g.channels * FLOAT - first) * chunk_count(g.columns)
        for block in g.columns:
            weights = g.problem.c * block.size * g.micro.lanes * FLOAT
            if weights > first * FIRST_CACHE_SHARE:
                nbytes += g.points * weights * block.count * (chunk_count(split(patches, g.mr)) - 1)
        return NEAR * nbytes

    def _far_weights(self, nbytes: int, passes: int, target: Target) -> float:
        """Cycles in which weights come from beyond the second cache, while others are multiplied.

        Some in the first pass, because other layers were computed meanwhile; in later ones, what the cache does not hold.
        """
        cache = _second_cache(target)
        return self.far * nbytes * (min(1.0, NEIGHBOURS * nbytes / cache) + (passes - 1) * max(0.0, 1 - cache / nbytes))

    def sums(self, problem: ConvProblem) -> bool:
        """The epilogue can add."""
        return True

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Transformed weights, and bias."""
        if constants is None:
            raise TypeError(f"{self.name} needs the convolution's constants")
        return winograd.pack(_conv(problem), tile, self.direct.micro, constants)

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Bands, or channel blocks where there is one band."""
        return winograd.geometry(_conv(problem), tile, self.direct.micro).extent

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """Transformed inputs of a band, and the products of one block of channels."""
        return winograd.geometry(_conv(problem), tile, self.direct.micro).scratch_bytes

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        return winograd.emit(_conv(problem), tile, self.direct.micro, symbol)


def _second_cache(target: Target) -> int:
    return target.caches[1].bytes if len(target.caches) > 1 else SECOND_CACHE_BYTES


def _conv(problem: Problem) -> ConvProblem:
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"expected a ConvProblem, got {type(problem).__name__}")
    return problem
