"""DreamBooth for the Stable Diffusion WebUIs: teach a model a subject or a style from a few pictures."""

__version__ = "0.1.0"
