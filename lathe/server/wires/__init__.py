"""One module for each client's way to write: bodies become Asks, and Events the frames that the client expects."""
