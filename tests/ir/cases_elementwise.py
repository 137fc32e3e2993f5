"""Elementwise operators in onnxruntime's hands: functions, comparisons, truth values, bits, conversions, integer arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from bevel.ir.ops.elementwise import ModAttrs
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
from bevel.ir.ops.logic import CastAttrs, IsInfAttrs, ShiftAttrs
from tests.ir.float_case import Case

LINE = np.array([-1e4, -90, -6, -3, -1.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 3, 5.999, 20, 90], np.float32)
WIDE = np.linspace(-12, 12, 97, dtype=np.float32).reshape(1, 97)
UNIT = np.linspace(-1, 1, 83, dtype=np.float32)
POSITIVE = np.geomspace(1e-30, 1e30, 61).astype(np.float32)
HALVES = np.arange(-12, 13).astype(np.float32) / 2
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.5], np.float32)
I32 = np.array([[-7, 7, 5, -5, 0, 2**31 - 1]], np.int32)
U8 = np.array([[0, 1, 7, 200, 255]], np.uint8)
TRUTH = np.array([[True, False, True]]), np.array([[True], [False]])
F32 = np.float32


def cases() -> list[Case]:
    """All of them."""
    return [*_functions(), *_pairs(), *_logic(), *_conversions()]


def _functions() -> list[Case]:
    cases = []
    with_attributes: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("LeakyRelu", LeakyReluAttrs(0.1), {"alpha": 0.1}),
        ("Elu", EluAttrs(1.5), {"alpha": 1.5}),
        ("Selu", SeluAttrs(1.25, 0.5), {"alpha": 1.25, "gamma": 0.5}),
        ("Celu", CeluAttrs(0.5), {"alpha": 0.5}),
        ("ThresholdedRelu", ThresholdAttrs(0.5), {"alpha": 0.5}),
        ("Shrink", ShrinkAttrs(0.25, 1.5), {"bias": 0.25, "lambd": 1.5}),
        ("HardSigmoid", HardSigmoidAttrs(0.25, 0.5), {"alpha": 0.25, "beta": 0.5}),
    )
    for op, attrs, onnx_attributes in with_attributes:
        cases += [Case(op, [x], attrs, onnx_attributes) for x in (LINE, WIDE)]
    cases.append(Case("Swish", [WIDE], SwishAttrs(1.0), onnx_op="Swish"))
    cases.append(Case("GeluTanh", [WIDE], onnx={"approximate": "tanh"}, onnx_op="Gelu"))
    cases += [Case("Mish", [WIDE]), Case("Softplus", [LINE]), Case("Softplus", [WIDE]), Case("Softsign", [LINE])]
    cases += [Case("Power", [WIDE], PowerAttrs(p), extra=[np.array(p, F32)], onnx_op="Pow") for p in (0.0, 3.0, 4.0)]
    cases += [Case("Power", [POSITIVE], PowerAttrs(p), extra=[np.array(p, F32)], onnx_op="Pow") for p in (-0.5, 0.75, -1.25)]
    cases += [Case(op, [POSITIVE]) for op in ("Reciprocal", "Log")]
    cases += [Case(op, [x]) for op in ("Floor", "Ceil", "Round", "Sign") for x in (HALVES, LINE)]
    cases += [Case(op, [x]) for op in ("Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh") for x in (WIDE, UNIT)]
    cases += [Case(op, [UNIT]) for op in ("Asin", "Acos")]
    cases += [Case("Atanh", [UNIT[1:-1]]), Case("Acosh", [POSITIVE[31:]])]
    cases += [Case(op, [I32[:, :5]]) for op in ("Neg", "Abs", "Sign")]
    return cases


def _pairs() -> list[Case]:
    shapes = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), ()), ((3, 1), (2, 1, 4)), ((0, 3), (1, 3))]
    cases = [Case(op, [a, b]) for op in ("Min", "Max", "Less", "Greater", "LessOrEqual", "GreaterOrEqual") for a, b in shapes]
    cases += [Case(op, [SPECIAL[:, None], SPECIAL[1:]]) for op in ("Less", "GreaterOrEqual", "Equal")]
    cases += [Case(op, [I32, I32[:, ::-1].copy()]) for op in ("Min", "Max", "Less", "GreaterOrEqual", "Equal")]
    bases, exponents = np.array([[0.5], [2.0], [-3.0]], F32), np.array([-3, -2, 0, 1, 2, 5], F32)
    cases += [Case("Pow", [bases, exponents]), Case("Pow", [np.abs(bases), exponents + F32(0.5)])]
    cases.append(Case("Pow", [np.array([[-3], [2], [1], [0]], np.int64), np.arange(5, dtype=np.int64)]))
    reals = [np.array([[5.5], [-5.5], [1e-3], [7.0]], F32), np.array([2.0, -2.0, 0.3, 7.0], F32)]
    cases.append(Case("Mod", reals, ModAttrs(True), {"fmod": 1}))
    for fmod in (0, 1):
        whole = [np.array([[-7], [7], [5], [0]], np.int64), np.array([3, -3, 5, -1], np.int64)]
        cases.append(Case("Mod", whole, ModAttrs(bool(fmod)), {"fmod": fmod}))
        cases.append(Case("Mod", [U8, np.array([[3], [7]], np.uint8)], ModAttrs(bool(fmod)), {"fmod": fmod}))
    cases += [Case("PRelu", [(2, 3, 4, 5), (3, 1, 1)]), Case("PRelu", [(2, 3), (3,)]), Case("PRelu", [(2, 3, 4), (1, 3, 1)])]
    cases.append(Case("Div", [I32, np.array([[2], [-3]], np.int32)]))
    return cases


def _logic() -> list[Case]:
    cases = [Case(op, list(TRUTH)) for op in ("And", "Or", "Xor", "Equal")]
    cases += [Case("Not", [TRUTH[0]]), Case("BitwiseNot", [I32])]
    cases += [Case(op, [I32, I32.T.copy()]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")]
    for left, direction in ((True, "LEFT"), (False, "RIGHT")):
        amounts = np.array([[0], [1], [7]], np.uint8)
        cases.append(Case("BitShift", [U8, amounts], ShiftAttrs(left), {"direction": direction}))
    cases += [Case("IsNaN", [SPECIAL]), Case("IsInf", [SPECIAL], IsInfAttrs())]
    cases.append(Case("IsInf", [SPECIAL], IsInfAttrs(negative=False), {"detect_negative": 0}))
    cases.append(Case("IsInf", [SPECIAL], IsInfAttrs(positive=False), {"detect_positive": 0}))
    cases.append(Case("Where", [TRUTH[0], (2, 1, 3), (2, 4, 1)]))
    cases.append(Case("Where", [TRUTH[1], I32, I32[:, ::-1].copy()]))
    return cases


def _conversions() -> list[Case]:
    types = {
        "f32": onnx.TensorProto.FLOAT,
        "bool": onnx.TensorProto.BOOL,
        "i8": onnx.TensorProto.INT8,
        "u8": onnx.TensorProto.UINT8,
        "i16": onnx.TensorProto.INT16,
        "u16": onnx.TensorProto.UINT16,
        "i32": onnx.TensorProto.INT32,
        "u32": onnx.TensorProto.UINT32,
        "i64": onnx.TensorProto.INT64,
        "u64": onnx.TensorProto.UINT64,
    }
    # What every type holds: beyond that, ONNX leaves the result open.
    reals = np.array([0, 0.99, 1.5, 100.9, 127], F32)
    cases = [Case("Cast", [reals], CastAttrs(to), {"to": code}) for to, code in types.items()]
    signed = np.array([-1, 0, 1, 200, -40000], np.int32)
    return cases + [Case("Cast", [signed], CastAttrs(to), {"to": code}) for to, code in types.items()]
