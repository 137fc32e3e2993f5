"""Where bevel keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(kind: str) -> Path:
    """Directory for cached things of one kind, created when missing.

    `$BEVEL_CACHE_DIR`, else `$XDG_CACHE_HOME/bevel`, else `~/.cache/bevel`; `kind` names a folder in it.
    """
    base = os.environ.get("BEVEL_CACHE_DIR")
    if base:
        root = Path(base)
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bevel"
    path = root / kind
    path.mkdir(parents=True, exist_ok=True)
    return path
