"""A QDQ model as onnxruntime's own quantizer writes it imports exactly and has an integer form without float islands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from bevel.frontend import import_onnx
from bevel.ir.graph import Level
from bevel.ir.interp import run, to_real
from bevel.ir.types import Int, Quant
from bevel.ir.verify import is_integer_only, verify
from bevel.passes.canonicalize import canonicalize
from bevel.passes.quantize import ToInteger
from tests.frontend.test_models import ROOT, inputs

MODEL = "resnet20_cifar10"


class Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Any) -> None:
        self.batches: Iterator[dict[str, Any]] = iter([{"image": part} for part in np.split(images, 4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("activations", "per_channel"), [(QuantType.QUInt8, True), (QuantType.QInt8, False)])
def test_onnxruntime_quantizer(activations: QuantType, per_channel: bool, tmp_path: Path) -> None:
    path, images = tmp_path / "qdq.onnx", inputs(MODEL, 64)
    quantize_static(
        str(ROOT / "models" / f"{MODEL}.onnx"),
        str(path),
        Batches(images[:16]),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=activations,
        weight_type=QuantType.QInt8,
    )
    graph = canonicalize(import_onnx(path))
    verify(graph)
    assert graph.level is Level.ANNOTATED
    assert isinstance(graph.inputs[0].type.elem, Quant)
    assert graph.inputs[0].type.elem.storage == Int(8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = onnxruntime.InferenceSession(str(path), options).run(None, {"image": images})[0]
    got = run(graph, {"image": images})["logits"]
    integer = ToInteger().run(graph)
    assert is_integer_only(integer)
    codes = to_real(integer.outputs[0], run(integer, {"image": images})["logits"])
    for found in (got, codes):
        assert float((found.argmax(1) == want.argmax(1)).mean()) >= 0.96
        assert float(np.abs(found - want).mean()) <= 0.02 * float(np.abs(want).max())
