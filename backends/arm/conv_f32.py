"""Dense float32 convolution with FMLA by element.

One 16-byte load holds four reduction elements of a pixel; `fmla v.4s, w.4s, x.s[i]` multiplies four channels by one of
them. Weights `[block][tap][K][channel]`. Reduction runs are read exactly: what lies behind them may be NaN.
"""

from __future__ import annotations

from bevel.backends.arm.dense import DenseGenerator
from bevel.backends.kernel import ConvProblem
from bevel.backends.kernels.conv import MicroKernel
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target


class FmlaKernel(MicroKernel):
    """Outer products of one element of a pixel by four channels."""

    lanes = 4
    copy_lanes = 4

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


class ConvF32(DenseGenerator):
    """float32 convolution and GEMM."""

    name = "arm_conv_f32"
    shapes = ((8, 2), (4, 4), (6, 3), (5, 4), (2, 8), (1, 8))
    unroll = 4

    def micro(self, problem: ConvProblem) -> FmlaKernel:
        """One micro-kernel for every problem."""
        return FmlaKernel()

    def unsupported(self, problem: ConvProblem, target: Target) -> str | None:
        """float32 throughout."""
        if problem.dtype != "float32" or problem.out_dtype != "float32":
            return f"float32 to float32 only, the problem is {problem.dtype} to {problem.out_dtype}"
        return None
