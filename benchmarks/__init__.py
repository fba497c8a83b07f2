"""Figures that are claimed, measured: each is run from the root as `python -m benchmarks.<name>`."""
