"""Physical views of values: which layout and which stored dtype kernels see.

Convolutions and pools work on NHWC; everything that reduces over trailing axes works on row-major memory; elementwise and
movement operators follow their operand. A transpose only renames axes, so it is free whenever its consumer wants what it makes.
An axis whose extent is symbolic is laid out at its upper bound (`bounded`). Activation codes are stored as the target multiplies
them best (`Target.activation_dtype`): a code c of int8 is c + 128 in uint8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.backends.kernel import Buf, DimRef
from bevel.ir.ops.custom import CUSTOM
from bevel.ir.protocols import Target
from bevel.ir.types import Dim, Int, Quant, Shape, TensorType

Array = npt.NDArray[Any]
Layout = tuple[int, ...]

NHWC: Layout = (0, 2, 3, 1)
# Operators whose kernels take and give NHWC.
WINDOWED = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "IntConv",
        "AveragePool",
        "GlobalAveragePool",
        "MaxPool",
        "MaxPoolIndices",
        "IntAveragePool",
    }
)
# Operators whose kernels need row-major operands.
ROW_MAJOR = frozenset({"Gemm", "IntGemm", "LayerNormalization", "RMSNormalization", "Reshape"})

# Operators whose kernels take any layout and give row-major memory.
PRODUCTS = frozenset({"MatMul", "IntMatMul"})


def needs_row_major(op: str) -> bool:
    """True when kernels of `op` take and give row-major memory only; a user's C function is such a kernel."""
    return op in ROW_MAJOR or op in CUSTOM


def row_major(rank: int) -> Layout:
    """The identity layout."""
    return tuple(range(rank))


def bounded(shape: Shape) -> tuple[tuple[int, ...], tuple[DimRef | None, ...]]:
    """Extents at their upper bounds, and the run-time extent of each axis (empty where all are fixed).

    Raises:
        ValueError: a symbolic dimension has no upper bound.
    """
    extents: list[int] = []
    refs: list[DimRef | None] = []
    for d in shape:
        if isinstance(d, Dim) and d.hi is None:
            raise ValueError(f"dimension {d} has no upper bound")
        bound = d.hi if isinstance(d, Dim) and d.hi is not None else d
        assert isinstance(bound, int)
        extents.append(bound)
        refs.append(DimRef(d.name, bound) if isinstance(d, Dim) and d.lo < bound else None)
    return tuple(extents), tuple(refs) if any(refs) else ()


def contiguous(buf: Buf) -> bool:
    """True when the actual elements of a row-major tensor follow one another: only its outermost axis may be shorter."""
    axes = [axis for axis, extent in enumerate(buf.shape) if extent > 1]
    return all(buf.dim(axis) is None for axis in axes[1:])


def same_memory(x: Buf, y: Buf) -> bool:
    """True when a reshape from `x` to `y`, both row-major, leaves every element where it is.

    Between run-time extents, in order, as many elements must lie on both sides.
    """

    def runs(buf: Buf) -> list[int | str]:
        found: list[int | str] = [1]
        for axis, extent in enumerate(buf.shape):
            ref = buf.dim(axis)
            if ref is not None:
                found += [ref.name, 1]
            else:
                found[-1] = int(found[-1]) * extent
        return found

    return runs(x) == runs(y)


def equivalent(shape: tuple[int, ...], a: Layout, b: Layout) -> bool:
    """True when two layouts put every element at the same offset: they order the axes longer than 1 alike."""
    return [axis for axis in a if shape[axis] > 1] == [axis for axis in b if shape[axis] > 1]


def transposed(layout: Layout, perm: tuple[int, ...]) -> Layout:
    """The layout under which a transpose by `perm` leaves memory as it is."""
    return tuple(perm.index(axis) for axis in layout)


def stored_as_activation(elem: object) -> bool:
    """True for per-tensor 8-bit codes, which take the target's activation dtype."""
    return isinstance(elem, Quant) and elem.per_tensor and elem.storage == Int(8)


def buffer_of(type_: TensorType, layout: Layout, target: Target) -> Buf:
    """How kernels on `target` see a value of `type_` laid out as `layout`."""
    shape, dims = bounded(type_.shape)
    zero_point = 0
    dtype = type_.dtype.name
    if isinstance(type_.elem, Quant) and type_.elem.per_tensor:
        zero_point = type_.elem.zero_point[0]
        if stored_as_activation(type_.elem) and target.activation_dtype == "uint8":
            dtype, zero_point = "uint8", zero_point + 128
    return Buf(shape, dtype, None if layout == row_major(len(shape)) else layout, zero_point, dims)


def code_offset(buf: Buf) -> int:
    """What is added to an int8 code to store it in `buf`."""
    return 128 if buf.dtype == "uint8" else 0


def store_constant(array: Array, type_: TensorType, buf: Buf) -> Array:
    """A constant's data as kernels see it: transposed to the layout, codes in the stored dtype."""
    data = array if buf.layout is None else array.transpose(buf.layout)
    if stored_as_activation(type_.elem):
        data = data.astype(np.int16) + code_offset(buf)
    return np.ascontiguousarray(data.astype(buf.dtype))
