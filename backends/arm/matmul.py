"""Products of activations on ARM: the multiply-adds of the dense convolutions, and their register tiles."""

from __future__ import annotations

from bevel.backends.arm.conv_f32 import FmlaKernel
from bevel.backends.kernels.matmul import FloatStep, MatMulGenerator

_FLOAT = ("float32", "float32")

MATMUL_F32 = MatMulGenerator("arm_matmul_f32", "MatMul", "aarch64", ("neon",), _FLOAT, FloatStep(FmlaKernel()), 6, 3)
ARMV7_MATMUL_F32 = MatMulGenerator(
    "armv7_matmul_f32", "MatMul", "armv7", ("neon", "vfpv4"), _FLOAT, FloatStep(FmlaKernel()), 2, 4
)
