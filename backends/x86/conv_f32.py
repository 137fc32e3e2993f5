"""float32 dense convolution and GEMM with FMA: AVX-512 (zmm) and AVX2 (ymm).

Register tiles: AVX-512 has 32 registers, 14 x 2 is 28 accumulators, 2 weight vectors, and broadcasts folded into the FMA or one
temporary. AVX2 has 16: 6 x 2 is 12 accumulators, 2 weight vectors, 1 broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Problem, Tile
from bevel.backends.kernels import conv
from bevel.backends.tvm import Buffer, Builder, Expr, PrimFunc
from bevel.backends.x86.tiles import rank_tiles
from bevel.ir.protocols import Target


class FmaKernel(conv.MicroKernel):
    """Broadcast one input element, multiply by a vector of channels."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.copy_lanes = lanes

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts of `groups` elements."""
        return [k.splat(k.load(x, offset + u), self.lanes) for u in range(groups)]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Fused multiply-add."""
        return k.fma(x, w, acc, self.lanes)


class ConvF32:
    """Generator of float32 dense convolutions for one vector width."""

    def __init__(self, name: str, lanes: int, features: tuple[str, ...], shapes: Sequence[tuple[int, int]]) -> None:
        self.name = name
        self._features = features
        self._micro = FmaKernel(lanes)
        # (mr, nv) that stay in registers.
        self._shapes = shapes

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Float32 in and out, one group, and the ISA features of this width."""
        if not isinstance(problem, ConvProblem):
            return "not a convolution"
        if target.arch != "x86_64" or not target.has(*self._features):
            return f"needs x86_64 with {', '.join(self._features)}; {target.name} lacks them"
        if problem.dtype != "float32" or problem.out_dtype != "float32":
            return f"float32 only, the problem is {problem.dtype} -> {problem.out_dtype}"
        return conv.legal(problem)

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Register tiles by estimated cycles, best first."""
        # FMA: two per cycle, latency 4.
        return rank_tiles(_conv(problem), self._micro, self._shapes, latency=8)

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Weights and bias; see `bevel.backends.kernels.conv`."""
        assert constants is not None
        return conv.pack(_conv(problem), tile, self._micro, constants)

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Row groups, or channel blocks when there is one row group."""
        return conv.Geometry(_conv(problem), self._micro, tile["mr"], tile["nv"]).extent

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """Padded input rows."""
        return conv.Geometry(_conv(problem), self._micro, tile["mr"], tile["nv"]).scratch_bytes

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        return conv.emit(_conv(problem), tile, self._micro, symbol)


def _conv(problem: Problem) -> ConvProblem:
    assert isinstance(problem, ConvProblem)
    return problem


CONV_F32_AVX512 = ConvF32("x86_conv_f32_avx512", 16, ("avx512",), ((14, 2), (28, 1), (9, 3), (6, 4)))
CONV_F32_AVX2 = ConvF32("x86_conv_f32_avx2", 8, ("avx2", "fma"), ((6, 2), (12, 1), (4, 3)))
