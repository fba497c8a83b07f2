"""The same images through the same weights in clipsieve, without a server, and in what people would use instead."""
