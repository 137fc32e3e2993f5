"""What an operator's derived kernel must say, and the registry of all of them.

A `Definition` turns a `NodeProblem` into loops; one definition serves one operator of the op table. `Frame` is the kernel being
written: the builder with its parameters.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

from bevel.backends.generic.lanes import Lanes, store_dtype, vector_lanes
from bevel.backends.half import widened
from bevel.backends.kernel import Array, DimRef, Extent, NodeProblem, problem_dims
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.errors import UnsupportedOp
from bevel.ir.protocols import Target


@dataclass(frozen=True)
class Frame:
    """A kernel under construction.

    Attributes:
        k: the builder.
        inputs, outputs: buffers, in the problem's order.
        lo, hi: the range of the parallel axis to compute.
        lanes: lanes of vector loops on this target.
        dtypes: storage types of the outputs.
        scratch: this thread's scratch, elements of `Definition.scratch_dtype`.
        dims: value of each run-time extent, by name.
        tables: of `Definition.tables`, in order.
    """

    k: Builder
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    lo: Expr
    hi: Expr
    lanes: int
    dtypes: tuple[str, ...]
    scratch: Buffer
    dims: Mapping[str, Expr]
    tables: tuple[Buffer, ...] = ()

    def count(self, extent: int, ref: DimRef | None) -> Expr:
        """The actual length of an axis that is `extent` (a multiple of the bound) long at the bound; an int where it is fixed."""
        if ref is None:
            return extent
        times, value = extent // ref.bound, self.dims[ref.name]
        return value if times == 1 else value * times

    @property
    def output(self) -> Buffer:
        """The first output: the only one of most operators."""
        return self.outputs[0]

    @property
    def dtype(self) -> str:
        """Storage type of the first output."""
        return self.dtypes[0]

    def scalar(self) -> Lanes:
        """Arithmetic on single elements."""
        return Lanes(self.k, 1)


class Definition(abc.ABC):
    """The derived kernel of one operator.

    Attributes:
        scratch_dtype: element type of `Frame.scratch`.
    """

    scratch_dtype = "uint8"

    def refuse(self, problem: NodeProblem) -> str | None:
        """Why this definition cannot compute `problem`; None when it can."""
        return None

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Whether the kernel takes the run-time extents of `problem`; asked where it has some."""
        return False

    @abc.abstractmethod
    def vectorised(self, problem: NodeProblem) -> bool:
        """True when the inner loop is written with vector loads and stores of contiguous elements."""

    @abc.abstractmethod
    def extent(self, problem: NodeProblem) -> int | Extent:
        """Length of the parallel axis."""

    def tables(self, problem: NodeProblem) -> list[Array]:
        """Arrays that the kernel reads besides its operands, known from the attributes; none for most."""
        return []

    def scratch_bytes(self, problem: NodeProblem) -> int:
        """Bytes of scratch a thread needs; 0 for none."""
        return 0

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
    """Write the kernel of `problem`; the result's `function` is the PrimFunc.

    Definitions see float32 for half precision: the builder converts what they load and store.
    """
    definition, stored = definition_of(problem), problem
    problem = widened(stored)
    with Builder(symbol) as k:
        inputs = tuple(k.param(f"x{i}", store_dtype(buf.dtype), widened=True) for i, buf in enumerate(stored.inputs))
        dtypes = tuple(store_dtype(buf.dtype) for buf in problem.outputs)
        tables = tuple(k.param(f"t{i}", table.dtype.name) for i, table in enumerate(definition.tables(problem)))
        names = problem_dims(problem)
        values = k.param("dims", "int32") if names else None
        outputs = tuple(k.param(f"y{i}", store_dtype(buf.dtype), widened=True) for i, buf in enumerate(stored.outputs))
        lo, hi, scratch = k.range_params(definition.scratch_dtype)
        lanes = vector_lanes(target, (*problem.inputs, *problem.outputs))
        dims = {name: k.load(values, k.i32(i)) for i, name in enumerate(names)}
        definition.emit(Frame(k, inputs, outputs, lo, hi, lanes, dtypes, scratch, dims, tables), problem)
    return k
