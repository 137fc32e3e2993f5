"""Graph to graph: canonicalization, quantization, pruning; one file for each pass, `pipeline` runs them."""
