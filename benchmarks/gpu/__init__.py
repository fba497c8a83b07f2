"""What a GPU does for the encoders, the decoding and the whole server, part by part."""
