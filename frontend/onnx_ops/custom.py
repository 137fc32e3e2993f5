"""Operators of other domains: those that the user registered (`bevel.ir.ops.custom`)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from bevel.frontend.builder import OnnxNode, Operand
from bevel.ir.ops.custom import CUSTOM, CustomAttrs


def convert(node: OnnxNode) -> tuple[Operand, ...]:
    """A node of the op table's row for it; refused where there is none."""
    name = f"{node.source.domain}.{node.op}"
    if name not in CUSTOM:
        known = f"the default ONNX domain, and custom operators given with --custom-op {name}=FILE.c"
        node.refuse(f"domain {node.source.domain!r}", known)
    values = {key: _plain(node, key, node.raw(key)) for key in sorted(node.source.attributes)}
    attrs = CustomAttrs(json.dumps(values, sort_keys=True))
    return node.emit_all(name, node.operands(), attrs, results=len(node.outputs))


def _plain(node: OnnxNode, name: str, value: Any) -> Any:
    """An attribute as JSON holds it."""
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple | np.ndarray) and all(isinstance(v, int | float | np.number) for v in value):
        return [v.item() if isinstance(v, np.number) else v for v in value]
    node.refuse(f"attribute {name} of {type(value).__name__}", "numbers, strings and lists of numbers")
