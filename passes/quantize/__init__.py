"""Quantization: calibrate a float graph into an annotated one, and lower annotated graphs to integers."""

from bevel.passes.quantize.calibrate import Calibrate
from bevel.passes.quantize.to_integer import ToInteger

__all__ = ["Calibrate", "ToInteger"]
