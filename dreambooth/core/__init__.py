"""Shared by the WebUI's process and the engine's: standard library only."""
