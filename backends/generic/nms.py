"""NonMaxSuppression: rows of the boxes that scores select, in ONNX's order, then rows of -1.

A heap of the scores gives the boxes of one class of one image from the best on; a box that overlaps none selected before
becomes a row. What is selected last is rarely far down, so the heap is never emptied into a sorted list. Rows follow one another
across classes, which makes the kernel serial.
"""

from __future__ import annotations

import math

from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.topk import Heap, float_key
from bevel.backends.kernel import NodeProblem
from bevel.backends.tvm import Buffer, Expr
from bevel.ir.ops.nms import NmsAttrs


class _NonMaxSuppression(Definition):
    """Scratch: keys and indices of the heap, then the boxes selected for the class."""

    scratch_dtype = "int32"

    def refuse(self, problem: NodeProblem) -> str | None:
        """Checks that boxes and scores are reals."""
        strange = {buf.dtype for buf in problem.inputs} - {"float32"}
        return f"{problem.op} over {', '.join(sorted(strange))}: expected float32" if strange else None

    def vectorised(self, problem: NodeProblem) -> bool:
        """No."""
        return False

    def extent(self, problem: NodeProblem) -> int:
        """Serial."""
        return 1

    def scratch_bytes(self, problem: NodeProblem) -> int:
        count = problem.inputs[1].shape[2]
        return 4 * (2 * count + min(count, int(problem.attrs.max_output_boxes_per_class)))

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """Every class of every image, then what is left of the result."""
        k, v, rows = frame.k, frame.scalar(), problem.outputs[0]
        images, classes, _ = problem.inputs[1].shape
        down, across = rows.strides()
        written = k.alloc(1, "int32")

        def put(row: Expr, values: tuple[Expr, Expr, Expr]) -> None:
            for column, value in enumerate(values):
                v.put(frame.output, row * down + column * across, v.cast(value, "int64"), "int64")

        with k.when(frame.lo < frame.hi):
            k.store(written, 0, k.i32(0))
            with k.serial(images) as image, k.serial(classes) as label:
                selection = _Selection(frame, problem, image)
                kept = selection.run(label)
                with k.serial(k.load(kept, 0)) as i:
                    put(k.load(written, 0) + i, (image, label, selection.box(i)))
                k.store(written, 0, k.load(written, 0) + k.load(kept, 0))
            with k.serial(k.i32(rows.shape[0]) - k.load(written, 0)) as i:
                put(k.load(written, 0) + i, (k.i32(-1),) * 3)


class _Selection:
    """Boxes of one image that the scores of a class select.

    Args:
        frame: the kernel.
        problem: boxes and scores in any layout.
        image: index of the image.
    """

    def __init__(self, frame: Frame, problem: NodeProblem, image: Expr) -> None:
        self._frame, self._k, self._v, self._image = frame, frame.k, frame.scalar(), image
        self._boxes, self._scores = (buf.strides() for buf in problem.inputs)
        self._count = problem.inputs[1].shape[2]
        self._heap = Heap(frame, self._count, "int32")
        self._attrs: NmsAttrs = problem.attrs

    def box(self, place: Expr) -> Expr:
        """The box selected as number `place`."""
        return self._k.load(self._frame.scratch, place + 2 * self._count)

    def run(self, label: Expr) -> Buffer:
        """Select by the scores of class `label`; how many, as the only element of a buffer."""
        k = self._k
        kept, box, hidden = (k.alloc(1, "int32") for _ in range(3))
        k.store(kept, 0, k.i32(0))
        size = self._collect(label)
        with (
            k.serial(k.load(size, 0)) as taken,
            k.when(k.load(kept, 0) < min(self._count, self._attrs.max_output_boxes_per_class)),
        ):
            last = k.load(size, 0) - 1 - taken
            k.store(box, 0, self._count - 1 - self._heap.index(0))
            self._heap.move(last, 0)
            self._heap.sift(k.i32(0), last)
            one = self._ends(k.load(box, 0))
            k.store(hidden, 0, k.i32(0))
            with k.serial(k.load(kept, 0)) as i, k.when(k.load(hidden, 0) == 0):
                other = self._ends(self.box(i))
                with k.when(self._overlap(one, other)):
                    k.store(hidden, 0, k.i32(1))
            with k.when(k.load(hidden, 0) == 0):
                k.store(self._frame.scratch, k.load(kept, 0) + 2 * self._count, k.load(box, 0))
                k.store(kept, 0, k.load(kept, 0) + 1)
        return kept

    def _collect(self, label: Expr) -> Buffer:
        """Fill the heap, best score first, of equal ones the lower index; its size, as the only element of a buffer."""
        k, v, (images, labels, boxes) = self._k, self._v, self._scores
        size, least = k.alloc(1, "int32"), self._attrs.score_threshold
        k.store(size, 0, k.i32(0))
        with k.serial(self._count) as i:
            score = k.load(self._frame.inputs[1], self._image * images + label * labels + i * boxes)
            # NaN compares with nothing.
            with k.when(score >= v.f32(-math.inf) if least is None else score > v.f32(least)):
                # The heap's root is its least key and, of equal ones, its greatest index.
                self._heap.put(k.load(size, 0), v.i32(-1) - float_key(v, score), self._count - 1 - i)
                k.store(size, 0, k.load(size, 0) + 1)
        half = k.shift_right(k.load(size, 0), k.i32(1))
        with k.serial(half) as i:
            self._heap.sift(half - 1 - i, k.load(size, 0))
        return size

    def _ends(self, box: Expr) -> Buffer:
        """Lower and upper end of a box along one axis and the other, and its area."""
        k, v, (images, boxes, edges) = self._k, self._v, self._boxes
        held = k.alloc(5, "float32")
        a, b, c, d = (k.load(self._frame.inputs[0], self._image * images + box * boxes + i * edges) for i in range(4))
        if self._attrs.center_point_box:
            wide, high = (self._product(x, v.f32(0.5)) for x in (c, d))
            ends = a - wide, a + wide, b - high, b + high
        else:
            ends = v.min(a, c), v.max(a, c), v.min(b, d), v.max(b, d)
        for i, end in enumerate(ends):
            k.store(held, i, end)
        lo_a, hi_a, lo_b, hi_b = (k.load(held, i) for i in range(4))
        k.store(held, 4, self._product(hi_a - lo_a, hi_b - lo_b))
        return held

    def _overlap(self, one: Buffer, other: Buffer) -> Expr:
        """Whether two boxes share more of their union than the threshold; empty boxes and NaN share nothing."""
        k, v = self._k, self._v
        held = k.alloc(3, "float32")
        for axis in range(2):
            lo, hi = 2 * axis, 2 * axis + 1
            top = v.min(k.load(one, hi), k.load(other, hi))
            k.store(held, axis, top - v.max(k.load(one, lo), k.load(other, lo)))
        first, second = k.load(held, 0), k.load(held, 1)
        k.store(held, 2, self._product(first, second))
        common, areas = k.load(held, 2), (k.load(one, 4), k.load(other, 4))
        union = areas[0] + areas[1] - common
        positive = (x > v.f32(0) for x in (first, second, common, *areas, union))
        return k.all(*positive, common / union > v.f32(self._attrs.iou_threshold))

    def _product(self, a: Expr, b: Expr) -> Expr:
        """The product, rounded before it is added to anything: whether boxes overlap must not depend on the device."""
        return self._k.opaque(a * b, "float32")


define("NonMaxSuppression", _NonMaxSuppression())
