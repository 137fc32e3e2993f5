"""Integer operators equal an independent implementation in Python's unbounded integers, bit for bit.

Nothing here uses numpy arithmetic: loops over elements, exact products, explicit floor shifts.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bevel.errors import VerifyError
from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run
from bevel.ir.ops import Call, lookup
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.integer import (
    SOFTMAX_OUT,
    ChannelLutAttrs,
    IntAddAttrs,
    IntAveragePoolAttrs,
    IntMulAttrs,
    OutAttrs,
    RequantizeAttrs,
    requantize,
    softmax_table,
)
from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.ops.reduce import IntReduceAttrs
from bevel.ir.types import F32, Codebook, Int, Quant, TensorType
from bevel.ir.verify import accumulator_bound, verify

Array = npt.NDArray[Any]
I8 = st.integers(-128, 127)
SHIFTS = st.one_of(st.sampled_from([1, 2, 30, 31, 32, 33, 61, 62]), st.integers(1, 62))
MULTIPLIERS = st.one_of(st.sampled_from([0, 2**30, 2**31 - 1]), st.integers(2**30, 2**31 - 1))
ACCUMULATORS = st.one_of(st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), -(2**31) + 1]), st.integers(-(2**31), 2**31 - 1))


def clamp(value: int, lo: int, hi: int) -> int:
    return min(max(value, lo), hi)


def scaled(acc: int, m: int, n: int) -> int:
    """round_half_up(acc * m / 2^n), by exact rationals rather than by shifts."""
    return floor(Fraction(acc * m, 2**n) + Fraction(1, 2))


def quant(zero: int = 0, bits: int = 8) -> Quant:
    return Quant(Int(bits), (0.1,), (zero,))


def reference(op: str, attrs: Any, arrays: list[Array], types: list[TensorType], out: TensorType) -> Array:
    return np.asarray(lookup(op).reference(Call(attrs, tuple(types), (out,)), *arrays))


@settings(max_examples=400, deadline=None)
@given(ACCUMULATORS, MULTIPLIERS, SHIFTS, I8)
@example(-(2**31), 2**31 - 1, 62, -128)
@example(-(2**31), 2**31 - 1, 1, 127)
@example(2**31 - 1, 2**31 - 1, 62, 0)
def test_requantize(acc: int, m: int, n: int, zero: int) -> None:
    found = requantize(np.array([acc], np.int32), np.array([m], np.int32), np.array([n], np.int32), zero, -128, 127)
    assert found.tolist() == [clamp(zero + scaled(acc, m, n), -128, 127)]


@pytest.mark.parametrize("n", [31, 32, 45, 60, 61])
def test_requantize_rounds_ties_up(n: int) -> None:
    # acc * 2^30 / 2^n = acc / 2^(n - 30): k + 1/2 goes to k + 1 whatever its sign.
    unit = 2 ** (n - 31)
    for k in (-2, -1, 0, 1) if n < 61 else (-1, 0):
        acc = (2 * k + 1) * unit
        found = requantize(np.array([acc]), np.array([2**30]), np.array([n]), 0, -100, 100)
        assert found.tolist() == [k + 1]


def test_requantize_every_shift_at_the_extremes() -> None:
    accs, ms = [-(2**31), -(2**30), -1, 0, 1, 2**30, 2**31 - 1], [0, 2**30, 2**30 + 1, 2**31 - 1]
    grid = list(product(accs, ms, range(1, 63)))
    acc, m, n = (np.array(column, np.int64) for column in zip(*grid, strict=True))
    found = requantize(acc.astype(np.int32), m.astype(np.int32), n.astype(np.int32), 5, -(2**62), 2**62)
    assert found.tolist() == [5 + scaled(*case) for case in grid]


def test_requantize_operator_broadcasts_along_its_axis() -> None:
    rng = np.random.default_rng(0)
    for axis, shape in ((1, (2, 3, 2, 2)), (2, (1, 2, 4)), (0, (5, 2))):
        channels = shape[axis]
        acc = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
        m, n = rng.integers(2**30, 2**31, channels).astype(np.int32), rng.integers(30, 45, channels).astype(np.int32)
        attrs = RequantizeAttrs(quant(-7), axis, -100, 90)
        types = [TensorType(a.shape, e) for a, e in ((acc, Int(32)), (m, Int(32)), (n, Int(32)))]
        found = reference("Requantize", attrs, [acc, m, n], types, TensorType(shape, attrs.out))
        assert found.dtype == np.int8
        for at in np.ndindex(shape):
            c = at[axis]
            assert found[at] == clamp(-7 + scaled(int(acc[at]), int(m[c]), int(n[c])), -100, 90)


def naive_conv(x: Array, w: Array, bias: Array, zero: int, a: ConvAttrs) -> list[int]:
    batch, _, height, width = x.shape
    out_channels, per_group, kh, kw = w.shape
    oh = (height + a.pads[0] + a.pads[2] - a.dilations[0] * (kh - 1) - 1) // a.strides[0] + 1
    ow = (width + a.pads[1] + a.pads[3] - a.dilations[1] * (kw - 1) - 1) // a.strides[1] + 1
    found = []
    for b, o, i, j in product(range(batch), range(out_channels), range(oh), range(ow)):
        total = int(bias[o])
        for c, p, q in product(range(per_group), range(kh), range(kw)):
            row, column = i * a.strides[0] - a.pads[0] + p * a.dilations[0], j * a.strides[1] - a.pads[1] + q * a.dilations[1]
            if 0 <= row < height and 0 <= column < width:
                channel = o // (out_channels // a.groups) * per_group + c
                total += (int(x[b, channel, row, column]) - zero) * int(w[o, c, p, q])
        found.append(total)
    return found


CONVS = [
    ((1, 3, 5, 4), (2, 3, 3, 3), ConvAttrs((3, 3), pads=(1, 1, 1, 1))),
    ((2, 2, 6, 5), (4, 2, 2, 3), ConvAttrs((2, 3), strides=(2, 1), pads=(1, 0, 0, 2))),
    ((1, 4, 6, 6), (4, 1, 3, 3), ConvAttrs((3, 3), dilations=(2, 1), pads=(2, 1, 2, 1), groups=4)),
    ((1, 4, 3, 3), (6, 2, 1, 1), ConvAttrs((1, 1), groups=2)),
    ((1, 2, 4, 4), (4, 1, 3, 2), ConvAttrs((3, 2), strides=(1, 2), pads=(0, 1, 2, 0), groups=2)),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "attrs"), CONVS)
@pytest.mark.parametrize(("zero", "extreme"), [(0, False), (-128, False), (127, True), (-128, True), (5, False)])
def test_int_conv(x_shape: tuple[int, ...], w_shape: tuple[int, ...], attrs: ConvAttrs, zero: int, extreme: bool) -> None:
    rng = np.random.default_rng(abs(zero))
    x = np.where(rng.random(x_shape) < 0.5, -128, 127) if extreme else rng.integers(-128, 128, x_shape)
    w = np.where(rng.random(w_shape) < 0.5, -128, 127) if extreme else rng.integers(-127, 128, w_shape)
    bias = rng.integers(-(2**30), 2**30, w_shape[0])
    graph = Graph("g", Level.INTEGER)
    xv = graph.add_input("x", TensorType(x_shape, quant(zero)))
    wv = graph.add_constant("w", w.astype(np.int8), TensorType(w_shape, quant()))
    bv = graph.add_constant("b", bias.astype(np.int32))
    node = graph.add_node("IntConv", [xv, wv, bv], attrs, names=["y"])
    graph.set_outputs([node.output])
    found = run(graph, {"x": x.astype(np.int8)})["y"]
    assert found.dtype == np.int32
    assert found.shape == node.output.type.shape
    expected = naive_conv(x, w, bias, zero, attrs)
    assert found.ravel().tolist() == expected
    assert max(map(abs, expected)) <= accumulator_bound(node)


@pytest.mark.parametrize("depth", [3, 2001, 70_000])
def test_int_gemm_at_extremes_stays_exact(depth: int) -> None:
    """Beyond 2^24, where float32 loses odd sums; products of the largest magnitude, and random ones."""
    x = np.full((2, depth), -128, np.int8)
    x[1] = np.random.default_rng(depth).integers(-128, 128, depth)
    w = np.full((2, depth), -127, np.int8)
    w[1, ::2] = 126
    bias = np.array([12345, -1], np.int32)
    types = [TensorType(x.shape, quant(127)), TensorType(w.shape, quant()), TensorType((2,), Int(32))]
    expected = [
        [
            sum((int(a) - 127) * int(b) for a, b in zip(row, column, strict=True)) + int(c)
            for column, c in zip(w, bias, strict=True)
        ]
        for row in x
    ]
    if max(abs(v) for row in expected for v in row) >= 2**31:
        with pytest.raises(VerifyError, match="overflow"):
            reference("IntGemm", lookup("IntGemm").attrs(), [x, w, bias], types, TensorType((2, 2), Int(32)))
    else:
        assert (
            reference("IntGemm", lookup("IntGemm").attrs(), [x, w, bias], types, TensorType((2, 2), Int(32))).tolist() == expected
        )


@pytest.mark.parametrize("kind", ["bipolar", "codebook"])
def test_int_conv_of_weights_that_are_no_plain_codes(kind: str) -> None:
    """A table's entries are what is multiplied; codes of one bit are -1 and +1; x has unsigned codes of 3 bits."""
    rng = np.random.default_rng(8)
    elem: Quant | Codebook = Quant(Int(1), (0.5,))
    codes = rng.choice([-1, 1], (4, 3, 2, 2)).astype(np.int8)
    integers = codes
    if kind == "codebook":
        elem = Codebook(Int(2, signed=False), (-128.0, -1.0, 3.0, 127.0), (0.1, 0.2, 0.3, 0.4), axis=0)
        codes = rng.integers(0, 4, (4, 3, 2, 2)).astype(np.uint8)
        integers = np.asarray(elem.table, np.int8)[codes]
    x, bias = rng.integers(0, 8, (2, 3, 5, 4)).astype(np.uint8), rng.integers(-1000, 1000, 4).astype(np.int32)
    attrs = ConvAttrs((2, 2), pads=(1, 0, 1, 0))
    graph = Graph("g", Level.INTEGER)
    xv = graph.add_input("x", TensorType(x.shape, Quant(Int(3, signed=False), (0.5,), (5,))))
    wv = graph.add_constant("w", codes, TensorType(codes.shape, elem))
    node = graph.add_node("IntConv", [xv, wv, graph.add_constant("b", bias)], attrs, names=["y"])
    graph.set_outputs([node.output])
    verify(graph)
    expected = naive_conv(x, integers, bias, 5, attrs)
    assert run(graph, {"x": x})["y"].ravel().tolist() == expected
    assert max(map(abs, expected)) <= accumulator_bound(node)


def test_int_conv_refuses_tables_of_other_numbers() -> None:
    types = [
        TensorType((1, 3), quant()),
        TensorType((2, 3), Codebook(Int(1, signed=False), (0.5, 1.0))),
        TensorType((2,), Int(32)),
    ]
    with pytest.raises(VerifyError, match="table of integers"):
        lookup("IntGemm").infer(lookup("IntGemm").attrs(), tuple(types))


def test_int32_accumulators_reach_both_ends() -> None:
    x, w = np.array([[1], [0]], np.int8), np.array([[1], [-1]], np.int8)
    types = [TensorType((2, 1), quant()), TensorType((2, 1), quant()), TensorType((2,), Int(32))]
    bias = np.array([2**31 - 2, -(2**31) + 1], np.int32)
    found = reference("IntGemm", lookup("IntGemm").attrs(), [x, w, bias], types, TensorType((2, 2), Int(32)))
    assert found.tolist() == [[2**31 - 1, -(2**31)], [2**31 - 2, -(2**31) + 1]]
    bias = np.array([2**31 - 1, 0], np.int32)
    with pytest.raises(VerifyError, match="overflow"):
        reference("IntGemm", lookup("IntGemm").attrs(), [x, w, bias], types, TensorType((2, 2), Int(32)))


CODES = st.lists(I8, min_size=6, max_size=6)


@settings(max_examples=150, deadline=None)
@given(CODES, CODES, I8, I8, I8, st.integers(-(2**21), 2**21), st.integers(-(2**21), 2**21), st.integers(1, 24))
def test_int_add(a: list[int], b: list[int], za: int, zb: int, zo: int, ma: int, mb: int, n: int) -> None:
    attrs = IntAddAttrs(quant(zo), ma, mb, n, -120, 127)
    types = [TensorType((2, 3), quant(za)), TensorType((2, 3), quant(zb))]
    found = reference("IntAdd", attrs, [np.array(v, np.int8).reshape(2, 3) for v in (a, b)], types, TensorType((2, 3), attrs.out))
    expected = [clamp(zo + scaled((x - za) * ma + (y - zb) * mb, 1, n), -120, 127) for x, y in zip(a, b, strict=True)]
    assert found.ravel().tolist() == expected


@settings(max_examples=150, deadline=None)
@given(CODES, st.lists(I8, min_size=3, max_size=3), I8, I8, I8, MULTIPLIERS, SHIFTS)
def test_int_mul_broadcasts(a: list[int], b: list[int], za: int, zb: int, zo: int, m: int, n: int) -> None:
    attrs = IntMulAttrs(quant(zo), m, n, -128, 100)
    types = [TensorType((2, 3), quant(za)), TensorType((3,), quant(zb))]
    arrays = [np.array(a, np.int8).reshape(2, 3), np.array(b, np.int8)]
    found = reference("IntMul", attrs, arrays, types, TensorType((2, 3), attrs.out))
    expected = [clamp(zo + scaled((a[i] - za) * (b[i % 3] - zb), m, n), -128, 100) for i in range(6)]
    assert found.ravel().tolist() == expected


@settings(max_examples=150, deadline=None)
@given(CODES, CODES, I8, I8, I8, MULTIPLIERS, st.integers(30, 62))
def test_int_matmul(a: list[int], b: list[int], za: int, zb: int, zo: int, m: int, n: int) -> None:
    attrs = IntMulAttrs(quant(zo), m, n, -128, 100)
    types = [TensorType((2, 3), quant(za)), TensorType((3, 2), quant(zb))]
    arrays = [np.array(a, np.int8).reshape(2, 3), np.array(b, np.int8).reshape(3, 2)]
    found = reference("IntMatMul", attrs, arrays, types, TensorType((2, 2), attrs.out))
    for i, j in np.ndindex(2, 2):
        total = sum((a[i * 3 + r] - za) * (b[r * 2 + j] - zb) for r in range(3))
        assert found[i, j] == clamp(zo + scaled(total, m, n), -128, 100)


def test_int_matmul_refuses_sums_beyond_int32() -> None:
    attrs = IntMulAttrs(quant(0), 2**30, 40, -128, 127)
    types = (TensorType((1, 33026), quant(0)), TensorType((33026, 1), quant(0)))
    with pytest.raises(VerifyError, match="33026"):
        lookup("IntMatMul").infer(attrs, types)
    assert 33025 * 255**2 < 2**31 <= 33026 * 255**2


@pytest.mark.parametrize("zero", [-128, 0, 17])
def test_int_average_pool_with_edge_counts(zero: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (1, 2, 4, 5)).astype(np.int8)
    counts, m, n = (1, 2, 3, 4, 6), (2**30, 2**30, 1431655765, 2**30, 1431655765), (30, 31, 32, 32, 33)
    attrs = IntAveragePoolAttrs((2, 3), (1, 2), (1, 2, 0, 1), (1, 1), quant(3), counts, m, n, -128, 127)
    shape = (1, 2, 4, 3)
    found = reference("IntAveragePool", attrs, [x], [TensorType(x.shape, quant(zero))], TensorType(shape, attrs.out))
    assert found.shape == shape
    for b, c, i, j in np.ndindex(shape):
        seen = [(i - 1 + p, 2 * j - 2 + q) for p in range(2) for q in range(3)]
        seen = [(r, s) for r, s in seen if 0 <= r < 4 and 0 <= s < 5]
        total, at = sum(int(x[b, c, r, s]) - zero for r, s in seen), counts.index(len(seen))
        # Means round ties to even, as Python's round does.
        assert found[b, c, i, j] == clamp(3 + round(Fraction(total * m[at], 2 ** n[at])), -128, 127)


@pytest.mark.parametrize(("axes", "keepdims"), [((1, 2), True), ((0,), False), ((), True)])
def test_int_reduce_sums_and_rounds_ties_to_even(axes: tuple[int, ...], keepdims: bool) -> None:
    x = np.random.default_rng(2).integers(-128, 128, (3, 4, 5)).astype(np.int8)
    # With this factor half of all sums are ties.
    attrs = IntReduceAttrs(axes, keepdims, quant(3), 2**30, 31, -120, 119)
    kept = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    shape = kept if keepdims else tuple(d for i, d in enumerate(x.shape) if i not in axes)
    found = reference("IntReduce", attrs, [x], [TensorType(x.shape, quant(-7))], TensorType(shape, attrs.out))
    assert found.shape == shape
    for index in np.ndindex(kept):
        box = x[tuple(slice(None) if axis in axes else slice(i, i + 1) for axis, i in enumerate(index))]
        total = sum(int(c) + 7 for c in box.reshape(-1))
        assert found.reshape(kept)[index] == clamp(3 + round(Fraction(total, 2)), -120, 119)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lut_covers_every_code(bits: int) -> None:
    storage = Int(bits)
    codes = np.arange(storage.min, storage.max + 1, dtype=np.int8)
    table = np.array([(7 * int(c) + 3) % 100 for c in codes], np.int8)
    types = [TensorType(codes.shape, quant(bits=bits)), TensorType(table.shape, Int(8))]
    found = reference("Lut", OutAttrs(quant()), [codes, table], types, TensorType(codes.shape, quant()))
    assert found.tolist() == [(7 * int(c) + 3) % 100 for c in codes]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channel_lut_takes_the_row_of_its_channel(axis: int) -> None:
    rng = np.random.default_rng(axis)
    codes = rng.integers(-128, 128, (4, 3, 5)).astype(np.int8)
    table = rng.integers(-128, 128, (codes.shape[axis], 256)).astype(np.int8)
    types = [TensorType(codes.shape, quant()), TensorType(table.shape, Int(8))]
    attrs = ChannelLutAttrs(quant(), axis)
    found = reference("ChannelLut", attrs, [codes, table], types, TensorType(codes.shape, quant()))
    for index in np.ndindex(codes.shape):
        assert found[index] == table[index[axis]][int(codes[index]) + 128]


@settings(max_examples=60, deadline=None)
@given(st.lists(I8, min_size=1, max_size=40), st.floats(1e-3, 4.0))
def test_int_softmax(codes: list[int], scale: float) -> None:
    table = softmax_table(scale)
    types = [TensorType((1, len(codes)), Quant(Int(8), (scale,))), TensorType((256,), Int(32))]
    found = reference(
        "IntSoftmax", AxisAttrs(1), [np.array([codes], np.int8), table], types, TensorType((1, len(codes)), SOFTMAX_OUT)
    )
    exponentials = [int(table[max(codes) - c]) for c in codes]
    expected = [clamp(floor(Fraction(256 * e, sum(exponentials)) + Fraction(1, 2)) - 128, -128, 127) for e in exponentials]
    assert found.ravel().tolist() == expected
    real = np.exp(np.array(codes) * scale - max(codes) * scale)
    # Table entries are within half a step of 2^-15 and the output within half a step of 2^-8 plus its top clamp.
    assert np.abs(SOFTMAX_OUT.dequantize(found)[0] - real / real.sum()).max() <= 1 / 256 + len(codes) * 2.0**-15


def test_float_boundary_rounds_half_even_and_saturates() -> None:
    q = Quant(Int(8), (0.5,), (3,))
    x = np.array([0.25, 0.75, 1.25, -0.25, -0.75, 1e30, -1e30, 62.0, 3.4e38], np.float32)
    graph = Graph("g", Level.INTEGER)
    value = graph.add_input("x", TensorType(x.shape, F32))
    codes = graph.add_node("Quantize", [value], OutAttrs(q), names=["q"]).output
    graph.set_outputs([codes, graph.add_node("Dequantize", [codes], names=["d"]).output])
    found = run(graph, {"x": x})
    assert found["q"].tolist() == [3, 5, 5, 3, 1, 127, -128, 127, 127]
    assert found["d"].tolist() == [0.0, 1.0, 1.0, 0.0, -1.0, 62.0, -65.5, 62.0, 62.0]


def test_quantize_divides_in_float32() -> None:
    """x / s in float32 lands on a tie where the float64 quotient does not."""
    rng = np.random.default_rng(5)
    x = (rng.integers(-400, 400, 20000) / 2 * np.float32(0.1)).astype(np.float32)
    q = Quant(Int(16), (0.1,))
    expected = [int(np.rint(np.float32(v) / np.float32(0.1))) for v in x]
    assert q.quantize(x).tolist() == expected
    assert (np.rint(x.astype(np.float64) / 0.1) != q.quantize(x)).any()
