"""The engine: the process where torch lives. It never meets `ui`, `host` or `service`."""
