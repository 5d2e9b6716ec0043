"""The benchmark: CPU time of each operation beside peers, completing beside copying, and the peak of memory."""
