"""The page of results, from the stored JSON lines of the reference run: text, tables and pictures."""
