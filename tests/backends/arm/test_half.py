"""Kernels over half precision, executed under qemu: every float operator, and the convolutions that add up in halves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.arm.conv_f16 import CONV_F16
from bevel.backends.arm.depthwise import DEPTHWISE_F16
from bevel.backends.generic import GENERIC, GENERIC_CONV
from bevel.backends.half import HALF
from bevel.backends.kernel import Array, Buf, NodeProblem
from bevel.ir.ops import Trait, lookup
from bevel.ir.types import F32
from bevel.passes.to_half import MOST
from tests.backends.arm.test_conv import DENSE, DEPTHWISE, float_constants
from tests.backends.generic_cases import Case, cases, from_storage, to_storage
from tests.backends.harness import A72, A76, Call, Compiled, ConvCase, reference_sums, run_convs, skip_unless_runs

# One rounding of a result is 2^-11 of it; derived kernels add float32 errors only.
ONE_ROUNDING = 2.0**-11 + 1e-5
# Sums of blocks in half precision, relative to the largest sum of the layer.
SUMS = 3e-3
CASES_PER_OPERATOR = 3


def half_bufs(bufs: tuple[Buf, ...]) -> tuple[Buf, ...]:
    return tuple(replace(buf, dtype=HALF) if buf.dtype == "float32" else buf for buf in bufs)


def half_cases() -> list[tuple[Case, NodeProblem]]:
    """Some cases of every operator with reals on both sides, rounded to half precision, and their problems over float16."""
    chosen, seen = [], Counter[str]()
    for case in cases():
        reals = [o.elem for o in case.operands] + [t.elem for t in case.outs()]
        if F32 not in reals or seen[case.op] == CASES_PER_OPERATOR:
            continue
        with np.errstate(over="ignore"):
            operands = tuple(
                replace(o, array=o.array.astype(np.float16).astype(np.float32)) if o.elem == F32 else o for o in case.operands
            )
        rounded = replace(case, operands=operands)
        floats = [a for a in (*(o.array for o in operands), *rounded.expected()) if a.dtype.kind == "f"]
        if not all(np.isfinite(a).all() and np.abs(a).max(initial=0) <= MOST for a in floats):
            continue
        problem = case.problem(A76.activation_dtype)
        problem = replace(problem, inputs=half_bufs(problem.inputs), outputs=half_bufs(problem.outputs))
        chosen.append((rounded, problem))
        seen[case.op] += 1
    return chosen


@pytest.mark.qemu
def test_every_operator_takes_half_precision(tmp_path: Path) -> None:
    """Derived kernels compute in float32 and round once: within one rounding of the interpreter on the same operands."""
    skip_unless_runs(A76)
    chosen = half_cases()
    assert len({case.op for case, _ in chosen}) > 40
    functions, calls = {}, []
    for case, problem in chosen:
        assert GENERIC.legal(problem, A76) is None, f"{case.op}: {GENERIC.legal(problem, A76)}"
        symbol = f"k{len(functions)}"
        functions[symbol] = GENERIC.emit(problem, {}, A76, symbol)
        stored = [
            to_storage(o.array, buf).astype(buf.dtype) if o.elem == F32 else to_storage(o.array, buf)
            for o, buf in zip(case.operands, problem.inputs, strict=True)
        ]
        stored += GENERIC.pack(problem, {}, A76, None)
        results = [(out.physical_shape, out.dtype) for out in problem.outputs]
        extent = GENERIC.parallel_extent(problem, {})
        calls.append(Call(symbol, stored, results, [(0, extent)], GENERIC.scratch_bytes(problem, {})))
    for (case, problem), outputs in zip(chosen, Compiled(functions, A76, tmp_path).run(calls), strict=True):
        for out, buf, want, type_ in zip(outputs, problem.outputs, case.expected(), case.outs(), strict=True):
            got = from_storage(out, buf, biased=type_.elem != F32 and type_.dtype == np.int8)
            tolerance = 0.0 if case.op == "Copy" else lookup(case.op).tolerance
            if want.dtype.kind != "f":
                assert np.array_equal(got, want), f"{case.op} {case.attrs}"
            elif case.op == "Copy" or (Trait.MOVEMENT in lookup(case.op).traits and tolerance == 0):
                assert np.array_equal(got, want.astype(got.dtype)), f"{case.op} {case.attrs}"
            else:
                error = np.abs(got.astype(np.float64) - want).max(initial=0) / max(np.abs(want).max(initial=0), 1e-6)
                assert error <= ONE_ROUNDING + tolerance, f"{case.op} {case.attrs}: {error}"


@pytest.mark.qemu
def test_convolutions(tmp_path: Path) -> None:
    """Sums of halves stay within their bound; kernels that add up in float32 are within one rounding."""
    skip_unless_runs(A76)
    rng = np.random.default_rng(9)
    chosen = []
    for index, problem in enumerate((*DENSE.values(), *DEPTHWISE.values())):
        stored = (HALF, "float32")[index % 2]
        problem = replace(problem, dtype=HALF, out_dtype=stored, relu=index % 3 == 1, clamp=index % 3 == 2)
        constants = float_constants(problem, rng)
        constants = replace(constants, weights=constants.weights.astype(np.float16))
        x = rng.standard_normal((problem.batch, problem.h, problem.w, problem.c)).astype(np.float16)
        for generator in (CONV_F16, DEPTHWISE_F16, GENERIC_CONV):
            if generator.legal(problem, A76) is None:
                tiles = generator.tiles(problem, A76)
                some = {0, index % len(tiles)}
                chosen += [ConvCase(generator, problem, tiles[at], x, constants) for at in sorted(some)]
    assert {case.generator.name for case in chosen} == {"arm_conv_f16", "arm_depthwise_f16", "generic.conv"}
    for case, got in zip(chosen, run_convs(chosen, A76, tmp_path), strict=True):
        sums: Array = reference_sums(case.problem, case.x, case.constants)
        want = np.maximum(sums, 0) if case.problem.relu else sums
        if case.problem.clamp:
            want = np.clip(want, case.constants.lo, case.constants.hi)
        bound = SUMS if case.generator is CONV_F16 else ONE_ROUNDING
        error = np.abs(got.astype(np.float64) - want).max() / np.abs(sums).max()
        assert error <= bound, f"{case.generator.name} {dict(case.tile)} {case.problem}: {error}"
        assert got.dtype == case.problem.out_dtype


def test_cores_without_half_precision_refuse_it() -> None:
    problem = replace(DENSE["resnet16"], dtype=HALF, out_dtype=HALF)
    for generator in (CONV_F16, GENERIC_CONV):
        assert "fp16" in str(generator.legal(problem, A72))
    copy = NodeProblem("Copy", None, (Buf((4,), HALF),), (Buf((4,), "float32"),))
    assert "fp16" in str(GENERIC.legal(copy, A72))
    assert GENERIC.legal(copy, A76) is None
