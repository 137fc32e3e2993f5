"""Products of activations on x86-64: the multiply-adds of the dense convolutions.

Register tiles: AVX-512 has 32 registers, 12 x 2 is 24 accumulators, 2 vectors of b, broadcasts folded into the FMA; AVX2 and SSE2
have 16, 6 x 2 and 2 x 4 as the convolutions.
"""

from __future__ import annotations

from bevel.backends.generic.product import IntStep, Operand
from bevel.backends.kernels.matmul import FloatStep, MatMulGenerator
from bevel.backends.tvm import Builder, Expr
from bevel.backends.x86.conv_f32 import FmaKernel, MulAddKernel

_FLOAT = ("float32", "float32")

MATMUL_F32_AVX512 = MatMulGenerator(
    "x86_matmul_f32_avx512", "MatMul", "x86_64", ("avx512",), _FLOAT, FloatStep(FmaKernel(16)), 12, 2
)
MATMUL_F32_AVX2 = MatMulGenerator(
    "x86_matmul_f32_avx2", "MatMul", "x86_64", ("avx2", "fma"), _FLOAT, FloatStep(FmaKernel(8)), 6, 2
)
MATMUL_F32_SSE2 = MatMulGenerator("x86_matmul_f32_sse2", "MatMul", "x86_64", ("sse2",), _FLOAT, FloatStep(MulAddKernel(4)), 2, 4)


class MaddStep(IntStep):
    """pmaddwd: two products of 16-bit differences per lane, summed exactly."""

    kgroup = 2

    def broadcasts(self, k: Builder, a: Operand, row: Expr, place: Expr, groups: int) -> list[Expr]:
        """Pairs of elements."""
        start = a.base + row * a.row + place
        pairs = [k.bitcast(k.load(a.buffer, start + u * 2, 2), "int32") for u in range(groups)]
        return [k.bitcast(k.splat(pair, self.lanes), "int16", self.lanes * 2) for pair in pairs]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Sums of at most 2^31: see docs/numerics.md."""
        return acc + k.call(f"int32x{self.lanes}", _MADD[self.lanes], x, w)


_MADD = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}
_CODES = ("uint8", "uint8")

MATMUL_INT8_AVX512 = MatMulGenerator("x86_matmul_int8_avx512", "IntMatMul", "x86_64", ("avx512",), _CODES, MaddStep(16), 6, 2, 2)
MATMUL_INT8_AVX2 = MatMulGenerator("x86_matmul_int8_avx2", "IntMatMul", "x86_64", ("avx2",), _CODES, MaddStep(8), 4, 2, 2)
MATMUL_INT8_SSE2 = MatMulGenerator("x86_matmul_int8_sse2", "IntMatMul", "x86_64", ("sse2",), _CODES, MaddStep(4), 2, 4, 1)
