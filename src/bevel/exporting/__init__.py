"""From a torch or transformers model to an ONNX file that is proven to compute the same.

`source.py` finds and loads what is to be exported, `inputs.py` says what it takes, `torch_export.py` writes the file and
`parity.py` proves it against the model. torch, transformers and onnxruntime are needed here alone and are imported when used.
"""
