"""Models an edge engineer brings: where they come from, and whether artifacts compute what onnxruntime computes."""
