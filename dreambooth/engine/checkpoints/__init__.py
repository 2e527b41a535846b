"""Model files: key names, reading, writing."""
