"""Pass `bind-dims`: symbolic dimensions become numbers, or get bounds.

%x: f32[batch(1..),3,32,32]      ->      %x: f32[1,3,32,32]      (batch=1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bevel.errors import UsageError
from bevel.ir.dims import bound_attrs, bound_type
from bevel.ir.graph import Graph
from bevel.ir.types import Dim


@dataclass(frozen=True)
class BindDims:
    """Bind or bound symbolic dimensions.

    Attributes:
        dims: NAME=N binds, NAME=LO:HI bounds; for example ("batch=1", "length=1:128").
    """

    name: ClassVar[str] = "bind-dims"
    dims: tuple[str, ...] = ()

    def run(self, graph: Graph) -> Graph:
        """The graph over the given extents.

        Raises:
            UsageError: an entry is malformed, or names a dimension the graph does not have.
        """
        bound: dict[str, int | tuple[int, int]] = {}
        for entry in self.dims:
            name, _, extent = entry.rpartition("=")
            parts = extent.split(":")
            if not name or not 1 <= len(parts) <= 2 or not all(p.isdecimal() for p in parts):
                raise UsageError(f"bind-dims: {entry!r}, expected NAME=N or NAME=LO:HI")
            bound[name] = int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
        return bind_dims(graph, bound)


def bind_dims(graph: Graph, dims: Mapping[str, int | tuple[int, int]]) -> Graph:
    """A copy of `graph` whose types and attributes have the named dimensions bound to an int or bounded by (lo, hi).

    Raises:
        UsageError: the graph has no such dimension, or an extent outside its bounds is asked for.
    """
    present = {d.name: d for v in graph.values() for d in v.type.shape if isinstance(d, Dim)}
    if unknown := sorted(set(dims) - set(present)):
        raise UsageError(f"dimensions {unknown} do not exist in {graph.name!r}; it has {sorted(present)}")
    mapping: dict[str, int | Dim] = {}
    for name, wanted in dims.items():
        old = present[name]
        lo, hi = (wanted, wanted) if isinstance(wanted, int) else wanted
        if not old.lo <= lo <= hi or (old.hi is not None and hi > old.hi):
            raise UsageError(f"dimension {name!r} = {wanted}, expected within {old}")
        mapping[name] = wanted if isinstance(wanted, int) else Dim(name, lo, hi)
    result = graph.clone()
    for value in result.values():
        value.type = bound_type(value.type, mapping)
    for node in result.nodes:
        node.attrs = bound_attrs(node.attrs, mapping)
    return result
