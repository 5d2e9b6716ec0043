"""The long-term store: large blobs under revisions, made for cheap bytes."""
