"""The deterministic simulation: that it finds what it should, and that it finds nothing in a budget of seeds."""
