"""Problems of elementwise operators for the derived kernels: whole domains, all element types and layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bevel.backends.kernel import Array
from bevel.ir.ops import NoAttrs
from bevel.ir.ops.elementwise import ClipAttrs, ModAttrs
from bevel.ir.ops.functions import (
    CeluAttrs,
    EluAttrs,
    HardSigmoidAttrs,
    LeakyReluAttrs,
    PowerAttrs,
    SeluAttrs,
    ShrinkAttrs,
    SwishAttrs,
    ThresholdAttrs,
)
from bevel.ir.ops.logic import CONVERTIBLE, CastAttrs, IsInfAttrs, ShiftAttrs
from bevel.ir.types import elem_of_dtype
from tests.backends.generic_cases import NHWC, Case, Operand, codes, plain, real

RNG = np.random.default_rng(17)
WIDTHS = tuple(np.dtype(f"{sign}int{bits}") for bits in (8, 16, 32, 64) for sign in ("", "u"))
NEAR_ZERO = np.geomspace(1e-30, 1, 300)


def sweep(lo: float, hi: float, count: int = 4001) -> Array:
    """Numbers of both ends and between, tiny ones among them where the range has them."""
    tiny = np.concatenate([NEAR_ZERO, -NEAR_ZERO, [0.0, -0.0]])
    return np.concatenate([np.linspace(lo, hi, count), tiny[(tiny >= lo) & (tiny <= hi)]]).astype(np.float32)


WHOLE = sweep(-(2**24), 2**24, 1501)

# Operator, attributes, domain.
FUNCTIONS: tuple[tuple[str, Any, Array], ...] = (
    ("LeakyRelu", LeakyReluAttrs(0.1), sweep(-9, 9)),
    ("Elu", EluAttrs(1.5), sweep(-100, 9)),
    ("Selu", SeluAttrs(), sweep(-100, 9)),
    ("Celu", CeluAttrs(0.5), sweep(-30, 9)),
    ("ThresholdedRelu", ThresholdAttrs(0.7), sweep(-9, 9)),
    ("Shrink", ShrinkAttrs(0.25, 1.5), sweep(-9, 9)),
    ("HardSigmoid", HardSigmoidAttrs(0.2, 0.5), sweep(-9, 9)),
    ("Swish", SwishAttrs(1.702), sweep(-40, 40)),
    ("Mish", NoAttrs(), sweep(-90, 40)),
    ("GeluTanh", NoAttrs(), sweep(-9, 9)),
    ("Softplus", NoAttrs(), sweep(-80, 90)),
    ("Softsign", NoAttrs(), sweep(-90, 90)),
    *(("Power", PowerAttrs(float(p)), sweep(-3, 3)) for p in (3, 0, 11)),
    *(("Power", PowerAttrs(float(np.float32(p))), sweep(0.01, 30)) for p in (-2, -0.5, 1.7, 0.25, -5.5)),
    ("Reciprocal", NoAttrs(), sweep(0.01, 30)),
    ("Log", NoAttrs(), np.geomspace(1.2e-38, 3e38, 4001).astype(np.float32)),
    *(
        (op, NoAttrs(), np.concatenate([sweep(-9, 9, 721), sweep(-(2**24), 2**24, 1501) + np.float32(0.5)]))
        for op in ("Floor", "Ceil")
    ),
    ("Round", NoAttrs(), np.concatenate([np.arange(-70, 70) / 4, WHOLE + 0.5, [4194304.5, -8388607.5]])),
    ("Sign", NoAttrs(), sweep(-9, 9, 101)),
    *((op, NoAttrs(), x) for op in ("Sin", "Cos") for x in (sweep(-10, 10), sweep(-2e4, 2e4, 3001), sweep(-2.6e8, 2.6e8, 999))),
    ("Tan", NoAttrs(), sweep(-1.5, 1.5)),
    ("Tan", NoAttrs(), np.float32(np.pi) * np.arange(3000, dtype=np.float32) + np.float32(0.8)),
    ("Asin", NoAttrs(), sweep(-1, 1)),
    ("Acos", NoAttrs(), sweep(-1, 1)),
    ("Atan", NoAttrs(), sweep(-9, 9)),
    ("Atan", NoAttrs(), sweep(-1e30, 1e30, 99)),
    ("Sinh", NoAttrs(), sweep(-5, 5)),
    ("Sinh", NoAttrs(), sweep(80, 89.4, 999)),
    ("Cosh", NoAttrs(), sweep(-5, 5)),
    ("Cosh", NoAttrs(), sweep(80, 89.4, 999)),
    ("Asinh", NoAttrs(), sweep(-9, 9)),
    ("Asinh", NoAttrs(), np.geomspace(1, 3e38, 999).astype(np.float32)),
    ("Acosh", NoAttrs(), sweep(1, 9)),
    ("Acosh", NoAttrs(), np.geomspace(1, 3e38, 999).astype(np.float32)),
    ("Atanh", NoAttrs(), sweep(-0.9999, 0.9999)),
)
# What neither grows nor shrinks as other numbers do, but subnormals, which 32-bit ARM takes for zero. Without infinity where
# gates multiply it by zero.
SPECIAL = np.array([np.nan, 0.0, -0.0, 1.2e-38, -1.2e-38, 1, -1, 0.5, 3e38, -3e38, np.inf, -np.inf], np.float32)
FINITE_ONLY = {"Gelu", "GeluTanh", "HardSwish", "Mish", "Silu", "Softsign", "Swish"}


def _special() -> Iterator[Case]:
    plain_functions = ("Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Gelu", "HardSwish", "Silu", "Neg", "Abs", "Sqrt")
    seen = {op: attrs for op, attrs, _ in FUNCTIONS} | {op: NoAttrs() for op in plain_functions} | {"Clip": ClipAttrs(-1.5, 2.5)}
    for op, attrs in (*seen.items(), *(("Power", PowerAttrs(p)) for p in (3.0, -3.0, 2.5, -0.5))):
        far = (np.abs(SPECIAL) > 2.0**28) & np.isfinite(SPECIAL) & (op in {"Sin", "Cos", "Tan"})
        yield Case(op, attrs, (plain(SPECIAL[:8] if op in FINITE_ONLY else SPECIAL[~far]),))
    for op, attrs in (("Min", NoAttrs()), ("Max", NoAttrs()), ("Pow", NoAttrs()), *(("Mod", ModAttrs(f)) for f in (False, True))):
        yield Case(op, attrs, (plain(SPECIAL[:, None]), plain(np.concatenate([SPECIAL, [2, 3, -3, 2.5]]).astype(np.float32))))
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        yield Case(op, NoAttrs(), (plain(SPECIAL[:, None]), plain(SPECIAL)))


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _special()
    for op, attrs, x in FUNCTIONS:
        yield Case(op, attrs, (plain(x.astype(np.float32)),))
    yield Case("LeakyRelu", LeakyReluAttrs(0.1), (real(1, 5, 3, 7, layout=NHWC),))
    yield Case("Mish", NoAttrs(), (real(1, 5, 3, 7, layout=NHWC),), NHWC, (("Relu", NoAttrs()),))
    yield Case("PRelu", NoAttrs(), (real(2, 18, 3, 5, layout=NHWC), real(18, 1, 1)), NHWC)
    yield Case("PRelu", NoAttrs(), (real(3, 37), real(37)), None, (("Relu", NoAttrs()),))
    yield from _reals()
    yield from _integers()
    yield from _truth()
    yield from _conversions()


def _reals() -> Iterator[Case]:
    a, b = real(2, 9, 5, 7, layout=NHWC), real(2, 9, 1, 7)
    for op in ("Min", "Max", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        yield Case(op, NoAttrs(), (a, b), NHWC)
    grid = plain(np.round(RNG.normal(0, 2, (7, 33))).astype(np.float32))
    for op in ("Equal", "GreaterOrEqual", "Less"):
        yield Case(op, NoAttrs(), (grid, plain(grid.array[::-1].copy())))
    yield Case("Pow", NoAttrs(), (real(3, 70, low=0.01, high=9), real(70, low=-7, high=7)))
    yield Case("Pow", NoAttrs(), (plain(grid.array), plain(np.abs(grid.array[::-1]).copy())))
    dividend = (RNG.normal(0, 1, 700) * 10.0 ** RNG.integers(-20, 20, 700)).astype(np.float32)
    divisor = (RNG.normal(0, 1, 700) * 10.0 ** RNG.integers(-20, 20, 700)).astype(np.float32)
    for fmod in (True, False):
        yield Case("Mod", ModAttrs(fmod), (plain(dividend), plain(divisor)))
        yield Case("Mod", ModAttrs(fmod), (real(3, 37, low=-99, high=99), real(37, low=0.5)))
    same = codes(2, 17, 3, 5, zero_point=4, layout=NHWC)
    for op in ("Min", "Max"):
        yield Case(op, NoAttrs(), (same, codes(2, 17, 3, 5, zero_point=4, layout=NHWC)), NHWC)
        yield Case(op, NoAttrs(), (same, codes(17, 1, 1, zero_point=4)))


def integers(dtype: np.dtype[Any], count: int = 97, seed: int = 0) -> Array:
    """Random numbers of every magnitude, the extremes and neighbours of zero."""
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 8 * dtype.itemsize, count)
    wide = rng.integers(0, 1 << 62, count).astype(np.uint64) << np.uint64(2)
    numbers = (wide >> (np.uint64(63) - bits.astype(np.uint64))).astype(dtype)
    if limits.min < 0:
        numbers = np.where(rng.random(count) < 0.5, numbers, -numbers).astype(dtype)
    special = np.array([limits.min, limits.max, 0, 1, limits.max - 1, limits.min + 1, 2], dtype)
    return np.concatenate([special, numbers, special[::-1]])


def _integers() -> Iterator[Case]:
    arithmetic: tuple[tuple[str, Any], ...] = (
        *((op, NoAttrs()) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "BitwiseAnd", "BitwiseOr", "BitwiseXor")),
        *((op, NoAttrs()) for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
        *(("Mod", ModAttrs(fmod)) for fmod in (False, True)),
    )
    for dtype in WIDTHS:
        a = integers(dtype)
        # Every pair of extremes meets.
        first, second = np.concatenate([a, np.repeat(a[:7], 7)]), np.concatenate([integers(dtype, seed=1), np.tile(a[:7], 7)])
        for op, attrs in arithmetic:
            yield Case(op, attrs, (plain(first), plain(second)))
        exponents = np.concatenate([np.arange(-3 if dtype.kind == "i" else 0, 40), a[:7]]).astype(dtype)
        bases = np.array([[0], [1], [2], [3], [7], [126]], np.int64).astype(dtype)
        if dtype.kind == "i":
            bases = np.concatenate([bases, -bases])
        yield Case("Pow", NoAttrs(), (plain(bases), plain(exponents)))
        yield Case("BitwiseNot", NoAttrs(), (plain(a),))
        for op in ("Neg", "Abs", "Sign"):
            yield Case(op, NoAttrs(), (plain(a),))
        width = 8 * dtype.itemsize
        amounts = np.resize(np.arange(-3 if dtype.kind == "i" else 0, min(2 * width, 127)), a.shape).astype(dtype)
        for left in (True, False):
            yield Case("BitShift", ShiftAttrs(left), (plain(a), plain(amounts)))
        yield Case("Where", NoAttrs(), (plain(RNG.random((5, 1)) < 0.5), plain(a), plain(a[::-1].copy())))
    yield Case("Add", NoAttrs(), (plain(integers(np.dtype(np.int16)).reshape(3, 37)), plain(integers(np.dtype(np.int16))[:37])))


def _truth() -> Iterator[Case]:
    a, b = plain(RNG.random((3, 33)) < 0.5), plain(RNG.random((1, 33)) < 0.5)
    for op in ("And", "Or", "Xor", "Equal"):
        yield Case(op, NoAttrs(), (a, b))
    yield Case("Not", NoAttrs(), (a,))
    yield Case("Where", NoAttrs(), (a, b, plain(RNG.random((3, 1)) < 0.5)))
    image = plain(RNG.random((2, 1, 5, 7)) < 0.5)
    yield Case("Where", NoAttrs(), (image, real(2, 9, 5, 7, layout=NHWC), real(9, 1, 1)), NHWC)
    special = plain(np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, 7], np.float32))
    yield Case("IsNaN", NoAttrs(), (special,))
    for at in (IsInfAttrs(), IsInfAttrs(negative=False), IsInfAttrs(positive=False)):
        yield Case("IsInf", at, (special,))


def _conversions() -> Iterator[Case]:
    ends = [s * (2.0**e + d) for e in (7, 8, 15, 16, 23, 24, 31, 32, 40, 62, 63, 64, 90) for s in (1, -1) for d in (0, -1, 1)]
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 0.99, -0.99, 1.5, -1.5, 1e-40]
    floats = np.concatenate([ends, special, RNG.normal(0, 300, 50)]).astype(np.float32)
    sources = (floats, np.array([True, False, True]), *(integers(dtype) for dtype in WIDTHS))
    for x in sources:
        for to in CONVERTIBLE:
            if to != "f16" and (to != "f32" or x is not floats):
                yield Case("Cast", CastAttrs(to), (plain(x),))
    yield Case(
        "Cast", CastAttrs("f32"), (Operand(integers(WIDTHS[0], 100)[:105].reshape(1, 5, 3, 7), elem_of_dtype(np.int8), NHWC),)
    )
