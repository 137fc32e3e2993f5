"""Problems for the derived kernels: each with operands, and the interpreter's answer."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevel.backends.kernel import Array, Buf, NodeProblem
from bevel.ir.ops import Call, NoAttrs, lookup
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.integer import (
    ChannelLutAttrs,
    IntAddAttrs,
    IntAveragePoolAttrs,
    IntMulAttrs,
    OutAttrs,
    RequantizeAttrs,
    softmax_table,
)
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import AxisAttrs, BatchNormAttrs, ReduceAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.types import F32, I8, I32, I64, Elem, Int, Quant, TensorType, elem_of_dtype

# Files beside this one, each with a function `cases() -> Iterator[Case]`.
FAMILIES: tuple[str, ...] = (
    "cases_elementwise",
    "cases_matmul",
    "cases_movement",
    "cases_nms",
    "cases_normalize",
    "cases_recurrent",
    "cases_window",
)

Layout = tuple[int, ...] | None
NHWC: Layout = (0, 2, 3, 1)


@dataclass(frozen=True)
class Operand:
    """A logical array, its element type (codes are logical int8) and its layout; constants keep int8 on every target."""

    array: Array
    elem: Elem
    layout: Layout = None
    constant: bool = False


@dataclass(frozen=True)
class Case:
    """One operator call."""

    op: str
    attrs: Any
    operands: tuple[Operand, ...]
    out_layout: Layout = None
    epilogue: tuple[tuple[str, Any], ...] = ()

    def outs(self) -> tuple[TensorType, ...]:
        """Result types by the op table."""
        if self.op == "Copy":
            return self._types()[:1]
        return lookup(self.op).infer(self.attrs, self._types())

    def out(self) -> TensorType:
        """Type of the first result."""
        return self.outs()[0]

    def _types(self) -> tuple[TensorType, ...]:
        return tuple(TensorType(o.array.shape, o.elem) for o in self.operands)

    def expected(self) -> tuple[Array, ...]:
        """The interpreter's answers, logical."""
        if self.op == "Copy":
            return (self.operands[0].array,)
        with np.errstate(all="ignore"):
            value = lookup(self.op).reference(Call(self.attrs, self._types(), self.outs()), *(o.array for o in self.operands))
        values = list(value) if isinstance(value, tuple) else [value]
        for op, attrs in self.epilogue:
            values[0] = lookup(op).reference(Call(attrs, (self.out(),), (self.out(),)), values[0])
        return tuple(np.asarray(v) for v in values)

    def problem(self, activation: str) -> NodeProblem:
        """As lowering describes it on a target that stores codes as `activation`."""
        inputs = tuple(_buf(o.array.shape, o.elem, o.layout, "int8" if o.constant else activation) for o in self.operands)
        outs = self.outs()
        layouts = (self.out_layout, *[None] * (len(outs) - 1))
        results = tuple(_buf(t.static_shape, t.elem, layout, activation) for t, layout in zip(outs, layouts, strict=True))
        if self.op == "Copy":
            (result,) = results
            results = (Buf(result.shape, "int8" if result.dtype == "uint8" else result.dtype, self.out_layout),)
        elems = [*(o.elem for o in self.operands), *(t.elem for t in outs)]
        scales = tuple(e.scale[0] if isinstance(e, Quant) else 1.0 for e in elems)
        return NodeProblem(self.op, self.attrs, inputs, results, scales, self.epilogue)

    @property
    def integer(self) -> bool:
        """No float anywhere."""
        return all(e != F32 for e in (*(o.elem for o in self.operands), *(t.elem for t in self.outs())))


def _buf(shape: Sequence[int], elem: Elem, layout: Layout, activation: str) -> Buf:
    if not isinstance(elem, Quant):
        return Buf(tuple(shape), elem.dtype.name, layout)
    if not elem.storage.signed:
        return Buf(tuple(shape), "uint8", layout, elem.zero_point[0])
    return Buf(tuple(shape), activation, layout, elem.zero_point[0] + (128 if activation == "uint8" else 0))


def to_storage(array: Array, buf: Buf) -> Array:
    """Logical elements (codes as int8) in the memory order and storage type of `buf`."""
    if buf.dtype == "uint8" and array.dtype == np.int8:
        array = (array.astype(np.int16) + 128).astype(np.uint8)
    return np.ascontiguousarray(array.transpose(buf.layout) if buf.layout else array)


def from_storage(stored: Array, buf: Buf, *, biased: bool = True) -> Array:
    """Inverse of `to_storage`: codes come back as int8; bytes that are not `biased` codes stay what they are."""
    array = stored.reshape(buf.physical_shape)
    if buf.layout:
        array = array.transpose(np.argsort(buf.layout))
    return (array.astype(np.int16) - 128).astype(np.int8) if buf.dtype == "uint8" and biased else array


RNG = np.random.default_rng(7)


def quant(zero_point: int = 0, scale: float = 0.05) -> Quant:
    return Quant(I8, (scale,), (zero_point,))


def real(*shape: int, layout: Layout = None, low: float = -4, high: float = 4) -> Operand:
    """Random reals."""
    return Operand(RNG.uniform(low, high, shape).astype(np.float32), F32, layout)


def codes(*shape: int, zero_point: int = 0, layout: Layout = None, scale: float = 0.05) -> Operand:
    """Random codes with the extremes among them."""
    array = RNG.integers(-128, 128, shape).astype(np.int8)
    array.reshape(-1)[: min(2, array.size)] = [-128, 127][: min(2, array.size)]
    return Operand(array, quant(zero_point, scale), layout)


def plain(array: Array, layout: Layout = None) -> Operand:
    """An unquantized array, constants included."""
    return Operand(array, elem_of_dtype(array.dtype), layout, constant=True)


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every operator that reaches the backend as a `NodeProblem`; families with files of their own offer `cases()`."""
    groups = (_float_elementwise(), _integer_elementwise(), _movement(), _pools(), _reductions(), _softmax())
    families = (importlib.import_module(f"tests.backends.{name}").cases() for name in FAMILIES)
    return tuple(itertools.chain(*groups, *families))


def _float_elementwise() -> Iterator[Case]:
    near_zero = np.geomspace(1e-30, 1, 500)
    sweep = np.concatenate([np.linspace(-9, 9, 20001), near_zero, -near_zero, [0.0, -0.0, 30, -30]]).astype(np.float32)
    for op in ("Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "HardSwish", "Silu", "Neg", "Abs", "Exp"):
        yield Case(op, NoAttrs(), (plain(sweep),))
    yield Case("Exp", NoAttrs(), (plain(np.linspace(-87.3, 88.7, 5000).astype(np.float32)),))
    yield Case("Exp", NoAttrs(), (plain(np.array([-1e30, -110, -88], np.float32)),))
    yield Case("Sqrt", NoAttrs(), (plain(np.abs(sweep)),))
    yield Case("Clip", ClipAttrs(-1.5, 2.25), (real(1, 5, 3, 7, layout=NHWC),), NHWC)
    yield Case("Clip", ClipAttrs(lo=-1), (real(3, 7),))
    relu = (("Relu", NoAttrs()),)
    for op in ("Add", "Sub", "Mul"):
        yield Case(op, NoAttrs(), (real(2, 9, 5, 7, layout=NHWC), real(2, 9, 5, 7, layout=NHWC)), NHWC, relu)
    yield Case("Div", NoAttrs(), (real(3, 70), real(70, low=0.1)))
    yield Case("Add", NoAttrs(), (real(2, 6, 5, 7), real(6, 1, 1)), NHWC, (*relu, ("Clip", ClipAttrs(0, 2))))
    yield Case("Mul", NoAttrs(), (real(2, 18, 3, 3, layout=NHWC), real(2, 18, 1, 1, layout=NHWC)), NHWC)
    yield Case("Mul", NoAttrs(), (real(1, 1), real(3, 1)), None)
    wide = np.array([2**62, -(2**62), 5, -7, 2**63 - 1], np.int64)
    for op in ("Add", "Sub", "Mul"):
        yield Case(op, NoAttrs(), (plain(wide), plain(wide[::-1].copy())))
    # Variances of different magnitude per channel.
    channels = [plain(RNG.uniform(0.1, 2, 20).astype(np.float32)) for _ in range(4)]
    yield Case("BatchNormalization", BatchNormAttrs(), (real(2, 20, 3, 5, layout=NHWC), *channels), NHWC)
    yield Case("BatchNormalization", BatchNormAttrs(1e-3), (real(2, 20, 3, 5), *channels))


def _integer_elementwise() -> Iterator[Case]:
    every = np.arange(-128, 128, dtype=np.int8)
    # 255 * (|ma| + |mb|) + 2^(n-1) just below 2^31.
    steep = IntAddAttrs(quant(3), 4_199_000, -4_189_000, 24, -128, 127)
    gentle = IntAddAttrs(quant(-7), 1 << 14, 11_001, 15, -7, 100)
    grid = (Operand(np.repeat(every, 256), quant(-128)), Operand(np.tile(every, 256), quant(127)))
    yield Case("IntAdd", steep, grid)
    yield Case("IntMul", IntMulAttrs(quant(-5), (1 << 31) - 1, 40, -128, 127), grid)
    yield Case("IntMul", IntMulAttrs(quant(9), 1 << 30, 62, -3, 99), grid)
    yield Case("IntMul", IntMulAttrs(quant(9), 1 << 30, 1, -128, 127), grid)
    image = (codes(2, 17, 3, 5, zero_point=4, layout=NHWC), codes(2, 17, 3, 5, zero_point=-9, layout=NHWC))
    yield Case("IntAdd", gentle, image, NHWC)
    yield Case("IntAdd", gentle, (image[0], codes(17, 1, 1, zero_point=1)))
    table = RNG.integers(-128, 128, 256).astype(np.int8)
    yield Case("Lut", OutAttrs(quant(2)), (Operand(every, quant(5)), plain(table)))
    yield Case("Lut", OutAttrs(quant(2)), (codes(1, 5, 3, 7, layout=NHWC), plain(table)), NHWC)
    for x, layout in ((codes(2, 3, 5, 7, layout=NHWC), NHWC), (codes(1, 6, 4, 3), None), (codes(4, 1, zero_point=3), None)):
        rows = RNG.integers(-128, 128, (x.array.shape[1], 256)).astype(np.int8)
        yield Case("ChannelLut", ChannelLutAttrs(quant(-3), 1), (x, plain(rows)), layout)
    pixels = Operand(RNG.integers(0, 256, (1, 3, 7, 9)).astype(np.uint8), Quant(Int(8, signed=False), (1.0,), (0,)), NHWC)
    yield Case("Recode", OutAttrs(quant(-128, 1.0)), (pixels,), NHWC)
    yield from _requantize()
    scale = float(np.float32(0.037))
    ties = (np.arange(-400, 400) / 2 * np.float32(scale)).astype(np.float32)
    reals = np.concatenate([ties, [0.0, 1e30, -1e30, 1e-40], RNG.normal(0, 3, 500)]).astype(np.float32)
    yield Case("Quantize", OutAttrs(quant(-11, scale)), (plain(reals),))
    yield Case("Quantize", OutAttrs(Quant(Int(4), (0.25,), (1,))), (plain(reals),))
    yield Case("Quantize", OutAttrs(quant(5)), (real(1, 3, 4, 6),), NHWC)
    yield Case("Dequantize", NoAttrs(), (Operand(every, quant(-77, scale)),))
    yield Case("Dequantize", NoAttrs(), (codes(1, 5, 3, 7, layout=NHWC),))


def _requantize() -> Iterator[Case]:
    """All shifts with accumulators at the limits, and at and beside every kind of tie."""
    shifts = np.arange(1, 63)
    limits = [0, 1, -1, (1 << 31) - 1, -(1 << 31), 255, -256, 1 << 30, -(1 << 30), (1 << 24) + 1]
    for m in (1 << 30, (1 << 31) - 1, 3 << 29, 0):
        acc = np.tile(np.array(limits, np.int64)[:, None], (1, 62))
        # acc * m = (k + 1/2) * 2^n where the factors allow it.
        tie = np.array([1 << min(max(n - 31, 0), 30) for n in shifts])
        acc = np.concatenate([acc, *([k * tie + d] for k in (1, -1, 3, -3) for d in (-1, 0, 1))])
        acc = np.clip(acc, -(1 << 31), (1 << 31) - 1).astype(np.int32)
        operands = (Operand(acc, I32), plain(np.full(62, m, np.int64)), plain(shifts.astype(np.int64)))
        yield Case("Requantize", RequantizeAttrs(quant(-3), 1, -128, 127), operands)
    acc = RNG.integers(-(1 << 31), 1 << 31, (2, 19, 3, 5)).astype(np.int32)
    m, n = RNG.integers(1 << 30, 1 << 31, 19), RNG.integers(30, 50, 19)
    operands = (Operand(acc, I32, NHWC), plain(m.astype(np.int32)), plain(n.astype(np.int32)))
    yield Case("Requantize", RequantizeAttrs(quant(12), 1, -100, 90), operands, NHWC)


def _movement() -> Iterator[Case]:
    image = (codes(2, 6, 5, 7), codes(2, 6, 5, 7, layout=NHWC), real(2, 6, 5, 7, layout=NHWC))
    for x in image:
        yield Case("Copy", NoAttrs(), (x,), NHWC)
        yield Case("Copy", NoAttrs(), (x,))
        yield Case("Transpose", TransposeAttrs((0, 2, 3, 1)), (x,))
        yield Case("Slice", SliceAttrs((0, 1, 0, 2), (-1, 5, -1, 7), (1, 2, 1, 1)), (x,), NHWC)
        yield Case("Concat", ConcatAttrs(1), (x, codes(2, 3, 5, 7) if x.elem != F32 else real(2, 3, 5, 7), x), NHWC)
        yield Case("Reshape", ReshapeAttrs((2, 210)), (x,))
        yield Case("Reshape", ReshapeAttrs((7, 4, 15)), (x,))
    large = (codes(1, 3, 16, 20, zero_point=9), real(1, 20, 6, 9, layout=NHWC))
    for x in large:
        yield Case("Pad", PadAttrs((0, 0, 1, 2), (0, 0, 3, 1), 0.7), (x,), NHWC)
        yield Case("Pad", PadAttrs((0, 2, 1, 0), (1, 0, 0, 5), -1e9 if x.elem != F32 else -2.5), (x,))
        yield Case("Copy", NoAttrs(), (x,), NHWC)
    yield Case("Concat", ConcatAttrs(0), (codes(33), codes(1), codes(70)))
    yield Case("Copy", NoAttrs(), (codes(1, 1, 1, 1),))
    yield Case("Concat", ConcatAttrs(0), (plain(np.array([True, False])), plain(np.array([True]))))
    yield Case("Slice", SliceAttrs((3,), (9,), (2,)), (Operand(np.arange(10), I64),))


def _pools() -> Iterator[Case]:
    for x, layout in ((codes(2, 37, 9, 7, layout=NHWC, zero_point=11), NHWC), (codes(1, 5, 9, 7, zero_point=-30), None)):
        for at in _windows():
            yield Case("MaxPool", at, (x,), layout)
            yield Case("IntAveragePool", _int_average(at, 9, 7), (x,), layout)
    for x, layout in ((real(2, 37, 9, 7, layout=NHWC), NHWC), (real(1, 5, 9, 7), None)):
        for at in _windows():
            yield Case("MaxPool", at, (x,), layout, (("Relu", NoAttrs()),))
            for include in (False, True):
                yield Case("AveragePool", AveragePoolAttrs(at.kernel, at.strides, at.pads, at.dilations, include), (x,), layout)
    # Global, at the largest sum: 64 * 255.
    full = Operand(np.full((1, 70, 8, 8), 127, np.int8), quant(-128), NHWC)
    yield Case("IntAveragePool", _int_average(PoolAttrs((8, 8)), 8, 8), (full,), NHWC)


def _windows() -> Iterator[PoolAttrs]:
    yield PoolAttrs((3, 3), (2, 2), (1, 1, 1, 1))
    yield PoolAttrs((2, 3), (1, 2), (0, 2, 1, 0), (2, 1))
    yield PoolAttrs((2, 2), (2, 2))


def _int_average(at: PoolAttrs, height: int, width: int) -> IntAveragePoolAttrs:
    from bevel.ir.ops.window import windows

    taps = np.unique(windows(np.ones((1, 1, height, width), np.int64), at, 0).sum(axis=(-1, -2)))
    n = [30 + int(t).bit_length() - 1 for t in taps]
    m = [round(2**shift / int(t)) for t, shift in zip(taps, n, strict=True)]
    rest = (quant(-4), tuple(int(t) for t in taps), tuple(m), tuple(n), -120, 110)
    return IntAveragePoolAttrs(at.kernel, at.strides, at.pads, at.dilations, *rest)


def _reductions() -> Iterator[Case]:
    for x, out in ((real(2, 70, 5, 7, layout=NHWC), NHWC), (real(1, 150, 6, 6, layout=NHWC), NHWC), (real(2, 7, 9, 13), None)):
        yield Case("GlobalAveragePool", NoAttrs(), (x,), out, (("Relu", NoAttrs()),))
        yield Case("ReduceMean", ReduceAttrs((2, 3), keepdims=False), (x,))
        yield Case("ReduceMean", ReduceAttrs((1,), keepdims=True), (x,), out)
        yield Case("ReduceMean", ReduceAttrs((0, 1, 2, 3), keepdims=False), (x,))
    # A mean far from the deviations.
    yield Case("GlobalAveragePool", NoAttrs(), (real(1, 16, 56, 56, layout=NHWC, low=99, high=101),))
    for a, b in (((3, 2, 5, 11), (3, 2, 11, 70)), ((2, 5, 11), (11, 9)), ((1, 4, 5, 3), (3, 1, 3, 33))):
        yield Case("MatMul", NoAttrs(), (real(*a), real(*b)))
    yield Case("MatMul", NoAttrs(), (real(2, 3, 5, 8), real(2, 3, 8, 6, layout=(0, 1, 3, 2))), (0, 2, 1, 3))


def _softmax() -> Iterator[Case]:
    table = plain(softmax_table(0.05))
    for shape, axis in (((3, 37), 1), ((2, 5), 1), ((2, 33, 3, 5), 1), ((1, 1), 1), ((2, 3, 19), 0)):
        yield Case("Softmax", AxisAttrs(axis), (real(*shape, low=-20, high=20),))
        yield Case("IntSoftmax", AxisAttrs(axis), (codes(*shape), table))
    yield Case("Softmax", AxisAttrs(1), (real(2, 33, 3, 5, layout=NHWC),), NHWC)
    yield Case("IntSoftmax", AxisAttrs(1), (codes(2, 33, 3, 5, layout=NHWC), table), NHWC)
    # The longest axis: 65535 equal entries of 2^15 each; and all weight on one entry.
    yield Case("IntSoftmax", AxisAttrs(0), (Operand(np.full(65535, 5, np.int8), quant()), table))
    peak = np.full((1, 9), -128, np.int8)
    peak[0, 3] = 127
    yield Case("IntSoftmax", AxisAttrs(1), (Operand(peak, quant()), plain(softmax_table(1.0))))


# Random problems ----------------------------------------------------------------------------------------------------


def random_cases(seed: int, count: int) -> list[Case]:
    """Random shapes, layouts and attributes of the operators whose loops depend on them."""
    rng = np.random.default_rng(seed)
    makers = (_random_copy, _random_slice, _random_pad, _random_concat, _random_add, _random_pool, _random_reduction)
    return [makers[i % len(makers)](rng) for i in range(count)]


def _shape(rng: np.random.Generator, rank: int | None = None) -> tuple[int, ...]:
    rank = rank or int(rng.integers(1, 5))
    return tuple(int(n) for n in rng.choice([1, 2, 3, 4, 5, 8, 17, 33], rank, p=[0.2, 0.1, 0.15, 0.1, 0.1, 0.15, 0.1, 0.1]))


def _layout(rng: np.random.Generator, rank: int) -> Layout:
    return None if rng.random() < 0.4 else tuple(int(a) for a in rng.permutation(rank))


def _tensor(rng: np.random.Generator, shape: tuple[int, ...]) -> Operand:
    layout = _layout(rng, len(shape))
    return codes(*shape, layout=layout, zero_point=-7) if rng.random() < 0.5 else real(*shape, layout=layout)


def _random_copy(rng: np.random.Generator) -> Case:
    x = _tensor(rng, _shape(rng))
    rank = x.array.ndim
    if rng.random() < 0.3:
        return Case("Transpose", TransposeAttrs(tuple(int(a) for a in rng.permutation(rank))), (x,), _layout(rng, rank))
    if rng.random() < 0.4:
        return Case("Reshape", ReshapeAttrs((x.array.size,)), (x,))
    return Case("Copy", NoAttrs(), (x,), _layout(rng, rank))


def _random_slice(rng: np.random.Generator) -> Case:
    x = _tensor(rng, _shape(rng))
    starts = tuple(int(rng.integers(0, n)) for n in x.array.shape)
    ends = tuple(int(rng.integers(s + 1, n + 1)) for s, n in zip(starts, x.array.shape, strict=True))
    steps = tuple(int(rng.integers(1, 4)) for _ in starts)
    return Case("Slice", SliceAttrs(starts, ends, steps), (x,), _layout(rng, x.array.ndim))


def _random_pad(rng: np.random.Generator) -> Case:
    x = _tensor(rng, _shape(rng))
    before, after = (tuple(int(n) for n in rng.choice([0, 0, 1, 3, 9], x.array.ndim)) for _ in range(2))
    return Case("Pad", PadAttrs(before, after, float(rng.normal())), (x,), _layout(rng, x.array.ndim))


def _random_concat(rng: np.random.Generator) -> Case:
    x = _tensor(rng, _shape(rng))
    axis = int(rng.integers(0, x.array.ndim))
    shape = list(x.array.shape)
    shape[axis] = int(rng.integers(1, 20))
    other = codes(*shape, layout=_layout(rng, len(shape)), zero_point=-7) if x.elem != F32 else real(*shape)
    return Case("Concat", ConcatAttrs(axis), (x, other), _layout(rng, len(shape)))


def _random_add(rng: np.random.Generator) -> Case:
    shape = _shape(rng)
    rank = len(shape)
    small = tuple(n if rng.random() < 0.6 else 1 for n in shape)[int(rng.integers(0, rank)) :]
    if rng.random() < 0.5:
        a, b = real(*shape, layout=_layout(rng, rank)), real(*small, layout=_layout(rng, len(small)))
        return Case(str(rng.choice(["Add", "Sub", "Mul"])), NoAttrs(), (a, b), _layout(rng, rank), (("Relu", NoAttrs()),))
    a, b = codes(*shape, layout=_layout(rng, rank)), codes(*small, layout=_layout(rng, len(small)), zero_point=99)
    scale = int(rng.integers(1, 1 << 20)), -int(rng.integers(1, 1 << 20))
    return Case("IntAdd", IntAddAttrs(quant(-4), *scale, 19, -128, 127), (a, b), _layout(rng, rank))


def _random_pool(rng: np.random.Generator) -> Case:
    n, c, height, width = _shape(rng, 4)
    kernel = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    pads = tuple(int(p) for p in rng.integers(0, kernel * 2))
    dilations = tuple(int(d) for d in rng.integers(1, 3, 2))
    # The window must fit the padded image.
    height, width = (max(x, (k - 1) * d + 1) for x, k, d in zip((height, width), kernel, dilations, strict=True))
    strides = tuple(int(s) for s in rng.integers(1, 4, 2))
    at = PoolAttrs(kernel, strides, pads, dilations)  # type: ignore[arg-type]
    layouts = [NHWC if rng.random() < 0.6 else _layout(rng, 4) for _ in range(2)]
    if rng.random() < 0.5:
        x = codes(n, c, height, width, layout=layouts[0], zero_point=40)
        return Case("IntAveragePool", _int_average(at, height, width), (x,), layouts[1])
    return Case("MaxPool", at, (real(n, c, height, width, layout=layouts[0]),), layouts[1])


def _random_reduction(rng: np.random.Generator) -> Case:
    shape = _shape(rng)
    rank = len(shape)
    layout, out = _layout(rng, rank), _layout(rng, rank)
    axis = int(rng.integers(0, rank))
    if rng.random() < 0.3:
        return Case("IntSoftmax", AxisAttrs(axis), (codes(*shape, layout=layout), plain(softmax_table(0.05))), out)
    if rng.random() < 0.4:
        return Case("Softmax", AxisAttrs(axis), (real(*shape, layout=layout),), out)
    axes = tuple(a for a in range(rank) if a == axis or rng.random() < 0.4)
    # Well away from zero, where the mean of few elements could cancel.
    x = real(*shape, layout=layout, low=1, high=3)
    return Case("ReduceMean", ReduceAttrs(axes, keepdims=True), (x,), out)
