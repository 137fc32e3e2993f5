"""Kernel generators for ARM by architecture: what lowering offers to the cost model, the statically best first."""

from __future__ import annotations

from collections.abc import Mapping

from bevel.backends.arm.conv_bits import ARMV7_CONV_BITS, CONV_BITS
from bevel.backends.arm.conv_f16 import CONV_F16
from bevel.backends.arm.conv_f32 import ARMV7_CONV_F32, CONV_F32
from bevel.backends.arm.conv_int8_mmla import CONV_INT8_MMLA
from bevel.backends.arm.conv_int8_neon import ARMV7_CONV_INT8, ARMV7_CONV_INT8_WIDE, CONV_INT8_NEON, CONV_INT8_NEON_WIDE
from bevel.backends.arm.conv_int8_sdot import CONV_INT8_SDOT
from bevel.backends.arm.conv_int8_short import ARMV7_CONV_INT8_SHORT, CONV_INT8_SHORT
from bevel.backends.arm.conv_table import CONV_TABLE
from bevel.backends.arm.conv_unpack import (
    CONV_LOOKUP_NEON,
    CONV_LOOKUP_SDOT,
    CONV_UNPACK_GROUPS_SDOT,
    CONV_UNPACK_NEON,
    CONV_UNPACK_SDOT,
)
from bevel.backends.arm.depthwise import (
    ARMV7_DEPTHWISE_F32,
    ARMV7_DEPTHWISE_INT8,
    ARMV7_DEPTHWISE_INT8_WIDE,
    DEPTHWISE_F16,
    DEPTHWISE_F32,
    DEPTHWISE_INT8_NEON,
    DEPTHWISE_INT8_NEON_WIDE,
    DEPTHWISE_INT8_SDOT,
)
from bevel.backends.arm.matmul import ARMV7_MATMUL_F32, ARMV7_MATMUL_INT8, MATMUL_F32, MATMUL_INT8
from bevel.backends.arm.winograd import ARMV7_WINOGRAD, WINOGRAD
from bevel.backends.kernel import Generator

GENERATORS: Mapping[str, tuple[Generator, ...]] = {
    "aarch64": (
        CONV_TABLE,
        CONV_BITS,
        CONV_UNPACK_SDOT,
        CONV_LOOKUP_SDOT,
        CONV_UNPACK_GROUPS_SDOT,
        CONV_UNPACK_NEON,
        CONV_LOOKUP_NEON,
        CONV_INT8_MMLA,
        CONV_INT8_SDOT,
        CONV_INT8_SHORT,
        CONV_INT8_NEON,
        CONV_INT8_NEON_WIDE,
        CONV_F16,
        WINOGRAD,
        CONV_F32,
        DEPTHWISE_INT8_SDOT,
        DEPTHWISE_INT8_NEON,
        DEPTHWISE_INT8_NEON_WIDE,
        DEPTHWISE_F16,
        DEPTHWISE_F32,
        MATMUL_F32,
        MATMUL_INT8,
    ),
    "armv7": (
        ARMV7_CONV_BITS,
        ARMV7_CONV_INT8_SHORT,
        ARMV7_CONV_INT8,
        ARMV7_CONV_INT8_WIDE,
        ARMV7_WINOGRAD,
        ARMV7_CONV_F32,
        ARMV7_DEPTHWISE_INT8,
        ARMV7_DEPTHWISE_INT8_WIDE,
        ARMV7_DEPTHWISE_F32,
        ARMV7_MATMUL_F32,
        ARMV7_MATMUL_INT8,
    ),
}
