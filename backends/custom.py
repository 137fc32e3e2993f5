"""Custom operators: the generator that stands for a user's C function.

Its kernels are not generated here. The runtime writes a wrapper with the kernel ABI into model.c, which calls the function on
row-major tensors, and links the user's file (`runtime/custom.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bevel.backends.kernel import Array, ConvConstants, NodeProblem, Problem, Tile
from bevel.ir.ops.custom import CUSTOM
from bevel.ir.protocols import Target

NAME = "custom"


@dataclass(frozen=True)
class CustomGenerator:
    """Kernels of custom operators.

    Attributes:
        name: unique generator name.
    """

    name: str = NAME

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Checks that the operator is a registered custom one, over row-major tensors."""
        if not isinstance(problem, NodeProblem) or problem.op not in CUSTOM:
            return "not a custom operator"
        bufs = (*problem.inputs, *problem.outputs)
        if any(buf.layout is not None for buf in bufs):
            return "an operand is not row-major"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """One."""
        return [{}]

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """None: constants are among the inputs."""
        return []

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Serial."""
        return 1

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """None."""
        return 0

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> None:
        """Never called: the runtime compiles the user's C file.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{symbol}: custom operators are compiled by the runtime")
