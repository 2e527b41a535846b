"""The engine as a process: what it imports when, and how it hears what a person asks for."""
