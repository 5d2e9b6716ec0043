"""Proves a deployment or a backend: law suites, scripted faults, real servers. Shipped, for others to use."""
