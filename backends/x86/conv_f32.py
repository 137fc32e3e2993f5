"""float32 dense convolution and GEMM: FMA with AVX-512 (zmm) and AVX2 (ymm), mulps and addps with SSE2 (xmm).

Register tiles: AVX-512 has 32 registers, 14 x 2 is 28 accumulators, 2 weight vectors, and broadcasts folded into the FMA or one
temporary. AVX2 has 16: 6 x 2 is 12 accumulators, 2 weight vectors, 1 broadcast. SSE2
has 16 too, and two-operand instructions: every product needs a register of its own, and a broadcast costs a shuffle that few
pixels and many vectors keep rare.
"""

from __future__ import annotations

from bevel.backends.kernels.conv import Geometry
from bevel.backends.kernels.generator import FIRST_CACHE_BYTES, ConvGenerator, Pipeline
from bevel.backends.kernels.micro import FETCHED_BYTES, LINE_BYTES, MicroKernel
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

FLOAT_BYTES = 4


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


# What a kernel waits for, fitted to measurements of 37 layers of five networks: cycles per byte of input that is read again
# from the second cache (it shares the first one with weights and results, of which a tenth may fall out), and cycles per line of
# weights from beyond it.
INPUT_FETCH, FIRST_CACHE_SLACK, FAR_LINE = 1 / 32, 1.1, 13


class WideFmaGenerator(ConvGenerator):
    """Dense convolutions by FMA on AVX-512. The results of a tile take few cycles, so much of the rest is waiting."""

    def waiting(self, g: Geometry, target: Target) -> float:
        """Every block of channels passes over the input; the first tile of a block waits for its weights."""
        p = g.problem
        passes = p.groups * sum(run.count for run in g.columns)
        inputs = p.batch * min(p.h, p.oh * p.kh) * min(p.w, p.ow * p.kw) * p.c * FLOAT_BYTES
        touched = inputs + (g.weight_bytes + p.batch * p.oh * p.ow * p.oc * FLOAT_BYTES) // passes
        first_cache = target.caches[0].bytes if target.caches else FIRST_CACHE_BYTES
        waits = INPUT_FETCH * inputs * (1 if touched <= first_cache * FIRST_CACHE_SLACK else passes / p.groups)
        if g.weight_bytes < FETCHED_BYTES:
            return waits
        _, rows, width = g.bodies[0]
        steps = g.taps * g.padded_run
        for run in g.columns:
            lines = run.size * steps * g.micro.lanes * FLOAT_BYTES / LINE_BYTES
            waits += p.groups * run.count * max(0.0, lines * FAR_LINE - steps * self.step_cycles(rows * width, run.size))
        return waits


# Two FMAs per cycle with a latency of four. Of two loads of 64 bytes a fifth is lost where both ports are always busy.
_PIPELINE = Pipeline(macs=2, loads=2, in_flight=8)
_WIDE_PIPELINE = Pipeline(macs=2, loads=1.6, in_flight=8)

CONV_F32_AVX512 = WideFmaGenerator(
    name="x86_conv_f32_avx512",
    arch="x86_64",
    features=("avx512",),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmaKernel(16),
    shapes=((14, 2), (28, 1), (8, 3), (6, 4)),
    pipeline=_WIDE_PIPELINE,
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
