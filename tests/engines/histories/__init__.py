"""Recorded histories: what production code and others asked of the stores in memory, one call after the other, and what
those answered; and the means to ask any other store the same and to compare what it says.

So the stores that the simulation runs on, and with them all that it has shown, are held against the real ones.
`tests.engines.histories.recording` makes them, `tests.engines.histories.replay` makes their calls again, and
`tests.engines.histories.freedoms` says in which points a store may answer something else. The histories themselves are
in ``recorded/``; ``python -m tests.engines.histories`` makes them anew.
"""
