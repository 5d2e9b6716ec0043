"""The change log: the durable list of revisions that may be unreferenced."""
