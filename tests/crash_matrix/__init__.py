"""The crash matrix: every mutating operation × every step × every fault × what comes after.

`operations` says what is done, and over what; `faults` what goes wrong in a step, `aftermath` what comes then, and
`combinations` which of them go together, and why others do not. `runs` runs them on a `scene`: the production code
over stores in memory, on virtual time. `watch` looks at the stores after every effect, and `ledger` judges what clients
were told. `table` writes what is seen and left when a process dies into ``docs/consistency.md``. `planted` says where
it shows when a rule of the protocol is taken away.

Does not: keep real stores to their contracts (the laws do), or interleave more than two processes (the simulation).
"""
