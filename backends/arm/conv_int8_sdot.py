"""Dense int8 convolution with SDOT: cores with the dot product extension (Cortex-A55, A75 and later).

One instruction multiplies four channels' groups of four weights by one group of four codes, chosen by element from a
vector that holds four groups: `sdot v.4s, w.16b, x.4b[i]`. Weights `[block][tap][K/4][channel][4]`.
"""

from __future__ import annotations

from bevel.backends.arm.dense import DenseGenerator
from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernel import ConvProblem
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target


class SdotKernel(NeonInteger):
    """Outer products of four codes of a pixel by four channels."""

    kgroup = 4

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Each 16-byte load serves four K-groups; the last may read past the run."""
        vectors = [k.load(x, offset + u * 4, 16) for u in range(0, groups, 4)]
        return [k.shuffle([vectors[u // 4]], [u % 4 * 4 + b for b in range(4)] * 4) for u in range(groups)]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """`sdot` by element: LLVM folds the broadcast of four bytes."""
        return k.call("int32x4", "llvm.aarch64.neon.sdot", acc, w, x)


class ConvInt8Sdot(DenseGenerator):
    """int8 convolution and GEMM, weights -128..127, exact."""

    name = "arm_conv_int8_sdot"
    # 16 to 20 accumulators, an input vector per pixel, a weight vector per four channels: at most 29 of 32 registers.
    shapes = ((8, 2), (4, 4), (6, 3), (5, 4), (2, 8), (1, 8))
    unroll = 4

    def micro(self, problem: ConvProblem) -> SdotKernel:
        """One micro-kernel for every problem."""
        return SdotKernel()

    def unsupported(self, problem: ConvProblem, target: Target) -> str | None:
        """Codes and the dot product extension."""
        if not target.has("dotprod"):
            return f"needs dotprod, {target.name} has {', '.join(sorted(target.features)) or 'no features'}"
        if problem.dtype != "int8" or problem.out_dtype not in ("int8", "int32"):
            return f"int8 to int8 or int32 only, the problem is {problem.dtype} to {problem.out_dtype}"
        return None
