"""Types hold what they claim: limits, quantization by axis and block, refusal of what has no meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevel.ir.types import BOOL, F32, I8, U8, Codebook, Dim, Float, Int, Quant, TensorType, elem_of_dtype, multiplied_integers


@given(st.integers(1, 64), st.booleans())
def test_integer_limits_fit_their_dtype(bits: int, signed: bool) -> None:
    elem = Int(bits, signed)
    limits = np.iinfo(elem.dtype)
    assert elem.max - elem.min == (2 if elem.bipolar else 2**bits - 1)
    assert limits.min <= elem.min <= elem.max <= limits.max
    assert limits.bits < 2 * max(bits, 8)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1), st.floats(1e-20, 1e20), st.integers(-8, 7))
def test_quantize_stays_in_range_and_inverts(real: list[float], scale: float, zero: int) -> None:
    quant = Quant(Int(4), (scale,), (zero,))
    codes = quant.quantize(np.array(real, np.float32))
    assert codes.dtype == np.int8
    assert -8 <= codes.min() <= codes.max() <= 7
    np.testing.assert_array_equal(quant.quantize(quant.dequantize(codes)), codes)


def test_axis_and_block_scales() -> None:
    real = np.ones((2, 5), np.float32)
    per_row = Quant(I8, (1.0, 0.5), (0, 3), axis=0)
    assert per_row.quantize(real).tolist() == [[1] * 5, [5] * 5]
    blocks = Quant(I8, (1.0, 0.5, 0.25), axis=1, block=2)
    assert blocks.quantize(real).tolist() == [[1, 1, 2, 2, 4]] * 2
    np.testing.assert_array_equal(blocks.dequantize(blocks.quantize(real)), real)


def test_numpy_scalars_make_equal_types() -> None:
    plain = Quant(I8, (0.5,), (3,))
    scalars = Quant(I8, tuple(np.array([0.5], np.float32)), tuple(np.array([3], np.int8)))
    assert plain == scalars
    assert hash(plain) == hash(scalars)
    assert str(plain) == str(scalars) == "q<i8, scale=[0.5], zp=[3]>"


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Float, {"bits": 8}, "Float of 8 bits"),
    (Int, {"bits": 0}, "Int of 0 bits"),
    (Int, {"bits": 65}, "Int of 65 bits"),
    (Dim, {"name": "n", "lo": 3, "hi": 2}, "expected 0 <= lo <= hi"),
    (Dim, {"name": "n", "lo": -1}, "expected 0 <= lo <= hi"),
    (Quant, {"storage": I8, "scale": ()}, "scale must be"),
    (Quant, {"storage": I8, "scale": (0.0,)}, "scale must be"),
    (Quant, {"storage": I8, "scale": (-1.0,)}, "scale must be"),
    (Quant, {"storage": I8, "scale": (float("nan"),)}, "scale must be"),
    (Quant, {"storage": I8, "scale": (float("inf"),)}, "scale must be"),
    (Quant, {"storage": I8, "scale": (1e-60,)}, "scale must be"),
    (Quant, {"storage": I8, "scale": (1e60,)}, "scale must be"),
    (Quant, {"storage": I8, "scale": (1.0, 2.0)}, "without an axis"),
    (Quant, {"storage": I8, "scale": (1.0,), "block": 4}, "without an axis"),
    (Quant, {"storage": I8, "scale": (1.0, 2.0), "axis": -1}, "expected axis >= 0"),
    (Quant, {"storage": I8, "scale": (1.0, 2.0), "axis": 0, "block": 0}, "block >= 1"),
    (Quant, {"storage": I8, "scale": (1.0,) * 3, "zero_point": (0, 0), "axis": 0}, "2 zero points for 3 scales"),
    (Quant, {"storage": Int(4), "scale": (1.0,), "zero_point": (8,)}, "zero point outside i4"),
    (Codebook, {"codes": Int(1, False), "table": (0.0, 1.0, 2.0)}, "3 entries do not fit"),
    (Codebook, {"codes": U8, "table": ()}, "one or more finite"),
    (Codebook, {"codes": U8, "table": (float("nan"),)}, "one or more finite"),
    (Codebook, {"codes": U8, "table": (1.0,), "scale": (0.0,)}, "scale must be"),
    (Codebook, {"codes": U8, "table": (1.0,), "scale": (1.0, 2.0)}, "2 scales along axis None"),
    (Quant, {"storage": Int(1), "scale": (1.0,), "zero_point": (1,)}, "bipolar codes have zero point 0"),
]


@pytest.mark.parametrize(("class_", "fields", "message"), REFUSED)
def test_meaningless_types_are_refused(class_: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_(**fields)


def test_the_signed_integer_of_one_bit_is_bipolar() -> None:
    elem = Quant(Int(1), (0.5, 2.0), (0,), axis=0)
    assert (elem.storage.bipolar, elem.storage.min, elem.storage.max, str(elem.storage)) == (True, -1, 1, "i1")
    reals = np.asarray([[-3.0, -0.1, 0.0, 9.0], [1.0, -1.0, -0.0, 0.1]], np.float32)
    codes = elem.quantize(reals)
    np.testing.assert_array_equal(codes, [[-1, -1, 1, 1], [1, -1, 1, 1]])
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(elem.dequantize(codes), [[-0.5, -0.5, 0.5, 0.5], [2, -2, 2, 2]])
    assert not Int(1, signed=False).bipolar


def test_codebooks_have_scales_and_maybe_integers() -> None:
    elem = Codebook(Int(2, signed=False), (-64.0, -1.0, 0.0, 127.0), (0.5, 2.0), axis=1)
    codes = np.asarray([[0, 3], [1, 2]], np.uint8)
    np.testing.assert_array_equal(elem.dequantize(codes), [[-32, 254], [-0.5, 0]])
    np.testing.assert_array_equal(multiplied_integers(elem, codes), np.asarray([[-64, 127], [-1, 0]], np.int8))
    assert not elem.per_tensor
    for table in ((0.5, 1.0), (-129.0, 1.0), (1.0, 128.0)):
        other = Codebook(Int(2, signed=False), table)
        assert other.integers is None
        with pytest.raises(ValueError, match="no integers of 8 bits"):
            multiplied_integers(other, codes % 2)
    quant = Quant(Int(4), (1.0,))
    assert multiplied_integers(quant, codes) is codes


def test_tensor_types() -> None:
    type_ = TensorType((Dim("n", 1, 8), 3), F32)
    assert (type_.rank, type_.is_static, str(type_)) == (2, False, "f32[n(1..8),3]")
    with pytest.raises(ValueError, match="symbolic"):
        _ = type_.static_shape
    assert type_.with_shape((2, 3)).size == 6
    assert type_.with_elem(I8).dtype == np.int8


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint16", "int64", "bool"])
def test_element_types_of_dtypes(dtype: str) -> None:
    assert elem_of_dtype(dtype).dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["complex64", "U3", object])
def test_dtypes_without_element_type(dtype: Any) -> None:
    with pytest.raises(ValueError, match="no element type"):
        elem_of_dtype(dtype)
    assert elem_of_dtype(bool) == BOOL
