"""The long hunt: everything that is random in the tests, for as long as is asked.

``python -m tests.soak --minutes 20`` (or ``make soak MINUTES=20``) runs its parts side by side, each in a process of
its own, and prints what each has done. What it finds ends the part with a failure that holds the seed.
"""
