"""Kernels of problems with run-time extents equal the interpreter at every extent, on every instruction set.

Proved here: memory is laid out at the bound, filled with garbage (NaN, wild integers) beyond the actual extents, and no result
depends on it; nothing outside the buffers is touched; ranges partition the actual parallel axis; a convolution or GEMM cut short
has computed all rows that exist; what cannot take a run-time extent says which dimension to bind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.generic import GENERIC, VECTOR
from bevel.backends.kernel import (
    Array,
    Buf,
    ConvConstants,
    ConvProblem,
    DimRef,
    Extent,
    Generator,
    NodeProblem,
    RuntimeExtent,
    problem_dims,
)
from bevel.backends.physical import contiguous, same_memory
from bevel.backends.select import choose, generators
from bevel.errors import UnsupportedOp
from bevel.ir.ops import NoAttrs, lookup
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.index import GatherAttrs, GatherNDAttrs, ScatterElementsAttrs
from bevel.ir.ops.integer import IntAddAttrs, OutAttrs, RequantizeAttrs, softmax_table
from bevel.ir.ops.logic import CastAttrs
from bevel.ir.ops.movement import ConcatAttrs, ExpandAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import AxisAttrs, GroupNormAttrs, LayerNormAttrs, LrnAttrs, ReduceAttrs, RmsNormAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.ops.reduce import IntReduceAttrs, ScanAttrs
from bevel.ir.ops.select_axis import ArgAttrs, TopKAttrs
from bevel.ir.protocols import Target
from bevel.ir.types import BOOL, F32, I8, I32, I64, Quant
from tests.backends.generic_cases import NHWC, Case, Operand, from_storage, to_storage
from tests.backends.harness import (
    A7,
    A72,
    X86_AVX2,
    X86_AVX512,
    X86_BASE,
    X86_VNNI,
    Call,
    Compiled,
    reference_conv,
    skip_unless_runs,
)

TARGETS = [pytest.param(t, id=t.name) for t in (X86_BASE, X86_AVX2, X86_AVX512)]
TARGETS += [pytest.param(t, id=t.name, marks=pytest.mark.qemu) for t in (A72, A7)]

BOUND = 37
EXTENTS = (1, 2, 3, 7, 16, 17, 36, 37)
SEQ = DimRef("seq", BOUND)

_IN = Quant(I8, (0.05,), (-3,))
_OUT = Quant(I8, (0.08,), (5,))

# A case at an extent; the axes that differ between extents are the dynamic ones.
Make = Callable[[int], Case]


def _floats(*shape: int) -> Operand:
    return Operand(np.random.default_rng(math.prod(shape)).normal(size=shape).astype(np.float32), F32)


def _codes(*shape: int) -> Operand:
    return Operand(np.random.default_rng(math.prod(shape)).integers(-128, 128, shape).astype(np.int8), _IN)


def _permuted(operand: Operand, layout: tuple[int, ...]) -> Operand:
    return replace(operand, layout=layout)


def _requantize(n: int) -> Case:
    rng = np.random.default_rng(n)
    operands = (
        Operand(rng.integers(-50000, 50000, (1, n, 20), np.int32), I32),
        Operand(rng.integers(1 << 30, 1 << 31, 20).astype(np.int32), I32, constant=True),
        Operand(rng.integers(38, 42, 20).astype(np.int32), I32, constant=True),
    )
    return Case("Requantize", RequantizeAttrs(_OUT, 2, -128, 127), operands)


def _table(_n: int) -> Operand:
    return Operand(np.random.default_rng(1).integers(-128, 128, 256).astype(np.int8), I8, constant=True)


def _indices(*values: int) -> Operand:
    return Operand(np.array(values, np.int64), I64, constant=True)


def _positions(n: int) -> Operand:
    """Places in [0, n), some counted from the end."""
    return Operand(np.random.default_rng(n).integers(-n, n, (n, 2)).astype(np.int64), I64)


def _flags(*shape: int) -> Operand:
    return Operand(np.random.default_rng(math.prod(shape)).integers(0, 2, shape).astype(bool), BOOL)


CASES: dict[str, Make] = {
    "flat": lambda n: Case("Relu", NoAttrs(), (_floats(1, n),)),
    "rows": lambda n: Case("Add", NoAttrs(), (_floats(1, n, 33), _floats(33)), epilogue=(("Clip", ClipAttrs(-1, 1)),)),
    "inner": lambda n: Case("Sigmoid", NoAttrs(), (_floats(2, n),)),
    "square": lambda n: Case("Add", NoAttrs(), (_floats(1, 3, n, n), _floats(1, 1, n, n))),
    "square row": lambda n: Case("Mul", NoAttrs(), (_floats(1, 3, n, n), _floats(1, 1, 1, n))),
    "square column": lambda n: Case("Mul", NoAttrs(), (_floats(1, 3, n, n), _floats(1, 1, n, 1))),
    "channels last": lambda n: Case("Add", NoAttrs(), (_permuted(_floats(n, 5, 4, 3), NHWC),) * 2, NHWC),
    "mixed layouts": lambda n: Case("Sub", NoAttrs(), (_permuted(_floats(2, n, 4, 5), (0, 2, 1, 3)), _floats(2, n, 4, 5))),
    "copy": lambda n: Case("Copy", NoAttrs(), (_permuted(_floats(1, 4, n, 8), (0, 2, 1, 3)),)),
    "copy of codes": lambda n: Case("Copy", NoAttrs(), (_permuted(_codes(1, 8, n, 6), NHWC),)),
    "transpose": lambda n: Case("Transpose", TransposeAttrs((1, 0, 2)), (_floats(6, n, 9),)),
    "slice": lambda n: Case("Slice", SliceAttrs((0, 0, 3), (-1, -1, 19), (1, 1, 2)), (_floats(2, n, 24),)),
    "concat": lambda n: Case("Concat", ConcatAttrs(2), (_floats(1, n, 7), _floats(1, n, 9))),
    "concat inside": lambda n: Case("Concat", ConcatAttrs(0), (_floats(2, n), _floats(3, n))),
    "requantize": _requantize,
    "int add": lambda n: Case("IntAdd", IntAddAttrs(_OUT, 700000, -900000, 20, -128, 127), (_codes(1, n, 31), _codes(1, n, 31))),
    "lut": lambda n: Case("Lut", OutAttrs(_OUT), (_codes(2, n, 11), _table(n))),
    "softmax along": lambda n: Case("Softmax", AxisAttrs(2), (_floats(2, n, n),)),
    "softmax across": lambda n: Case("Softmax", AxisAttrs(0), (_floats(n, 50),)),
    "softmax of rows": lambda n: Case("Softmax", AxisAttrs(1), (_floats(3, 11, n),)),
    "int softmax": lambda n: Case(
        "IntSoftmax", AxisAttrs(2), (_codes(2, n, n), Operand(softmax_table(_IN.scale[0]), I32, constant=True))
    ),
    "mean of rows": lambda n: Case("ReduceMean", ReduceAttrs((1,), False), (_floats(1, n, 70),)),
    "mean along": lambda n: Case("ReduceMean", ReduceAttrs((2,), True), (_floats(2, 3, n),)),
    "mean of kept": lambda n: Case("ReduceMean", ReduceAttrs((0,), True), (_floats(5, n),)),
    "mean of a square": lambda n: Case("ReduceMean", ReduceAttrs((1, 2), True), (_floats(3, n, n),)),
    "maximum of codes": lambda n: Case("ReduceMax", ReduceAttrs((1,), False), (_codes(1, n, 21),)),
    "root of squares": lambda n: Case("ReduceL2", ReduceAttrs((1, 2), True), (_floats(2, n, 3),)),
    "log of exponentials": lambda n: Case("ReduceLogSumExp", ReduceAttrs((1,), False), (_floats(3, n),)),
    "sum of codes": lambda n: Case("IntReduce", IntReduceAttrs((2,), False, _OUT, 1 << 30, 33), (_codes(1, n, 20),)),
    "running sum": lambda n: Case("CumSum", ScanAttrs(1, True, True), (_floats(2, n, 5),)),
    "layer norm": lambda n: Case("LayerNormalization", LayerNormAttrs(2), (_floats(1, n, 40), _floats(40), _floats(40))),
    "layer norm along": lambda n: Case("LayerNormalization", LayerNormAttrs(1), (_floats(3, n),)),
    "rms norm": lambda n: Case("RMSNormalization", RmsNormAttrs(2), (_floats(1, n, 40), _floats(40))),
    "group norm": lambda n: Case("GroupNormalization", GroupNormAttrs(2), (_floats(2, 6, n), _floats(6), _floats(6))),
    "neighbouring channels": lambda n: Case("LRN", LrnAttrs(3, 0.1), (_floats(2, 6, n),)),
    "log softmax": lambda n: Case("LogSoftmax", AxisAttrs(1), (_floats(3, n),)),
    "hard maximum": lambda n: Case("Hardmax", AxisAttrs(1), (_floats(3, n),)),
    "place of the maximum": lambda n: Case("ArgMax", ArgAttrs(1, False, True), (_codes(2, n),)),
    "places of rows": lambda n: Case("ArgMin", ArgAttrs(1, False), (_floats(2, n, 40),)),
    "greatest": lambda n: Case("TopK", TopKAttrs(1, 1), (_floats(2, n, 5),)),
    "scores": lambda n: Case("MatMul", NoAttrs(), (_floats(1, 2, n, 8), _floats(1, 2, 8, n))),
    "scores, transposed keys": lambda n: Case(
        "MatMul", NoAttrs(), (_floats(1, 2, n, 8), _permuted(_floats(1, 2, 8, n), (0, 1, 3, 2)))
    ),
    "probabilities by values": lambda n: Case("MatMul", NoAttrs(), (_floats(1, 2, n, n), _floats(1, 2, n, 19))),
    "gather of words": lambda n: Case("Gather", GatherAttrs(0), (_floats(BOUND, 19), Operand(np.arange(n)[None], I64))),
    "gather from the end": lambda n: Case("Gather", GatherAttrs(1), (_floats(2, n, 5), _indices(-1, 0, -1))),
    "gather elements": lambda n: Case("GatherElements", GatherAttrs(0), (_floats(n, 2), _positions(n))),
    "gather tuples": lambda n: Case("GatherND", GatherNDAttrs(), (_floats(n, n, 3), _positions(n))),
    "scatter elements": lambda n: Case(
        "ScatterElements", ScatterElementsAttrs(0, "add"), (_floats(n, 2), _positions(n), _floats(n, 2))
    ),
    "expand": lambda n: Case("Expand", ExpandAttrs((2, n, 9)), (_floats(1, 9),)),
    "where": lambda n: Case("Where", NoAttrs(), (_flags(1, 1, n), _floats(1, 1), _floats(3, n, n))),
    "compare": lambda n: Case("Greater", NoAttrs(), (_floats(1, n), _floats(n, 1))),
    "cast": lambda n: Case("Cast", CastAttrs("f32"), (_flags(3, n),)),
    "pools of images": lambda n: Case(
        "MaxPool", PoolAttrs((3, 3), (2, 2), (1, 1, 1, 1)), (_permuted(_floats(n, 5, 7, 6), NHWC),), NHWC
    ),
    "means of images": lambda n: Case(
        "AveragePool", AveragePoolAttrs((2, 3), (1, 2), (0, 1, 0, 1)), (_permuted(_floats(n, 5, 7, 6), NHWC),), NHWC
    ),
    "batches": lambda n: Case("MatMul", NoAttrs(), (_floats(n, 3, 5), _floats(1, 5, 9))),
}


def _bound(buf: Buf, smaller: Sequence[int]) -> Buf:
    """`buf`, at the bound, with the axes dynamic that are shorter in `smaller`."""
    dims = tuple(SEQ if a != b else None for a, b in zip(buf.shape, smaller, strict=True))
    return replace(buf, dims=dims if any(dims) else ())


def _problem(make: Make, activation: str) -> NodeProblem:
    full, less = make(BOUND).problem(activation), make(BOUND - 1).problem(activation)
    inputs, outputs = (
        tuple(_bound(a, b.shape) for a, b in zip(getattr(full, side), getattr(less, side), strict=True))
        for side in ("inputs", "outputs")
    )
    return replace(full, inputs=inputs, outputs=outputs)


def _garbage(buf: Buf) -> Array:
    """Memory of `buf` full of what must not matter."""
    return np.full(buf.nbytes, 0xFF, np.uint8).view(buf.dtype).reshape(buf.physical_shape)


def _corner(buf: Buf, shape: Sequence[int]) -> tuple[slice, ...]:
    """Where the actual elements lie in memory."""
    order = buf.layout or range(len(shape))
    return tuple(slice(shape[axis]) for axis in order)


@dataclass(frozen=True)
class Run:
    """What a kernel computed at one extent."""

    generator: str
    case: Case
    got: tuple[Array, ...]


def _contestants(problem: NodeProblem, target: Target) -> list[Generator]:
    """The generators that are legal for `problem`, of the derived ones the first."""
    legal = [g for g in generators(target.arch) if isinstance(g, RuntimeExtent) and g.legal(problem, target) is None]
    return [g for g in legal if g not in (VECTOR, GENERIC)] + [next(g for g in legal if g in (VECTOR, GENERIC))]


@pytest.fixture(scope="module", params=TARGETS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Run]]:
    """Every case at every extent on every legal generator, each range of the parallel axis in two parts."""
    target = request.param
    skip_unless_runs(target)
    functions, calls, cases = {}, [], []
    for name, make in CASES.items():
        problem = _problem(make, target.activation_dtype)
        assert problem_dims(problem) == ("seq",)
        for generator in _contestants(problem, target):
            assert isinstance(generator, RuntimeExtent)
            tile = generator.tiles(problem, target)[0]
            symbol = f"k{len(functions)}"
            functions[symbol] = generator.emit(problem, tile, target, symbol)
            length = generator.runtime_extent(problem, tile)
            outputs = [(out.physical_shape, out.dtype) for out in problem.outputs]
            tables = generator.pack(problem, tile, target, None)
            for extent in EXTENTS:
                case = make(extent)
                small = case.problem(target.activation_dtype)
                stored = []
                for operand, buf, actual in zip(case.operands, problem.inputs, small.inputs, strict=True):
                    memory = _garbage(buf)
                    memory[_corner(buf, actual.shape)] = to_storage(operand.array, actual)
                    stored.append(memory)
                units = length.at({"seq": extent}) if isinstance(length, Extent) else length
                cut = units // 3
                ranges = [(cut, units), (0, cut)] if cut else [(0, units)]
                dims = np.array([extent], np.int32)
                calls.append(Call(symbol, [*stored, *tables, dims], outputs, ranges, generator.scratch_bytes(problem, tile)))
                cases.append((name, generator.name, case, problem.outputs, small.outputs))
    compiled = Compiled(functions, target, tmp_path_factory.mktemp("dynamic"))
    found: dict[str, list[Run]] = {name: [] for name in CASES}
    for (name, generator_name, case, outs, smalls), results in zip(cases, compiled.run(calls), strict=True):
        got = [from_storage(r[_corner(out, small.shape)], small) for r, out, small in zip(results, outs, smalls, strict=True)]
        found[name].append(Run(generator_name, case, tuple(got)))
    return found


@pytest.mark.parametrize("name", CASES)
def test_equals_the_interpreter_at_every_extent(runs: dict[str, list[Run]], name: str) -> None:
    for index, run in enumerate(runs[name]):
        where = f"{name} on {run.generator} at {EXTENTS[index % len(EXTENTS)]}"
        tolerance = 0.0 if run.case.op == "Copy" else lookup(run.case.op).tolerance
        for got, expected in zip(run.got, run.case.expected(), strict=True):
            if tolerance == 0 or expected.dtype.kind != "f":
                assert np.array_equal(got, expected), where
            else:
                error = np.abs(got.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30)
                assert error <= tolerance, f"{where}: {error}"


@pytest.mark.parametrize("target", TARGETS)
def test_border_copies(target: Target, tmp_path: Path) -> None:
    """Spread and Compact convert between contiguous memory at the actual extents and the layout of the bounds, both ways."""
    skip_unless_runs(target)
    other = DimRef("rows", 5)
    shapes: list[tuple[tuple[int, ...], tuple[DimRef | None, ...], str]] = [
        ((1, 3, BOUND), (None, None, SEQ), "float32"),
        ((1, 1, BOUND, BOUND), (None, None, SEQ, SEQ), "float32"),
        ((2, BOUND, 3), (None, SEQ, None), "int8"),
        ((5, 2, BOUND), (other, None, SEQ), "int64"),
    ]
    functions, calls, expected = {}, [], []
    for index, (shape, dims, dtype) in enumerate(shapes):
        buf = Buf(shape, dtype, dims=dims)
        assert not contiguous(buf)
        for op in ("Spread", "Compact"):
            problem = NodeProblem(op, NoAttrs(), (buf,), (buf,))
            generator = next(g for g in (VECTOR, GENERIC) if g.legal(problem, target) is None)
            symbol = f"k{index}{op}"
            functions[symbol] = generator.emit(problem, {}, target, symbol)
            for values in ({"seq": 1, "rows": 5}, {"seq": 7, "rows": 1}, {"seq": BOUND, "rows": 3}):
                actual = tuple(n if ref is None else values[ref.name] for n, ref in zip(shape, dims, strict=True))
                data = np.random.default_rng(index).integers(-100, 100, actual).astype(dtype)
                bound, compact = _garbage(buf), _garbage(buf).reshape(-1)
                bound[_corner(buf, actual)] = data
                compact[: data.size] = data.reshape(-1)
                length = generator.runtime_extent(problem, {})
                units = length.at(values) if isinstance(length, Extent) else length
                source = compact if op == "Spread" else bound
                order = np.array([values[name] for name in problem_dims(problem)], np.int32)
                calls.append(Call(symbol, [source, order], [(shape, dtype)], [(0, units)]))
                expected.append((op, buf, data))
    for (op, buf, data), (result,) in zip(expected, Compiled(functions, target, tmp_path).run(calls), strict=True):
        got = result[_corner(buf, data.shape)] if op == "Spread" else result.reshape(-1)[: data.size].reshape(data.shape)
        assert np.array_equal(got, data), f"{op} of {buf} at {data.shape}"


CONV_TARGETS = [pytest.param(t, id=t.name) for t in (X86_BASE, X86_AVX2, X86_VNNI)]
CONV_TARGETS += [pytest.param(A72, id=A72.name, marks=pytest.mark.qemu)]


@pytest.mark.parametrize("target", CONV_TARGETS)
def test_convolutions_cut_short_compute_the_rows_that_exist(target: Target, tmp_path: Path) -> None:
    """Every generator that is legal for a GEMM of run-time rows, or for run-time images: the first units hold all actual rows."""
    skip_unless_runs(target)
    images = DimRef("batch", 3)
    codes = target.activation_dtype
    problems = [
        ConvProblem(1, 1, BOUND, 20, 19, dim=SEQ),
        ConvProblem(1, 1, 2 * BOUND, 8, 40, relu=True, dim=SEQ),
        ConvProblem(
            3, 5, 6, 4, 10, kh=3, kw=3, stride_h=2, stride_w=2, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1, dim=images
        ),
        ConvProblem(3, 4, 4, 8, 12, dim=images),
        ConvProblem(3, 6, 5, 16, 16, kh=3, kw=3, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1, groups=16, dim=images),
        ConvProblem(1, 1, BOUND, 20, 19, dtype=codes, out_dtype=codes, dim=SEQ),
        ConvProblem(1, 1, BOUND, 24, 33, dtype=codes, out_dtype="int32", dim=SEQ),
    ]
    functions, calls, checks = {}, [], []
    for p in problems:
        assert p.dim is not None
        x, constants = _conv_data(p)
        for generator in generators(target.arch):
            if generator.legal(p, target) is not None:
                continue
            assert isinstance(generator, RuntimeExtent), f"{generator.name} takes no run-time extents"
            tile = generator.tiles(p, target)[0]
            symbol = f"k{len(functions)}"
            functions[symbol] = generator.emit(p, tile, target, symbol)
            length = generator.runtime_extent(p, tile)
            if isinstance(length, Extent):
                assert length.at({p.dim.name: p.dim.bound}) == length.most == generator.parallel_extent(p, tile)
            for extent in (1, 2, p.dim.bound - 1, p.dim.bound):
                units = length.at({p.dim.name: extent}) if isinstance(length, Extent) else length
                packed = generator.pack(p, tile, target, constants)
                shape = (p.batch, p.oh, p.ow, p.oc)
                calls.append(Call(symbol, [x, *packed], [(shape, p.out_dtype)], [(0, units)], generator.scratch_bytes(p, tile)))
                checks.append((generator.name, p, extent, reference_conv(p, x, constants)))
    for (name, p, extent, expected), (result,) in zip(checks, Compiled(functions, target, tmp_path).run(calls), strict=True):
        assert p.dim is not None
        rows = expected.shape[0] * expected.shape[1] * expected.shape[2] // p.dim.bound * extent
        got, wanted = (a.reshape(-1, p.oc)[:rows] for a in (result, expected))
        if p.dtype == "float32":
            assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), f"{name} {p} at {extent}"
        else:
            assert np.array_equal(got, wanted), f"{name} {p} at {extent}"


def _conv_data(p: ConvProblem) -> tuple[Array, ConvConstants]:
    rng = np.random.default_rng(p.oc)
    shape, weights = (p.batch, p.h, p.w, p.c), (p.oc, p.c // p.groups, p.kh, p.kw)
    if p.dtype == "float32":
        x = rng.normal(size=shape).astype(np.float32)
        lo = 0.0 if p.relu else -np.inf
        return x, ConvConstants(rng.normal(size=weights).astype(np.float32), rng.normal(size=p.oc).astype(np.float32), lo=lo)
    info = np.iinfo(p.dtype)
    limits = np.iinfo(p.dtype if p.out_dtype == "int32" else p.out_dtype)
    constants = ConvConstants(
        rng.integers(-127, 128, weights).astype(np.int8),
        rng.integers(-500, 500, p.oc).astype(np.int32),
        rng.integers(1 << 30, 1 << 31, p.oc).astype(np.int64),
        rng.integers(38, 42, p.oc).astype(np.int64),
        int(info.min) + 100,
        int(limits.min) + 120,
        int(limits.min),
        int(limits.max),
    )
    return rng.integers(info.min, info.max + 1, shape).astype(p.dtype), constants


def test_work_follows_the_extent() -> None:
    """The parallel axis of a GEMM at a quarter of the bound is a quarter as long, give or take a tile."""
    p = ConvProblem(1, 1, 256, 384, 384, dim=DimRef("seq", 256))
    choice = choose(p, X86_AVX2, "gemm")
    assert isinstance(choice.generator, RuntimeExtent)
    length = choice.generator.runtime_extent(p, choice.tile)
    assert isinstance(length, Extent)
    assert length.at({"seq": 64}) <= length.most // 4 + 1
    assert length.at({"seq": 1}) == 1


def test_refusal_names_the_operator_and_the_dimension() -> None:
    image = Buf((1, 8, BOUND, 9), "float32", dims=(None, None, SEQ, None))
    problem = NodeProblem("MaxPool", PoolAttrs((3, 3), (1, 1), (1, 1, 1, 1)), (image,), (image,))
    with pytest.raises(UnsupportedOp, match=r"'pool'.*MaxPool.*--dim seq=N"):
        choose(problem, X86_AVX2, "pool")


def test_reshapes_that_move_nothing() -> None:
    """A reshape is a view where as many elements lie between run-time extents before and after."""
    heads = Buf((1, BOUND, 12, 32), "float32", dims=(None, SEQ, None, None))
    assert same_memory(heads, Buf((BOUND, 384), "float32", dims=(SEQ, None)))
    assert same_memory(Buf((3, 4, BOUND), "float32", dims=(None, None, SEQ)), Buf((12, BOUND), "float32", dims=(None, SEQ)))
    assert not same_memory(
        Buf((2, BOUND, 6), "float32", dims=(None, SEQ, None)), Buf((3, BOUND, 4), "float32", dims=(None, SEQ, None))
    )
