"""Real servers under load that are killed, paused, restarted and starved of disk, judged by a ledger outside of them.

`tests.kill.soak.run` goes on for as long as asked, ``python -m tests.kill`` is its command, ``test_rounds.py`` does a
few rounds. The seed decides the plan: which requests each client makes, and which faults come when. How far each client
gets, and what a fault meets, real time decides: a seed does not replay a run exactly, it repeats its circumstances.
"""
