"""Products of activations on ARM: the multiply-adds of the dense convolutions, and their register tiles."""

from __future__ import annotations

from bevel.backends.arm.conv_f32 import FmlaKernel
from bevel.backends.generic.product import IntStep
from bevel.backends.kernels.matmul import FloatStep, MatMulGenerator

_FLOAT = ("float32", "float32")

MATMUL_F32 = MatMulGenerator("arm_matmul_f32", "MatMul", "aarch64", ("neon",), _FLOAT, FloatStep(FmlaKernel()), 6, 3)
ARMV7_MATMUL_F32 = MatMulGenerator(
    "armv7_matmul_f32", "MatMul", "armv7", ("neon", "vfpv4"), _FLOAT, FloatStep(FmlaKernel()), 2, 4
)
# smlal multiplies four 16-bit differences by one of a register and adds into 32 bits.
_CODES = ("int8", "int8")
MATMUL_INT8 = MatMulGenerator("arm_matmul_int8", "IntMatMul", "aarch64", ("neon",), _CODES, IntStep(4), 4, 4)
ARMV7_MATMUL_INT8 = MatMulGenerator("armv7_matmul_int8", "IntMatMul", "armv7", ("neon",), _CODES, IntStep(4), 2, 4, 2)
