"""The optional dependencies of exporting, imported when used."""

from __future__ import annotations

import importlib
from typing import Any

from bevel.errors import ToolchainError


def require(package: str) -> Any:
    """The imported package.

    Raises:
        ToolchainError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ToolchainError(f"exporting needs {package} ({error}); install the extra: pip install 'bevel[export]'") from error
