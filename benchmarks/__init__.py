"""Speed, cost and quality, measured: each is run from the root as `python -m benchmarks.<name>`."""
