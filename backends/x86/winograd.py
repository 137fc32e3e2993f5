"""Winograd convolutions of float32 on x86: AVX-512 and AVX2, in the register tiles of the direct kernels.

AVX2 has too few registers for the transform of a patch of products: the results of its first half go through the stack.
"""

from __future__ import annotations

from bevel.backends.kernels.winograd_generator import WinogradGenerator
from bevel.backends.x86.conv_f32 import CONV_F32_AVX2, CONV_F32_AVX512

# Sapphire Rapids in a shared server: weights of ResNet-18 arrive at 8 to 12 GB/s from beyond the second cache.
FAR = 0.35

WINOGRAD_AVX512 = WinogradGenerator("x86_winograd_avx512", CONV_F32_AVX512, FAR)
WINOGRAD_AVX2 = WinogradGenerator("x86_winograd_avx2", CONV_F32_AVX2, FAR)
