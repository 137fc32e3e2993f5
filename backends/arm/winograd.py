"""Winograd convolutions of float32 on AArch64 and ARMv7, in the register tiles of the direct kernels."""

from __future__ import annotations

from bevel.backends.arm.conv_f32 import ARMV7_CONV_F32, CONV_F32
from bevel.backends.kernels.winograd_generator import WinogradGenerator

# A Cortex-A72 at 1.5 GHz with 4.3 GB/s from memory.
WINOGRAD = WinogradGenerator("arm_winograd_f32", CONV_F32, far=0.35)
# A Cortex-A7 at 0.9 GHz with 1.2 GB/s from memory.
ARMV7_WINOGRAD = WinogradGenerator("armv7_winograd_f32", ARMV7_CONV_F32, far=0.75)
