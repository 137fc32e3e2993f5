"""float32 dense convolution and GEMM: FMA with AVX-512 (zmm) and AVX2 (ymm), mulps and addps with SSE2 (xmm).

Register tiles: AVX-512 has 32 registers, 14 x 2 is 28 accumulators, 2 weight vectors, and broadcasts folded into the FMA or one
temporary. AVX2 has 16: 6 x 2 is 12 accumulators, 2 weight vectors, 1 broadcast. SSE2
has 16 too, and two-operand instructions: every product needs a register of its own, and a broadcast costs a shuffle that few
pixels and many vectors keep rare.
"""

from __future__ import annotations

from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import MicroKernel
from bevel.backends.tvm import Buffer, Builder, Expr


class FmaKernel(MicroKernel):
    """Broadcast one input element, multiply by a vector of channels."""

    fetches_ahead = True

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.copy_lanes = lanes

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts of `groups` elements."""
        return [k.splat(k.load(x, offset + u), self.lanes) for u in range(groups)]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Fused multiply-add."""
        return k.fma(x, w, acc, self.lanes)


class MulAddKernel(FmaKernel):
    """Two roundings: SSE2 has no FMA, so LLVM cannot contract them."""

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Multiply, then add."""
        return acc + x * w


# Two FMAs per cycle with a latency of four.
_PIPELINE = Pipeline(macs=2, loads=2, in_flight=8)

CONV_F32_AVX512 = ConvGenerator(
    name="x86_conv_f32_avx512",
    arch="x86_64",
    features=("avx512",),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmaKernel(16),
    shapes=((14, 2), (28, 1), (8, 3), (6, 4)),
    pipeline=_PIPELINE,
    spare_unrolls=(2,),
)
CONV_F32_AVX2 = ConvGenerator(
    name="x86_conv_f32_avx2",
    arch="x86_64",
    features=("avx2", "fma"),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmaKernel(8),
    shapes=((6, 2), (8, 1), (4, 3)),
    pipeline=_PIPELINE,
)
CONV_F32_SSE2 = ConvGenerator(
    name="x86_conv_f32_sse2",
    arch="x86_64",
    features=("sse2",),
    dtype="float32",
    out_dtypes=("float32",),
    micro=MulAddKernel(4),
    shapes=((1, 8), (2, 4)),
    # Three ports share multiplications, additions and broadcasts; only the addition chains.
    pipeline=Pipeline(macs=1.5, loads=2, in_flight=4),
)
