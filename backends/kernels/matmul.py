"""Batched products of two activations, a [..., M, K] and b [..., K, N], in registers: the loop nest of every instruction set.

In: a `NodeProblem` MatMul (float32) or IntMatMul (8-bit codes) over any layouts whose result has contiguous columns, and the
inner step of one ISA. Out: a PrimFunc.

Loop nest, outermost first::

    batches, parts of the rows, blocks of nv vectors of columns     [lo, hi)
      the block's columns of b, copied to scratch unless they lie side by side    (attention's keys do not; codes are widened)
      row tiles of at most mr rows                                  (codes: rows of a are widened to scratch)
        reduction, in K-groups
        epilogue

Extents of rows, columns and the reduction may be known at run time only; a block of columns that is not whole takes a body of
its own, which reads b from scratch and stores element by element.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bevel.backends.generic.definition import Frame
from bevel.backends.generic.elementwise import aligned_strides
from bevel.backends.generic.lanes import Lanes, store_dtype
from bevel.backends.kernel import Array, ConvConstants, Extent, NodeProblem, Problem, Tile, problem_dims
from bevel.backends.kernels.conv import MicroKernel
from bevel.backends.kernels.tiling import split
from bevel.backends.tvm import Buffer, Builder, Expr, PrimFunc
from bevel.ir.protocols import Target

# Below this many rows, of contiguous columns, the derived loops are faster: 1.2 to 2.4 times at one row with AVX2 and AVX-512.
FEWEST_ROWS = 3
# Fewer units than this leave threads idle: rows are shared out too.
FEWEST_UNITS = 8
# Rows per part, in tiles: each part reads the block of b again.
PART_TILES = 4


@dataclass(frozen=True)
class Operand:
    """A matrix in memory: where element (row, column) lies relative to `base`.

    Attributes:
        buffer: memory.
        base: offset of element (0, 0).
        row, column: strides.
    """

    buffer: Buffer
    base: Expr
    row: int
    column: int


class MatMulStep(abc.ABC):
    """How one ISA computes a tile.

    Attributes:
        lanes: columns per vector.
        kgroup: reduction elements per step.
        acc_dtype: accumulator element.
        scratch_dtype: element of copied operands.
        widens: whether both operands are always copied, converted to `scratch_dtype`.
    """

    lanes: int
    kgroup = 1
    acc_dtype = "float32"
    scratch_dtype = "float32"
    widens = False

    def element(self, k: Builder, problem: NodeProblem, operand: int, value: Expr) -> Expr:
        """A loaded element of input `operand` as scratch holds it."""
        return value

    @abc.abstractmethod
    def broadcasts(self, k: Builder, a: Operand, row: Expr, place: Expr, groups: int) -> list[Expr]:
        """`groups` K-groups of a row of `a` from reduction element `place` on, each in all lanes."""

    @abc.abstractmethod
    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """`acc` plus the products of one K-group."""

    @abc.abstractmethod
    def result(self, v: Lanes, problem: NodeProblem, acc: Expr) -> Expr:
        """The stored result of a vector of accumulators."""


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
        """Checks operator, element types, features, contiguous result columns and fixed batches."""
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
        if any(ref is not None for buf in (*problem.inputs, y) for ref in buf.dims[:-2]):
            return "batches of a run-time extent"
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
        shape = _Shape(_node(problem), tile, self.step)
        return shape.batches * shape.parts * shape.blocks

    def runtime_extent(self, problem: Problem, tile: Tile) -> int | Extent:
        """The blocks that exist where they are all there is to share out, else those at the bound."""
        shape, most = _Shape(_node(problem), tile, self.step), self.parallel_extent(problem, tile)
        ref = _node(problem).outputs[0].dim(-1)
        if ref is None or most != shape.blocks:
            return most
        return Extent(most, (ref.name,), shape.columns // ref.bound, shape.width)

    def scratch_bytes(self, problem: Problem, tile: Tile) -> int:
        """A block of b, and for codes the rows of a tile."""
        return _Shape(_node(problem), tile, self.step).scratch * (2 if self.step.scratch_dtype == "int16" else 4)

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
            _Nest(frame, _Shape(node, tile, self.step), self.step, tile["unroll"]).emit()
        return k.function


def _node(problem: Problem) -> NodeProblem:
    if not isinstance(problem, NodeProblem):
        raise TypeError(f"expected a NodeProblem, got {type(problem).__name__}")
    return problem


@dataclass(frozen=True)
class _Shape:
    """Extents at their bounds, and how they are cut."""

    problem: NodeProblem
    tile: Tile
    step: MatMulStep

    @property
    def rows(self) -> int:
        """M."""
        return self.problem.outputs[0].shape[-2]

    @property
    def columns(self) -> int:
        """N."""
        return self.problem.outputs[0].shape[-1]

    @property
    def reduction(self) -> int:
        """K."""
        return self.problem.inputs[0].shape[-1]

    @property
    def padded(self) -> int:
        """K in whole K-groups."""
        return -(-self.reduction // self.step.kgroup) * self.step.kgroup

    @property
    def batches(self) -> int:
        """Products."""
        return math.prod(self.problem.outputs[0].shape[:-2])

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.tile["nv"] * self.step.lanes

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return -(-self.columns // self.width)

    @property
    def in_place(self) -> bool:
        """Whether whole blocks of b are read where they are."""
        return not self.step.widens and self.problem.inputs[1].strides()[-1] == 1

    @property
    def part(self) -> int:
        """Rows of a part."""
        fixed = self.problem.outputs[0].dim(-2) is None
        few = self.batches * self.blocks < FEWEST_UNITS
        return min(self.rows, PART_TILES * self.tile["mr"]) if fixed and few and self.in_place else self.rows

    @property
    def parts(self) -> int:
        """Parts of the rows."""
        return -(-self.rows // self.part)

    @property
    def panel(self) -> int:
        """Scratch elements of a block of b; none where every block is whole and read in place."""
        whole = self.columns % self.width == 0 and self.problem.outputs[0].dim(-1) is None
        return 0 if self.in_place and whole else self.padded * self.width

    @property
    def scratch(self) -> int:
        """Scratch elements."""
        return self.panel + (self.tile["mr"] * self.padded if self.step.widens else 0)


class _Nest:
    """Emits the loops of one kernel."""

    def __init__(self, frame: Frame, shape: _Shape, step: MatMulStep, unroll: int) -> None:
        self.frame, self.k, self.shape, self.step, self.unroll = frame, frame.k, shape, step, unroll
        problem = shape.problem
        a, y = problem.inputs[0], problem.outputs[0]
        self.rows = frame.count(y.shape[-2], y.dim(-2))
        self.columns = frame.count(y.shape[-1], y.dim(-1))
        self.reduction = frame.count(a.shape[-1], a.dim(-1))

    def emit(self) -> None:
        """Units of the parallel axis."""
        k, s = self.k, self.shape
        with k.serial(self.frame.lo, self.frame.hi) as unit:
            block, rest = (
                (k.i32(0), unit) if s.blocks == 1 else (k.floormod(unit, k.i32(s.blocks)), k.floordiv(unit, k.i32(s.blocks)))
            )
            part, batch = (
                (k.i32(0), rest) if s.parts == 1 else (k.floormod(rest, k.i32(s.parts)), k.floordiv(rest, k.i32(s.parts)))
            )
            a, b, y = self.matrices(batch)
            column = block * s.width
            left = self.columns - column
            if isinstance(self.columns, int) and s.columns % s.width == 0:
                self.block(a, b, y, part, column, None)
            elif isinstance(self.columns, int) and s.blocks == 1:
                self.block(a, b, y, part, column, k.i32(s.columns))
            else:
                with k.when_else(left >= s.width) as (whole, ragged):
                    with whole:
                        self.block(a, b, y, part, column, None)
                    with ragged:
                        self.block(a, b, y, part, column, left)

    def matrices(self, batch: Expr) -> tuple[Operand, Operand, Operand]:
        """a, b and the result of one batch."""
        k, problem = self.k, self.shape.problem
        bufs = (*problem.inputs[:2], problem.outputs[0])
        rank = len(problem.outputs[0].shape)
        strides = [aligned_strides(buf, rank) for buf in bufs]
        bases: list[Expr] = [k.i32(0)] * 3
        rest: Expr = batch
        for axis in reversed(range(rank - 2)):
            extent = problem.outputs[0].shape[axis]
            if extent == 1:
                continue
            first = math.prod(problem.outputs[0].shape[:axis]) == 1
            index = rest if first else k.floormod(rest, k.i32(extent))
            rest = rest if first else k.floordiv(rest, k.i32(extent))
            bases = [base + index * own[axis] for base, own in zip(bases, strides, strict=True)]
        memory = (*self.frame.inputs[:2], self.frame.output)
        made = [
            Operand(buffer, base, buf.strides()[-2], buf.strides()[-1])
            for buffer, base, buf in zip(memory, bases, bufs, strict=True)
        ]
        return made[0], made[1], made[2]

    def block(self, a: Operand, b: Operand, y: Operand, part: Expr, column: Expr, valid: Expr | None) -> None:
        """One block of columns; `valid` is how many exist, None for all."""
        k, s = self.k, self.shape
        b = Operand(b.buffer, b.base + column * b.column, b.row, b.column)
        y = Operand(y.buffer, y.base + column, y.row, 1)
        if s.in_place and valid is None:
            panel = b
        else:
            self.copy_block(b, k.i32(s.width) if valid is None else valid, whole=valid is None)
            panel = Operand(self.frame.scratch, k.i32(0), s.width, 1)
        if isinstance(self.rows, int) and s.parts == 1:
            for run in split(s.rows, s.tile["mr"]):
                with k.serial(run.count) as i:
                    self.tile(a, panel, y, run.start + i * run.size, run.size, valid)
            return
        first: Expr = part * s.part
        count = k.min(self.rows - first, k.i32(s.part)) if s.parts > 1 else self.rows
        mr = s.tile["mr"]
        for rows in dict.fromkeys((mr, max(mr // 3, 1), 1)):
            tiles = k.floordiv(count, k.i32(rows)) if rows > 1 else count
            with k.serial(tiles) as i:
                self.tile(a, panel, y, first + i * rows, rows, valid)
            first, count = first + tiles * rows, count - tiles * rows

    def copy_block(self, b: Operand, valid: Expr, *, whole: bool) -> None:
        """Columns of b to scratch [K-group][column][K-group element]; columns past `valid` hold anything."""
        k, s, group = self.k, self.shape, self.step.kgroup
        v = Lanes(k, 1)

        def copy(place: Expr, within: int, inside: Expr | None) -> None:
            with k.serial(valid) as j:
                value = self.step.element(k, s.problem, 1, v.load(b.buffer, b.base + (place + within) * b.row + j * b.column))
                if inside is not None:
                    value = v.select(inside, value, v.const(0, self.step.scratch_dtype))
                v.put(self.frame.scratch, place * s.width + j * group + within, value, self.step.scratch_dtype)

        if group == 1:
            first: Expr = 0
            if whole and b.row == 1:
                first = self.transpose_block(b)
            with k.serial(self.reduction - first) as r:
                copy(first + r, 0, None)
            return
        with k.serial(self.groups()) as g:
            for within in range(group):
                # The last group may reach beyond the reduction: memory there is readable, what it holds does not count.
                copy(g * group, within, g * group + within < self.reduction)

    def transpose_block(self, b: Operand) -> Expr:
        """A whole block with contiguous reduction to scratch [K][column], 4 x 4 elements at a time; how much of K that was."""
        k, s = self.k, self.shape
        squares = self.reduction // 4 if isinstance(self.reduction, int) else k.floordiv(self.reduction, k.i32(4))
        with k.serial(squares) as i, k.serial(s.width // 4) as j:
            rows = [k.load(b.buffer, b.base + (j * 4 + c) * b.column + i * 4, 4) for c in range(4)]
            low = [k.shuffle(rows[c : c + 2], (0, 4, 1, 5)) for c in (0, 2)]
            high = [k.shuffle(rows[c : c + 2], (2, 6, 3, 7)) for c in (0, 2)]
            turned = [k.shuffle(half, lanes) for half in (low, high) for lanes in ((0, 1, 4, 5), (2, 3, 6, 7))]
            for r, vector in enumerate(turned):
                k.store(self.frame.scratch, (i * 4 + r) * s.width + j * 4, vector, 4)
        return squares * 4

    def groups(self) -> Expr:
        """K-groups."""
        group = self.step.kgroup
        if isinstance(self.reduction, int):
            return -(-self.reduction // group)
        return self.reduction if group == 1 else self.k.floordiv(self.reduction + (group - 1), self.k.i32(group))

    def widen_rows(self, a: Operand, row: Expr, rows: int) -> Operand:
        """Rows of a in scratch, converted and padded with zeros to whole K-groups."""
        k, s = self.k, self.shape
        base = s.panel
        for i in range(rows):
            start = a.base + (row + i) * a.row

            def copy(v: Lanes, first: Expr, start: Expr = start, i: int = i) -> None:
                value = self.step.element(k, s.problem, 0, v.load(a.buffer, start + first * a.column, a.column))
                v.put(self.frame.scratch, base + i * s.padded + first, value, self.step.scratch_dtype)

            vector = 8 if a.column == 1 else 1
            whole = self.reduction // vector if isinstance(self.reduction, int) else k.floordiv(self.reduction, k.i32(vector))
            with k.serial(whole) as j:
                copy(Lanes(k, vector), j * vector)
            if vector > 1:
                with k.serial(self.reduction - whole * vector) as j:
                    copy(Lanes(k, 1), whole * vector + j)
            with k.serial(self.groups() * self.step.kgroup - self.reduction) as j:
                zero = k.const(0, self.step.scratch_dtype)
                Lanes(k, 1).put(self.frame.scratch, base + i * s.padded + self.reduction + j, zero, self.step.scratch_dtype)
        return Operand(self.frame.scratch, k.i32(base), s.padded, 1)

    def tile(self, a: Operand, panel: Operand, y: Operand, row: Expr, rows: int, valid: Expr | None) -> None:
        """`rows` rows by the block's vectors."""
        k, s, step = self.k, self.shape, self.step
        nv, lanes = s.tile["nv"], step.lanes
        source, first = (self.widen_rows(a, row, rows), k.i32(0)) if step.widens else (a, row)
        acc = k.alloc(rows * nv * lanes, step.acc_dtype)
        for i in range(rows * nv):
            k.store(acc, i * lanes, k.const(0, step.acc_dtype, lanes), lanes)

        def advance(group: Expr, groups: int) -> None:
            place = group * step.kgroup
            columns = [step.broadcasts(k, source, first + i, place, groups) for i in range(rows)]
            for u in range(groups):
                at = panel.base + (group + u) * (panel.row * step.kgroup)
                vectors = [k.load(panel.buffer, at + j * lanes * step.kgroup, lanes * step.kgroup) for j in range(nv)]
                for i in range(rows):
                    for j in range(nv):
                        slot = (i * nv + j) * lanes
                        k.store(acc, slot, step.mac(k, k.load(acc, slot, lanes), columns[i][u], vectors[j]), lanes)

        total = self.groups()
        whole = total // self.unroll if isinstance(total, int) else k.floordiv(total, k.i32(self.unroll))
        with k.serial(whole) as g:
            advance(g * self.unroll, self.unroll)
        with k.serial(total - whole * self.unroll) as g:
            advance(whole * self.unroll + g, 1)
        self.store(acc, y, row, rows, valid)

    def store(self, acc: Buffer, y: Operand, row: Expr, rows: int, valid: Expr | None) -> None:
        """Results of a tile: vectors, or one by one where some columns do not exist."""
        k, s, step = self.k, self.shape, self.step
        nv, lanes, dtype = s.tile["nv"], step.lanes, s.problem.outputs[0].dtype
        v = Lanes(k, lanes)
        for i in range(rows):
            target = y.base + (row + i) * y.row
            values = [step.result(v, s.problem, k.load(acc, (i * nv + j) * lanes, lanes)) for j in range(nv)]
            if valid is None:
                for j, value in enumerate(values):
                    k.store(y.buffer, target + j * lanes, value, lanes)
                continue
            held = k.alloc(nv * lanes, dtype)
            for j, value in enumerate(values):
                k.store(held, j * lanes, value, lanes)
            with k.serial(valid) as j:
                Lanes(k, 1).put(y.buffer, target + j, k.load(held, j), dtype)
