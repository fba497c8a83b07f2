"""Harm done to a server under load, and what its clients and the server make of it."""
