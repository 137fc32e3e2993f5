"""The optional dependencies of exporting, imported when used."""

from __future__ import annotations

import importlib
from typing import Any

from bevel.errors import ToolchainError


def require(package: str, what: str = "exporting") -> Any:
    """The imported package, which `what` needs.

    Raises:
        ToolchainError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ToolchainError(f"{what} needs {package} ({error}); install the extra: pip install 'bevel[export]'") from error
