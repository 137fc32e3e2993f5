"""Tensor types: element types, quantized types, symbolic dimensions.

A quantized tensor is a *type*, not a pair of operators: `Quant` carries the storage integer, scale and zero point, and
real = scale * (code - zero_point). All types are frozen and hashable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Dim:
    """A symbolic dimension with inclusive bounds, for example `Dim("batch", 1, 8)`.

    `hi` is None while unbounded; code generation needs a bound.
    """

    name: str
    lo: int = 1
    hi: int | None = None

    def __post_init__(self) -> None:
        if self.lo < 0 or (self.hi is not None and self.hi < self.lo):
            raise ValueError(f"Dim {self.name!r}: bounds {self.lo}..{self.hi}, expected 0 <= lo <= hi")

    def __str__(self) -> str:
        return f"{self.name}({self.lo}..{'' if self.hi is None else self.hi})"


Shape = tuple[int | Dim, ...]


@dataclass(frozen=True, slots=True)
class Float:
    """IEEE binary floating point of 16, 32 or 64 bits."""

    bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (16, 32, 64):
            raise ValueError(f"Float of {self.bits} bits: expected 16, 32 or 64")

    def __str__(self) -> str:
        return f"f{self.bits}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype that stores one element."""
        return np.dtype(f"float{self.bits}")


@dataclass(frozen=True, slots=True)
class Bool:
    """A truth value, stored as one byte."""

    def __str__(self) -> str:
        return "bool"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype that stores one element."""
        return np.dtype(np.bool_)


@dataclass(frozen=True, slots=True)
class Int:
    """A two's complement or unsigned integer of 1 to 64 bits; numpy stores it in the next wider native integer.

    The signed integer of one bit is bipolar: -1 or +1 and nothing between, as binary weights are. Two's complement would make
    it -1 or 0, which no quantizer wants.
    """

    bits: int = 32
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 64:
            raise ValueError(f"Int of {self.bits} bits: expected 1..64")

    def __str__(self) -> str:
        return f"{'i' if self.signed else 'u'}{self.bits}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype that stores one element."""
        native = next(b for b in (8, 16, 32, 64) if b >= self.bits)
        return np.dtype(f"{'int' if self.signed else 'uint'}{native}")

    @property
    def bipolar(self) -> bool:
        """True for the integer that is -1 or +1."""
        return self.bits == 1 and self.signed

    @property
    def min(self) -> int:
        """The lowest representable code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def max(self) -> int:
        """The highest representable code."""
        if self.bipolar:
            return 1
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


_FLOAT32_MIN = float(np.finfo(np.float32).smallest_subnormal)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of inputs whose weights share an integer factor of 1 to 15, which is multiplied in (`bevel.ir.groups`).

    Attributes:
        codes: type of the integers that factors multiply, up to 4 bits.
        size: weights in a group: consecutive ones of an output channel within a kernel row, whose last group may have fewer.
    """

    codes: Int
    size: int

    def __post_init__(self) -> None:
        if not self.codes.signed or self.codes.bits > MOST_GROUPED_BITS:
            raise ValueError(f"groups of {self.codes}: expected i1 to i{MOST_GROUPED_BITS}, times 15 these fit 8 bits")
        if self.size not in GROUP_SIZES:
            raise ValueError(f"groups of {self.size} weights: expected {', '.join(map(str, GROUP_SIZES))}")


GROUP_SIZES = (16, 32, 64, 128)
MOST_GROUPED_BITS = 4


@dataclass(frozen=True, slots=True)
class Quant:
    """Affine quantized element: real = scale * (code - zero_point).

    Scales and zero points are kept as plain Python numbers, so that equal types print and hash alike wherever they came from.

    Attributes:
        storage: the integer type of the codes.
        scale: one positive float, or one for each index along `axis` (or for each block of it).
        zero_point: one code, or one for each index along `axis`.
        axis: the channel axis of per-channel scales, None for per-tensor.
        block: number of consecutive elements along `axis` sharing a scale, None for one scale per index.
        groups: what is known of weights besides: codes are multiples of shorter ones, group by group. It changes no value.
    """

    storage: Int
    scale: tuple[float, ...]
    zero_point: tuple[int, ...] = (0,)
    axis: int | None = None
    block: int | None = None
    groups: Groups | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(float(s) for s in self.scale))
        object.__setattr__(self, "zero_point", tuple(int(z) for z in self.zero_point))
        # Quantization divides in float32, where a scale must not become zero or infinite.
        if not self.scale or any(not _FLOAT32_MIN <= s <= _FLOAT32_MAX for s in self.scale):
            raise ValueError("Quant: every scale must be positive and finite in float32")
        if self.axis is None and (len(self.scale) != 1 or self.block is not None):
            raise ValueError(f"Quant: {len(self.scale)} scales and block {self.block} without an axis")
        if (self.axis is not None and self.axis < 0) or (self.block is not None and self.block < 1):
            raise ValueError(f"Quant: axis {self.axis} and block {self.block}, expected axis >= 0 and block >= 1")
        if len(self.zero_point) not in (1, len(self.scale)):
            raise ValueError(f"Quant: {len(self.zero_point)} zero points for {len(self.scale)} scales")
        if any(not self.storage.min <= z <= self.storage.max for z in self.zero_point):
            raise ValueError(f"Quant: zero point outside {self.storage}")
        if self.storage.bipolar and any(self.zero_point):
            raise ValueError("Quant: bipolar codes have zero point 0")
        if self.groups is not None and (self.storage != Int(8) or any(self.zero_point) or self.axis not in (None, 0)):
            raise ValueError(f"Quant: groups of {self.storage} along axis {self.axis}, expected i8, zero point 0 and axis 0")

    def __str__(self) -> str:
        scale = ",".join(repr(s) for s in self.scale)
        zp = ",".join(str(z) for z in self.zero_point)
        axis = "" if self.axis is None else f", axis={self.axis}"
        block = "" if self.block is None else f", block={self.block}"
        groups = "" if self.groups is None else f", codes={self.groups.codes}, group={self.groups.size}"
        return f"q<{self.storage}, scale=[{scale}], zp=[{zp}]{axis}{block}{groups}>"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype that stores one code."""
        return self.storage.dtype

    @property
    def code_bits(self) -> int:
        """Bits of a code, of weights in groups without their factors."""
        return self.storage.bits if self.groups is None else self.groups.codes.bits

    @property
    def per_tensor(self) -> bool:
        """True when one scale and zero point hold for the whole tensor."""
        return self.axis is None

    def quantize(self, real: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return codes of `real`: clamp(zp + rint_half_even(x / s)) with IEEE float32 division; bipolar ones are its signs."""
        if self.storage.bipolar:
            return np.where(real < 0, -1, 1).astype(self.dtype)
        scale = _along_axis(self.scale, self.axis, self.block, real.shape).astype(np.float32)
        zero = _along_axis(self.zero_point, self.axis, self.block, real.shape).astype(np.float64)
        # A quotient beyond float32 is infinite and saturates like any other large one.
        with np.errstate(over="ignore"):
            codes = np.rint(real.astype(np.float32) / scale).astype(np.float64) + zero
        return np.asarray(np.clip(codes, self.storage.min, self.storage.max)).astype(self.dtype)

    def dequantize(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return float32 scale * (code - zero_point)."""
        scale = _along_axis(self.scale, self.axis, self.block, codes.shape).astype(np.float32)
        zero = _along_axis(self.zero_point, self.axis, self.block, codes.shape).astype(np.int64)
        return np.asarray((codes.astype(np.int64) - zero).astype(np.float32) * scale, dtype=np.float32)


def _along_axis(
    values: tuple[float, ...] | tuple[int, ...], axis: int | None, block: int | None, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Scales or zero points of an element type, broadcastable to an array of `shape`."""
    array = np.asarray(values)
    if axis is None or array.size == 1:
        return array.reshape(())
    if block is not None:
        array = np.repeat(array, block)[: shape[axis]]
    return array.reshape([-1 if i == axis else 1 for i in range(len(shape))])


@dataclass(frozen=True, slots=True)
class Codebook:
    """Non-uniform weights (k-means, NF4, powers of two): real = scale * table[code].

    Attributes:
        codes: the unsigned integer type of the codes.
        table: the value of each code. Integer operators need whole numbers of 8 bits here (`integers`).
        scale: one positive float, or one for each index along `axis`.
        axis: the channel axis of per-channel scales, None for per-tensor.
    """

    codes: Int
    table: tuple[float, ...]
    scale: tuple[float, ...] = (1.0,)
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", tuple(float(v) for v in self.table))
        object.__setattr__(self, "scale", tuple(float(s) for s in self.scale))
        if not self.table or not all(np.isfinite(self.table)):
            raise ValueError("Codebook: the table must hold one or more finite values")
        if len(self.table) > 1 << self.codes.bits:
            raise ValueError(f"Codebook: {len(self.table)} entries do not fit {self.codes.bits}-bit codes")
        if not self.scale or any(not _FLOAT32_MIN <= s <= _FLOAT32_MAX for s in self.scale):
            raise ValueError("Codebook: every scale must be positive and finite in float32")
        if (self.axis is None and len(self.scale) != 1) or (self.axis is not None and self.axis < 0):
            raise ValueError(f"Codebook: {len(self.scale)} scales along axis {self.axis}")

    def __str__(self) -> str:
        plain = self.axis is None and self.scale == (1.0,)
        scale = "" if plain else f", scale=[{','.join(repr(s) for s in self.scale)}]"
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"codebook<{self.codes}, [{','.join(repr(v) for v in self.table)}]{scale}{axis}>"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype that stores one code."""
        return self.codes.dtype

    @property
    def per_tensor(self) -> bool:
        """True when one scale holds for the whole tensor."""
        return self.axis is None

    @property
    def integers(self) -> npt.NDArray[np.int8] | None:
        """The table as int8, None where an entry is no whole number of 8 bits."""
        table = np.asarray(self.table)
        fits = bool((table == np.rint(table)).all() and (np.abs(table + 0.5) <= 127.5).all())
        return table.astype(np.int8) if fits else None

    def dequantize(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return float32 scale * table[code]."""
        scale = _along_axis(self.scale, self.axis, None, codes.shape).astype(np.float32)
        return np.asarray(np.asarray(self.table, np.float32)[codes] * scale, dtype=np.float32)


Elem = Float | Bool | Int | Quant | Codebook


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape, element type and physical layout of a value.

    Attributes:
        shape: logical dimensions, in the order the operator definition gives (NCHW for convolutions).
        elem: element type.
        layout: physical order of the logical axes, None for row-major. (0, 2, 3, 1) stores an NCHW tensor as NHWC.
            Graphs leave it None; backends assign it.
    """

    shape: Shape
    elem: Elem
    layout: tuple[int, ...] | None = None

    def __str__(self) -> str:
        layout = "" if self.layout is None else "@" + "".join(str(a) for a in self.layout)
        return f"{self.elem}[{','.join(str(d) for d in self.shape)}]{layout}"

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the stored elements."""
        return self.elem.dtype

    @property
    def is_static(self) -> bool:
        """True when no dimension is symbolic."""
        return all(isinstance(d, int) for d in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as integers.

        Raises:
            ValueError: a dimension is symbolic.
        """
        if not self.is_static:
            raise ValueError(f"{self} has symbolic dimensions")
        return tuple(d for d in self.shape if isinstance(d, int))

    @property
    def size(self) -> int:
        """Number of elements of a static shape."""
        return prod(self.static_shape)

    def with_elem(self, elem: Elem) -> TensorType:
        """The same shape with another element type."""
        return replace(self, elem=elem)

    def with_shape(self, shape: Shape) -> TensorType:
        """The same element type with another shape."""
        return replace(self, shape=tuple(shape))


F32 = Float(32)
F16 = Float(16)
I8 = Int(8)
U8 = Int(8, signed=False)
I32 = Int(32)
I64 = Int(64)
BOOL = Bool()


def elem_of_dtype(dtype: npt.DTypeLike) -> Elem:
    """The plain element type that numpy dtype stores.

    Raises:
        ValueError: complex, object or string dtypes.
    """
    dt = np.dtype(dtype)
    if dt.kind == "f" and dt.itemsize in (2, 4, 8):
        return Float(dt.itemsize * 8)
    if dt.kind in "iu":
        return Int(dt.itemsize * 8, dt.kind == "i")
    if dt.kind == "b":
        return BOOL
    raise ValueError(f"dtype {dt} has no element type: expected float16/32/64, an integer or bool")


def multiplied_integers(elem: Elem, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The integers that weights of type `elem` stand for in a product: codes of a Quant, table entries of a Codebook.

    Raises:
        ValueError: a Codebook whose table holds other numbers.
    """
    if not isinstance(elem, Codebook):
        return codes
    if (table := elem.integers) is None:
        raise ValueError(f"{elem} has table entries that are no integers of 8 bits")
    return np.asarray(table[codes])
