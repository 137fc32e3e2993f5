"""bevel cuts a trained model to fit the edge it runs on.

`bevel.compile(model, device=..., calibration=...)` is the Python form of `bevel compile`, `bevel.export` that of
`bevel export`. Nothing heavy is imported before use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bevel.api import compile as compile
    from bevel.api import export as export
    from bevel.exporting.torch_export import Exported as Exported
    from bevel.ir.plan import CompressionPlan as CompressionPlan
    from bevel.runtime.artifact import Artifact as Artifact

__version__ = "0.1.0"
__all__ = ["Artifact", "CompressionPlan", "Exported", "__version__", "compile", "export"]

# public name -> module that defines it
_HOMES = {
    "Artifact": "bevel.runtime.artifact",
    "CompressionPlan": "bevel.ir.plan",
    "Exported": "bevel.exporting.torch_export",
    "compile": "bevel.api",
    "export": "bevel.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bevel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
