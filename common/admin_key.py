"""Names the variable that holds the key to a running server's heads: serving checks it, training rolls out with it."""

ADMIN_KEY = "CLIPSIEVE_ADMIN_KEY"
