"""Data to time kernels on: random constants that a generator packs, and which bytes of operands a kernel reads.

In: a problem and one of its candidates. Out: the buffers of one call in ABI order. The time of a kernel does not depend on the
data, as long as floats are neither subnormal nor infinite; equal constants for all candidates of a problem let their results be
compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, NodeProblem, Problem, Sum, problem_dims
from bevel.backends.kernels.micro import FLOATS
from bevel.backends.physical import PRODUCTS
from bevel.ir.groups import FACTOR_MAX, group_count, spread

_SEED = 20260522
CODE_BITS = 8
# Bounds of a clamp, as shares of the range of codes, and for floats those of Relu6.
_CLAMP = (0.1, 0.9)
_CLAMP_F32 = (0.0, 6.0)
# Requantized sums of random products spread over this many codes either side of the zero point.
_SPREAD = 60.0
# Standard deviation of light weights: few neighbours sum to more than 128.
_LIGHT = 24.0
# And of uniform codes of 8 bits.
_UNIFORM = 74.0


@dataclass(frozen=True)
class Operand:
    """What a kernel reads besides constants.

    Attributes:
        dtype: of its elements.
        nbytes: that they take.
        bits: that hold every code as an unsigned number, where a byte holds one.
    """

    dtype: str
    nbytes: int
    bits: int = 8


def measurable(problem: Problem) -> bool:
    """Whether any data is valid for a problem, so that its kernels can be timed on random data: convolutions and products."""
    return isinstance(problem, ConvProblem) or problem.op in PRODUCTS


def operands(problem: Problem) -> list[Operand]:
    """The inputs of a measurable problem."""
    if isinstance(problem, ConvProblem):
        elements = problem.batch * problem.h * problem.w * problem.c
        x = Operand(problem.dtype, elements * np.dtype(problem.dtype).itemsize, problem.x_bits)
        return [x, Operand(problem.out_dtype, output_bytes(problem))] if problem.addend else [x]
    return [Operand(buf.dtype, buf.nbytes) for buf in problem.inputs]


def output_bytes(problem: Problem) -> int:
    """Bytes of the result of a measurable problem."""
    if isinstance(problem, ConvProblem):
        return problem.batch * problem.oh * problem.ow * problem.oc * np.dtype(problem.out_dtype).itemsize
    return problem.outputs[0].nbytes


def exact(problem: Problem) -> bool:
    """Whether all kernels of a problem compute the same bits: sums of floats depend on their order."""
    dtype = problem.out_dtype if isinstance(problem, ConvProblem) else problem.outputs[0].dtype
    return dtype not in FLOATS


def extents(problem: Problem) -> Array | None:
    """The run-time extents that the problem's kernels take, at their bounds; None when they take none."""
    names = problem_dims(problem)
    if not names:
        return None
    assert isinstance(problem, NodeProblem)
    bounds = {ref.name: ref.bound for buf in (*problem.inputs, *problem.outputs) for ref in buf.dims if ref is not None}
    return np.array([bounds[name] for name in names], np.int32)


def constants(problem: Problem) -> ConvConstants | None:
    """Random constants of a convolution, the same in every call; None for a problem without constants."""
    if not isinstance(problem, ConvProblem):
        return None
    rng = np.random.default_rng(_SEED)
    shape = (problem.oc, problem.c // problem.groups, problem.kh, problem.kw)
    products = shape[1] * shape[2] * shape[3]
    if problem.dtype in FLOATS:
        weights = (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape) / np.sqrt(products)).astype(problem.dtype)
        lo, hi = _CLAMP_F32 if problem.clamp else (-np.inf, np.inf)
        return ConvConstants(weights, rng.uniform(-1, 1, problem.oc).astype(np.float32), lo=lo, hi=hi)
    weights = _weights(problem, shape, rng)
    bias = rng.integers(-(1 << 12), 1 << 12, problem.oc).astype(np.int32)
    info = np.iinfo(np.dtype(problem.dtype))
    # Padding is codes, so the zero point is one.
    zero = (int(info.min) + int(info.max) + 1) // 2 - 3 if problem.x_bits == CODE_BITS else (1 << problem.x_bits) // 2 - 1
    if problem.out_dtype == "int32":
        return ConvConstants(weights, bias, x_zero_point=zero)
    # The standard deviation of a sum of products of uniform codes and weights.
    deviation = np.sqrt(products) * _UNIFORM**2 * 2.0 ** (problem.weight_bits + problem.x_bits - 2 * CODE_BITS)
    shift = int(np.clip(np.round(31 + np.log2(deviation / _SPREAD)), 32, 62))
    multiplier = rng.integers(1 << 30, 1 << 31, problem.oc)
    if problem.short_factors:
        multiplier &= -(1 << (shift - 31))
    info = np.iinfo(np.dtype(problem.out_dtype))
    span, y_zero = int(info.max) - int(info.min), (int(info.min) + int(info.max) + 1) // 2 + 2
    lo, hi = (int(info.min) + int(share * span) for share in _CLAMP) if problem.clamp else (int(info.min), int(info.max))
    total = Sum(700, -900, 10, y_zero, y_zero - 5, y_zero - 7, int(info.min), int(info.max)) if problem.addend else None
    return ConvConstants(weights, bias, multiplier, np.full(problem.oc, shift, np.int64), zero, y_zero, lo, hi, total)


def _weights(problem: ConvProblem, shape: tuple[int, int, int, int], rng: np.random.Generator) -> Array:
    """int8 weights of as many bits as the problem has, of as few values, or with factors of groups."""
    if problem.weight_group:
        half = 1 << (problem.group_bits - 1)
        codes = rng.choice([-1, 1], shape) if half == 1 else rng.integers(-half, half, shape)
        count = group_count(shape, problem.weight_group) // shape[2]
        factors = rng.integers(1, min(FACTOR_MAX, 127 // half) + 1, (shape[0], shape[2], count))
        return (codes * spread(factors, shape, problem.weight_group)).astype(np.int8)
    if problem.index_bits:
        return rng.choice(rng.permutation(np.arange(-127, 128))[: 1 << problem.index_bits], shape).astype(np.int8)
    if problem.weight_bits == 1:
        return rng.choice(np.array([-1, 1], np.int8), shape)
    if problem.weight_bits < CODE_BITS:
        half = 1 << (problem.weight_bits - 1)
        return rng.integers(-half, half, shape).astype(np.int8)
    weights = rng.integers(-127, 128, shape).astype(np.int8)
    if problem.light_weights:
        weights = np.clip(np.round(rng.normal(0.0, _LIGHT, shape)), -127, 127).astype(np.int8)
    if problem.wide_weights:
        weights.flat[0] = -128
    return weights
