"""NonMaxSuppression with a fixed number of result rows: what ONNX selects, in its order, then rows of -1.

ONNX's result has as many rows as there are boxes selected. Memory here is planned before any image is seen, so the result has
room for all that could be, and the rows that an image leaves empty say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import FLOAT_ONLY, Call, PruneRule, QuantRule, elements, register, require, require_real
from bevel.ir.types import I64, TensorType

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NmsAttrs:
    """How boxes are selected, as ONNX says.

    Attributes:
        max_output_boxes_per_class: the most boxes selected for one class of one image.
        iou_threshold: a box that overlaps a selected one by more than this share of their union is left out.
        score_threshold: only boxes with greater scores are looked at; None for all.
        center_point_box: boxes are [x_center, y_center, width, height] instead of [y1, x1, y2, x2], two opposite corners.
    """

    max_output_boxes_per_class: int
    iou_threshold: float = 0.0
    score_threshold: float | None = None
    center_point_box: bool = False


def selected_rows(attrs: NmsAttrs, boxes: tuple[int, ...], scores: tuple[int, ...]) -> int:
    """The most rows that can be selected: `boxes` is [images, n, 4], `scores` [images, classes, n]."""
    return boxes[0] * scores[1] * min(attrs.max_output_boxes_per_class, boxes[1])


def _infer(attrs: NmsAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    boxes, scores = ins
    require_real(boxes, scores)
    require(boxes.rank == 3 and boxes.shape[2] == 4, f"boxes are {boxes}, expected [images, boxes, 4]")
    fits = scores.rank == 3 and (scores.shape[0], scores.shape[2]) == boxes.shape[:2]
    require(fits, f"scores are {scores}, expected [images, classes, boxes] of {boxes}")
    require(
        boxes.is_static and scores.is_static, f"{boxes} and {scores}: the rows of the result need every extent: bind it, --dim"
    )
    require(attrs.max_output_boxes_per_class >= 1, f"at most {attrs.max_output_boxes_per_class} boxes, expected 1 or more")
    return (TensorType((selected_rows(attrs, boxes.static_shape, scores.static_shape), 3), I64),)


def _boxes(boxes: Array, *, center: bool) -> Array:
    """[5, n]: lower and upper ends of `boxes` [n, 4] along one axis and the other, and their areas."""
    a, b, c, d = boxes.T
    if center:
        wide, high = c / np.float32(2), d / np.float32(2)
        ends = a - wide, a + wide, b - high, b + high
    else:
        ends = np.minimum(a, c), np.maximum(a, c), np.minimum(b, d), np.maximum(b, d)
    return np.stack((*ends, (ends[1] - ends[0]) * (ends[3] - ends[2])))


def _overlaps(one: Array, others: Array, threshold: float) -> Array:
    """Whether box `one` [5, 1] overlaps each of `others` [5, n] by more than `threshold`; empty boxes and NaN overlap nothing."""
    first = np.minimum(one[1], others[1]) - np.maximum(one[0], others[0])
    second = np.minimum(one[3], others[3]) - np.maximum(one[2], others[2])
    common = first * second
    union = one[4] + others[4] - common
    shared = (first > 0) & (second > 0) & (common > 0) & (one[4] > 0) & (others[4] > 0) & (union > 0)
    return np.asarray(shared & (common / union > np.float32(threshold)))


def _select(boxes: Array, scores: Array, attrs: NmsAttrs) -> list[int]:
    """Indices of those of `boxes` [5, n] that the `scores` [n] of one class select, best first."""
    eligible = ~np.isnan(scores)
    if attrs.score_threshold is not None:
        eligible &= scores > np.float32(attrs.score_threshold)
    left = np.flatnonzero(eligible)
    # Of equal scores the lower index comes first.
    left = left[np.argsort(-scores[left], kind="stable")]
    found: list[int] = []
    while left.size and len(found) < attrs.max_output_boxes_per_class:
        best, left = int(left[0]), left[1:]
        found.append(best)
        left = left[~_overlaps(boxes[:, best, None], boxes[:, left], attrs.iou_threshold)]
    return found


def _reference(call: Call, boxes: Array, scores: Array) -> Array:
    result = np.full((selected_rows(call.attrs, boxes.shape, scores.shape), 3), -1, np.int64)
    found: list[tuple[int, int, int]] = []
    with np.errstate(all="ignore"):
        for image, (own, classes) in enumerate(zip(boxes.astype(np.float32), scores.astype(np.float32), strict=True)):
            ends = _boxes(own, center=call.attrs.center_point_box)
            for number, line in enumerate(classes):
                found += [(image, number, box) for box in _select(ends, line, call.attrs)]
    result[: len(found)] = np.reshape(found, (-1, 3))
    return result


register(
    "NonMaxSuppression",
    "Rows [image, class, box] of boxes selected by score that overlap no better one, then rows of -1.",
    attrs=NmsAttrs,
    arity=(2, 2),
    infer=_infer,
    reference=_reference,
    macs=lambda _attrs, ins, _outs: elements(ins[1:]),
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
    tolerance=0.0,
)
