"""Requests that no well-behaved client sends, and what a server makes of them."""
