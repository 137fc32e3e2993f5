"""Kernel generators for aarch64: what `GENERATORS` lists, lowering offers to the cost model, the statically best first."""

from __future__ import annotations

from bevel.backends.arm.conv_f32 import CONV_F32
from bevel.backends.arm.conv_int8_neon import CONV_INT8_NEON, CONV_INT8_NEON_WIDE
from bevel.backends.arm.conv_int8_sdot import CONV_INT8_SDOT
from bevel.backends.arm.conv_int8_short import CONV_INT8_SHORT
from bevel.backends.arm.depthwise import (
    DEPTHWISE_F32,
    DEPTHWISE_INT8_NEON,
    DEPTHWISE_INT8_NEON_WIDE,
    DEPTHWISE_INT8_SDOT,
)
from bevel.backends.kernel import Generator

GENERATORS: tuple[Generator, ...] = (
    CONV_INT8_SDOT,
    CONV_INT8_SHORT,
    CONV_INT8_NEON,
    CONV_INT8_NEON_WIDE,
    CONV_F32,
    DEPTHWISE_INT8_SDOT,
    DEPTHWISE_INT8_NEON,
    DEPTHWISE_INT8_NEON_WIDE,
    DEPTHWISE_F32,
)
