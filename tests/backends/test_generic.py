"""Derived kernels equal the interpreter on every instruction set, for every operator of the op table.

Proved here: each operator has a definition; integer operators and data movement are bit-exact and free of floating-point
arithmetic, float operators are within the tolerance of the op table; ranges partition the output; no object refers to another.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.generic import DEFINITIONS, GENERATORS, GENERIC, GENERIC_CONV, VECTOR
from bevel.backends.kernel import Array, Buf, ConvConstants, ConvProblem, NodeProblem
from bevel.backends.tvm import compile_object
from bevel.ir.graph import Level
from bevel.ir.ops import NoAttrs, lookup, table
from bevel.ir.ops.elementwise import erf
from bevel.ir.protocols import Target
from bevel.ir.types import Quant
from tests.backends.generic_cases import NHWC, Case, cases, from_storage, random_cases, to_storage
from tests.backends.harness import (
    A7,
    A72,
    GNU_TRIPLES,
    X86_AVX2,
    X86_AVX512,
    X86_BASE,
    Call,
    Compiled,
    ConvCase,
    reference_conv,
    run_convs,
    skip_unless_runs,
)

TARGETS = [pytest.param(t, id=t.name) for t in (X86_BASE, X86_AVX2, X86_AVX512)]
TARGETS += [pytest.param(t, id=t.name, marks=pytest.mark.qemu) for t in (A72, A7)]

# Of lowering's own: where an extent is known at run time only (test_dynamic.py), and for some tables (test_stairs.py).
LOWERED = {"Spread", "Compact", "Stairs"}
# Operators that arrive as `ConvProblem` alone; a Conv does unless the model computes its weights.
CONVOLUTIONS = {"Gemm", "IntConv", "IntGemm"}

# Mnemonics of arithmetic on floating point, as opposed to moves and bit operations that integer code may use.
FLOAT_X86 = re.compile(
    r"v?(add|sub|mul|div|sqrt|max|min|rcp|rsqrt|round|hadd|dp|cmp\w*|cvt\w*|u?comi|fn?m(add|sub)\w*)(ss|sd|ps|pd|2\w+)"
    r"|f(ld|st|add|sub|mul|div|ild|ist)\w*"
)
FLOAT_ARM = re.compile(r"f(?!mov|neg)\w+|[su]cvtf\w*")
FLOAT_ARMV7 = re.compile(r"v(?!mov)\w+\.f(16|32|64)\S*|vcvt\S*")
FLOAT_CODE = {"x86_64": FLOAT_X86, "aarch64": FLOAT_ARM, "armv7": FLOAT_ARMV7}


@dataclass(frozen=True)
class Run:
    """One case with what a target computed."""

    case: Case
    symbol: str
    got: tuple[Array, ...]


@dataclass(frozen=True)
class Batch:
    """All cases on one target, compiled into one object."""

    target: Target
    runs: tuple[Run, ...]
    object_path: Path


def run_cases(chosen: Sequence[Case], target: Target, folder: Path) -> Batch:
    """Compile and call every case; each range of the parallel axis is computed in two unequal parts, the later one first."""
    functions, calls, problems = {}, [], []
    for case in chosen:
        problem = case.problem(target.activation_dtype)
        generator = next((g for g in (VECTOR, GENERIC) if g.legal(problem, target) is None), None)
        assert generator is not None, GENERIC.legal(problem, target)
        symbol = f"k{len(functions)}"
        functions[symbol] = generator.emit(problem, {}, target, symbol)
        extent = generator.parallel_extent(problem, {})
        cut = extent // 3
        ranges = [(cut, extent), (0, cut)] if cut else [(0, extent)]
        stored = [to_storage(o.array, buf) for o, buf in zip(case.operands, problem.inputs, strict=True)]
        stored += generator.pack(problem, {}, target, None)
        scratch = generator.scratch_bytes(problem, {})
        calls.append(Call(symbol, stored, [(out.physical_shape, out.dtype) for out in problem.outputs], ranges, scratch))
        problems.append(problem)
    compiled = Compiled(functions, target, folder)
    runs = [
        Run(
            case,
            call.symbol,
            tuple(
                from_storage(o, buf, biased=isinstance(t.elem, Quant))
                for o, buf, t in zip(outputs, problem.outputs, case.outs(), strict=True)
            ),
        )
        for case, call, problem, outputs in zip(chosen, calls, problems, compiled.run(calls), strict=True)
    ]
    return Batch(target, tuple(runs), compiled.object_path)


def check(run: Run) -> None:
    """Assert that a result equals the interpreter's: bit by bit, or within the op table's tolerance for float arithmetic."""
    tolerance = 0.0 if run.case.op == "Copy" else lookup(run.case.op).tolerance
    for got, expected in zip(run.got, run.case.expected(), strict=True):
        assert got.shape == expected.shape
        if tolerance == 0 or expected.dtype.kind != "f":
            equal = np.array_equal(got, expected, equal_nan=expected.dtype.kind == "f")
            assert equal, f"{run.case}: {np.argwhere(got != expected)[:5]}"
        else:
            finite = np.isfinite(expected)
            assert np.array_equal(got[~finite], expected[~finite], equal_nan=True), f"{run.case.op} {run.case.attrs}"
            error = np.abs(got[finite].astype(np.float64) - expected[finite]).max(initial=0)
            error /= max(np.abs(expected[finite]).max(initial=0), 1e-30)
            assert error <= tolerance, f"{run.case.op} {run.case.attrs}: {error}"


@pytest.fixture(scope="module", params=TARGETS)
def batch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    skip_unless_runs(request.param)
    return run_cases(cases(), request.param, tmp_path_factory.mktemp("generic"))


def test_every_operator_has_a_derived_kernel() -> None:
    names = {op.name for op in table()}
    assert names - CONVOLUTIONS == set(DEFINITIONS) - {"Copy", *LOWERED}
    assert {case.op for case in cases()} == set(DEFINITIONS) - LOWERED


@pytest.mark.parametrize("op", sorted(set(DEFINITIONS) - LOWERED))
def test_equals_the_interpreter(batch: Batch, op: str) -> None:
    for run in (r for r in batch.runs if r.case.op == op):
        check(run)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_random_problems_equal_the_interpreter(target: Target, seed: int, tmp_path: Path) -> None:
    skip_unless_runs(target)
    for run in run_cases(random_cases(seed, 60), target, tmp_path).runs:
        check(run)


# Largest relative errors that bevel.backends.generic.functions states.
STATED = {"Exp": (np.exp, 2e-7), "Tanh": (np.tanh, 4e-7), "Erf": (erf, 3e-7), "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 4e-7)}


@pytest.mark.parametrize("op", STATED)
def test_functions_are_as_precise_as_stated(batch: Batch, op: str) -> None:
    exact, bound = STATED[op]
    for run in (r for r in batch.runs if r.case.op == op):
        finite = np.isfinite(run.case.operands[0].array) & np.isfinite(run.case.expected()[0])
        expected, got = exact(run.case.operands[0].array[finite].astype(np.float64)), run.got[0][finite]
        error = np.abs(got - expected)[expected > 1e-37] / expected[expected > 1e-37]
        assert error.max(initial=0) <= bound
        # What underflows is zero or nearly so, never garbage.
        assert (np.abs(got[np.abs(expected) <= 1e-37]) <= 2e-37).all()


def test_integer_kernels_hold_no_float_arithmetic(batch: Batch) -> None:
    prefix = "" if batch.target.arch == "x86_64" else f"{GNU_TRIPLES[batch.target.arch]}-"
    tool = shutil.which(f"{prefix}objdump")
    if tool is None:
        pytest.skip(f"{prefix}objdump is not installed")
    command = [tool, "-d", "--no-show-raw-insn", str(batch.object_path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    float_code = FLOAT_CODE[batch.target.arch]
    bodies = dict(re.findall(r"^[0-9a-f]+ <(k\d+)>:\n((?:.+\n)+)", listing, re.M))
    offenders = {}
    for run in batch.runs:
        mnemonics = set(re.findall(r"^ *[0-9a-f]+:\t(\S+)", bodies[run.symbol], re.M))
        found = sorted(m for m in mnemonics if float_code.fullmatch(m))
        # Vectors of plain integers are shifted and divided through exact conversions where an instruction set has nothing else;
        # such operators never stand in an integer-only graph.
        stands = run.case.op == "Copy" or Level.INTEGER in lookup(run.case.op).levels
        if run.case.integer and stands and found:
            offenders[f"{run.case.op} {run.symbol}"] = found
        # The pattern does find float arithmetic where there is some.
        if run.case.op in ("Sigmoid", "Quantize", "MatMul"):
            assert found, run.case.op
    assert not offenders


def test_common_operators_are_vector_kernels() -> None:
    for case in cases():
        problem = case.problem("uint8")
        flat = all(
            buf.layout == problem.outputs[0].layout and buf.shape == case.operands[0].array.shape for buf in problem.inputs
        )
        if flat and case.op in ("Add", "IntAdd", "Relu", "IntMul") and problem.outputs[0].size > 64:
            assert VECTOR.legal(problem, X86_AVX2) is None
    strided = NodeProblem("Copy", NoAttrs(), (Buf((1, 8, 6, 6), "int8"),), (Buf((1, 8, 6, 6), "int8", NHWC),))
    assert "not contiguous" in str(VECTOR.legal(strided, X86_AVX2))
    assert GENERIC.legal(strided, X86_AVX2) is None


def test_refuses_with_a_reason() -> None:
    mixed = NodeProblem("Concat", None, (Buf((4,), "int8"), Buf((4,), "uint8")), (Buf((8,), "uint8"),))
    assert "int8, uint8" in str(GENERIC.legal(mixed, X86_BASE))
    half = NodeProblem("Copy", None, (Buf((4,), "float16"),), (Buf((4,), "float16"),))
    assert "half-precision" in str(GENERIC.legal(half, X86_BASE))
    assert "no derived kernel" in str(GENERIC.legal(NodeProblem("Nonesuch", None, (), ()), X86_BASE))
    assert "int64" in str(GENERIC_CONV.legal(ConvProblem(1, 1, 1, 1, 1, dtype="int64"), X86_BASE))
    names = [g.name for g in GENERATORS]
    assert names == ["vector", "generic", "generic.conv"]


# Convolutions -------------------------------------------------------------------------------------------------------

SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
GEOMETRIES = {
    "padded": ConvProblem(2, 7, 5, 5, 19, 3, 3, **SAME),
    "strided": ConvProblem(1, 9, 8, 70, 8, 3, 2, 2, 3, 1, 1, 0, 1, 2, 0),
    "dilated": ConvProblem(1, 9, 9, 3, 4, 3, 3, dilation_h=2, dilation_w=3, pad_top=2, pad_left=4, pad_right=1),
    "depthwise": ConvProblem(2, 6, 7, 37, 37, 3, 3, stride_h=2, stride_w=2, groups=37, **SAME),
    "multiplier": ConvProblem(1, 5, 5, 6, 12, 3, 3, groups=6, **SAME),
    "grouped": ConvProblem(1, 5, 5, 12, 18, 2, 3, groups=3, pad_left=1),
    "gemm": ConvProblem(1, 1, 9, 65, 21),
    "gemv": ConvProblem(1, 1, 1, 33, 10),
    "beyond": ConvProblem(1, 2, 2, 3, 5, 2, 2, pad_top=3, pad_left=3, pad_bottom=3, pad_right=3),
}


def conv_cases(target: Target) -> list[ConvCase]:
    """Every geometry as float32, with fused clamps, as raw accumulators and requantized, at extreme codes."""
    rng = np.random.default_rng(3)
    built = []
    for i, geometry in enumerate(GEOMETRIES.values()):
        shape = (geometry.batch, geometry.h, geometry.w, geometry.c)
        filters = (geometry.oc, geometry.c // geometry.groups, geometry.kh, geometry.kw)
        x = rng.normal(0, 1, shape).astype(np.float32)
        constants = ConvConstants(rng.normal(0, 1, filters).astype(np.float32), rng.normal(0, 1, geometry.oc).astype(np.float32))
        clamped = replace(constants, lo=-0.5, hi=1.5)
        built.append(ConvCase(GENERIC_CONV, geometry, {}, x, constants))
        fused = (replace(geometry, relu=True), constants) if i % 2 else (replace(geometry, clamp=True), clamped)
        built.append(ConvCase(GENERIC_CONV, fused[0], {}, x, fused[1]))
        dtype = target.activation_dtype
        bias = 128 if dtype == "uint8" else 0
        codes = (rng.choice([-128, 127, 3, -60], shape) + bias).astype(dtype)
        weights = rng.choice([-128, 127, 1, -7], filters).astype(np.int8)
        integer = ConvConstants(
            weights,
            rng.integers(-(1 << 30), 1 << 30, geometry.oc).astype(np.int32),
            rng.integers(1 << 30, 1 << 31, geometry.oc),
            rng.integers(1, 63, geometry.oc),
            int(rng.integers(-128, 128)) + bias,
            -9 + bias,
            -100 + bias,
            101 + bias,
        )
        coded = replace(geometry, dtype=dtype, out_dtype=dtype, wide_weights=True)
        built.append(ConvCase(GENERIC_CONV, replace(coded, out_dtype="int32"), {}, codes, integer))
        built.append(ConvCase(GENERIC_CONV, replace(coded, clamp=True), {}, codes, integer))
        near = replace(integer, bias=integer.bias >> 12, shift=integer.shift % 9 + 40, lo=-np.inf, hi=np.inf)
        built.append(ConvCase(GENERIC_CONV, coded, {}, codes, near))
    return built


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions_equal_the_reference(target: Target, tmp_path: Path) -> None:
    skip_unless_runs(target)
    built = conv_cases(target)
    for case, got in zip(built, run_convs(built, target, tmp_path), strict=True):
        expected = reference_conv(case.problem, case.x, case.constants)
        if case.problem.dtype == "float32":
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), case.problem
        else:
            assert np.array_equal(got, expected), case.problem


# Objects ------------------------------------------------------------------------------------------------------------


def test_objects_refer_to_nothing_else(tmp_path: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed (Debian: binutils)")
    # The core most likely to need a helper function (no 64-bit registers, no
    # division); the other targets are checked as they are linked.
    functions = {}
    for op in DEFINITIONS:
        for case in [case for case in cases() if case.op == op][-2:]:
            symbol = f"k{len(functions)}"
            functions[symbol] = GENERIC.emit(case.problem(A7.activation_dtype), {}, A7, symbol)
    for case in conv_cases(A7)[:6]:
        symbol = f"k{len(functions)}"
        functions[symbol] = GENERIC_CONV.emit(case.problem, {}, A7, symbol)
    path = tmp_path / "kernels.o"
    path.write_bytes(compile_object(functions, A7))
    symbols = subprocess.run([readelf, "-sW", str(path)], capture_output=True, text=True, check=True).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines() if " UND " in line and line.split()[-1] != "UND"]
    assert len(symbols.splitlines()) > len(functions)
    assert not undefined
