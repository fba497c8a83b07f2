"""The page of `clipsieve review`: a place to look at pictures, to answer about them and to train anew."""
