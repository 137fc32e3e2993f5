"""Einsum of any number of operands, as transposes, products and sums; and AffineGrid, a product with a constant grid.

Operands are taken in pairs from the left. A pair becomes one MatMul over what both have and the result has not, with labels that
both and the result have as its batch; without anything to sum it is a Mul. Labels that only one operand has are summed first, and
a label twice in one operand takes its diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand
from bevel.frontend.onnx_ops.constants import limited
from bevel.ir.ops.movement import ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import ReduceAttrs
from bevel.ir.types import Dim, Shape


@dataclass(frozen=True)
class Term:
    """An operand and the label of each of its axes; those of an ellipsis are "...0" (the last), "...1" and so on."""

    operand: Operand
    labels: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        """Extents."""
        return shape_of(self.operand)


def shape_of(operand: Operand) -> Shape:
    """Extents of any operand."""
    if isinstance(operand, np.ndarray):
        return tuple(operand.shape)
    return (operand.value if isinstance(operand, Codes) else operand).type.shape


class _Emitter:
    """Emits helper nodes under numbered names; the last value of the einsum gets the node's own."""

    def __init__(self, node: OnnxNode) -> None:
        self.node = node
        self.count = 0

    def emit(self, op: str, operands: Sequence[Operand], attrs: object = None) -> Operand:
        """One node."""
        self.count += 1
        return self.node.emit(op, operands, attrs, suffix=f".{op.lower()}{self.count}")

    def transpose(self, term: Term, labels: Sequence[str]) -> Term:
        """`term` with its axes in the order of `labels`."""
        if tuple(labels) == term.labels:
            return term
        perm = tuple(term.labels.index(label) for label in labels)
        return Term(self.emit("Transpose", [term.operand], TransposeAttrs(perm)), tuple(labels))

    def reshape(self, operand: Operand, shape: Shape) -> Operand:
        """`operand` as `shape`."""
        return operand if shape_of(operand) == shape else self.emit("Reshape", [operand], ReshapeAttrs(shape))

    def without_repeats(self, term: Term) -> Term:
        """Diagonals of labels that `term` has more than once."""
        for label in dict.fromkeys(term.labels):
            while term.labels.count(label) > 1:
                first = term.labels.index(label)
                second = term.labels.index(label, first + 1)
                rest = [a for a in range(len(term.labels)) if a not in (first, second)]
                moved = self.emit("Transpose", [term.operand], TransposeAttrs((*rest, first, second)))
                *outer, n, m = self.node.static(shape_of(moved), "operand with a diagonal")
                if n != m:
                    self.node.refuse(f"label {label!r} of extents {n} and {m}", "equal extents")
                flat = self.emit("Reshape", [moved], ReshapeAttrs((*outer, n * n)))
                cut = SliceAttrs((0,) * (len(outer) + 1), (-1,) * (len(outer) + 1), (1,) * len(outer) + (n + 1,))
                labels = [term.labels[a] for a in rest]
                term = Term(self.emit("Slice", [flat], cut), (*labels, label))
        return term

    def summed(self, term: Term, keep: set[str]) -> Term:
        """`term` summed over labels that are not kept."""
        gone = tuple(a for a, label in enumerate(term.labels) if label not in keep)
        if not gone:
            return term
        labels = tuple(label for label in term.labels if label in keep)
        return Term(self.emit("ReduceSum", [term.operand], ReduceAttrs(gone, keepdims=False)), labels)

    def product(self, a: Term, b: Term, keep: set[str]) -> Term:
        """The pair's product, summed over labels that are not kept."""
        a, b = self.summed(a, keep | set(b.labels)), self.summed(b, keep | set(a.labels))
        shared = [label for label in a.labels if label in b.labels]
        inner = [label for label in shared if label not in keep]
        batch = [label for label in shared if label in keep]
        left, right = [x for x in a.labels if x not in shared], [x for x in b.labels if x not in shared]
        a, b = self.transpose(a, [*batch, *left, *inner]), self.transpose(b, [*batch, *inner, *right])
        extents = self._extents(a, b)
        rows, depth, columns = ([extents[x] for x in labels] for labels in (left, inner, right))
        heads = [tuple(t.shape[i] for i in range(len(batch))) for t in (a, b)]
        # Without a batch the rows need not be joined: MatMul broadcasts the matrix on the right.
        open_rows = not batch and len(left) > 0
        lines = tuple(rows) if open_rows else (self._joined(rows),)
        x = self.reshape(a.operand, (*heads[0], *lines, self._joined(depth)))
        y = self.reshape(b.operand, (*heads[1], self._joined(depth), self._joined(columns)))
        if inner:
            result = self.emit("MatMul", [x, y])
        else:
            y = y if not open_rows else self.reshape(y, (1,) * (len(lines) - 1) + (1, self._joined(columns)))
            result = self.emit("Mul", [x, y])
        return Term(self.reshape(result, (*(extents[x] for x in batch), *rows, *columns)), (*batch, *left, *right))

    def _joined(self, extents: Sequence[int | Dim]) -> int | Dim:
        symbols = [d for d in extents if isinstance(d, Dim)]
        count = prod(d for d in extents if isinstance(d, int))
        if symbols and (len(symbols) > 1 or count != 1):
            self.node.refuse(
                f"joins symbolic dimension {symbols[0]} with others", "static extents; bind the dimension with dims="
            )
        return symbols[0] if symbols else count

    def _extents(self, *terms: Term) -> dict[str, int | Dim]:
        found: dict[str, int | Dim] = {}
        for term in terms:
            for label, extent in zip(term.labels, term.shape, strict=True):
                known = found.setdefault(label, extent)
                if known == 1:
                    found[label] = extent
                elif extent not in (known, 1) or (extent != known and not label.startswith("...")):
                    self.node.refuse(f"label {label!r} of extents {known} and {extent}", "equal extents")
        return found


def _labels(node: OnnxNode, text: str, rank: int | None) -> tuple[str, ...]:
    """Labels of one operand, or of the result (`rank` None: its ellipsis is filled in by the caller as ["..."])."""
    head, dots, tail = text.partition("...")
    if not (head + tail).isalpha() and head + tail:
        node.refuse(f"equation term {text!r}", "letters and one ellipsis")
    if rank is None:
        return (*head, *(("...",) if dots else ()), *tail)
    wide = rank - len(head) - len(tail)
    if wide < 0 or (wide and not dots):
        node.refuse(f"equation term {text!r} for rank {rank}", "one label for every axis")
    return (*head, *(f"...{i}" for i in reversed(range(wide))), *tail)


def convert_einsum(_builder: Builder, node: OnnxNode) -> Operand:
    """Einsum."""
    equation = node.text("equation", "").replace(" ", "")
    source, arrow, target = equation.partition("->")
    texts = source.split(",")
    if len(texts) != len(node.source.inputs):
        node.refuse(f"equation {equation!r} for {len(node.source.inputs)} operands", "one term for every operand")
    terms = [Term(node.operand(i), _labels(node, text, len(node.shape(i)))) for i, text in enumerate(texts)]
    dots = sorted({x for t in terms for x in t.labels if len(x) > 1}, key=lambda x: -int(x[3:]))
    if arrow:
        result = [y for x in _labels(node, target, None) for y in (dots if x == "..." else [x])]
    else:
        letters = [x for t in terms for x in t.labels if len(x) == 1]
        result = [*dots, *sorted(x for x in letters if letters.count(x) == 1)]
    if len(set(result)) != len(result) or not set(result) <= {x for t in terms for x in t.labels}:
        node.refuse(f"equation {equation!r}", "each label of the result once, and in an operand")
    emitter = _Emitter(node)
    first, *rest = (emitter.without_repeats(t) for t in terms)
    for i, other in enumerate(rest):
        later = {x for t in rest[i + 1 :] for x in t.labels}
        first = emitter.product(first, other, set(result) | later)
    first = emitter.summed(first, set(result))
    perm = tuple(first.labels.index(label) for label in result)
    return node.emit("Transpose", [first.operand], TransposeAttrs(perm))


def convert_affine_grid(_builder: Builder, node: OnnxNode) -> Operand:
    """AffineGrid of a constant size: the grid of corners or centres times the matrix of each image."""
    size = node.known_ints(1, "size")
    if size is None or len(size) not in (4, 5) or min(size) < 1:
        node.refuse(f"size {size}", "a constant [N, C, H, W] or [N, C, D, H, W]")
    batch, spatial = size[0], size[2:]
    limited(node, spatial)
    corners = bool(node.integer("align_corners", 0))
    axes = [np.linspace(-1, 1, n) if corners and n > 1 else (2 * np.arange(n) + 1) / n - 1 for n in spatial]
    if corners:
        axes = [axis if n > 1 else np.full(1, -1.0) for axis, n in zip(axes, spatial, strict=True)]
    # x before y before z, then the constant one.
    positions = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(spatial)], axis=-1).reshape(-1, len(spatial) + 1)
    columns = node.emit("Transpose", [node.operand(0)], TransposeAttrs((0, 2, 1)), suffix=".columns")
    points = node.emit("MatMul", [positions.astype(np.float32), columns], suffix=".points")
    return node.emit("Reshape", [points], ReshapeAttrs((batch, *spatial, len(spatial))))


TABLE = {"AffineGrid": convert_affine_grid, "Einsum": convert_einsum}
