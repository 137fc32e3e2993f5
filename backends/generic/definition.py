"""What an operator's derived kernel must say, and the registry of all of them.

A `Definition` turns a `NodeProblem` into loops; one definition serves one operator of the op table. `Frame` is the kernel being
written: the builder with its parameters.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

from bevel.backends.generic.lanes import Lanes, store_dtype, vector_lanes
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.errors import UnsupportedOp
from bevel.ir.protocols import Target


@dataclass(frozen=True)
class Frame:
    """A kernel under construction.

    Attributes:
        k: the builder.
        inputs, output: buffers.
        lo, hi: the range of the parallel axis to compute.
        lanes: lanes of vector loops on this target.
        dtype: storage type of the output.
    """

    k: Builder
    inputs: tuple[Buffer, ...]
    output: Buffer
    lo: Expr
    hi: Expr
    lanes: int
    dtype: str

    def scalar(self) -> Lanes:
        """Arithmetic on single elements."""
        return Lanes(self.k, 1)


class Definition(abc.ABC):
    """The derived kernel of one operator."""

    def refuse(self, problem: NodeProblem) -> str | None:
        """Why this definition cannot compute `problem`; None when it can."""
        return None

    @abc.abstractmethod
    def vectorised(self, problem: NodeProblem) -> bool:
        """True when the inner loop is written with vector loads and stores of contiguous elements."""

    @abc.abstractmethod
    def extent(self, problem: NodeProblem) -> int:
        """Length of the parallel axis."""

    @abc.abstractmethod
    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Write the loops that compute the range [lo, hi)."""


DEFINITIONS: dict[str, Definition] = {}


def define(name: str, definition: Definition) -> None:
    """Register the derived kernel of operator `name`.

    Raises:
        ValueError: it has one already.
    """
    if name in DEFINITIONS:
        raise ValueError(f"{name} has two derived kernels")
    DEFINITIONS[name] = definition


def definition_of(problem: NodeProblem) -> Definition:
    """The derived kernel of the problem's operator.

    Raises:
        UnsupportedOp: there is none.
    """
    try:
        return DEFINITIONS[problem.op]
    except KeyError:
        raise UnsupportedOp(
            f"operator {problem.op!r} has no derived kernel: expected one of {', '.join(sorted(DEFINITIONS))}; "
            "add one with bevel.backends.generic.definition.define"
        ) from None


def emit(problem: NodeProblem, target: Target, symbol: str) -> Builder:
    """Write the kernel of `problem`; the result's `function` is the PrimFunc."""
    with Builder(symbol) as k:
        inputs = tuple(k.param(f"x{i}", store_dtype(buf.dtype)) for i, buf in enumerate(problem.inputs))
        dtype = store_dtype(problem.outputs[0].dtype)
        output = k.param("y", dtype)
        lo, hi, _ = k.range_params()
        lanes = vector_lanes(target, (*problem.inputs, *problem.outputs))
        definition_of(problem).emit(Frame(k, inputs, output, lo, hi, lanes, dtype), problem)
    return k
