"""Quantization-aware training: a float graph and labelled data in, a trained graph of integers out (docs/training.md)."""
