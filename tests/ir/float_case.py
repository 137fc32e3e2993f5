"""One FLOAT operator call in both worlds; `test_float_ops` compares them, `cases_*.py` hold the calls of a family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops import NoAttrs

Array = npt.NDArray[Any]


@dataclass
class Case:
    """One node in both worlds.

    Attributes:
        op: our operator.
        inputs: arrays, or shapes to fill with normal numbers.
        attrs: our attributes.
        onnx: ONNX attributes.
        extra: further ONNX operands (shapes, bounds, axes) that are attributes here.
        onnx_op: ONNX operator when named otherwise.
        outputs: number of results.
        opset: ONNX operator set.
        operands: ONNX operands where they are not `inputs` and then `extra`: an index into `inputs`, an array, or None.
    """

    op: str
    inputs: list[Any]
    attrs: Any = field(default_factory=NoAttrs)
    onnx: dict[str, Any] = field(default_factory=dict)
    extra: list[Array | None] = field(default_factory=list)
    onnx_op: str = ""
    outputs: int = 1
    opset: int = 20
    operands: list[int | Array | None] = field(default_factory=list)

    def arrays(self) -> list[Array]:
        rng = np.random.default_rng(len(self.op) + len(self.inputs))
        made = [a if isinstance(a, np.ndarray) else rng.standard_normal(a).astype(np.float32) for a in self.inputs]
        return made

    def __str__(self) -> str:
        return f"{self.op}-{'-'.join(str(i.shape if isinstance(i, np.ndarray) else i) for i in self.inputs)}"
