"""Tables of codes that climb few steps: thresholds say what the table says, in every storage, and other tables are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bevel.backends.generic import GENERIC
from bevel.backends.generic.definition import definition_of, emit
from bevel.backends.kernel import Buf, DimRef, Extent, NodeProblem
from bevel.backends.stairs import MOST_STEPS, stairs
from bevel.ir.protocols import Target
from tests.backends.harness import A7, A72, X86_AVX2, X86_AVX512, X86_BASE, Call, Compiled, skip_unless_runs

STORED = ("int8", "uint8")
# The steps of a table: between which codes, of 256 or of few; one may climb several codes at once, the first and the last too.
TABLES = {
    "two bits": (256, [20, 90, 200]),
    "one bit": (256, [127]),
    "ends": (256, [0, 254]),
    "jump": (256, [100, 100, 100, 101]),
    "three bits": (256, [1, 3, 30, 90, 91, 150, 253]),
    "from four bits": (16, [3, 8, 12]),
}


def table_of(codes: int, steps: list[int], lowest: int) -> np.ndarray:
    return np.array([lowest + sum(code > step for step in steps) for code in range(codes)], np.int8)


@pytest.mark.parametrize(
    "target",
    [X86_BASE, X86_AVX2, X86_AVX512, *(pytest.param(t, marks=pytest.mark.qemu) for t in (A72, A7))],
    ids=lambda t: t.name,
)
def test_thresholds_are_the_table(target: Target, tmp_path: Path) -> None:
    """Every operand at every place of a vector, in a flat and in a permuted layout."""
    skip_unless_runs(target)
    functions, calls, expected = {}, [], []
    for index, (codes, steps) in enumerate(TABLES.values()):
        table = table_of(codes, steps, lowest=index - 3)
        for x_dtype in STORED:
            shape, layout = ((1, 7, 3, 271), None) if index % 2 else ((1, 271, 3, 7), (0, 2, 3, 1))
            x, out = Buf(shape, x_dtype, layout), Buf(shape, STORED[index % 2], layout)
            climbed = stairs(table, x, out)
            assert climbed is not None
            attrs, thresholds = climbed
            problem = NodeProblem("Stairs", attrs, (x, Buf(thresholds.shape, x_dtype)), (out,))
            stored = np.arange(x.size) % codes
            values = stored - (codes // 2 if x_dtype == "int8" else 0)
            symbol = f"k{len(functions)}"
            functions[symbol] = emit(problem, target, symbol).function
            extent = definition_of(problem).extent(problem)
            calls.append(Call(symbol, [values.astype(x_dtype), thresholds], [((x.size,), out.dtype)], [(0, extent)]))
            entries = table if out.dtype == "int8" else (table.view(np.uint8) ^ 128)
            expected.append(entries[stored])
    for got, wanted, call in zip(Compiled(functions, target, tmp_path).run(calls), expected, calls, strict=True):
        np.testing.assert_array_equal(got[0], wanted, err_msg=call.symbol)


def test_runtime_extents(tmp_path: Path) -> None:
    """Loops end at the actual extent; nothing beyond is written."""
    table = table_of(256, [20, 90, 200], 0)
    buf = Buf((2, 40, 3), "int8", dims=(None, DimRef("seq", 40), None))
    climbed = stairs(table, buf, buf)
    assert climbed is not None
    attrs, thresholds = climbed
    problem = NodeProblem("Stairs", attrs, (buf, Buf(thresholds.shape, "int8")), (buf,))
    assert GENERIC.legal(problem, X86_BASE) is None
    length = GENERIC.runtime_extent(problem, {})
    x = np.random.default_rng(3).integers(-128, 128, buf.shape).astype(np.int8)
    calls = []
    for extent in (1, 17, 40):
        units = length.at({"seq": extent}) if isinstance(length, Extent) else length
        calls.append(Call("k", [x, thresholds, np.array([extent], np.int32)], [(buf.shape, "int8")], [(0, units)]))
    compiled = Compiled({"k": GENERIC.emit(problem, {}, X86_BASE, "k")}, X86_BASE, tmp_path)
    for extent, (got,) in zip((1, 17, 40), compiled.run(calls), strict=True):
        np.testing.assert_array_equal(got[:, :extent], table[x[:, :extent].astype(np.int64) + 128])


def test_other_tables_are_looked_up() -> None:
    """Tables that fall, that stay, or that climb more codes than comparisons are worth."""
    x = Buf((64,), "int8")
    assert stairs(table_of(256, [20, 90], 0)[::-1].copy(), x, x) is None
    assert stairs(np.zeros(256, np.int8), x, x) is None
    assert stairs(table_of(256, list(range(MOST_STEPS)), 0), x, x) is not None
    assert stairs(table_of(256, list(range(MOST_STEPS + 1)), 0), x, x) is None
