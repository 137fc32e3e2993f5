"""Dense int8 convolution with SDOT: cores with the dot product extension (Cortex-A55, A75 and later).

One instruction multiplies four channels' groups of four weights by one group of four codes, chosen by element from a
vector that holds four groups: `sdot v.4s, w.16b, x.4b[i]`. Weights `[block][tap][K/4][channel][4]`.
"""

from __future__ import annotations

from bevel.backends.arm.requantize import NeonInteger
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.tvm import Buffer, Builder, Expr


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


# A Cortex-A76: two sdot per cycle with a latency of four. At most 20 accumulators, an input vector per pixel and a weight
# vector per four channels: 29 of 32 registers.
CONV_INT8_SDOT = ConvGenerator(
    name="arm_conv_int8_sdot",
    arch="aarch64",
    features=("neon", "dotprod"),
    dtype="int8",
    out_dtypes=("int8", "int32"),
    micro=SdotKernel(),
    shapes=((8, 2), (4, 4), (6, 3), (5, 4), (2, 8), (1, 8)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=8),
)
