"""Files and folders: writing that a crash cannot spoil, locks, names and paths."""
