"""Generators of products of two activations: the loop nest of `bevel.backends.generic.product` with the step of one ISA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bevel.backends.generic.definition import Frame
from bevel.backends.generic.lanes import Lanes, store_dtype
from bevel.backends.generic.product import MatMulStep, Nest, Operand, TiledShape
from bevel.backends.kernel import Array, ConvConstants, Extent, NodeProblem, Problem, Tile, problem_dims
from bevel.backends.kernels.micro import MicroKernel
from bevel.backends.tvm import Builder, Expr, PrimFunc
from bevel.ir.protocols import Target

# Below this many rows, of contiguous columns, the derived loops are faster: 1.2 to 2.4 times at one row with AVX2 and AVX-512.
FEWEST_ROWS = 3


class FloatStep(MatMulStep):
    """float32 by the multiply-add of an ISA's dense convolution.

    Args:
        micro: that convolution's inner step.
    """

    def __init__(self, micro: MicroKernel) -> None:
        self.micro = micro
        self.lanes = micro.lanes

    def broadcasts(self, k: Builder, a: Operand, row: Expr, place: Expr, groups: int) -> list[Expr]:
        """As the convolution does where the reduction is contiguous."""
        start = a.base + row * a.row + place * a.column
        if a.column == 1:
            return self.micro.operands(k, a.buffer, start, groups)
        return [k.splat(k.load(a.buffer, start + u * a.column), self.lanes) for u in range(groups)]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """The convolution's."""
        return self.micro.mac(k, acc, x, w)

    def result(self, v: Lanes, problem: NodeProblem, acc: Expr) -> Expr:
        """The sum itself."""
        return acc


@dataclass(eq=False)
class MatMulGenerator:
    """MatMul or IntMatMul on one ISA.

    Attributes:
        name: unique generator name.
        op: operator it computes.
        arch, features: what it needs of a target.
        dtypes: element type of both operands and of the result.
        step: the inner step.
        mr, nv: rows and vectors of a tile.
        unroll: K-groups per loop iteration.
    """

    name: str
    op: str
    arch: str
    features: tuple[str, ...]
    dtypes: tuple[str, str]
    step: MatMulStep
    mr: int
    nv: int
    unroll: int = 4

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Checks operator, element types, features, contiguous result columns."""
        if not isinstance(problem, NodeProblem) or problem.op != self.op:
            return f"not a {self.op}"
        if target.arch != self.arch or not target.has(*self.features):
            return f"needs {self.arch} with {', '.join(self.features)}, which {target.name} lacks"
        y = problem.outputs[0]
        found = {buf.dtype for buf in problem.inputs}, y.dtype
        if found != ({self.dtypes[0]}, self.dtypes[1]):
            return (
                f"multiplies {self.dtypes[0]} into {self.dtypes[1]}, the problem has {', '.join(sorted(found[0]))} and {y.dtype}"
            )
        if problem.epilogue:
            return "has no epilogue"
        if y.strides()[-1] != 1:
            return "columns of the result are not contiguous"
        if y.shape[-2] < FEWEST_ROWS and problem.inputs[1].strides()[-1] == 1:
            return "too few rows to keep in registers"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Rows and vectors of a tile: narrow results take fewer vectors."""
        columns = _node(problem).outputs[0].shape[-1]
        return [{"mr": self.mr, "nv": min(self.nv, -(-columns // self.step.lanes)), "unroll": self.unroll}]

    def pack(self, problem: Problem, tile: Tile, target: Target, constants: ConvConstants | None) -> list[Array]:
        """None: both operands are inputs."""
        return []

    def parallel_extent(self, problem: Problem, tile: Tile) -> int:
        """Blocks of all parts of all batches, at the bounds."""
        return TiledShape(_node(problem), tile, self.step).units

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """The units of the batches that exist; of one batch, the blocks that exist."""
        return TiledShape(_node(problem), tile, self.step).extent

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """A block of b, and for codes the rows of a tile."""
        return TiledShape(_node(problem), tile, self.step).scratch_bytes

    def emit(self, problem: Problem, tile: Tile, target: Target, symbol: str) -> PrimFunc:
        """The kernel."""
        node = _node(problem)
        with Builder(symbol) as k:
            inputs = tuple(k.param(f"x{i}", store_dtype(buf.dtype)) for i, buf in enumerate(node.inputs))
            names = problem_dims(node)
            values = k.param("dims", "int32") if names else None
            output = k.param("y", store_dtype(node.outputs[0].dtype))
            lo, hi, scratch = k.range_params(self.step.scratch_dtype)
            dims = {name: k.load(values, k.i32(i)) for i, name in enumerate(names)}
            frame = Frame(k, inputs, (output,), lo, hi, self.step.lanes, (node.outputs[0].dtype,), scratch, dims)
            Nest(frame, TiledShape(node, tile, self.step), self.step, tile["unroll"]).emit()
        return k.function


def _node(problem: Problem) -> NodeProblem:
    if not isinstance(problem, NodeProblem):
        raise TypeError(f"expected a NodeProblem, got {type(problem).__name__}")
    return problem
