"""Kernel generators for aarch64: what `GENERATORS` lists, lowering offers to the cost model."""

from __future__ import annotations

from bevel.backends.arm.conv_f32 import ConvF32
from bevel.backends.arm.conv_int8_neon import ConvInt8Neon
from bevel.backends.arm.conv_int8_sdot import ConvInt8Sdot
from bevel.backends.kernel import Generator

GENERATORS: tuple[Generator, ...] = (ConvInt8Sdot(), ConvInt8Neon(), ConvF32())
