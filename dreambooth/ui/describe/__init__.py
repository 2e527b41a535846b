"""Answers of the commands in words, for people."""
