"""Half-precision storage for kernels that compute in float32.

A kernel whose builder declares a float16 parameter as `widened` loads and stores float32, so its loops are those of the float32
problem. `widened` gives that problem; who needs instructions on halves themselves does without it.
"""

from __future__ import annotations

from dataclasses import replace

from bevel.backends.kernel import Buf, ConvProblem, NodeProblem
from bevel.ir.protocols import Target

HALF = "float16"


def wide_dtype(dtype: str) -> str:
    """The type that kernels compute `dtype` in."""
    return "float32" if dtype == HALF else dtype


def widened(problem: NodeProblem) -> NodeProblem:
    """`problem` with float32 for float16 buffers."""

    def wide(bufs: tuple[Buf, ...]) -> tuple[Buf, ...]:
        return tuple(replace(buf, dtype=wide_dtype(buf.dtype)) for buf in bufs)

    return replace(problem, inputs=wide(problem.inputs), outputs=wide(problem.outputs))


def widened_conv(problem: ConvProblem) -> ConvProblem:
    """`problem` with float32 for float16."""
    return replace(problem, dtype=wide_dtype(problem.dtype), out_dtype=wide_dtype(problem.out_dtype))


def refuse_half(dtypes: set[str], target: Target) -> str | None:
    """Why buffers of these types cannot be used on `target`; None when they can."""
    if HALF in dtypes and not target.has("fp16"):
        return f"{target.name} has no half-precision arithmetic (feature fp16)"
    return None
