"""Where the extension lives: inside a WebUI, or standing alone."""
