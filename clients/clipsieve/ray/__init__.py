"""Scoring spread over a Ray cluster (`clipsieve-bulk`)."""
