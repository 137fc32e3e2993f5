"""NonMaxSuppression: refused, unless the import may pad its result (`pad_nms`, docs/detectors.md)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.ir.ops.nms import NmsAttrs, selected_rows
from bevel.ir.types import Dim


def _threshold(node: OnnxNode, index: int, what: str) -> float | None:
    """The float32 at operand `index`, None where it is left out."""
    array: npt.NDArray[np.float32] | None = node.known(index, what)
    if array is None or not array.size:
        return None
    if array.size > 1 or array.dtype.kind != "f" or np.isnan(array).any():
        node.refuse(f"{what} {array.reshape(-1)[:4]}", f"one number as {what}")
    return float(array.reshape(-1)[0])


def convert_non_max_suppression(builder: Builder, node: OnnxNode) -> Operand:
    """NonMaxSuppression; what selects no box at all is an empty constant."""
    boxes, scores = node.input_name(0), node.input_name(1)
    if not builder.pad_nms:
        node.refuse(
            "the number of boxes it selects depends on the data",
            "--pad-nms (pad_nms=True), which fills the rows that an image leaves empty with -1 (docs/detectors.md), or a model "
            f"that ends in front of it: make boxes {boxes!r} and scores {scores!r} outputs and select in the application",
        )
    center = node.integer("center_point_box", 0)
    most = node.known_ints(2, "max_output_boxes_per_class") or (0,)
    iou, score = _threshold(node, 3, "iou_threshold") or 0.0, _threshold(node, 4, "score_threshold")
    if len(most) > 1 or not 0 <= iou <= 1 or center not in (0, 1):
        node.refuse(
            f"max_output_boxes_per_class {list(most)}, iou_threshold {iou}, center_point_box {center}",
            "one integer, a threshold of 0 to 1, 0 or 1",
        )
    if most[0] <= 0:
        return np.empty((0, 3), np.int64)
    attrs = NmsAttrs(most[0], iou, score, bool(center))
    for name in (d.name for d in (*node.shape(0), *node.shape(1)) if isinstance(d, Dim)):
        node.refuse(f"its rows cannot be counted while dimension {name!r} is open", f"fixed shapes: --dim {name}=N (dims=)")
    fixed = node.static(node.shape(0), "boxes"), node.static(node.shape(1), "scores")
    if len(fixed[0]) == len(fixed[1]) == 3 and selected_rows(attrs, *fixed) == 0:
        return np.empty((0, 3), np.int64)
    return node.emit("NonMaxSuppression", [node.operand(0), node.operand(1)], attrs)


TABLE = {"NonMaxSuppression": convert_non_max_suppression}
