"""Batched products of two activations, a [..., M, K] and b [..., K, N], in registers, on every instruction set.

In: a `NodeProblem` MatMul (float32) or IntMatMul (8-bit codes) over any layouts whose result has contiguous columns, and the
inner step of one ISA. Out: its loops.

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
from dataclasses import dataclass

import numpy as np

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.elementwise import aligned_strides, requantize
from bevel.backends.generic.lanes import Lanes, code_bias
from bevel.backends.kernel import Extent, NodeProblem, Tile
from bevel.backends.kernels.tiling import split
from bevel.backends.tvm import Buffer, Builder, Expr

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

    def element(self, v: Lanes, problem: NodeProblem, operand: int, value: Expr) -> Expr:
        """Loaded elements of input `operand` as scratch holds them."""
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


class IntStep(MatMulStep):
    """Codes as 16-bit differences from their zero points: int32 sums of int16 products, for cores that widen while multiplying.

    Args:
        lanes: columns per vector.
    """

    acc_dtype = "int32"
    scratch_dtype = "int16"
    widens = True

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def element(self, v: Lanes, problem: NodeProblem, operand: int, value: Expr) -> Expr:
        """Code minus zero point."""
        return v.cast(value, "int16") - v.const(problem.inputs[operand].zero_point, "int16")

    def broadcasts(self, k: Builder, a: Operand, row: Expr, place: Expr, groups: int) -> list[Expr]:
        """int32 of each element."""
        start = a.base + row * a.row + place
        return [k.splat(k.cast(k.load(a.buffer, start + u), "int32"), self.lanes) for u in range(groups)]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """One product per lane."""
        return acc + x * k.cast(w, "int32", self.lanes)

    def result(self, v: Lanes, problem: NodeProblem, acc: Expr) -> Expr:
        """The rescaled sum, docs/numerics.md."""
        at, out = problem.attrs, problem.outputs[0]
        bias = code_bias(out, signed=at.out.storage.signed)
        lo, hi = v.i64(at.lo + bias), v.i64(at.hi + bias)
        codes = requantize(v, v.cast(acc, "int64"), v.i64(at.m), v.i64(at.n), v.i64(out.zero_point), lo, hi)
        return v.cast(codes, out.dtype)


@dataclass(frozen=True)
class TiledShape:
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
    def units(self) -> int:
        """Length of the parallel axis at the bounds."""
        return self.batches * self.parts * self.blocks

    @property
    def extent(self) -> int | Extent:
        """Length of the parallel axis: the units of the batches that exist; of one batch, the blocks that exist."""
        y = self.problem.outputs[0]
        refs = [ref for ref in y.dims[:-2] if ref is not None]
        if refs:
            return Extent(self.units, tuple(ref.name for ref in refs), self.units // math.prod(ref.bound for ref in refs))
        ref = y.dim(-1)
        if ref is None or self.units != self.blocks:
            return self.units
        return Extent(self.units, (ref.name,), self.columns // ref.bound, self.width)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of `scratch`."""
        return self.scratch * np.dtype(self.step.scratch_dtype).itemsize

    @property
    def scratch(self) -> int:
        """Scratch elements."""
        return self.panel + (self.tile["mr"] * self.padded if self.step.widens else 0)


class Nest:
    """Emits the loops of one kernel."""

    def __init__(self, frame: Frame, shape: TiledShape, step: MatMulStep, unroll: int) -> None:
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
                with k.when(left > 0), k.when_else(left >= s.width) as (whole, ragged):
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
        y = problem.outputs[0]
        for axis in reversed(range(rank - 2)):
            if y.shape[axis] == 1:
                continue
            count = self.frame.count(y.shape[axis], y.dim(axis))
            extent = k.i32(count) if isinstance(count, int) else count
            first = math.prod(y.shape[:axis]) == 1
            index = rest if first else k.floormod(rest, extent)
            rest = rest if first else k.floordiv(rest, extent)
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
        first: Expr = 0
        if group == 1 and whole and b.row == 1 and not self.step.widens:
            first = self.transpose_block(b)
        elif group == 2 and whole and b.column == 1:
            first = self.pair_rows(b)
        with k.serial(first, self.groups() * group) as r, k.serial(valid) as j:
            at = k.floordiv(r, k.i32(group)) * (s.width * group) + k.floormod(r, k.i32(group)) + j * group
            self.keep(1, b.buffer, b.base + r * b.row + j * b.column, r, at)

    def keep(self, operand: int, buffer: Buffer, source: Expr, place: Expr, target: Expr) -> None:
        """One element of an operand to scratch, zero where `place` lies past the reduction, in the last K-group."""
        k, step = self.k, self.step
        v = Lanes(k, 1)
        # Memory past the reduction is readable; what it holds does not count.
        value = step.element(v, self.shape.problem, operand, v.load(buffer, source))
        if step.kgroup > 1:
            value = v.select(place < self.reduction, value, v.const(0, step.scratch_dtype))
        if step.widens:
            v.store(self.frame.scratch, target, value)
        else:
            v.put(self.frame.scratch, target, value, step.scratch_dtype)

    def pair_rows(self, b: Operand) -> Expr:
        """A whole block with contiguous columns to scratch [K / 2][column][2]; how much of K that was."""
        k, s, lanes = self.k, self.shape, self.step.lanes
        v = Lanes(k, lanes)
        pairs = self.reduction // 2 if isinstance(self.reduction, int) else k.floordiv(self.reduction, k.i32(2))
        with k.serial(pairs) as i, k.serial(s.width // lanes) as j:
            rows = [
                self.step.element(v, s.problem, 1, v.load(b.buffer, b.base + (i * 2 + r) * b.row + j * lanes)) for r in (0, 1)
            ]
            for half in (0, 1):
                mixed = [source * lanes + half * lanes // 2 + c for c in range(lanes // 2) for source in (0, 1)]
                at = i * (s.width * 2) + j * (lanes * 2) + half * lanes
                k.store(self.frame.scratch, at, k.shuffle(rows, mixed), lanes)
        return pairs * 2

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
        """Rows of a in scratch, converted, with whole K-groups."""
        k, s = self.k, self.shape
        vector = 8 if a.column == 1 else 1
        whole = self.reduction // vector if isinstance(self.reduction, int) else k.floordiv(self.reduction, k.i32(vector))
        v = Lanes(k, vector)
        for i in range(rows):
            start, target = a.base + (row + i) * a.row, s.panel + i * s.padded
            if vector > 1:
                with k.serial(whole) as j:
                    value = self.step.element(v, s.problem, 0, v.load(a.buffer, start + j * vector))
                    v.store(self.frame.scratch, target + j * vector, value)
            with k.serial(whole * vector if vector > 1 else 0, self.groups() * self.step.kgroup) as j:
                self.keep(0, a.buffer, start + j * a.column, j, target + j)
        return Operand(self.frame.scratch, k.i32(s.panel), s.padded, 1)

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


_STEP = IntStep(4)


def _shape(problem: NodeProblem) -> TiledShape:
    return TiledShape(problem, {"mr": 2, "nv": min(4, -(-problem.outputs[0].shape[-1] // _STEP.lanes))}, _STEP)


class _IntMatMul(Definition):
    scratch_dtype = _STEP.scratch_dtype

    def takes_dims(self, problem: NodeProblem) -> bool:
        """Rows, columns, reduction and batches may all have run-time extents."""
        return True

    def refuse(self, problem: NodeProblem) -> str | None:
        found = {buf.dtype for buf in (*problem.inputs, *problem.outputs)} - {"int8", "uint8"}
        if found:
            return f"IntMatMul over {', '.join(sorted(found))}: expected codes"
        return None if problem.outputs[0].strides()[-1] == 1 else "IntMatMul into strided columns: expected contiguous ones"

    def vectorised(self, problem: NodeProblem) -> bool:
        """Always: columns that are not contiguous are copied."""
        return True

    def extent(self, problem: NodeProblem) -> int | Extent:
        """Blocks of columns of all batches."""
        return _shape(problem).extent

    def scratch_bytes(self, problem: NodeProblem) -> int:
        """Widened operands of a tile."""
        return _shape(problem).scratch_bytes

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """See `bevel.backends.kernels.matmul`."""
        Nest(frame, _shape(problem), _STEP, 4).emit()


define("IntMatMul", _IntMatMul())
