"""ChannelLut: one table of codes for each channel.

Loop nest: the axes of the result in memory order, the outermost one parallel, one element at a time: two dependent loads are the
work, and vectors would have to gather them.
"""

from __future__ import annotations

from contextlib import ExitStack

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.lanes import lowest_code
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Expr

_CODES = ("int8", "uint8")


class _ChannelLut(Definition):
    def refuse(self, problem: NodeProblem) -> str | None:
        found = {buf.dtype for buf in (*problem.inputs, *problem.outputs)} - set(_CODES)
        return f"ChannelLut over {', '.join(sorted(found))}: expected codes" if found else None

    def vectorised(self, problem: NodeProblem) -> bool:
        """Never."""
        return False

    def extent(self, problem: NodeProblem) -> int:
        """The outermost axis of the result's memory that is longer than 1."""
        return next((n for n in problem.outputs[0].physical_shape if n > 1), 1)

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """See the module's docstring."""
        k, v = frame.k, frame.scalar()
        (x, table), y, channel_axis = problem.inputs, problem.outputs[0], problem.attrs.axis
        entries = table.shape[1]
        lowest = lowest_code(x, entries)
        order = [a for a in (y.layout or range(len(y.shape))) if y.shape[a] > 1] or [0]
        source: Expr = 0
        target: Expr = 0
        with ExitStack() as loops:
            for depth, axis in enumerate(order):
                bounds = (frame.lo, frame.hi) if depth == 0 else (y.shape[axis],)
                i = loops.enter_context(k.serial(*bounds))
                source, target = source + i * x.strides()[axis], target + i * y.strides()[axis]
                if axis == channel_axis:
                    row = i * entries
            if channel_axis not in order:
                row = k.i32(0)
            code = v.cast(v.load(frame.inputs[0], source), "int32") - k.i32(lowest)
            entry = v.load(frame.inputs[1], row + code)
            if table.dtype != y.dtype:
                entry = v.bitcast(v.bitcast(entry, "uint8") ^ v.const(128, "uint8"), y.dtype)
            v.put(frame.output, target, entry, frame.dtype)


define("ChannelLut", _ChannelLut())
