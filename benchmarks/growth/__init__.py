"""What more heads, larger pictures, more requests and larger batches cost, as curves: python -m benchmarks.growth"""
