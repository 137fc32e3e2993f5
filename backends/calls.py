"""What lowering makes of a graph before memory is planned: kernel calls on tensors that have no place yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from bevel.backends.kernel import Buf, ConvConstants, Problem
from bevel.backends.physical import Layout, row_major
from bevel.backends.select import Choice

Array = npt.NDArray[Any]


@dataclass
class Tensor:
    """A buffer in the arena, or a view of another one's bytes.

    Attributes:
        base: the tensor whose memory this is (itself unless a view).
    """

    name: str
    buf: Buf
    base: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.base = self

    @property
    def layout(self) -> Layout:
        """The layout spelled out."""
        return self.buf.layout or row_major(len(self.buf.shape))


@dataclass
class Call:
    """A kernel call before memory is planned: operands are tensors or constant arrays, in ABI order."""

    layer: str
    op: str
    problem: Problem
    inputs: list[Tensor | Array]
    outputs: list[Tensor]
    constants: ConvConstants | None = None
    macs: int = 0
    bytes: int = 0
    bits: str = "fp32"
    choice: Choice | None = None
