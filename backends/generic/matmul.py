"""Batched product of two activations, a [..., M, K] and b [..., K, N], over any layout.

Loop nest: batches and rows of the result (the parallel axis), vectors of columns held in registers, the reduction. Where
columns are not contiguous, they are computed one by one. Run-time extents shorten each of these loops.
"""

from __future__ import annotations

import math

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.elementwise import aligned_strides, finish
from bevel.backends.generic.lanes import SHORTEST_VECTOR, Lanes, cut, steps
from bevel.backends.kernel import Extent, NodeProblem
from bevel.backends.tvm import Expr

# Vectors of columns per step: four independent accumulators hide most of the multiply-add latency.
_WIDTH = 4


class _MatMul(Definition):
    def takes_dims(self, problem: NodeProblem) -> bool:
        """Rows, columns, reduction and batches may all have run-time extents."""
        return True

    def refuse(self, problem: NodeProblem) -> str | None:
        dtypes = {buf.dtype for buf in (*problem.inputs, *problem.outputs)}
        return None if dtypes == {"float32"} else f"MatMul over {', '.join(sorted(dtypes))}: expected float32"

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether columns are contiguous in b and in the result."""
        (_, b), y = problem.inputs, problem.outputs[0]
        return b.strides()[-1] == y.strides()[-1] == 1 and y.shape[-1] >= SHORTEST_VECTOR

    def extent(self, problem: NodeProblem) -> int | Extent:
        """Rows of all batches."""
        y = problem.outputs[0]
        rows = math.prod(y.shape[:-1])
        refs = [ref for ref in y.dims[:-1] if ref is not None]
        if not refs:
            return rows
        return Extent(rows, tuple(ref.name for ref in refs), rows // math.prod(ref.bound for ref in refs))

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """See the module's docstring."""
        k, (a, b), y = frame.k, problem.inputs, problem.outputs[0]
        rank = len(y.shape)
        strides = [aligned_strides(buf, rank) for buf in (a, b, y)]
        reduction = frame.count(a.shape[-1], a.dim(-1))
        columns = frame.count(y.shape[-1], y.dim(-1))
        widest = _WIDTH * frame.lanes if self.vectorised(problem) else 1
        if isinstance(columns, int):
            blocks: list[tuple[int, Expr, Expr]] = [(c.lanes, c.first, c.loops) for c in cut(columns, widest)]
        else:
            blocks = steps(k, columns, (widest, min(widest, frame.lanes), 1))
        with k.serial(frame.lo, frame.hi) as row:
            bases: list[Expr] = [0, 0, 0]
            rest: Expr = row
            for axis in reversed(range(rank - 1)):
                count = frame.count(y.shape[axis], y.dim(axis))
                extent = k.i32(count) if isinstance(count, int) else count
                # Before the first axis longer than 1 nothing is left to divide.
                last = math.prod(y.shape[:axis]) == 1
                index = rest if last else k.floormod(rest, extent)
                rest = k.i32(0) if last else k.floordiv(rest, extent)
                # Rows of a and of the result; b has no such axis.
                own = [s[axis] if axis < rank - 2 or i != 1 else 0 for i, s in enumerate(strides)]
                bases = [base + index * step for base, step in zip(bases, own, strict=True)]
            for lanes, first, loops in blocks:
                v = Lanes(k, lanes)
                with k.serial(loops) as i:
                    column = i * lanes + first
                    acc = k.alloc(v.n, "float32")
                    v.store(acc, 0, v.f32(0))
                    with k.serial(reduction) as r:
                        left = v.load(frame.inputs[0], bases[0] + r * a.strides()[-1], 0)
                        right = v.load(frame.inputs[1], bases[1] + r * b.strides()[-2] + column * b.strides()[-1])
                        v.store(acc, 0, v.load(acc, 0) + left * right)
                    at = bases[2] + column * y.strides()[-1]
                    v.put(frame.output, at, finish(v, problem, v.load(acc, 0)), frame.dtype)


define("MatMul", _MatMul())
