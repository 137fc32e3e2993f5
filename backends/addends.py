"""Residual additions: the Add behind a convolution moves into its epilogue.

In: kernel calls with their kernels chosen. Out: fewer calls. The addend joins the convolution's result while that is in
registers, which is neither written nor read back. The numbers are the same: floats are added in the same order, codes rounded in
the same two steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from bevel.backends.calls import Call, Tensor
from bevel.backends.kernel import ConvConstants, ConvProblem, NodeProblem, Sum, Summing, is_dynamic
from bevel.backends.kernels.micro import CODES
from bevel.backends.select import KernelRanker, choose
from bevel.ir.protocols import Target


def fuse_addends(
    calls: Sequence[Call], kept: Collection[Tensor], target: Target, ranker: KernelRanker | None = None
) -> list[Call]:
    """`calls` with additions moved into convolutions.

    Args:
        calls: kernel calls in order, with their kernels chosen.
        kept: base tensors that somebody else reads, such as the graph's outputs.
        target: what kernels are chosen for.
        ranker: chooses among them.
    """
    readers = Counter(base for call in calls for base in {id(x.base) for x in call.inputs if isinstance(x, Tensor)})
    alone = {base for base, count in readers.items() if count == 1} - {id(tensor) for tensor in kept}
    makers = {id(output.base): index for index, call in enumerate(calls) for output in call.outputs}
    found: dict[int, Call] = {}
    gone: set[int] = set()
    for index, call in enumerate(calls):
        problem = call.problem
        if not isinstance(problem, NodeProblem) or problem.op not in ("Add", "IntAdd") or is_dynamic(problem):
            continue
        sides = [x for x in call.inputs if isinstance(x, Tensor) and x.buf.physical_shape == call.outputs[0].buf.physical_shape]
        if len(sides) != 2 or sides[0].base is sides[1].base:
            continue
        # The side that is made last: the other one is there by then.
        first, last = sorted((0, 1), key=lambda side: makers.get(id(sides[side].base), -1))
        maker = makers.get(id(sides[last].base), -1)
        if maker < 0 or maker in found or id(sides[last].base) not in alone:
            continue
        if (fused := _fused(calls[maker], call, sides[last], sides[first], last, target, ranker)) is not None:
            found[maker] = fused
            gone.add(index)
            makers[id(call.outputs[0].base)] = maker
    return [found.get(index, call) for index, call in enumerate(calls) if index not in gone]


def _fused(
    conv: Call, add: Call, result: Tensor, addend: Tensor, side: int, target: Target, ranker: KernelRanker | None
) -> Call | None:
    """`conv` with `add` in its epilogue, whose operand `side` is its result; None where no kernel does that as well."""
    problem, constants, choice, total = conv.problem, conv.constants, conv.choice, add.outputs[0]
    if not isinstance(problem, ConvProblem) or constants is None or choice is None or problem.addend or is_dynamic(problem):
        return None
    same = (result.buf.dtype, result.layout) == (addend.buf.dtype, addend.layout) == (total.buf.dtype, total.layout)
    if not same or result.buf.dtype != problem.out_dtype or result.buf.shape != addend.buf.shape:
        return None
    summed = _in_codes(problem, constants, add, side) if problem.out_dtype in CODES else _in_floats(problem, constants, add)
    if summed is None:
        return None
    problem, constants = summed
    generator = choice.generator
    if not isinstance(generator, Summing) or not generator.sums(problem) or generator.legal(problem, target) is not None:
        return None
    chosen = choose(problem, target, conv.layer, ranker)
    if chosen.generator is not choice.generator:
        return None
    inputs = [conv.inputs[0], addend]
    # The result of the convolution is neither written nor read.
    traffic = conv.bytes + add.bytes - 2 * result.buf.nbytes
    op = f"{conv.op}+{add.op}"
    return Call(conv.layer, op, problem, inputs, [total], constants, conv.macs, traffic, conv.bits, chosen)


def _in_floats(problem: ConvProblem, constants: ConvConstants, add: Call) -> tuple[ConvProblem, ConvConstants] | None:
    """The sum, and the activation behind it; the convolution itself must have none."""
    assert isinstance(add.problem, NodeProblem)
    if problem.out_dtype != "float32" or problem.relu or problem.clamp:
        return None
    problem = replace(problem, addend=True)
    match add.problem.epilogue:
        case ():
            return problem, constants
        case (("Relu", _),):
            return replace(problem, relu=True), replace(constants, lo=0.0)
        case (("Clip", attrs),):
            return replace(problem, clamp=True), replace(constants, lo=attrs.lo, hi=attrs.hi)
    return None


def _in_codes(problem: ConvProblem, constants: ConvConstants, add: Call, side: int) -> tuple[ConvProblem, ConvConstants] | None:
    """The sum of codes as `Sum` says it."""
    assert isinstance(add.problem, NodeProblem)
    at, out = add.problem.attrs, add.problem.outputs[0]
    if add.problem.op != "IntAdd" or add.problem.epilogue:
        return None
    factors, zeros = (at.ma, at.mb), [buf.zero_point for buf in add.problem.inputs]
    # Limits are codes of the graph; stored ones may be biased, and the zero point with them.
    bias = out.zero_point - at.out.zero_point[0]
    total = Sum(factors[side], factors[1 - side], at.n, zeros[side], zeros[1 - side], out.zero_point, at.lo + bias, at.hi + bias)
    return replace(problem, addend=True), replace(constants, sum=total)
