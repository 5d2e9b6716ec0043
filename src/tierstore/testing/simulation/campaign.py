"""Many seeds, one after the other, until there are enough or one fails."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from tierstore.service.batch import BatchRun
from tierstore.testing.planted import Plant
from tierstore.testing.simulation.plan import Plan, make_plan
from tierstore.testing.simulation.shrink import shrink
from tierstore.testing.simulation.world import Outcome, simulate

_SAME_VIOLATION_CHARACTERS = 30
"""How far two descriptions agree that are of one kind: further on they name revisions."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that went wrong."""

    plan: Plan
    """As small as it could be made."""
    violation: str
    trace: list[str]
    histories: str

    def __str__(self) -> str:
        return "\n\n".join(
            [
                f"{self.violation}\nfound with seed {self.plan.seed}; what is left of its plan:",
                str(self.plan),
                "calls to the stores, at the moments of their effects:",
                "\n".join(self.trace),
                "what clients saw, as [beginning, end] operation:",
                self.histories,
            ]
        )


@dataclass(slots=True)
class Report:
    """What a number of runs came to."""

    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0
    failure: Failure | None = None

    @property
    def operations_per_cpu_minute(self) -> float:
        """Simulated operations of clients for each minute of processor time."""
        return 60 * self.counts["operations"] / self.cpu_seconds if self.cpu_seconds else 0.0

    def __str__(self) -> str:
        counts = "\n".join(f"  {name}: {count:,}" for name, count in sorted(self.counts.items()))
        verdict = "no seed was run"
        if self.seeds:
            verdict = "nothing found" if self.failure is None else "something found, see below"
        return (
            f"{self.seeds:,} seeds, {self.cpu_seconds:.1f} s of CPU, "
            f"{self.operations_per_cpu_minute:,.0f} operations a minute of CPU\n{counts}\n{verdict}"
        )


def run_seeds(
    seeds: Iterable[int],
    *,
    plant: Plant | None = None,
    batch_run: type[BatchRun] = BatchRun,
    cpu_seconds_max: float | None = None,
    shrunk: bool = True,
) -> Report:
    """Run ``seeds`` until one fails, or the time is over. A failing one is made small if ``shrunk``, and run again.

    ``plant`` and ``batch_run`` put something wrong into the place of what is right (`simulate`).
    """
    run = partial(simulate, plant=plant, batch_run=batch_run)
    report = Report()
    begun = time.process_time()
    for seed in seeds:
        if cpu_seconds_max is not None and time.process_time() - begun >= cpu_seconds_max:
            break
        plan = make_plan(seed)
        outcome = run(plan)
        report.seeds += 1
        report.counts += outcome.counts
        if outcome.violation is not None:
            report.failure = _explain(plan, outcome.violation, run, shrunk=shrunk)
            break
    report.cpu_seconds = time.process_time() - begun
    return report


def _explain(plan: Plan, violation: str, run: Callable[..., Outcome], *, shrunk: bool) -> Failure:
    kind = violation[:_SAME_VIOLATION_CHARACTERS]

    def fails_alike(candidate: Plan) -> bool:
        found = run(candidate).violation
        return found is not None and found.startswith(kind)

    smaller = shrink(plan, fails_alike) if shrunk else plan
    outcome = run(smaller, traced=True)
    return Failure(smaller, outcome.violation or violation, outcome.trace, outcome.histories)
