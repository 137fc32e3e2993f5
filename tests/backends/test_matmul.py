"""Products of activations in registers equal the interpreter, on every instruction set, at fixed and run-time extents.

Proved here: ragged shapes, broadcast batches and every layout of the operands; parts of the parallel axis in any order; memory
beyond run-time extents holds garbage and enters no result; integers are exact at the ends of their range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends.kernel import Array, Buf, DimRef, Extent, NodeProblem
from bevel.backends.kernels.matmul import MatMulGenerator
from bevel.backends.select import generators
from bevel.ir.ops import NoAttrs
from bevel.ir.ops.integer import IntMulAttrs
from bevel.ir.protocols import Target
from bevel.ir.types import F32, I8, Quant
from tests.backends.generic_cases import Case, Operand, from_storage, to_storage
from tests.backends.harness import A7, A72, X86_AVX2, X86_AVX512, X86_BASE, Call, Compiled, skip_unless_runs

TARGETS = [pytest.param(t, id=t.name) for t in (X86_BASE, X86_AVX2, X86_AVX512)]
TARGETS += [pytest.param(t, id=t.name, marks=pytest.mark.qemu) for t in (A72, A7)]

SWAPPED = (0, 1, 3, 2)
HEADS = (0, 2, 1, 3)
Layout = tuple[int, ...] | None


@dataclass(frozen=True)
class Product:
    """Shapes and layouts of both operands; extents named by a letter vary at run time up to BOUND."""

    a: tuple[int | str, ...]
    b: tuple[int | str, ...]
    layouts: tuple[Layout, Layout] = (None, None)


PRODUCTS = (
    Product((3, 2, 5, 11), (3, 2, 11, 70)),
    Product((2, 5, 11), (11, 9)),
    Product((1, 4, 5, 3), (3, 1, 3, 33)),
    Product((3, 1), (1, 1)),
    Product((1, 30), (30, 64), (None, (1, 0))),
    Product((67, 40), (40, 32)),
    Product((130, 7), (7, 3)),
    Product((2, 12, 17, 32), (2, 12, 32, 17), (HEADS, (0, 2, 3, 1))),
    Product((1, 3, 48, 16), (1, 3, 16, 65), (None, SWAPPED)),
    Product((1, 3, 6, 16), (1, 3, 16, 64), (SWAPPED, HEADS)),
)
BOUND, EXTENTS = 37, (1, 2, 16, 31, 37)
DYNAMIC = (
    Product((1, 2, "s", 8), (1, 2, 8, "s"), (HEADS, SWAPPED)),
    Product((1, 2, "s", "s"), (1, 2, "s", 19), (None, HEADS)),
    Product(("s", 9), (9, "s")),
    Product((4, "s"), ("s", 64)),
    Product(("s", 3, 5), (1, 5, 9)),
)


def at(extent: int, shape: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(extent if isinstance(d, str) else d for d in shape)


def float_case(product: Product, extent: int) -> Case:
    rng = np.random.default_rng(extent)
    shapes = (at(extent, product.a), at(extent, product.b))
    operands = [Operand(rng.normal(size=s).astype(np.float32), F32, y) for s, y in zip(shapes, product.layouts, strict=True)]
    return Case("MatMul", NoAttrs(), tuple(operands))


def code_case(product: Product, extent: int) -> Case:
    """Codes with the ends of their range at the far ends of the zero points: sums as large as they get."""
    rng = np.random.default_rng(extent)
    operands = []
    for shape, layout, zero in zip((product.a, product.b), product.layouts, (-128, 127), strict=True):
        codes = rng.choice(np.array([-128, 127, 3, -60, 99], np.int8), at(extent, shape))
        operands.append(Operand(codes, Quant(I8, (0.05,), (zero,)), layout))
    out = Quant(I8, (0.05,), (-7,))
    return Case("IntMatMul", IntMulAttrs(out, (1 << 30) + 12345, 44, -120, 110), tuple(operands))


CASES = {"MatMul": float_case, "IntMatMul": code_case}


def generator_of(op: str, target: Target, problem: NodeProblem) -> MatMulGenerator:
    for generator in generators(target.arch):
        if generator.legal(problem, target) is None:
            assert isinstance(generator, MatMulGenerator), f"{generator.name} computes {op} on {target.name}"
            return generator
    raise AssertionError(f"nothing computes {problem} on {target.name}")


def with_dims(problem: NodeProblem, product: Product) -> NodeProblem:
    ref = DimRef("s", BOUND)

    def named(buf: Buf, shape: Sequence[int | str]) -> Buf:
        dims = tuple(ref if isinstance(d, str) else None for d in shape)
        return replace(buf, dims=dims if any(dims) else ())

    batches = [d for d in product.a[:-2] if isinstance(d, str)] or [1] * (len(product.a) - 2)
    out = (*batches, product.a[-2], product.b[-1])
    inputs = named(problem.inputs[0], product.a), named(problem.inputs[1], product.b)
    return replace(problem, inputs=inputs, outputs=(named(problem.outputs[0], out),))


def corner(shape: Sequence[int], buf: Buf) -> tuple[slice, ...]:
    return tuple(slice(shape[axis]) for axis in buf.layout or range(len(shape)))


@dataclass(frozen=True)
class Run:
    """A call with what it must give."""

    case: Case
    call: Call
    out: Buf
    small: Buf


def calls(op: str, target: Target, functions: dict[str, Any]) -> Iterator[Run]:
    for index, product in enumerate((*PRODUCTS, *DYNAMIC)):
        varies = product in DYNAMIC
        problem = CASES[op](product, BOUND).problem(target.activation_dtype)
        problem = with_dims(problem, product) if varies else problem
        generator = generator_of(op, target, problem)
        tile = generator.tiles(problem, target)[0]
        symbol = f"{op}{index}"
        functions[symbol] = generator.emit(problem, tile, target, symbol)
        for extent in EXTENTS if varies else (BOUND,):
            case = CASES[op](product, extent)
            small = case.problem(target.activation_dtype)
            stored: list[Array] = []
            for operand, buf, actual in zip(case.operands, problem.inputs, small.inputs, strict=True):
                memory = np.full(buf.nbytes, 0xFF, np.uint8).view(buf.dtype).reshape(buf.physical_shape)
                memory[corner(actual.shape, actual)] = to_storage(operand.array, actual)
                stored.append(memory)
            length = generator.runtime_extent(problem, tile)
            units = length.at({"s": extent}) if isinstance(length, Extent) else length
            cut = units // 3
            ranges = [(cut, units), (0, cut)] if cut else [(0, units)]
            dims = [np.array([extent], np.int32)] if varies else []
            (out,) = problem.outputs
            scratch = generator.scratch_bytes(problem, tile)
            call = Call(symbol, [*stored, *dims], [(out.physical_shape, out.dtype)], ranges, scratch)
            yield Run(case, call, out, small.outputs[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", CASES)
def test_equals_the_interpreter(op: str, target: Target, tmp_path: Path) -> None:
    skip_unless_runs(target)
    functions: dict[str, Any] = {}
    runs = list(calls(op, target, functions))
    results = Compiled(functions, target, tmp_path).run([run.call for run in runs])
    for run, (result,) in zip(runs, results, strict=True):
        got = from_storage(result[corner(run.small.shape, run.out)], run.small)
        (expected,) = run.case.expected()
        if op == "MatMul":
            assert np.abs(got - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-6), run.case
        else:
            assert np.array_equal(got, expected), run.case
