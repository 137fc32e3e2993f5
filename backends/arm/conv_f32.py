"""Dense float32 convolution with FMLA by element (AArch64), or by a broadcast element (ARMv7, which has no such form).

One 16-byte load holds four reduction elements of a pixel; `fmla v.4s, w.4s, x.s[i]` multiplies four channels by one of
them. Weights `[block][tap][K][channel]`. Reduction runs are read exactly: what lies behind them may be NaN.
"""

from __future__ import annotations

from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import MicroKernel
from bevel.backends.tvm import Buffer, Builder, Expr


class FmlaKernel(MicroKernel):
    """Outer products of one element of a pixel by four channels."""

    lanes = 4
    copy_lanes = 4
    nan_wins = True

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts out of vectors of four, then two, then one."""
        columns: list[Expr] = []
        while len(columns) < groups:
            done = len(columns)
            width = next(n for n in (4, 2, 1) if n <= groups - done)
            vector = k.load(x, offset + done, width)
            # Two operands, because TVM cannot shuffle a vector into a longer one.
            columns += [k.splat(vector, 4) if width == 1 else k.shuffle([vector, vector], [u] * 4) for u in range(width)]
        return columns

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """`fmla` by element: LLVM folds the broadcast."""
        return k.fma(x, w, acc, 4)


# A Cortex-A72: one fmla per cycle, latency seven. Registers as in the sdot kernel.
# Eight elements of the reduction per iteration, so the loop itself is 5 instructions to 160 fmla: 3 % of EfficientNet-Lite0 less.
CONV_F32 = ConvGenerator(
    name="arm_conv_f32",
    arch="aarch64",
    features=("neon",),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmlaKernel(),
    shapes=((8, 2), (4, 4), (6, 3), (5, 4), (2, 8), (1, 8)),
    pipeline=Pipeline(macs=1, loads=1, in_flight=7, unroll=8),
)
# A Cortex-A7: four lanes take four cycles. Eight accumulators, four weight vectors, two of pixels, a broadcast: 15 registers.
ARMV7_CONV_F32 = ConvGenerator(
    name="armv7_conv_f32",
    arch="armv7",
    features=("neon", "vfpv4"),
    dtype="float32",
    out_dtypes=("float32",),
    micro=FmlaKernel(),
    shapes=((2, 4), (3, 2), (1, 4)),
    pipeline=Pipeline(macs=1 / 4, loads=1 / 2, in_flight=2),
)
