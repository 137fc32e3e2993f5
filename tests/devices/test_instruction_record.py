"""The committed instruction counts of ARM kernels are those of today's kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.instructions.count import GROWTH, RECORD, ROOT, count
from bevel.errors import ToolchainError

CASES = [("kws_dscnn_float", "raspberry-pi-4"), ("resnet8_cifar10_float", "raspberry-pi-5")]


@pytest.mark.qemu
@pytest.mark.parametrize(("model", "device"), CASES)
def test_kernels_execute_what_is_recorded(model: str, device: str, tmp_path: Path) -> None:
    """More is a slower kernel, less an outdated record: python -m benchmarks.instructions.count --write."""
    try:
        found = count(ROOT / "models" / f"{model}.onnx", "8", device, tmp_path)
    except ToolchainError as error:
        pytest.skip(str(error))
    recorded = json.loads(RECORD.read_text())[found.key]
    assert abs(found.instructions - recorded) <= GROWTH * recorded, f"{found.key}: {found.instructions}, recorded {recorded}"
