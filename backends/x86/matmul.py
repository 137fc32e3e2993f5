"""Products of activations on x86-64: the multiply-adds of the dense convolutions.

Register tiles: AVX-512 has 32 registers, 12 x 2 is 24 accumulators, 2 vectors of b, broadcasts folded into the FMA; AVX2 and SSE2
have 16, 6 x 2 and 2 x 4 as the convolutions.
"""

from __future__ import annotations

from bevel.backends.kernels.matmul import FloatStep, MatMulGenerator
from bevel.backends.x86.conv_f32 import FmaKernel, MulAddKernel

_FLOAT = ("float32", "float32")

MATMUL_F32_AVX512 = MatMulGenerator(
    "x86_matmul_f32_avx512", "MatMul", "x86_64", ("avx512",), _FLOAT, FloatStep(FmaKernel(16)), 12, 2
)
MATMUL_F32_AVX2 = MatMulGenerator(
    "x86_matmul_f32_avx2", "MatMul", "x86_64", ("avx2", "fma"), _FLOAT, FloatStep(FmaKernel(8)), 6, 2
)
MATMUL_F32_SSE2 = MatMulGenerator("x86_matmul_f32_sse2", "MatMul", "x86_64", ("sse2",), _FLOAT, FloatStep(MulAddKernel(4)), 2, 4)
