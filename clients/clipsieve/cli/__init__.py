"""The command line: one module a command, with what they share in options, run and grouped."""
