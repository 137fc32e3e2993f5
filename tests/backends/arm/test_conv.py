"""Every ARM convolution generator against the exact reference, executed under qemu: shapes, extremes, partitions.

All kernels of a CPU are linked into one executable, which qemu runs as that CPU: an instruction it lacks traps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends import arm
from bevel.backends.kernel import Array, ConvConstants, ConvProblem
from bevel.backends.kernels.matmul import MatMulGenerator
from bevel.backends.kernels.winograd_generator import WinogradGenerator
from bevel.ir.protocols import Target
from tests.backends.harness import A7, A53, A72, A76, X3, X86_AVX2, ConvCase, reference_conv, run_convs, skip_unless_runs

# Products of activations and Winograd convolutions have tests of their own.
GENERATORS = [
    g for generators in arm.GENERATORS.values() for g in generators if not isinstance(g, MatMulGenerator | WinogradGenerator)
]
SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}


def conv(h: int, w: int, c: int, oc: int, k: int = 1, **fields: Any) -> ConvProblem:
    return ConvProblem(**({"batch": 1, "h": h, "w": w, "c": c, "oc": oc, "kh": k, "kw": k} | fields))


# Dense problems: what CIFAR ResNets and DS-CNN run, then what is ragged, strided, dilated, padded unevenly or tiny.
DENSE = {
    "resnet16": conv(8, 32, 16, 16, 3, **SAME),
    "resnet64": conv(8, 8, 64, 64, 3, **SAME),
    "resnet_down": conv(8, 8, 16, 32, 3, stride_h=2, stride_w=2, **SAME),
    "resnet_shortcut": conv(8, 8, 16, 32, 1, stride_h=2, stride_w=2),
    "rgb_stem": conv(7, 9, 3, 16, 3, **SAME),
    "keyword_stem": conv(25, 10, 1, 64, kh=10, kw=4, stride_h=2, stride_w=2, pad_top=4, pad_left=1, pad_bottom=5, pad_right=1),
    "pointwise": conv(25, 5, 64, 64, 1),
    "gemv": conv(1, 1, 64, 12),
    "gemv_ragged": conv(1, 1, 37, 10),
    "gemm": conv(1, 13, 40, 19),
    "ragged": conv(5, 11, 7, 13, 3, batch=2, **SAME),
    "dilated": conv(9, 9, 5, 6, 3, dilation_h=2, dilation_w=3, pad_top=2, pad_left=0, pad_bottom=1, pad_right=4),
    "uneven": conv(6, 7, 18, 9, kh=2, kw=5, stride_h=1, stride_w=3, pad_left=4, pad_bottom=1),
    "one_row": conv(1, 6, 33, 5, kh=1, kw=3, pad_right=2),
    "stride_gap": conv(9, 9, 4, 4, 1, stride_h=3, stride_w=4, batch=2),
    "cropped": conv(8, 8, 3, 5, 3, stride_h=3, stride_w=3),
    "wide_padding": conv(2, 2, 3, 4, 5, pad_top=4, pad_left=4, pad_bottom=4, pad_right=4),
    "tiny_map": conv(2, 2, 20, 40, 3, batch=3, **SAME),
    "gemv_wide": conv(1, 1, 30, 203),
}
DEPTHWISE = {
    "keyword": conv(25, 5, 64, 64, 3, groups=64, **SAME),
    "ragged": conv(7, 6, 21, 21, 3, groups=21, batch=2, **SAME),
    "strided": conv(9, 8, 24, 24, 3, groups=24, stride_h=2, stride_w=2, **SAME),
    "five": conv(8, 9, 19, 19, 5, groups=19, dilation_w=2, pad_top=2, pad_left=4, pad_bottom=2, pad_right=3),
    "seven": conv(9, 10, 17, 17, 7, groups=17, pad_left=3),
    "point": conv(3, 4, 16, 16, 1, groups=16),
    "narrow": conv(4, 3, 3, 3, kh=2, kw=1, groups=3, stride_w=2, pad_bottom=1),
}


def float_constants(p: ConvProblem, rng: np.random.Generator) -> ConvConstants:
    weights = rng.standard_normal((p.oc, p.c // p.groups, p.kh, p.kw)).astype(np.float32)
    return ConvConstants(weights, rng.standard_normal(p.oc).astype(np.float32), lo=-1.5, hi=2.25)


def int8_constants(p: ConvProblem, rng: np.random.Generator) -> ConvConstants:
    """Random codes, requantized to spread over the int8 range."""
    shape = (p.oc, p.c // p.groups, p.kh, p.kw)
    # Accumulators spread about 73 * 73 * sqrt(K): scale them to about 50 codes.
    shift = 31 + round(np.log2(107 * np.sqrt(np.prod(shape[1:])))) + rng.integers(-1, 2, p.oc)
    zero_points = int(rng.integers(-20, 20)), int(rng.integers(-20, 20))
    multiplier = rng.integers(1 << 30, 1 << 31, p.oc)
    if p.short_factors:
        multiplier &= -np.left_shift(1, shift - 31)
    return ConvConstants(
        rng.integers(-128 if p.wide_weights else -127, 128, shape).astype(np.int8),
        rng.integers(-2000, 2000, p.oc).astype(np.int32),
        multiplier,
        shift,
        *zero_points,
        *((-90, 65) if p.clamp else (-128, 127)),
    )


def extreme_constants(p: ConvProblem, rng: np.random.Generator) -> ConvConstants:
    """Every number at a limit; sums come near both ends of int32; every other channel has the least weight throughout."""
    least = -128 if p.wide_weights else -127
    weights = rng.choice(np.array([least, 127], np.int8), (p.oc, p.c // p.groups, p.kh, p.kw))
    weights[::2] = least
    multiplier = rng.choice(np.array([0, 1 << 30, (1 << 31) - 1]), p.oc)
    shift = rng.choice(np.array([1, 2, 31, 32, 33, 53, 54, 61, 62]), p.oc)
    if p.short_factors:
        factors = rng.choice(np.array([0, 1, 2, 1023, (1 << 30) - 1]), p.oc)
        bits = 31 - np.frexp(factors)[1]
        multiplier, shift = np.left_shift(factors, bits), np.where(factors == 0, 1, 31 + bits)
    most = p.c // p.groups * p.kh * p.kw * 255 * 128
    return ConvConstants(
        weights,
        rng.choice(np.array([most - (1 << 31), (1 << 31) - 1 - most, 0], np.int32), p.oc),
        multiplier,
        shift,
        int(rng.choice([-128, 127])),
        int(rng.choice([-128, 127])),
        *((-90, 65) if p.clamp else (-128, 127)),
    )


def random_input(problem: ConvProblem, rng: np.random.Generator, extreme: bool) -> Array:
    shape = (problem.batch, problem.h, problem.w, problem.c)
    if problem.dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    return rng.choice(np.array([-128, 127], np.int8), shape) if extreme else rng.integers(-128, 128, shape).astype(np.int8)


def cases(target: Target, problems: list[ConvProblem], extreme: bool = False) -> list[ConvCase]:
    """Every problem on every generator that needs this target: the best tile and, but for extremes, one other."""
    rng = np.random.default_rng(7)
    chosen = []
    for index, problem in enumerate(problems):
        x = random_input(problem, rng, extreme)
        if problem.dtype == "float32":
            constants = float_constants(problem, rng)
        else:
            constants = (extreme_constants if extreme else int8_constants)(problem, rng)
        for generator in GENERATORS:
            below = {A76.name: A72, X3.name: A76}.get(target.name)
            smaller = below is not None and generator.legal(problem, below) is None
            if generator.legal(problem, target) is None and not smaller:
                tiles = generator.tiles(problem, target)
                some = {0} if extreme else {0, index % len(tiles)}
                chosen += [ConvCase(generator, problem, tiles[at], x, constants) for at in sorted(some)]
    return chosen


def check(chosen: list[ConvCase], target: Target, folder: Path) -> None:
    """Integers bit for bit, floats within 1e-5 of the largest result."""
    skip_unless_runs(target)
    for case, got in zip(chosen, run_convs(chosen, target, folder), strict=True):
        want = reference_conv(case.problem, case.x, case.constants)
        label = f"{case.generator.name} {dict(case.tile)} {case.problem}"
        if case.problem.dtype == "float32":
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()), err_msg=label)
        else:
            np.testing.assert_array_equal(got, want, err_msg=label)


def int8(problems: dict[str, ConvProblem], **fields: Any) -> list[ConvProblem]:
    return [
        replace(
            p, dtype="int8", out_dtype=fields.get("out_dtype", "int8"), **{k: v for k, v in fields.items() if k != "out_dtype"}
        )
        for p in problems.values()
    ]


@pytest.mark.qemu
@pytest.mark.parametrize("target", [A53, A72, A76, X3, A7], ids=lambda t: t.cpu)
def test_int8(target: Target, tmp_path: Path) -> None:
    problems = [*int8(DENSE | DEPTHWISE), *int8(DENSE | DEPTHWISE, short_factors=True)]
    check(cases(target, problems), target, tmp_path)


@pytest.mark.qemu
@pytest.mark.parametrize("target", [A72, A76, X3, A7], ids=lambda t: t.cpu)
def test_int8_extremes(target: Target, tmp_path: Path) -> None:
    problems = [
        *int8(DENSE | DEPTHWISE, clamp=True),
        *int8(DENSE | DEPTHWISE, wide_weights=True),
        *int8(DENSE | DEPTHWISE, wide_weights=True, short_factors=True),
        *int8(DENSE | DEPTHWISE, wide_weights=True, out_dtype="int32"),
    ]
    check(cases(target, problems, extreme=True), target, tmp_path)


@pytest.mark.qemu
@pytest.mark.parametrize("target", [A72, A7], ids=lambda t: t.cpu)
def test_float32(target: Target, tmp_path: Path) -> None:
    every = [*DENSE.values(), *DEPTHWISE.values()]
    problems = [replace(p, relu=i % 3 == 1, clamp=i % 3 == 2) for i, p in enumerate(every)]
    check(cases(target, problems), target, tmp_path)


@pytest.mark.parametrize("target", [A72, X3, A7], ids=lambda t: t.cpu)
def test_unpack_inverts_pack(target: Target) -> None:
    rng = np.random.default_rng(3)
    problems = [*DENSE.values(), *DEPTHWISE.values(), *int8(DENSE | DEPTHWISE), *int8(DENSE | DEPTHWISE, wide_weights=True)]
    for problem in problems:
        constants = (float_constants if problem.dtype == "float32" else int8_constants)(problem, rng)
        for generator in GENERATORS:
            if generator.legal(problem, target) is None:
                for tile in generator.tiles(problem, target):
                    packed = generator.pack(problem, tile, target, constants)
                    weights, bias = generator.unpack(problem, tile, packed)  # type: ignore[attr-defined]
                    np.testing.assert_array_equal(weights, constants.weights, err_msg=f"{generator.name} {problem}")
                    np.testing.assert_array_equal(bias, constants.bias, err_msg=f"{generator.name} {problem}")


def reasons(problem: ConvProblem, target: Target) -> dict[str, str]:
    """Refusals by generator name."""
    every = {generator.name: generator.legal(problem, target) for generator in GENERATORS}
    return {name: reason for name, reason in every.items() if reason is not None}


def test_refusals_say_why() -> None:
    (dense,), (depthwise,) = int8({"": DENSE["resnet64"]}), int8({"": DEPTHWISE["keyword"]})
    assert "dotprod" in reasons(dense, A72)["arm_conv_int8_sdot"]
    assert "dotprod" in reasons(depthwise, A72)["arm_depthwise_int8_sdot"]
    for problem, family in ((dense, "arm_conv"), (depthwise, "arm_depthwise")):
        wide = reasons(replace(problem, wide_weights=True), A76)
        assert "-128" in wide[f"{family}_int8_neon"]
        assert not {f"{family}_int8_sdot", f"{family}_int8_neon_wide"} & wide.keys()
        assert reasons(problem, X86_AVX2).keys() == {generator.name for generator in GENERATORS}
        biased = reasons(replace(problem, dtype="uint8", out_dtype="uint8"), A76)
        assert len(biased) == len(GENERATORS)
        assert "uint8" in biased[f"{family}_int8_sdot"]
    grouped = reasons(replace(dense, groups=16), A76)
    assert len(grouped) == len(GENERATORS)
    assert "16 groups" in grouped["arm_conv_int8_neon"]


def test_order_prefers_the_fastest() -> None:
    """Selection takes the first legal generator: dot products, then short runs, then pairs, then single products."""
    firsts = {}
    for name in ("resnet64", "rgb_stem", "keyword_stem"):
        (problem,) = int8({"": DENSE[name]})
        for target in (A72, A76, A7):
            legal = [generator.name for generator in GENERATORS if generator.legal(problem, target) is None]
            firsts[name, target.cpu] = legal[0]
    assert firsts["resnet64", "cortex-a7"] == "armv7_conv_int8"
    assert firsts["keyword_stem", "cortex-a7"] == "armv7_conv_int8_short"
    assert firsts["resnet64", "cortex-a72"] == "arm_conv_int8_neon"
    assert firsts["keyword_stem", "cortex-a72"] == "arm_conv_int8_short"
    assert firsts["resnet64", "cortex-a76"] == firsts["keyword_stem", "cortex-a76"] == "arm_conv_int8_sdot"
