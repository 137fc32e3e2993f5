"""Latency measurement: processes and blocks, confidence over processes, peers interleaved in one run."""
