"""The high-volume store: one row an object, made for low latency."""
