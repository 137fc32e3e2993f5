"""A module that takes all inputs in order and returns a tuple of tensors: what torch's older exporter can trace.

Imports torch; only `torch_export` imports this file, when it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bevel.exporting.source import Call, tensors_of


class Positional(nn.Module):  # type: ignore[misc]  # torch is not typed where it is not installed
    """`call`, with its keywords passed by position."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.module = call.module
        self._call = call

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All outputs, in order."""
        args, kwargs = self._call.arguments(dict(zip(self._call.names, inputs, strict=True)))
        returned: Any = self.module(*args, **kwargs)
        return tuple(tensor for _, tensor in tensors_of(returned))
