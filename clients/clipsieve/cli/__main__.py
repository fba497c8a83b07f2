"""`python -m clipsieve.cli` is the command `clipsieve`."""

from clipsieve.cli.main import main

main()
