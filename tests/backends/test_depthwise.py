"""How depthwise layers are cut up: which taps of a float tile are in the border, which blocks of channels there are, which tiles.

The kernels' values are tested per architecture (test_conv.py of x86 and arm).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bevel.backends.kernel import ConvConstants, ConvProblem
from bevel.backends.kernels import depthwise
from bevel.backends.kernels.depthwise import DepthwiseGenerator, parts
from bevel.backends.kernels.depthwise_direct import STRIP, DirectDepthwiseGenerator, tile_columns
from bevel.backends.select import candidates, generators
from bevel.backends.x86.depthwise import DEPTHWISE_F32_AVX512, DEPTHWISE_INT8_AVX2, DEPTHWISE_INT8_VNNI
from bevel.ir.protocols import Cache, Target
from tests.backends.harness import A72, X86_AVX512, X86_VNNI

SAME: dict[str, Any] = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
WIDE = ConvProblem(1, 56, 56, 144, 144, 3, 3, groups=144, **SAME)
DEEP = ConvProblem(1, 14, 14, 672, 672, 5, 5, pad_top=2, pad_left=2, pad_bottom=2, pad_right=2, groups=672)


@pytest.mark.parametrize("seed", range(40))
def test_tiles_cover_a_row_and_know_their_border(seed: int) -> None:
    """Every output column belongs to one tile, whose taps are those that read an input column."""
    rng = np.random.default_rng(seed)
    w, kw, stride, dilation, left, right = (int(v) for v in rng.integers([1, 1, 1, 1, 0, 0], [70, 8, 4, 14, 20, 20]))
    p = ConvProblem(1, 1, w, 8, 8, 1, kw, stride_w=stride, dilation_w=dilation, pad_left=left, pad_right=right, groups=8)
    if p.ow < 1:
        p = replace(p, pad_right=right + dilation * kw)
    found = [
        inside
        for columns in tile_columns(p, int(rng.integers(1, 15)))
        for _ in range(columns.count)
        for inside in columns.taps
        if len(columns.taps) == columns.size
    ]
    expected = [tuple(tap for tap in range(kw) if 0 <= column * stride + tap * dilation - left < w) for column in range(p.ow)]
    assert found == expected


@pytest.mark.parametrize("channels", [2, 8, 16, 24, 48, 64, 70, 96, 119, 144, 240, 672, 1000])
def test_parts_cover_the_channels(channels: int) -> None:
    """Blocks hold every channel, narrower ones what does not fill the widest, and only one block overlaps the one before."""
    problem = ConvProblem(1, 4, 4, channels, channels, 3, 3, groups=channels, dtype="uint8", out_dtype="uint8", **SAME)
    for generator in (DEPTHWISE_INT8_VNNI, DEPTHWISE_INT8_AVX2, DEPTHWISE_F32_AVX512):
        micro = generator.micro
        cut = parts(problem, micro)
        order = np.concatenate([part.order for part in cut])
        narrowest = micro.widths[-1]
        assert set(order[order < channels].tolist()) == set(range(channels))
        assert len(order) == cut[0].total == cut[-1].before + cut[-1].blocks * cut[-1].width
        repeated = len(order) - channels
        assert repeated < (narrowest if micro.tails else cut[0].width)
        assert len(cut) == 1 or [part.width for part in cut] == sorted({part.width for part in cut}, reverse=True)


def test_packed_parts_unpack() -> None:
    """Weights and bias come back from blocks of three widths, the last of which overlaps."""
    rng = np.random.default_rng(1)
    p = ConvProblem(1, 4, 4, 119, 119, 3, 3, groups=119, dtype="uint8", out_dtype="int32", **SAME)
    weights = rng.integers(-128, 128, (119, 1, 3, 3)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 119).astype(np.int32)
    cut = parts(p, DEPTHWISE_INT8_VNNI.micro)
    assert [(part.width, part.blocks) for part in cut] == [(64, 1), (32, 1), (16, 2)]
    found = depthwise.unpack(cut, depthwise.pack(cut, ConvConstants(weights, bias, x_zero_point=7)))
    np.testing.assert_array_equal(found[0], weights)
    np.testing.assert_array_equal(found[1], bias)


@pytest.mark.parametrize("target", [X86_VNNI, A72], ids=lambda t: t.name)
def test_the_tuner_sees_all_tiles_in_order(target: Target) -> None:
    """Candidates hold every tile of a depthwise generator, with estimates, before the derived kernels that have none."""
    dtypes = ("float32", target.activation_dtype)
    for problem in (replace(p, dtype=dtype, out_dtype=dtype) for p in (WIDE, DEEP) for dtype in dtypes):
        legal = [g for g in generators(target.arch) if isinstance(g, DepthwiseGenerator) and g.legal(problem, target) is None]
        found = candidates(problem, target)
        for generator in legal:
            tiles = generator.tiles(problem, target)
            assert len(tiles) > 1
            assert all(np.isfinite(generator.cycles(problem, target, tile)) for tile in tiles)
            assert [dict(tile) for tile in tiles if not any(c.generator is generator and c.tile == tile for c in found)] == []
        assert found[0].generator is legal[0]
        kinds = [isinstance(choice.generator, DepthwiseGenerator) for choice in found]
        assert kinds == sorted(kinds, reverse=True)


def test_strips_are_as_wide_as_caches_hold() -> None:
    """Channel blocks stay together where rows of a few of them stay in the first cache; else rows are read whole."""
    assert isinstance(DEPTHWISE_F32_AVX512, DirectDepthwiseGenerator)
    target = replace(X86_AVX512, caches=(Cache(1, 48 << 10), Cache(2, 2 << 20)))
    assert DEPTHWISE_F32_AVX512.tiles(DEEP, target)[0]["strip"] == STRIP
    assert DEPTHWISE_F32_AVX512.tiles(WIDE, target)[0]["strip"] == parts(WIDE, DEPTHWISE_F32_AVX512.micro)[0].blocks
