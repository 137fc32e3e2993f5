"""PyTorch on the CPU, fp32: the model traced, frozen and in channels-last layout, its convolutions and products by oneDNN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def prepare(files: list[Path], precision: str, shapes: dict[str, list[int]], samples: list[Path], folder: Path) -> None:
    """Trace and freeze."""
    from bevel.benchmarking.peers.adapters.onnx_to_torch import OnnxModule

    module = OnnxModule(files[0], shapes).eval()
    if not any(tensor.ndim == 3 for tensor in module.state_dict().values()):
        # Refused for the weights of one-dimensional convolutions; images gain a quarter by it.
        module = module.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        frozen = torch.jit.freeze(torch.jit.trace(module, tuple(_laid_out(x) for x in module.examples)))
    frozen.save(str(folder / "model.pt"))
    (folder / "io.json").write_text(json.dumps(module.inputs))


def _laid_out(tensor: Any) -> Any:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def load(
    folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
) -> tuple[Callable[[], None], Callable[[], list[Any]], dict[str, str]]:
    """The traced module on tensors made once."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    module = torch.jit.load(str(folder / "model.pt"))
    names = json.loads((folder / "io.json").read_text())
    given = [_laid_out(torch.from_numpy(inputs[name])) for name in names]
    found: list[Any] = []

    def call() -> None:
        found[:] = module(*given)

    with torch.inference_mode():
        # The profiling executor specializes during its first runs.
        for _ in range(3):
            call()
    isa = torch.backends.cpu.get_cpu_capability() if not torch.backends.mkldnn.is_available() else "oneDNN"
    return call, lambda: [tensor.numpy() for tensor in found], {"version": torch.__version__, "isa": isa}
