"""Prompts: the vocabulary, what a prompt is to a model, and long ones in pieces."""
