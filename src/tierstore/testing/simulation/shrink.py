"""Makes a failing run small: leaves out what it can do without, for as long as it still fails.

Guarantees: what is returned fails; a bounded number of runs is made. Delta debugging (Zeller and Hildebrandt,
"Simplifying and isolating failure-inducing input", 2002), in a plain form.
"""

from collections.abc import Callable, Sequence

from tierstore.testing.simulation.plan import Faults, Plan

_RUNS_MAX = 400

_Part = tuple[str, int]


def shrink(plan: Plan, fails: Callable[[Plan], bool], runs_max: int = _RUNS_MAX) -> Plan:
    """The smallest plan that was found for which ``fails`` is true, as it is for ``plan``."""
    runs = 0

    def still_fails(candidate: Plan) -> bool:
        nonlocal runs
        runs += 1
        return runs <= runs_max and fails(candidate)

    parts: list[_Part] = [("action", one.number) for one in plan.actions]
    parts += [("event", one.number) for one in plan.events]
    size = max(1, len(parts) // 2)
    while size >= 1 and runs < runs_max:
        position, smaller = 0, False
        while position < len(parts):
            rest = parts[:position] + parts[position + size :]
            if rest and still_fails(_of(plan, rest)):
                parts, smaller = rest, True
            else:
                position += size
        if size > 1 or not smaller:
            size //= 2
    return _without_faults(_of(plan, parts), still_fails)


def _of(plan: Plan, parts: Sequence[_Part]) -> Plan:
    numbers = {kind: frozenset(number for of, number in parts if of == kind) for kind in ("action", "event")}
    return plan.only(numbers["action"], numbers["event"])


def _without_faults(plan: Plan, still_fails: Callable[[Plan], bool]) -> Plan:
    """The plan without the kinds of faults that it does not need."""
    for name in Faults.NAMES:
        candidate = plan.with_faults(**{name: 0.0})
        if getattr(plan.faults, name) and still_fails(candidate):
            plan = candidate
    return plan
