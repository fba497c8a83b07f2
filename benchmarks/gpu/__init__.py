"""Rates of the encoders, the decoding and the whole server on a GPU, part by part."""
