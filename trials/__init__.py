"""Trials that break the server or the decoder on purpose, each run from the root as `python -m trials.<name>`."""
