"""Residual additions in the epilogue of convolutions: what moves there, and that kernels of every instruction set add exactly.

The reference computes the convolution and the addition one after the other, codes with Python integers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Sum, Summing
from bevel.backends.lower import lower
from bevel.backends.select import generators
from bevel.ir.graph import Graph, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.types import F32, TensorType
from tests.backends.harness import (
    A7,
    A53,
    A72,
    A76,
    X3,
    X86_AMX,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_BASE,
    X86_VNNI,
    ConvCase,
    Target,
    reference_conv,
    reference_sums,
    run_convs,
    skip_unless_runs,
)

TARGETS = [
    X86_BASE,
    X86_AVX2,
    X86_AVX_VNNI,
    X86_AVX512,
    X86_VNNI,
    X86_AMX,
    *(pytest.param(target, marks=pytest.mark.qemu) for target in (A53, A72, A76, X3, A7)),
]
SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
SHAPES = [
    ConvProblem(1, 9, 11, 16, 33, 3, 3, **SAME),
    ConvProblem(2, 5, 7, 24, 19, 3, 3, 2, 2, **SAME),
    ConvProblem(1, 6, 6, 40, 70),
    ConvProblem(1, 1, 1, 37, 10),
    ConvProblem(1, 8, 8, 64, 64, 3, 3, **SAME),
]


def drawn(p: ConvProblem, rng: np.random.Generator) -> tuple[Array, Array, ConvConstants]:
    """Input, addend and constants of a problem."""
    shape = (p.batch, p.oh, p.ow, p.oc)
    if p.dtype == "float32":
        weights = rng.standard_normal((p.oc, p.c, p.kh, p.kw)).astype(np.float32)
        x, addend = (rng.standard_normal(s).astype(np.float32) for s in ((p.batch, p.h, p.w, p.c), shape))
        lo, hi = (-0.5, 3.0) if p.clamp else (-np.inf, np.inf)
        return x, addend, ConvConstants(weights, rng.standard_normal(p.oc).astype(np.float32), lo=lo, hi=hi)
    info = np.iinfo(p.dtype)
    x, addend = (rng.integers(info.min, info.max + 1, s).astype(p.dtype) for s in ((p.batch, p.h, p.w, p.c), shape))
    weights = rng.integers(-127, 128, (p.oc, p.c, p.kh, p.kw)).astype(np.int8)
    shift = np.full(p.oc, 31 + int(np.log2(np.sqrt(p.c * p.kh * p.kw) * 55)), np.int64)
    multiplier = rng.integers(1 << 30, 1 << 31, p.oc)
    if p.short_factors:
        multiplier &= -np.left_shift(1, shift - 31)
    middle = (int(info.min) + int(info.max) + 1) // 2
    za, zb, zero = (middle + int(z) for z in rng.integers(-100, 101, 3))
    n = int(rng.integers(2, 21))
    # As large as int32 allows, of either sign.
    most = (2**31 - (1 << (n - 1))) // 255
    ma = int(rng.integers(-most // 2, most // 2))
    mb = int(rng.choice([-1, 1])) * min(most - abs(ma), int(rng.integers(1, 1 << n)) + 1)
    ma = int(np.clip(ma, -(2 << n), 2 << n))
    lo, hi = (middle - 60, middle + 90) if p.clamp else (int(info.min), int(info.max))
    total = Sum(ma, mb, n, za, zb, zero, int(info.min) + 3, int(info.max) - 5)
    bias = rng.integers(-3000, 3000, p.oc).astype(np.int32)
    return x, addend, ConvConstants(weights, bias, multiplier, shift, middle + 9, za, lo, hi, total)


def expected_of(p: ConvProblem, x: Array, addend: Array, constants: ConvConstants) -> Array:
    if p.dtype == "float32":
        total = reference_sums(p, x, constants) + addend
        total = np.maximum(total, 0) if p.relu else total
        return np.clip(total, constants.lo, constants.hi) if p.clamp else total
    s = constants.sum
    assert s is not None
    a = reference_conv(p, x, constants).astype(object) - s.za
    codes = ((s.ma * a + s.mb * (addend.astype(object) - s.zb) + (1 << (s.n - 1))) >> s.n) + s.zero_point
    return np.clip(codes, s.lo, s.hi).astype(p.out_dtype)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_kernels_add(target: Target, tmp_path: Path) -> None:
    skip_unless_runs(target)
    rng = np.random.default_rng(3)
    codes = target.activation_dtype
    kinds = [
        {"dtype": "float32", "out_dtype": "float32"},
        {"dtype": "float32", "out_dtype": "float32", "relu": True},
        {"dtype": "float32", "out_dtype": "float32", "clamp": True},
        {"dtype": codes, "out_dtype": codes, "short_factors": True},
        {"dtype": codes, "out_dtype": codes, "clamp": True},
    ]
    cases = []
    for number, generator in enumerate(generators(target.arch)):
        # Every generator meets every shape and every kind, not all pairs of them.
        for index, (shape, kind) in enumerate(zip(SHAPES, [*kinds[number % 5 :], *kinds[: number % 5]], strict=True)):
            problem = replace(shape, addend=True, **kind)
            if not isinstance(generator, Summing) or not generator.sums(problem):
                continue
            if generator.legal(problem, target) is None:
                tiles = generator.tiles(problem, target)
                x, addend, constants = drawn(problem, rng)
                cases.append(ConvCase(generator, problem, tiles[index % len(tiles)], x, constants, addend))
    assert {case.problem.dtype for case in cases} == {"float32", codes}
    for case, got in zip(cases, run_convs(cases, target, tmp_path), strict=True):
        assert case.addend is not None
        expected = expected_of(case.problem, case.x, case.addend, case.constants)
        if case.problem.dtype == "float32":
            # Sums reach a hundred, and Winograd convolutions round to a few millionths of the largest.
            np.testing.assert_allclose(got, expected, rtol=0, atol=5e-4, err_msg=f"{case.generator.name} {case.problem}")
        else:
            np.testing.assert_array_equal(got, expected, err_msg=f"{case.generator.name} {case.problem}")


def conv(graph: Graph, x: Value) -> Value:
    w = graph.add_constant(f"w{len(graph.nodes)}", np.ones((16, 16, 1, 1), np.float32))
    b = graph.add_constant(f"b{len(graph.nodes)}", np.zeros(16, np.float32))
    return graph.add_node("Conv", [x, w, b], ConvAttrs((1, 1))).output


def ops(build: str) -> list[str]:
    """Steps of a small network around one addition."""
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 16, 6, 6), F32))
    a = conv(graph, x)
    b = conv(graph, graph.add_node("Relu", [a]).output)
    left, right = {"residual": (b, a), "swapped": (a, b), "same": (b, b), "relu": (a, b), "shared": (a, b)}[build]
    if build == "relu":
        right = graph.add_node("Relu", [right]).output
    total = graph.add_node("Add", [left, right]).output
    last = graph.add_node("Relu", [total]).output
    graph.set_outputs([last, b] if build == "shared" else [last])
    return [step.op for step in lower(graph, X86_AVX2).steps if step.op != "Copy"]


@pytest.mark.parametrize("build", ["residual", "swapped"])
def test_the_later_convolution_adds(build: str) -> None:
    assert ops(build) == ["Conv", "Relu", "Conv+Add+Relu"]


@pytest.mark.parametrize("build", ["same", "relu", "shared"])
def test_what_cannot_move_stays(build: str) -> None:
    """A tensor added to itself, the result of an activation that comes before the addition, and what somebody else reads."""
    assert ops(build)[-1] == "Add+Relu"
