"""Model files: what one is and what it is made of, told without loading it."""
