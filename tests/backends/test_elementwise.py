"""Functions of reals are as precise as their files state, and keep subnormal numbers where the processor does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends.kernel import Array
from bevel.ir.ops import NoAttrs, lookup
from bevel.ir.ops.elementwise import ModAttrs
from bevel.ir.ops.functions import PowerAttrs
from bevel.ir.protocols import Target
from tests.backends.cases_elementwise import sweep
from tests.backends.generic_cases import Case, plain
from tests.backends.harness import A72, X86_AVX2, X86_BASE, skip_unless_runs
from tests.backends.test_generic import run_cases

TARGETS = [pytest.param(X86_BASE, id="sse2"), pytest.param(X86_AVX2, id="avx2")]
TARGETS += [pytest.param(A72, id="a72", marks=pytest.mark.qemu)]
GROWING = np.geomspace(1e-20, 1e20, 3001).astype(np.float32)
FAR = np.random.default_rng(5).uniform(-(2.0**28), 2.0**28, 3000).astype(np.float32)

# Operator, attributes, operand, largest relative error stated, size below which only the absolute error counts.
STATED: tuple[tuple[str, Any, Array, float, float], ...] = (
    ("Log", NoAttrs(), GROWING, 2e-7, 0.0),
    ("Softplus", NoAttrs(), sweep(-80, 80), 6e-7, 0.0),
    ("Elu", None, sweep(-80, 5), 3e-7, 0.0),
    ("Mish", NoAttrs(), sweep(-80, 30), 8e-7, 0.0),
    ("Sin", NoAttrs(), np.concatenate([sweep(-3, 3), FAR]), 2e-7, 1e-3),
    ("Cos", NoAttrs(), np.concatenate([sweep(-3, 3), FAR]), 2e-7, 1e-3),
    ("Tan", NoAttrs(), sweep(-1.5, 1.5), 4e-7, 0.0),
    ("Asin", NoAttrs(), sweep(-1, 1), 3e-7, 0.0),
    ("Acos", NoAttrs(), sweep(-1, 1), 3e-7, 0.1),
    ("Atan", NoAttrs(), np.concatenate([sweep(-9, 9), GROWING]), 3e-7, 0.0),
    ("Sinh", NoAttrs(), sweep(-89, 89), 6e-7, 0.0),
    ("Cosh", NoAttrs(), sweep(-89, 89), 6e-7, 0.0),
    ("Asinh", NoAttrs(), np.concatenate([sweep(-9, 9), GROWING]), 4e-7, 0.0),
    ("Acosh", NoAttrs(), np.concatenate([sweep(1, 9), GROWING[GROWING > 1]]), 4e-7, 0.0),
    ("Atanh", NoAttrs(), sweep(-0.999, 0.999), 4e-7, 0.0),
    ("Power", PowerAttrs(0.75), GROWING, 3e-7, 0.0),
    ("Power", PowerAttrs(-1.5), GROWING, 3e-7, 0.0),
)


@pytest.mark.parametrize("target", TARGETS)
def test_functions_are_as_precise_as_stated(target: Target, tmp_path: Path) -> None:
    skip_unless_runs(target)
    chosen = [Case(op, lookup(op).attrs() if attrs is None else attrs, (plain(x),)) for op, attrs, x, _, _ in STATED]
    for run, (op, _, _, bound, least) in zip(run_cases(chosen, target, tmp_path).runs, STATED, strict=True):
        wide = Case(op, run.case.attrs, (plain(run.case.operands[0].array.astype(np.float64)),))
        (expected,), (got,) = wide.expected(), run.got
        error = np.abs(got - expected) / np.maximum(np.abs(expected), max(least, 1e-35))
        assert error.max() <= bound, f"{op}: {error.max():.2e} at {run.case.operands[0].array[error.argmax()]}"


TINY = np.array([1e-45, -1e-45, 1e-40, -1e-40, 1.1e-38, 0.0, 1.0], np.float32)


@pytest.mark.parametrize("target", TARGETS)
def test_subnormal_numbers_count(target: Target, tmp_path: Path) -> None:
    skip_unless_runs(target)
    functions = ("Log", "Floor", "Ceil", "Sign", "Sqrt", "Abs", "Asin", "Atan", "Sinh", "Tan", "Sin")
    chosen = [Case(op, NoAttrs(), (plain(np.abs(TINY) if op in ("Log", "Sqrt") else TINY),)) for op in functions]
    pairs = (plain(TINY[:, None]), plain(TINY))
    chosen += [Case(op, NoAttrs(), pairs) for op in ("Less", "Equal", "Min", "Max")]
    chosen += [Case("Mod", ModAttrs(fmod=True), pairs), Case("Pow", NoAttrs(), (pairs[0], plain(np.float32([1, 2, -1]))))]
    with np.errstate(all="ignore"):
        for run in run_cases(chosen, target, tmp_path).runs:
            np.testing.assert_allclose(run.got[0], run.case.expected()[0], rtol=1e-6, err_msg=run.case.op)
