"""Replacing symbolic dimensions in types and attributes: by numbers (binding) or by bounded dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bevel.ir.types import Dim, Shape, TensorType

Extents = Mapping[str, int | Dim]


def bound_shape(shape: Shape, extents: Extents) -> Shape:
    """`shape` with dimensions replaced by name; others stay."""
    return tuple(extents.get(d.name, d) if isinstance(d, Dim) else d for d in shape)


def bound_type(type_: TensorType, extents: Extents) -> TensorType:
    """`type_` with dimensions replaced by name."""
    return type_ if type_.is_static else type_.with_shape(bound_shape(type_.shape, extents))


def bound_attrs(attrs: Any, extents: Extents) -> Any:
    """A dataclass of attributes with dimensions replaced by name in its tuple fields."""
    changed = {}
    for field in dataclasses.fields(attrs):
        old = getattr(attrs, field.name)
        if isinstance(old, tuple) and any(isinstance(d, Dim) for d in old):
            changed[field.name] = bound_shape(old, extents)
    return dataclasses.replace(attrs, **changed) if changed else attrs
