"""The fastest serving numbers of this machine, by measurement. Run as `python -m tuning --recipe <name>`."""
