"""Remove from an ONNX file what its exporter wrote about the machine it ran on.

In: a file. Out: the same model in the same file, without stack traces, source paths and notes. torch's exporter records for every
node the files and lines of the Python code that it came from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

_NOTES = ("doc_string", "metadata_props")


def strip_provenance(path: Path) -> None:
    """Rewrite `path` without metadata and documentation strings; names, types and weights stay."""
    model = onnx.load(path)
    _strip(model)
    onnx.save(model, path)


def _strip(message: Any) -> None:
    """Clear the notes of a protobuf message and of all that it holds."""
    for field, value in message.ListFields():
        if field.name in _NOTES:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if hasattr(value, "__len__") else (value,):
                _strip(part)
