"""Exported programs: torch's .pt2 files.

In: a file that torch.export.save wrote. Out: a `Source` whose inputs are the program's, with the bounds it was exported with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bevel.errors import ExportError, UsageError
from bevel.exporting.extra import require
from bevel.exporting.inputs import Bounds, InputSpec
from bevel.exporting.source import Source

# Above this a bound is none: torch writes "unbounded" as a huge integer.
_UNBOUNDED = 2**31


def load_program(path: Path) -> Source:
    """The program in a .pt2 file. Dimensions are called INPUT_AXIS after the first input that has them.

    Raises:
        UsageError: there is no such file.
        ExportError: it is damaged, or takes something else than tensors.
    """
    torch = require("torch")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; torch.export.save writes .pt2 files")
    try:
        program = torch.export.load(str(path))
        module = program.module()
    except Exception as error:
        raise ExportError(f"{path}: torch {torch.__version__} cannot read it as an exported program ({error})") from error
    names = program.graph_signature.user_inputs
    if not all(isinstance(name, str) for name in names):
        raise ExportError(f"{path}: takes constants among its inputs ({list(names)}); export it with tensors only")
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    symbols: dict[str, str] = {}
    inputs = []
    for name in names:
        value = values[name]
        if not isinstance(value, torch.Tensor):
            raise ExportError(f"{path}: input {name!r} is {type(value).__name__}, expected a tensor")
        shape = tuple(_extent(path, name, axis, extent, symbols) for axis, extent in enumerate(value.shape))
        inputs.append(InputSpec(name, shape, str(value.dtype).removeprefix("torch.")))
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    bounds: dict[str, Bounds] = {}
    for symbol, name in symbols.items():
        low, high = max(1, int(ranges[symbol].lower)), ranges[symbol].upper
        if high.is_Integer and int(high) < _UNBOUNDED:
            bounds[name] = (low, int(high))
    return Source(str(path), module, tuple(inputs), bounds, None, program)


def _extent(path: Path, name: str, axis: int, extent: Any, symbols: dict[str, str]) -> int | str:
    if isinstance(extent, int):
        return extent
    if not str(extent).isidentifier():
        raise ExportError(f"{path}: axis {axis} of {name!r} is {extent}; dimensions may be constants or free, not expressions")
    return symbols.setdefault(str(extent), f"{name}_{axis}")
