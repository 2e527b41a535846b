"""Model families, one file each: how to load one, encode for it, and what it predicts."""
