"""Exact instruction counts of ARM artifacts under emulation."""
