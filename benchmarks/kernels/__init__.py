"""Kernels alone beside those of other libraries."""
