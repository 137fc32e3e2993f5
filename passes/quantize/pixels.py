"""Camera pixels in calibration: uint8 inputs are codes already, so nothing between them and the first table is a float.

%x: u8                              %x: q<u8, 1, zp 0>
%t: u8  = Transpose(%x)      ->     %x.signed: q<i8, 1, zp -128> = Clip(%x)       (no bounds: another spelling of the codes)
%r: f32 = Cast(%t)                  %t: q<i8, 1, zp -128> = Transpose(%x.signed)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import CalibrationError
from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.types import F32, U8, Quant
from bevel.passes.preprocess import PIXELS, SIGNED_PIXELS

Array = npt.NDArray[Any]


def take_pixels(graph: Graph) -> dict[Value, Quant]:
    """Rewrite, in place, uint8 inputs of a FLOAT graph that are only moved and cast to float32 into reals of fixed types.

    Returns:
        The types to give: that of each such input, and that of its signed spelling.
    """
    fixed: dict[Value, Quant] = {}
    for value in graph.inputs:
        chain = _chain(graph, value) if value.type.elem == U8 else None
        if chain is None:
            continue
        moved, casts = chain
        value.type = value.type.with_elem(F32)
        for node in moved:
            node.output.type = node.output.type.with_elem(F32)
        first = graph.nodes[0]
        name = f"{value.name}.signed"
        signed = graph.add_node("Clip", [value], ClipAttrs(), names=[name], loc=name, before=first).output
        for user in value.users:
            for i, operand in enumerate(user.inputs):
                if operand is value and user is not signed.producer:
                    graph.set_input(user, i, signed)
        for cast in casts:
            graph.replace_uses(cast.output, cast.inputs[0])
            graph.remove(cast)
        fixed |= {value: PIXELS, signed: SIGNED_PIXELS}
    return fixed


def _chain(graph: Graph, value: Value) -> tuple[list[Node], list[Node]] | None:
    """Movements and casts behind a uint8 input, None where anything else reads it."""
    moved: list[Node] = []
    casts: list[Node] = []
    pending = [value]
    while pending:
        for user in pending.pop().users:
            if user.op == "Cast" and user.output.type.elem == F32 and not graph.is_output(user.output):
                casts.append(user)
            elif Trait.MOVEMENT in lookup(user.op).traits and len(user.outputs) == 1 and len(user.inputs) == 1:
                moved.append(user)
                pending.append(user.output)
            else:
                return None
    return (moved, casts) if casts else None


@dataclass(frozen=True)
class Reals:
    """Batches with the uint8 arrays of pixel inputs as float32.

    Attributes:
        data: batches.
        names: pixel inputs.
    """

    data: Iterable[Mapping[str, Array]]
    names: frozenset[str]

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """The batches.

        Raises:
            CalibrationError: the array of a pixel input is not uint8.
        """
        for batch in self.data:
            arrays = dict(batch)
            for name in self.names & arrays.keys():
                if arrays[name].dtype != np.uint8:
                    raise CalibrationError(
                        f"calibration data {name!r} is {arrays[name].dtype}: the model preprocesses, so give its frames as uint8"
                    )
                arrays[name] = arrays[name].astype(np.float32)
            yield arrays
