"""The generators of derived kernels for every operator that is not a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bevel.backends.generic import definition
from bevel.backends.half import refuse_half, widened
from bevel.backends.kernel import Array, ConvConstants, Extent, NodeProblem, Problem, Tile, problem_dims
from bevel.backends.tvm import PrimFunc
from bevel.ir.protocols import Target

# Offsets are int32.
_MOST_ELEMENTS = 1 << 31
_DTYPES = frozenset({"float16", "float32", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})


@dataclass(frozen=True)
class NodeGenerator:
    """Derived kernels of node problems.

    Attributes:
        name: "vector" for problems whose inner loop is contiguous, "generic" for all.
        vector: whether it accepts only the former.
    """

    name: str
    vector: bool

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Checks that the operator has a definition which takes these operands; every target will do."""
        if not isinstance(problem, NodeProblem):
            return "a convolution"
        if problem.op not in definition.DEFINITIONS:
            return f"operator {problem.op} has no derived kernel"
        bufs = (*problem.inputs, *problem.outputs)
        if any(not 0 < buf.size < _MOST_ELEMENTS for buf in bufs):
            return f"an operand of {problem.op} has no elements, or 2^31 or more"
        if strange := {buf.dtype for buf in bufs} - _DTYPES:
            return f"{problem.op} over {', '.join(sorted(strange))}: expected one of {', '.join(sorted(_DTYPES))}"
        if (reason := refuse_half({buf.dtype for buf in bufs}, target)) is not None:
            return reason
        problem = _node(problem)
        found = definition.definition_of(problem)
        if (names := problem_dims(problem)) and not found.takes_dims(problem):
            return f"{problem.op} needs dimension {' and '.join(names)} fixed: bind it with --dim {names[0]}=N"
        if (reason := found.refuse(problem)) is not None:
            return reason
        if self.vector and not found.vectorised(problem):
            return "the inner axis is not contiguous in every operand"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """One: derived kernels have no parameters."""
        return [{}]

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """Tables the operator's definition derives from attributes; a node's constants are among its inputs."""
        node = _node(problem)
        return definition.definition_of(node).tables(node)

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """As the operator's definition says, run-time extents at their bounds."""
        extent = self.runtime_extent(problem, tile)
        return extent if isinstance(extent, int) else extent.most

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """As the operator's definition says."""
        node = _node(problem)
        return definition.definition_of(node).extent(node)

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """As the operator's definition says."""
        node = _node(problem)
        return definition.definition_of(node).scratch_bytes(node)

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        if not isinstance(problem, NodeProblem):
            raise TypeError(f"expected a NodeProblem, got {type(problem).__name__}")
        return definition.emit(problem, target, symbol).function


def _node(problem: Problem) -> NodeProblem:
    """The problem as definitions see it: without half precision."""
    if not isinstance(problem, NodeProblem):
        raise TypeError(f"expected a NodeProblem, got {type(problem).__name__}")
    return widened(problem)
