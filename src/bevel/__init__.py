"""bevel cuts a trained model to fit the edge it runs on."""

from __future__ import annotations

__version__ = "0.1.0"
