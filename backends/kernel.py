"""The contract between lowering and kernel generators.

A *problem* says what must be computed, free of data and of tile parameters: equal problems share one piece of machine code.
*Constants* are the layer's numbers. A *generator* declares which problems it can compute on which target (`legal`), its
tile search space (`tiles`), how constants are laid out for it (`pack`) and the code itself (`emit`).

Kernel ABI (ARCHITECTURE section 6):

    int32_t kernel(const void *inputs..., const void *constants..., [const int32_t *dims,] void *outputs...,
                   int32_t lo, int32_t hi, void *scratch)

`[lo, hi)` is a range of the parallel axis, whose length is `parallel_extent`. Threads partition outputs only. Each thread passes
its own 64-byte aligned `scratch` of `scratch_bytes`. Buffers are 64-byte aligned and readable for 64 bytes past their end.
No kernel calls anything: objects have no undefined symbol.

*Run-time extents.* An axis whose extent is known only at run time is laid out at its bound, so that strides and offsets stay
constants; `Buf.dims` names it, and what lies beyond the actual extent holds anything and must never enter a result. Only kernels
of problems with such axes take `dims`, the extents in the order of `problem_dims`. A convolution or GEMM whose outermost axis is
such an axis (`ConvProblem.dim`) needs no change and no `dims`: the runtime cuts its parallel axis short (`RuntimeExtent`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bevel.ir.protocols import Target

Tile = Mapping[str, int]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DimRef:
    """An extent known at run time.

    Attributes:
        name: of the symbolic dimension.
        bound: its largest value, at which memory is laid out.
    """

    name: str
    bound: int


@dataclass(frozen=True)
class Extent:
    """The length of a parallel axis that depends on run-time extents: min(most, ceil(mul * product(dims) / div)).

    Attributes:
        most: the length at the bounds.
        dims: names of the dimensions multiplied.
        mul, div: positive.
    """

    most: int
    dims: tuple[str, ...]
    mul: int = 1
    div: int = 1

    def at(self, values: Mapping[str, int]) -> int:
        """The length when the dimensions are `values`."""
        return min(self.most, -(-self.mul * math.prod(values[name] for name in self.dims) // self.div))


@dataclass(frozen=True)
class Buf:
    """A tensor as a kernel sees it.

    Attributes:
        shape: logical shape, all integers; run-time extents at their bounds.
        dtype: numpy name of the stored element ("float32", "uint8", "int8", "int32", "int64", "bool").
        layout: physical order of the logical axes; None is row-major. (0, 2, 3, 1) stores NCHW as NHWC.
        zero_point: of quantized elements, in units of `dtype` (an int8 code c stored as uint8 is c + 128, and so is its zero
            point); 0 for plain elements.
        dims: the run-time extent of each axis, None where it is fixed; empty when all are.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: tuple[int, ...] | None = None
    zero_point: int = 0
    dims: tuple[DimRef | None, ...] = ()

    def dim(self, axis: int) -> DimRef | None:
        """The run-time extent of logical `axis`, None where it is fixed."""
        return self.dims[axis] if self.dims else None

    @property
    def physical_shape(self) -> tuple[int, ...]:
        """Shape in memory order."""
        return self.shape if self.layout is None else tuple(self.shape[a] for a in self.layout)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without tail padding."""
        return self.size * np.dtype(self.dtype).itemsize

    def strides(self) -> tuple[int, ...]:
        """Element stride of each logical axis."""
        order = self.layout or tuple(range(len(self.shape)))
        strides = [0] * len(self.shape)
        step = 1
        for axis in reversed(order):
            strides[axis] = step
            step *= self.shape[axis]
        return tuple(strides)


@dataclass(frozen=True, repr=False)
class ConvProblem:
    """2-D convolution or GEMM over NHWC buffers with a fused epilogue.

    A GEMM of [M, K] x [N, K] is the 1x1 convolution with h = 1, w = M, c = K, oc = N. Weights are logical
    [oc, c / groups, kh, kw].

    Attributes:
        dtype: element type of x: "float32", or "int8"/"uint8" codes (`Target.activation_dtype`).
        out_dtype: "float32"; the activation code type (requantized); or "int32" (raw accumulators).
        clamp: whether the epilogue clamps to `ConvConstants.lo/hi`. Quantized results always saturate to `out_dtype`, so clamp is
            False when lo/hi are its limits.
        relu: float only: max(x, 0), the commonest clamp, without constants.
        wide_weights: quantized only: some weight code is -128, which rules out pairing two int8 products in int16.
        light_weights: quantized only: neighbouring weights seldom sum to more than 128, so that products of bytes can be added in
            16 bits (`bevel.backends.kernels.int16_sums`).
        weight_bits: quantized only: every weight code lies in [-2^(b-1), 2^(b-1)), or is -1 or +1 where b is 1.
        index_bits: quantized only: 2 to 4 where weights take no more than 2^b values, as those from a small table do, and
            `weight_bits` is larger; else 0.
        x_bits: quantized only: bits that hold every stored code of x as an unsigned number; 8 where x is stored as signed codes.
        weight_group, group_bits: quantized only: weights are products of codes of `group_bits` bits and a factor of 1 to 15 for
            every `weight_group` weights of a kernel row (`bevel.ir.groups`); 0 where they are not, or no kernel gains by it.
        short_factors: quantized only: every factor m * 2^-n is a multiple of 2^-31 below 1/2 (`ConvConstants.short_factors`).
        addend: the epilogue adds a tensor of the result's shape, layout and type to it, the second input of the kernel: float
            results before `relu` and `clamp`, codes after them (`Sum`).
        dim: the run-time extent that bounds the outermost axis: images, or rows where there is one image of height 1. That axis
            is a multiple of `dim.bound` long; the kernel may compute rows beyond the actual extent, nobody reads them.
    """

    batch: int
    h: int
    w: int
    c: int
    oc: int
    kh: int = 1
    kw: int = 1
    stride_h: int = 1
    stride_w: int = 1
    dilation_h: int = 1
    dilation_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    groups: int = 1
    dtype: str = "float32"
    out_dtype: str = "float32"
    clamp: bool = False
    relu: bool = False
    wide_weights: bool = False
    light_weights: bool = False
    weight_bits: int = 8
    index_bits: int = 0
    x_bits: int = 8
    weight_group: int = 0
    group_bits: int = 0
    short_factors: bool = False
    addend: bool = False
    dim: DimRef | None = None

    def __repr__(self) -> str:
        """Without the fields at their defaults: measurements are kept by this text, and new fields must not outdate them."""
        said = ((f, getattr(self, f.name)) for f in fields(self))
        return f"ConvProblem({', '.join(f'{f.name}={value!r}' for f, value in said if value != f.default)})"

    @property
    def oh(self) -> int:
        """Output height."""
        return (self.h + self.pad_top + self.pad_bottom - self.dilation_h * (self.kh - 1) - 1) // self.stride_h + 1

    @property
    def ow(self) -> int:
        """Output width."""
        return (self.w + self.pad_left + self.pad_right - self.dilation_w * (self.kw - 1) - 1) // self.stride_w + 1

    @property
    def padded(self) -> bool:
        """True when any border is padded."""
        return any((self.pad_top, self.pad_left, self.pad_bottom, self.pad_right))

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batch * self.oh * self.ow * self.oc * self.kh * self.kw * self.c // self.groups


@dataclass(frozen=True)
class Sum:
    """How codes of a convolution and of its addend are added, in int32 (docs/numerics.md, IntAdd).

    With codes a of the convolution, after its clamp, and b of the addend:
    clamp(zero_point + ((ma * (a - za) + mb * (b - zb) + 2^(n-1)) >> n), lo, hi), all in units of the stored dtypes.
    """

    ma: int
    mb: int
    n: int
    za: int
    zb: int
    zero_point: int
    lo: int
    hi: int


@dataclass(frozen=True)
class ConvConstants:
    """The numbers of one convolution, in logical layout.

    Attributes:
        weights: [oc, c / groups, kh, kw] float32 or int8.
        bias: [oc] float32 or int32.
        multiplier, shift: [oc] int64 dyadic requantization out = clamp(zp + ((acc*m + 2^(n-1)) >> n)), n in 1..62; None unless
            requantized.
        x_zero_point, y_zero_point: in units of the stored dtypes.
        lo, hi: clamp of the result, in units of the stored output dtype (floats for float32).
        sum: of codes, where there is an addend.
    """

    weights: Array
    bias: Array
    multiplier: Array | None = None
    shift: Array | None = None
    x_zero_point: int = 0
    y_zero_point: int = 0
    lo: float = -np.inf
    hi: float = np.inf
    sum: Sum | None = None

    @property
    def short_factors(self) -> Array | None:
        """int64 [oc] f with m * 2^-n = f * 2^-31 and f < 2^30, None when a channel has no such f.

        With them the result is zp + ((acc * f + 2^30) >> 31): a doubling multiplication that keeps the rounded high half.
        """
        if self.multiplier is None or self.shift is None:
            return None
        excess = np.where(self.multiplier == 0, 1, self.shift - 31)
        if (excess < 1).any() or (self.multiplier & (np.left_shift(1, excess) - 1)).any():
            return None
        return np.right_shift(self.multiplier, excess)


@dataclass(frozen=True)
class NodeProblem:
    """Any other operator: what its IR node says, with the physical view of every operand.

    Attributes:
        op: name in the op table.
        attrs: the op's frozen attribute dataclass.
        inputs: operands in order, constants included (they are ordinary read-only buffers).
        outputs: results in order.
        scales: per-tensor scales of inputs then outputs where quantized, 1.0 elsewhere (float islands need them).
        epilogue: unary elementwise float ops applied to the result in order, as (op, attrs): (("Relu", NoAttrs()),).
    """

    op: str
    attrs: Any
    inputs: tuple[Buf, ...]
    outputs: tuple[Buf, ...]
    scales: tuple[float, ...] = ()
    epilogue: tuple[tuple[str, Any], ...] = ()


Problem = ConvProblem | NodeProblem


def problem_dims(problem: Problem) -> tuple[str, ...]:
    """Names of the run-time extents that the problem's kernel takes, in the order of its `dims`."""
    if isinstance(problem, ConvProblem):
        return ()
    bufs = (*problem.inputs, *problem.outputs)
    return tuple(dict.fromkeys(ref.name for buf in bufs for ref in buf.dims if ref is not None))


def is_dynamic(problem: Problem) -> bool:
    """Whether some extent of the problem is known only at run time."""
    return problem.dim is not None if isinstance(problem, ConvProblem) else bool(problem_dims(problem))


class Generator(Protocol):
    """One way to compute a class of problems on a class of targets."""

    @property
    def name(self) -> str:
        """What manifests and reports call it; derived loop kernels begin with "generic"."""
        ...

    def legal(self, problem: Problem, target: Target) -> str | None:
        """None when this generator can compute `problem` on `target`, else the reason why not."""
        ...

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Tile parameters worth trying, the statically best first. Never empty for a legal problem."""
        ...

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Constant buffers in the kernel's layout, in ABI order; empty when the kernel takes none of its own."""
        ...

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Length of the parallel axis; 1 when the kernel is serial."""
        ...

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """Scratch one thread needs; 0 for none."""
        ...

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> Any:
        """The kernel as a TVM PrimFunc named `symbol`, built with `bevel.backends.tvm.Builder`."""
        ...


@runtime_checkable
class RuntimeExtent(Protocol):
    """What a generator has besides `Generator` when it is legal for problems with run-time extents."""

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """Length of the parallel axis as it depends on run-time extents; `parallel_extent` is its value at the bounds."""
        ...


@runtime_checkable
class Rowwise(Protocol):
    """What a generator has besides `Generator` when its units may follow rows of pixels, so that it can join a cascade."""

    def unit_ends(self, problem: Problem, tile: Tile) -> Sequence[int] | None:
        """For every unit of the parallel axis the output pixel, counted in row-major order, that it ends before.

        Unit i computes all channels of the pixels from the end of unit i - 1 on, and reads no pixel of x that they do not need.
        None where units are something else, or where there are several images.
        """
        ...


@runtime_checkable
class Summing(Protocol):
    """What a generator has besides `Generator` when it may be legal for problems with an addend."""

    def sums(self, problem: ConvProblem) -> bool:
        """Whether its epilogue can add the addend of `problem`."""
        ...


@runtime_checkable
class Selective(Protocol):
    """What a generator has besides `Generator` when the ones after it are faster for some problems it is legal for."""

    def pays(self, problem: Problem, target: Target) -> bool:
        """Whether it is expected to be the fastest for a legal `problem`, by a static estimate."""
        ...


@runtime_checkable
class Rewriting(Protocol):
    """What a generator has besides `Generator` when its `pack` computes on weights, so that none is found in what it packs."""

    def rewrites(self, problem: Problem) -> bool:
        """Whether it does for `problem`."""
        ...


@runtime_checkable
class Estimated(Protocol):
    """What a generator has besides `Generator` when its tiles can be compared with those of other generators."""

    def cycles(self, problem: Problem, target: Target, tile: Tile) -> float:
        """Estimated cycles of a kernel: to compare candidates for one problem, not to predict times."""
        ...


def outer_extent(problem: ConvProblem, most: int, rows_per_unit: int, rows: int) -> int | Extent:
    """The parallel extent of a convolution whose units cover its outermost axis in order.

    Args:
        problem: what is computed.
        most: parallel extent at the bound.
        rows_per_unit: fewest rows that a unit covers.
        rows: rows at the bound.
    """
    if problem.dim is None:
        return most
    return Extent(most, (problem.dim.name,), rows // problem.dim.bound, rows_per_unit)
