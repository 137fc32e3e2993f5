"""Physical views of values: which layout and which stored dtype kernels see.

Convolutions and pools work on NHWC; everything that reduces over trailing axes works on row-major memory; elementwise and
movement operators follow their operand. A transpose only renames axes, so it is free whenever its consumer wants what it makes.
An axis whose extent is symbolic is laid out at its upper bound (`bounded`). Activation codes are stored as the target multiplies
them best (`Target.activation_dtype`): a code c of int8 is c + 128 in uint8. Codes of fewer bits are unsigned, and stay as they
are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.backends.kernel import Buf, ConvProblem, DimRef
from bevel.ir.graph import Node, Value
from bevel.ir.groups import factored
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.custom import CUSTOM
from bevel.ir.plan import TERNARY
from bevel.ir.protocols import Target
from bevel.ir.types import Codebook, Dim, Int, Quant, Shape, TensorType, multiplied_integers

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
# Entries of a table of weights that kernels can look up in registers.
MOST_INDEXED = 16
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


def code_offset(elem: object, buf: Buf) -> int:
    """What is added to a code of type `elem` to store it in `buf`: 128 where int8 is stored as uint8, else 0."""
    return 128 if stored_as_activation(elem) and buf.dtype == "uint8" else 0


def store_constant(array: Array, type_: TensorType, buf: Buf) -> Array:
    """A constant's data as kernels see it: transposed to the layout, codes in the stored dtype."""
    data = array if buf.layout is None else array.transpose(buf.layout)
    if stored_as_activation(type_.elem):
        data = data.astype(np.int16) + code_offset(type_.elem, buf)
    return np.ascontiguousarray(data.astype(buf.dtype))


def _is_narrow(elem: object) -> bool:
    """True for activation codes of fewer than 8 bits: one in a byte, 0..2^b - 1 on every target."""
    return isinstance(elem, Quant) and elem.per_tensor and elem.storage.bits < 8 and not elem.storage.signed


def product_dtype(elem: object, buf: Buf, target: Target) -> str:
    """The element type that convolutions and GEMMs read or write `buf` as: bytes below 128 are the same signed and unsigned."""
    return target.activation_dtype if _is_narrow(elem) else buf.dtype


def weight_integers(w: Value) -> Array:
    """The numbers that the products of a layer take: codes as int8, or what a table of integers says; reals as they are."""
    return multiplied_integers(w.type.elem, w.array)


def low_bits(problem: ConvProblem, x: Value, w: Value) -> ConvProblem:
    """`problem` with the bits that the codes of `x`, the integers of `w` and indices of its table need, where these are few."""
    if isinstance(w.type.elem, Quant):
        weight_bits = w.type.elem.storage.bits
    else:
        integers = weight_integers(w).astype(np.int64)
        weight_bits = int(np.where(integers < 0, ~integers, integers).max(initial=0)).bit_length() + 1
    x_bits = x.type.elem.storage.bits if isinstance(x.type.elem, Quant) and _is_narrow(x.type.elem) else 8
    index_bits = 0
    if isinstance(w.type.elem, Codebook):
        values = len(set(w.type.elem.table))
        index_bits = max(2, (values - 1).bit_length()) if values <= MOST_INDEXED else 0
        index_bits = index_bits if index_bits < weight_bits else 0
    return replace(problem, weight_bits=min(weight_bits, 8), index_bits=index_bits, x_bits=x_bits)


def precision_of(node: Node) -> str:
    """Precision spelling of an INTEGER node: "w4a8" from the codes of its weights and data operand; "w4g32a8" with groups."""
    elem = node.inputs[0].type.elem
    if not isinstance(elem, Quant):
        return "int32" if node.op == "Requantize" else f"fp{node.outputs[0].type.dtype.itemsize * 8}"
    weights: float = elem.storage.bits
    groups = None
    if Trait.WEIGHTED in lookup(node.op).traits:
        w = node.inputs[1]
        own = w.type.elem
        if isinstance(own, Quant | Codebook):
            weights = own.code_bits if isinstance(own, Quant) else own.codes.bits
        groups = own.groups if isinstance(own, Quant) else None
        if weights == 2 and isinstance(own, Quant) and w.is_constant:
            codes = w.array if groups is None else factored(w.array, groups)[0]
            weights = TERNARY if codes.min(initial=0) >= -1 else weights
    return f"w{weights}{'' if groups is None else f'g{groups.size}'}a{elem.storage.bits}"
