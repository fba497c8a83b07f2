"""Starts Triton on a model repository: embedded (from a wheel, no container) for development and tests."""
