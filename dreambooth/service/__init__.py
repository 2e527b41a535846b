"""What the page, the API and the command line share: the engine's environment and its jobs. Standard library only."""
