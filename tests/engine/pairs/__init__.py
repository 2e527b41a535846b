"""Settings that meet: rows of settings in which every pair of values comes at least once, for real runs."""
