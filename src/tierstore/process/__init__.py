"""The processes that serve: how they start, share a port, stop and are replaced."""
