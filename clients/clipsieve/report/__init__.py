"""A page to look at scores: `clipsieve report`."""
