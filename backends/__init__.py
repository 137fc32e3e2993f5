"""Code generation: a graph becomes a schedule of kernels, kernels become objects. `lower` and `objects` are the way in."""
