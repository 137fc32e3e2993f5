"""What brings models in: ONNX files (QDQ quantization included) become graphs."""

from bevel.frontend.onnx import import_onnx

__all__ = ["import_onnx"]
