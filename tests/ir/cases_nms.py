"""NonMaxSuppression against onnxruntime where it selects as many boxes as it may; tests/frontend/test_nms.py has the rest."""

from __future__ import annotations

import numpy as np

from bevel.ir.ops.nms import NmsAttrs
from tests.ir.float_case import Case


def cases() -> list[Case]:
    rng = np.random.default_rng(9)
    made = []
    for center in (False, True):
        for most, iou, score in ((2, 0.5, None), (40, 1.0, None), (3, 0.3, -2.0), (1, 0.0, 0.25)):
            boxes = rng.uniform(0, 9, (2, 40, 4)).astype(np.float32)
            scores = np.round(rng.uniform(0, 1, (2, 3, 40)), 1).astype(np.float32)
            extra = [np.array([most], np.int64), np.array([iou], np.float32), None if score is None else np.float32([score])]
            attrs = NmsAttrs(most, iou, score, center)
            made.append(Case("NonMaxSuppression", [boxes, scores], attrs, {"center_point_box": int(center)}, extra))
    return made
