"""Deterministic simulation: the production code on virtual time, several servers, and everything that can go wrong.

`tierstore.testing.simulation.plan` draws from a seed what happens, `tierstore.testing.simulation.world` runs it over
in-memory stores, `tierstore.testing.simulation.judge` and `tierstore.testing.simulation.history` say whether what
happened may happen. The same seed gives the same run, on any machine. ``python -m tierstore.testing.simulation`` runs
it from the command line.
"""
