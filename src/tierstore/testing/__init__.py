"""What proves a deployment or a backend: law suites, scripted faults, real servers. Shipped, so that others can use it."""
