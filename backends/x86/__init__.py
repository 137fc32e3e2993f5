"""Kernel generators for x86-64: AMX, AVX-512, AVX-VNNI, AVX2, and SSE2, which every core has."""

from __future__ import annotations

from bevel.backends.kernel import Generator
from bevel.backends.x86.conv_bits import CONV_BITS_AVX512
from bevel.backends.x86.conv_f32 import CONV_F32_AVX2, CONV_F32_AVX512, CONV_F32_SSE2
from bevel.backends.x86.conv_int8_amx import CONV_INT8_AMX
from bevel.backends.x86.conv_int8_madd import CONV_INT8_AVX2, CONV_INT8_AVX2_BYTES, CONV_INT8_SSE2
from bevel.backends.x86.conv_int8_maddubs import CONV_INT8_MADDUBS
from bevel.backends.x86.conv_int8_vnni import CONV_INT8_AVX_VNNI, CONV_INT8_VNNI
from bevel.backends.x86.conv_lookup import CONV_LOOKUP_AVX2, CONV_LOOKUP_VNNI
from bevel.backends.x86.conv_low_bit_maddubs import CONV_LOW_BIT_MADDUBS
from bevel.backends.x86.conv_products import CONV_PRODUCTS_AVX2, CONV_PRODUCTS_AVX512
from bevel.backends.x86.conv_table import CONV_TABLE_AVX2, CONV_TABLE_AVX512
from bevel.backends.x86.conv_unpack import CONV_UNPACK_AVX2, CONV_UNPACK_VNNI
from bevel.backends.x86.conv_unpack_groups import CONV_UNPACK_GROUPS_AVX2, CONV_UNPACK_GROUPS_VNNI
from bevel.backends.x86.depthwise import (
    DEPTHWISE_F32_AVX2,
    DEPTHWISE_F32_AVX512,
    DEPTHWISE_INT8_AVX2,
    DEPTHWISE_INT8_AVX_VNNI,
    DEPTHWISE_INT8_SSE2,
    DEPTHWISE_INT8_VNNI,
)
from bevel.backends.x86.matmul import (
    MATMUL_F32_AVX2,
    MATMUL_F32_AVX512,
    MATMUL_F32_SSE2,
    MATMUL_INT8_AVX2,
    MATMUL_INT8_AVX512,
    MATMUL_INT8_SSE2,
)
from bevel.backends.x86.winograd import WINOGRAD_AVX2, WINOGRAD_AVX512

# The best for a problem come first where several are legal.
GENERATORS: tuple[Generator, ...] = (
    WINOGRAD_AVX512,
    CONV_F32_AVX512,
    WINOGRAD_AVX2,
    CONV_F32_AVX2,
    CONV_F32_SSE2,
    CONV_BITS_AVX512,
    CONV_TABLE_AVX512,
    CONV_UNPACK_VNNI,
    CONV_LOOKUP_VNNI,
    CONV_UNPACK_GROUPS_VNNI,
    CONV_PRODUCTS_AVX512,
    CONV_INT8_AMX,
    CONV_INT8_VNNI,
    CONV_TABLE_AVX2,
    CONV_PRODUCTS_AVX2,
    CONV_UNPACK_AVX2,
    CONV_LOOKUP_AVX2,
    CONV_UNPACK_GROUPS_AVX2,
    CONV_INT8_AVX_VNNI,
    CONV_LOW_BIT_MADDUBS,
    CONV_INT8_MADDUBS,
    CONV_INT8_AVX2_BYTES,
    CONV_INT8_AVX2,
    CONV_INT8_SSE2,
    DEPTHWISE_F32_AVX512,
    DEPTHWISE_F32_AVX2,
    DEPTHWISE_INT8_VNNI,
    DEPTHWISE_INT8_AVX_VNNI,
    DEPTHWISE_INT8_AVX2,
    DEPTHWISE_INT8_SSE2,
    MATMUL_F32_AVX512,
    MATMUL_F32_AVX2,
    MATMUL_F32_SSE2,
    MATMUL_INT8_AVX512,
    MATMUL_INT8_AVX2,
    MATMUL_INT8_SSE2,
)
