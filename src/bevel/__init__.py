"""bevel cuts a trained model to fit the edge it runs on.

`bevel.compile(model, device=..., calibration=...)` is the Python form of `bevel compile`. Nothing heavy is imported before use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bevel.api import compile as compile
    from bevel.ir.plan import CompressionPlan as CompressionPlan
    from bevel.runtime.artifact import Artifact as Artifact

__version__ = "0.1.0"
__all__ = ["Artifact", "CompressionPlan", "__version__", "compile"]

# public name -> module that defines it
_HOMES = {"Artifact": "bevel.runtime.artifact", "CompressionPlan": "bevel.ir.plan", "compile": "bevel.api"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bevel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
