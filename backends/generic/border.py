"""Copies between the user's tensors and the bounded layout.

Neither is an operator of the op table: lowering inserts them at a graph's border, where an axis with a run-time extent lies
inside another axis. "Spread" reads elements that follow one another at the actual extents and lays them out at the bounds;
"Compact" does the reverse. Both buffers have the shape of the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, steps
from bevel.backends.generic.regions import axis_extent
from bevel.backends.kernel import DimRef, Extent, NodeProblem
from bevel.backends.tvm import Expr


@dataclass(frozen=True)
class _Runs:
    """The axes of a tensor, outermost first, without those of extent 1.

    Attributes:
        outer: extent at the bound and run-time extent of the axes before the last one with a run-time extent.
        length: elements from that axis on, at the bound; they follow one another in both layouts.
        dim: its run-time extent.
    """

    outer: tuple[tuple[int, DimRef | None], ...]
    length: int
    dim: DimRef | None


def _runs(problem: NodeProblem) -> _Runs:
    x = problem.inputs[0]
    axes = [(extent, x.dim(axis)) for axis, extent in enumerate(x.shape) if extent > 1]
    last = max(i for i, (_, ref) in enumerate(axes) if ref is not None)
    return _Runs(tuple(axes[:last]), prod(extent for extent, _ in axes[last:]), axes[last][1])


class _Border(Definition):
    """One row of `_Runs` after the other; the outermost axis is the parallel one."""

    def __init__(self, *, spread: bool) -> None:
        self._spread = spread

    def refuse(self, problem: NodeProblem) -> str | None:
        """Checks for equal row-major buffers with an inner run-time extent."""
        x, y = problem.inputs[0], problem.outputs[0]
        if x != y or not any(x.dims):
            return f"{problem.op} from {x} to {y}: expected one shape and type with a run-time extent"
        return None if _runs(problem).outer else f"{problem.op} of {x}: contiguous as it is"

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Always."""
        return True

    def vectorised(self, problem: NodeProblem) -> bool:
        """Rows are contiguous on both sides."""
        return _runs(problem).length >= SHORTEST_VECTOR

    def extent(self, problem: NodeProblem) -> int | Extent:
        """The outermost axis."""
        return axis_extent(*_runs(problem).outer[0])

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """See the class's docstring."""
        runs = _runs(problem)
        with frame.k.serial(frame.lo, frame.hi) as i:
            self._nest(frame, runs, 1, i, i)

    def _nest(self, frame: Frame, runs: _Runs, depth: int, actual: Expr, bound: Expr) -> None:
        """Rows behind the first `depth` axes; `actual` and `bound` count them in either layout."""
        if depth < len(runs.outer):
            extent, ref = runs.outer[depth]
            count = frame.count(extent, ref)
            with frame.k.serial(count) as i:
                self._nest(frame, runs, depth + 1, actual * count + i, bound * extent + i)
            return
        length = frame.count(runs.length, runs.dim)
        sides = (actual * length, bound * runs.length)
        source, target = sides if self._spread else sides[::-1]
        for lanes, first, loops in steps(frame.k, length, (frame.lanes, 1)):
            v = Lanes(frame.k, lanes)
            with frame.k.serial(loops) as i:
                at = first + i * lanes
                v.put(frame.output, target + at, v.load(frame.inputs[0], source + at), frame.dtype)


define("Spread", _Border(spread=True))
define("Compact", _Border(spread=False))
