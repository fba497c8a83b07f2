"""Curves of the cost of more heads, larger pictures, more requests and larger batches: python -m benchmarks.growth"""
