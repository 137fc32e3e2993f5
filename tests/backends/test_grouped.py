"""Grouped convolutions in the dense kernels equal the reference, on every instruction set: a group sees its own channels only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.kernel import ConvConstants, ConvProblem
from bevel.backends.kernels.generator import ConvGenerator
from bevel.backends.select import generators
from bevel.ir.protocols import Target
from tests.backends import harness
from tests.backends.harness import A7, A72, A76, X86_AVX2, X86_AVX512, X86_BASE, X86_VNNI, ConvCase, reference_conv, run_convs

TARGETS = [pytest.param(t, id=t.name) for t in (X86_BASE, X86_AVX2, X86_AVX512, X86_VNNI)]
TARGETS += [pytest.param(t, id=t.name, marks=pytest.mark.qemu) for t in (A72, A76, A7)]

SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
PROBLEMS = (
    ConvProblem(2, 7, 5, 24, 48, 3, 3, groups=3, **SAME),
    ConvProblem(1, 9, 8, 27, 96, 2, 3, 2, 2, groups=3, pad_left=2),
    ConvProblem(1, 6, 6, 32, 64, 1, 1, groups=2),
    ConvProblem(1, 6, 9, 20, 32, 3, 3, dilation_h=2, dilation_w=2, groups=2, **SAME),
    ConvProblem(1, 1, 1, 48, 64, groups=4),
    ConvProblem(1, 3, 2, 16, 160, 3, 1, groups=2, pad_top=1),
)


def cases(generator: ConvGenerator, target: Target) -> Iterator[ConvCase]:
    rng = np.random.default_rng(8)
    for shape in PROBLEMS:
        problem = replace(shape, dtype=generator.dtype, out_dtype=generator.out_dtypes[0])
        if generator.legal(problem, target) is not None:
            continue
        tile = generator.tiles(problem, target)[0]
        size = (problem.batch, problem.h, problem.w, problem.c)
        filters = (problem.oc, problem.c // problem.groups, problem.kh, problem.kw)
        if generator.dtype == "float32":
            constants = ConvConstants(rng.normal(size=filters).astype(np.float32), rng.normal(size=problem.oc).astype(np.float32))
            yield ConvCase(generator, problem, tile, rng.normal(size=size).astype(np.float32), constants)
            continue
        bias = 128 if generator.dtype == "uint8" else 0
        codes = (rng.choice([-128, 127, 3, -60], size) + bias).astype(generator.dtype)
        constants = ConvConstants(
            rng.choice([-127, 127, 1, -7], filters).astype(np.int8),
            rng.integers(-(1 << 18), 1 << 18, problem.oc).astype(np.int32),
            rng.integers(1 << 30, 1 << 31, problem.oc),
            rng.integers(40, 46, problem.oc),
            11 + bias,
            -9 + bias,
            -100 + bias,
            101 + bias,
        )
        yield ConvCase(generator, replace(problem, clamp=True), tile, codes, constants)


@pytest.mark.parametrize("target", TARGETS)
def test_groups_equal_the_reference(target: Target, tmp_path: Path) -> None:
    harness.skip_unless_runs(target)
    found = [
        c for g in generators(target.arch) if isinstance(g, ConvGenerator) and g.dtype != "float16" for c in cases(g, target)
    ]
    assert {c.problem.dtype for c in found} == {"float32", target.activation_dtype}
    for case, got in zip(found, run_convs(found, target, tmp_path), strict=True):
        expected = reference_conv(case.problem, case.x, case.constants)
        if case.problem.dtype == "float32":
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), (case.generator.name, case.problem)
        else:
            assert np.array_equal(got, expected), (case.generator.name, case.problem)


def test_narrow_groups_are_refused_with_the_reason() -> None:
    (generator, *_) = [g for g in generators("x86_64") if isinstance(g, ConvGenerator) and g.dtype == "float32"]
    narrow = generator.legal(ConvProblem(1, 4, 4, 16, 64, 3, 3, groups=4), X86_AVX512)
    assert narrow is not None
    assert "4 groups of 4 -> 16" in narrow
