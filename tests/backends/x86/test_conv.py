"""Every x86 convolution generator against an exact reference: shapes, extremes, clamps, partitions, packing.

All kernels of an ISA are compiled into one object and run natively; results are compared with float64 sums and Python-integer
requantization, between guard bytes, and every kernel is called on two unequal parts of its parallel axis.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends import x86
from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Generator
from bevel.backends.kernels.matmul import MatMulGenerator
from bevel.backends.kernels.winograd_generator import WinogradGenerator
from bevel.ir.protocols import Target
from tests.backends.harness import (
    A72,
    X86_AMX,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_BASE,
    X86_VNNI,
    ConvCase,
    reference_conv,
    reference_sums,
    run_convs,
    skip_unless_runs,
)

# Products of activations and Winograd convolutions have tests of their own.
GENERATORS = [g for g in x86.GENERATORS if not isinstance(g, MatMulGenerator | WinogradGenerator)]

SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
# Generators whose epilogue is another's: one kind for each shape is enough.
SAME_EPILOGUE = {"x86_conv_int8_maddubs_avx2", "x86_conv_int8_bytes_avx2"}
# Each generator is tested on the least target that has its features.
TARGETS = {"sse2": X86_BASE, "avx2": X86_AVX2, "avx512": X86_AVX512, "vnni": X86_VNNI, "avxvnni": X86_AVX_VNNI, "amx": X86_AMX}


def conv(h: int, w: int, c: int, oc: int, k: int = 1, **fields: Any) -> ConvProblem:
    return ConvProblem(**({"batch": 1, "h": h, "w": w, "c": c, "oc": oc, "kh": k, "kw": k} | fields))


DENSE = {
    "resnet16": conv(9, 32, 16, 16, 3, **SAME),
    "resnet32": conv(16, 16, 32, 32, 3, **SAME),
    "resnet64": conv(8, 8, 64, 64, 3, **SAME),
    "resnet_down": conv(8, 10, 16, 32, 3, stride_h=2, stride_w=2, **SAME),
    "resnet_shortcut": conv(8, 8, 16, 32, 1, stride_h=2, stride_w=2),
    "rgb_stem": conv(7, 17, 3, 16, 3, **SAME),
    "keyword_stem": conv(25, 10, 1, 64, kh=10, kw=4, stride_h=2, stride_w=2, pad_top=4, pad_left=1, pad_bottom=5, pad_right=1),
    "pointwise": conv(25, 5, 64, 64, 1),
    "gemv": conv(1, 1, 64, 12),
    "gemv_ragged": conv(1, 1, 37, 10),
    "gemv_wide": conv(1, 1, 30, 203),
    "gemm": conv(1, 13, 40, 19),
    "ragged": conv(5, 11, 7, 13, 3, batch=2, **SAME),
    "dilated": conv(9, 9, 5, 6, 3, dilation_h=2, dilation_w=3, pad_top=2, pad_left=0, pad_bottom=1, pad_right=4),
    "tall_dilation": conv(12, 5, 6, 33, kh=3, kw=2, dilation_h=2, pad_right=1),
    "unpadded": conv(6, 9, 4, 17, kh=2, kw=3),
    "narrow": conv(5, 1, 9, 8, 3, **SAME),
    "tiny_map": conv(2, 2, 20, 40, 3, batch=3, **SAME),
    "cropped": conv(8, 8, 3, 5, 3, stride_h=3, stride_w=3),
    "wide_padding": conv(2, 2, 3, 4, 5, pad_top=4, pad_left=4, pad_bottom=4, pad_right=4),
    "many_blocks": conv(60, 60, 8, 4, 3, **SAME),
    # Widths whose short rows share a band of AMX tiles, or do not; reductions of one, two and three steps.
    "square7": conv(7, 7, 48, 40, 3, **SAME),
    "square10": conv(10, 10, 32, 24, 3, **SAME),
    "strided14": conv(14, 14, 80, 33, 3, stride_h=2, stride_w=2, **SAME),
    "deep": conv(1, 49, 200, 70),
    "one_tall_block": conv(3, 40, 33, 4, 3, dilation_h=1, pad_left=2),
}
DEPTHWISE = {
    "keyword": conv(25, 5, 64, 64, 3, groups=64, **SAME),
    "mobile_down": conv(9, 11, 96, 96, 3, groups=96, stride_h=2, stride_w=2, pad_bottom=1, pad_right=1),
    "ragged": conv(7, 6, 70, 70, 3, batch=2, groups=70, **SAME),
    "few": conv(6, 7, 3, 3, 3, groups=3, **SAME),
    "unpadded": conv(8, 9, 40, 40, 3, groups=40),
    "five": conv(9, 8, 24, 24, 5, groups=24, pad_top=2, pad_left=2, pad_bottom=2, pad_right=2),
    "seven": conv(9, 10, 17, 17, 7, groups=17, pad_left=3),
    "dilated": conv(12, 11, 7, 7, kh=5, kw=4, groups=7, dilation_h=2, dilation_w=2, pad_top=3, pad_left=1),
    "row": conv(5, 9, 100, 100, kh=1, kw=3, groups=100, pad_left=2),
    "column": conv(9, 5, 33, 33, kh=4, kw=1, groups=33, stride_h=2),
    "point": conv(3, 4, 16, 16, 1, groups=16),
    "many_blocks": conv(50, 40, 48, 48, 3, groups=48, **SAME),
    # Blocks of three widths, the last of which overlaps; borders wider than the image; taps far apart.
    "tails": conv(5, 7, 119, 119, 3, groups=119, **SAME),
    "wide_padding": conv(2, 2, 20, 20, 5, groups=20, pad_top=4, pad_left=4, pad_bottom=4, pad_right=4),
    "far": conv(4, 40, 9, 9, 3, groups=9, dilation_h=3, dilation_w=12, pad_top=3, pad_left=12, pad_bottom=3, pad_right=12),
}
PROBLEMS = {f"dense_{name}": p for name, p in DENSE.items()} | {f"depthwise_{name}": p for name, p in DEPTHWISE.items()}


def target_of(generator: Generator) -> Target:
    return TARGETS[generator.name.rsplit("_", 1)[1]]


def floats(p: ConvProblem, rng: np.random.Generator) -> tuple[Array, ConvConstants]:
    x = rng.standard_normal((p.batch, p.h, p.w, p.c)).astype(np.float32)
    weights = rng.standard_normal((p.oc, p.c // p.groups, p.kh, p.kw)).astype(np.float32)
    return x, ConvConstants(weights, rng.standard_normal(p.oc).astype(np.float32), lo=-0.75, hi=1.5)


def codes(p: ConvProblem, rng: np.random.Generator) -> tuple[Array, ConvConstants]:
    x = rng.integers(0, 256, (p.batch, p.h, p.w, p.c)).astype(np.uint8)
    weights = rng.integers(-128, 128, (p.oc, p.c // p.groups, p.kh, p.kw)).astype(np.int8)
    # Shifts that spread results over about two code ranges, with a few far outside and one dead channel.
    spread = np.sqrt(p.c // p.groups * p.kh * p.kw) * 75 * 74
    shift = rng.integers(29, 32, p.oc) + int(np.log2(spread / 100))
    shift[:: max(1, p.oc // 3)] = rng.integers(1, 63)
    multiplier = rng.integers(1 << 30, 1 << 31, p.oc)
    if p.short_factors:
        shift = np.clip(shift, 32, 51)
        multiplier &= -np.left_shift(1, shift - 31)
    multiplier[p.oc // 2] = 0
    bias = rng.integers(-5000, 5000, p.oc).astype(np.int32)
    zero = int(rng.integers(0, 256))
    lo, hi = (60, 190) if p.clamp else (0, 255)
    return x, ConvConstants(weights, bias, multiplier, shift, zero, int(rng.integers(0, 256)), lo, hi)


def variants(p: ConvProblem) -> list[ConvProblem]:
    """Every kind of epilogue in turn."""
    return [
        replace(p, relu=True),
        replace(p, clamp=True),
        replace(p, dtype="uint8", out_dtype="uint8"),
        replace(p, dtype="uint8", out_dtype="uint8", clamp=True),
        replace(p, dtype="uint8", out_dtype="uint8", short_factors=True),
        replace(p, dtype="uint8", out_dtype="uint8", short_factors=True, clamp=True),
        replace(p, dtype="uint8", out_dtype="int32"),
    ]


def check(cases: list[ConvCase], target: Target, folder: Path) -> None:
    """Compare every case with the reference; name all that differ."""
    wrong = []
    for case, got in zip(cases, run_convs(cases, target, folder), strict=True):
        expected = reference_conv(case.problem, case.x, case.constants)
        if case.problem.dtype == "float32":
            # Rounding follows the sums, which a clamp may hide.
            scale = np.abs(reference_sums(case.problem, case.x, case.constants)).max()
            ok = np.abs(got - expected).max() <= 1e-5 * max(1.0, scale)
        else:
            ok = np.array_equal(got, expected)
        if not ok:
            wrong.append(f"{case.generator.name} {dict(case.tile)} {case.problem}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("isa", TARGETS)
def test_shapes_and_epilogues(isa: str, tmp_path: Path) -> None:
    """Best tile of every generator on every shape, epilogues in turn so that each meets many shapes."""
    target = TARGETS[isa]
    skip_unless_runs(target)
    rng = np.random.default_rng(20)
    cases = []
    for generator in (g for g in GENERATORS if target_of(g) is target):
        for index, base in enumerate(PROBLEMS.values()):
            legal = [p for p in variants(base) if generator.legal(p, target) is None]
            every = max(1, len(legal)) if generator.name in SAME_EPILOGUE else 2
            chosen = legal[index % every :: every] or legal
            cases += [ConvCase(generator, p, generator.tiles(p, target)[0], *data(p, rng)) for p in chosen]
    assert cases
    check(cases, target, tmp_path)


def data(p: ConvProblem, rng: np.random.Generator) -> tuple[Array, ConvConstants]:
    return floats(p, rng) if p.dtype == "float32" else codes(p, rng)


@pytest.mark.parametrize("isa", TARGETS)
def test_every_tile(isa: str, tmp_path: Path) -> None:
    """All tiles of every generator on shapes whose tiles are uneven in every axis."""
    target = TARGETS[isa]
    skip_unless_runs(target)
    rng = np.random.default_rng(21)
    cases = []
    for generator in (g for g in GENERATORS if target_of(g) is target):
        for base in (conv(7, 31, 5, 72, 3, **SAME), conv(1, 45, 24, 40), conv(6, 13, 20, 20, 3, groups=20, **SAME)):
            for p in variants(base)[:3:2]:
                if generator.legal(p, target) is None:
                    cases += [ConvCase(generator, p, t, *data(p, rng)) for t in generator.tiles(p, target)[1:]]
    assert cases
    check(cases, target, tmp_path)


@pytest.mark.parametrize("isa", ["sse2", "avx2", "vnni", "avxvnni", "amx"])
def test_requantization_is_exact_at_the_extremes(isa: str, tmp_path: Path) -> None:
    """Sums at both ends of int32, ties, every kind of shift, zero and largest multipliers, all zero points and clamps."""
    target = TARGETS[isa]
    skip_unless_runs(target)
    low, high = -(2**31), 2**31 - 1
    shifts = [1, 2, 20, 21, 22, 29, 30, 31, 32, 33, 34, 40, 53, 54, 55, 61, 62]
    multipliers = [0, 1 << 30, (1 << 30) + 1, 3 << 29, high]
    # x - zero point spans [-37, 218] for weight 1: biases keep every sum in int32.
    biases = [low + 37, low + 38, -(1 << 20), -32900, -219, -1, 0, 1, 37, 12345, 32650, 1 << 24, high - 219, high - 218]
    every = np.array([(m, n, b) for m in multipliers for n in shifts for b in biases], np.int64)
    # Factors of 2^-31: from 1 to the largest below 2^30, as normalized multipliers.
    short = [(0, 1), (1 << 30, 61), (3 << 29, 60), (1 << 30, 40), (5 << 28, 33), (1 << 30, 32), ((1 << 31) - 2, 32)]
    few = np.array([(m, n, b) for m, n in short for b in biases], np.int64)
    x = np.arange(256, dtype=np.uint8)
    cases = []
    grids = [(grid, g) for grid in (every, few) for g in GENERATORS if target_of(g) is target]
    for grid, generator in grids:
        channels = len(grid)
        for p, weights in (
            (conv(1, 256, 1, channels), np.ones((channels, 1, 1, 1), np.int8)),
            (conv(1, 256, channels, channels, groups=channels), np.ones((channels, 1, 1, 1), np.int8)),
        ):
            for clamp, zero, lo, hi in ((False, 0, 0, 255), (False, 255, 0, 255), (True, 128, 128, 129), (True, 3, 5, 250)):
                q = replace(p, dtype="uint8", out_dtype="uint8", clamp=clamp, short_factors=grid is few)
                if generator.legal(q, target) is not None:
                    continue
                constants = ConvConstants(weights, grid[:, 2].astype(np.int32), grid[:, 0], grid[:, 1], 37, zero, lo, hi)
                values = np.ascontiguousarray(np.broadcast_to(x[None, None, :, None], (1, 1, 256, p.c)))
                cases.append(ConvCase(generator, q, generator.tiles(q, target)[0], values, constants))
    assert cases
    check(cases, target, tmp_path)


@pytest.mark.parametrize("isa", ["sse2", "avx2", "vnni", "avxvnni", "amx"])
def test_sums_are_exact_for_extreme_codes(isa: str, tmp_path: Path) -> None:
    """Largest and smallest codes and weights, including -128, which saturate any 16-bit intermediate sum."""
    target = TARGETS[isa]
    skip_unless_runs(target)
    cases = []
    for generator in (g for g in GENERATORS if target_of(g) is target):
        for base in (conv(4, 5, 130, 20, 3, **SAME), conv(5, 6, 20, 20, 3, groups=20, **SAME)):
            p = replace(base, dtype="uint8", out_dtype="int32")
            if generator.legal(p, target) is not None:
                continue
            for weight in (-128, 127):
                for code, zero in ((255, 0), (0, 255), (255, 255)):
                    x = np.full((1, p.h, p.w, p.c), code, np.uint8)
                    weights = np.full((p.oc, p.c // p.groups, 3, 3), weight, np.int8)
                    bias = np.full(p.oc, 1 << 30, np.int32)
                    constants = ConvConstants(weights, bias, x_zero_point=zero)
                    cases.append(ConvCase(generator, p, generator.tiles(p, target)[0], x, constants))
    assert cases
    check(cases, target, tmp_path)


def test_unpack_inverts_pack() -> None:
    """Logical weights and bias come back from every layout."""
    rng = np.random.default_rng(22)
    for generator in GENERATORS:
        for base in PROBLEMS.values():
            for p in variants(base):
                target = target_of(generator)
                if generator.legal(p, target) is not None:
                    continue
                constants = data(p, rng)[1]
                tile = generator.tiles(p, target)[0]
                packed = generator.pack(p, tile, target, constants)
                weights, bias = generator.unpack(p, tile, packed)  # type: ignore[attr-defined]
                assert np.array_equal(weights, constants.weights), f"{generator.name} {p}"
                assert np.array_equal(bias, constants.bias), f"{generator.name} {p}"


def test_illegal_problems_say_why() -> None:
    """Other CPUs, element types and group counts are refused with the reason."""
    p = DENSE["resnet16"]
    for generator in GENERATORS:
        for problem in variants(p) + variants(DEPTHWISE["few"]):
            if target_of(generator) is not X86_BASE:
                assert "test-x86" in (generator.legal(problem, X86_BASE) or "")
            assert "test-a72" in (generator.legal(problem, A72) or "")
        # Groups of four channels are too few for dense kernels, and more than depthwise ones take.
        grouped = generator.legal(replace(p, groups=p.c // 4), target_of(generator))
        assert grouped is not None
        assert generator.legal(replace(p, dtype="int8", out_dtype="int8"), target_of(generator)) is not None


def random_problem(rng: np.random.Generator, depthwise: bool) -> ConvProblem:
    """Any legal combination of small sizes, strides, dilations and uneven padding."""
    while True:
        kh, kw, stride_h, stride_w, dilation_h, dilation_w = (int(v) for v in rng.integers(1, [6, 6, 4, 4, 3, 4]))
        pads = dict(zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), rng.integers(0, 4, 4).tolist(), strict=True))
        channels, oc = (int(v) for v in rng.integers(1, [50, 70]))
        if rng.random() < 0.3:
            kh = kw = stride_h = stride_w = 1
            pads = {}
        if depthwise:
            channels = oc = max(2, oc)
        p = conv(
            int(rng.integers(1, 15)),
            int(rng.integers(1, 40)),
            channels,
            oc,
            batch=int(rng.integers(1, 4)),
            kh=kh,
            kw=kw,
            stride_h=stride_h,
            stride_w=stride_w,
            dilation_h=dilation_h,
            dilation_w=dilation_w,
            groups=oc if depthwise else 1,
            **pads,
        )
        if p.oh >= 1 and p.ow >= 1:
            return p


@pytest.mark.slow
@pytest.mark.parametrize("isa", TARGETS)
def test_random_problems(isa: str, tmp_path: Path) -> None:
    """A seeded random walk over everything a problem can say."""
    target = TARGETS[isa]
    skip_unless_runs(target)
    rng = np.random.default_rng(23)
    cases = []
    for generator in (g for g in GENERATORS if target_of(g) is target):
        for _ in range(60):
            base = random_problem(rng, "depthwise" in generator.name)
            legal = [p for p in variants(base) if generator.legal(p, target) is None]
            if not legal:
                continue  # Kernels for few bits have tests of their own.
            p = legal[int(rng.integers(len(legal)))]
            tiles = generator.tiles(p, target)
            cases.append(ConvCase(generator, p, tiles[int(rng.integers(len(tiles)))], *data(p, rng)))
    check(cases, target, tmp_path)
