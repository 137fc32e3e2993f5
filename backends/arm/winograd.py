"""Winograd convolutions of float32 on AArch64, in the register tiles of the direct kernels."""

from __future__ import annotations

from bevel.backends.arm.conv_f32 import CONV_F32
from bevel.backends.kernels.winograd_generator import WinogradGenerator

# A Cortex-A72 at 1.5 GHz with 4.3 GB/s from memory.
WINOGRAD = WinogradGenerator("arm_winograd_f32", CONV_F32, far=0.35)
