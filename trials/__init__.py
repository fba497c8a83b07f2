"""What breaks the server or the decoder on purpose: each is run from the root as `python -m trials.<name>`."""
