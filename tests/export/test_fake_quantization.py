"""A PyTorch module with fake quantization to few bits becomes a graph of as few bits, at every batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bevel
from bevel.compiler import Options, load_graph, prepare
from bevel.errors import ExportError
from bevel.ir.interp import run, to_real
from bevel.ir.types import Int, Quant
from bevel.ir.verify import is_integer_only

torch = pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra `export`)")


def network(high: int = 7) -> Any:
    """3-bit activations, 4-bit weights with a scale for each channel, scales as numbers and as tensors."""

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = torch.nn.Conv2d(3, 6, 3)
            self.register_buffer("scales", torch.linspace(0.03, 0.05, 6))
            self.register_buffer("zeros", torch.zeros(6, dtype=torch.int32))
            self.register_buffer("scale", torch.tensor(0.31))
            self.register_buffer("zero", torch.tensor(0, dtype=torch.int32))

        def forward(self, x: Any) -> Any:
            x = torch.fake_quantize_per_tensor_affine(x, 0.47, 3, 0, high)
            w = torch.fake_quantize_per_channel_affine(self.conv.weight, self.scales, self.zeros, 0, -8, 7)
            y = torch.relu(torch.nn.functional.conv2d(x, w, self.conv.bias))
            return torch.fake_quantize_per_tensor_affine(y, self.scale, self.zero, 0, 7)

    return Net().eval()


def test_fake_quantization_to_few_bits(tmp_path: Path) -> None:
    net = network()
    # A sum may fall on the other side of a rounding threshold: one step of the result is 1/7 of its range.
    bevel.export(net, tmp_path / "net.onnx", inputs={"x": "n[1:4],3,8,8"}, outputs=["y"], tolerance=0.5)
    integer = prepare(load_graph(tmp_path / "net.onnx"), Options("host"))
    assert is_integer_only(integer)
    (conv,) = (n for n in integer.nodes if n.op == "IntConv")
    x, w = (v.type.elem for v in conv.inputs[:2])
    assert isinstance(x, Quant)
    assert isinstance(w, Quant)
    assert (x.storage, w.storage, w.axis) == (Int(3, signed=False), Int(4), 0)
    (out,) = integer.outputs
    assert isinstance(out.type.elem, Quant)
    assert out.type.elem.storage == Int(3, signed=False)
    data = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(data)).numpy()
    found = to_real(out, run(integer, {"x": data})[out.name])
    # Biases are rounded to steps of sums, which moves few of them across a threshold.
    assert (np.abs(found - wanted) > 1e-5).mean() < 0.02
    assert np.abs(found - wanted).max() < 0.32


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"0\.\.1000"):
        bevel.export(network(1000), tmp_path / "net.onnx", inputs={"x": "1,3,8,8"})
