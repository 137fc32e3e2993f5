"""What the dense ARM generators share: the common loop nest, and the ranking of register tiles.

In: a `ConvProblem`. Out: the answers of the `Generator` protocol, given a micro-kernel and the tile shapes it can hold in
registers.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Problem, Tile
from bevel.backends.kernels import conv
from bevel.backends.kernels.conv import Geometry, MicroKernel
from bevel.backends.kernels.tiling import split
from bevel.backends.tvm import PrimFunc
from bevel.errors import UsageError
from bevel.ir.protocols import Target

# Vector multiplies in flight that hide the latency of one (4 cycles at one or two per cycle on Cortex-A72 and A76).
IN_FLIGHT = 8


class DenseGenerator(abc.ABC):
    """A `Generator` of dense convolutions.

    Attributes:
        name: of the generator.
        shapes: register tiles (pixels, vectors of channels) that do not spill.
        unroll: K-groups per iteration of the reduction loop.
    """

    name: str
    shapes: Sequence[tuple[int, int]]
    unroll: int

    @abc.abstractmethod
    def micro(self, problem: ConvProblem) -> MicroKernel:
        """The inner steps for `problem`."""

    @abc.abstractmethod
    def unsupported(self, problem: ConvProblem, target: Target) -> str | None:
        """Why element types or ISA rule this generator out, None when they do not."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """See `Generator.legal`."""
        if target.arch != "aarch64":
            return f"needs aarch64, {target.name} is {target.arch}"
        if not isinstance(problem, ConvProblem):
            return f"convolutions only, the problem is {problem.op}"
        return self.unsupported(problem, target) or conv.legal(problem)

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Every shape, by estimated vector instructions."""
        checked = _conv(problem)
        tiles = [{"mr": mr, "nv": nv, "unroll": self.unroll} for mr, nv in self.shapes]
        return sorted(tiles, key=lambda tile: self._instructions(checked, tile))

    def _instructions(self, problem: ConvProblem, tile: Tile) -> float:
        """Vector instructions per K-group step of all tiles: multiplies (at least IN_FLIGHT slots), loads at half price."""
        g = self._geometry(problem, tile)
        total = 0.0
        for rows in g.rows:
            widths = split(g.shape.ow, g.mr) if rows.size == 1 else split(g.shape.ow, g.shape.ow)
            for pixels in widths:
                for columns in g.columns:
                    mr, nv = rows.size * pixels.size, columns.size
                    work = max(mr * nv * (g.micro.slot // g.micro.lanes), IN_FLIGHT)
                    loads = mr / self.unroll + nv * (g.micro.slot // g.micro.lanes)
                    total += rows.count * pixels.count * columns.count * (work + loads / 2)
        return total

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Weights, bias, requantization parameters: see `bevel.backends.kernels.conv`."""
        if constants is None:
            raise UsageError(f"{self.name} packs a convolution's weights; got no constants: pass ConvConstants")
        checked = _conv(problem)
        return conv.pack(checked, tile, self.micro(checked), constants)

    def unpack(self, problem: ConvProblem, tile: Tile, packed: Sequence[Array]) -> tuple[Array, Array]:
        """Logical weights and bias back from `pack`."""
        return conv.unpack(problem, tile, self.micro(problem), packed)

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """See `Generator.parallel_extent`."""
        return self._geometry(_conv(problem), tile).extent

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """See `Generator.scratch_bytes`."""
        return self._geometry(_conv(problem), tile).scratch_bytes

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """See `Generator.emit`."""
        checked = _conv(problem)
        return conv.emit(checked, tile, self.micro(checked), symbol)

    def _geometry(self, problem: ConvProblem, tile: Tile) -> Geometry:
        return Geometry(problem, self.micro(problem), tile["mr"], tile["nv"])


def _conv(problem: Problem) -> ConvProblem:
    """`problem`, which `legal` has accepted, as the type it is."""
    if not isinstance(problem, ConvProblem):
        raise UsageError(f"expected a convolution, got {problem.op}: ask `legal` first")
    return problem
