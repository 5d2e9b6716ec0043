"""Which steps, faults and aftermaths go together; and, in one place, which do not, and why."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from tests.crash_matrix.aftermath import AFTERMATHS, Aftermath
from tests.crash_matrix.faults import Kind, has_effect
from tests.crash_matrix.operations import Operation


@dataclass(frozen=True)
class Combination:
    """One fault in one step of an operation, and what comes after."""

    operation: Operation
    steps: Sequence[str]
    """All that the operation has when nothing goes wrong."""
    step: int
    """The number of the one with the fault, from 0."""
    kind: Kind
    aftermath: Aftermath

    @property
    def call(self) -> str:
        """The step with the fault."""
        return self.steps[self.step]

    def __str__(self) -> str:
        return f"{self.operation.name} | {self.step + 1}. {self.call} | {self.kind.name} | {self.aftermath.name}"


@dataclass(frozen=True)
class Exclusion:
    """Combinations that make no sense."""

    reason: str
    excludes: Callable[[Combination], bool]


EXCLUSIONS = (
    Exclusion(
        "A step without an effect on a store has none that could be late, or whose answer could be lost.",
        lambda case: case.kind.of_effects and not has_effect(case.call),
    ),
    Exclusion(
        "Only an upload in progress can be completed or aborted by somebody else.",
        lambda case: case.kind.of_uploads and not case.operation.upload,
    ),
    Exclusion(
        "A process that is gone does not go on, so nothing comes meanwhile.",
        lambda case: case.kind.dies and case.aftermath.meanwhile,
    ),
)


def combinations(
    operation: Operation, steps: Sequence[str], kind: Kind
) -> Iterator[tuple[Combination, Exclusion | None]]:
    """All combinations of an operation and a kind of fault, each with the exclusion that applies to it, if any."""
    for step, aftermath in product(range(len(steps)), AFTERMATHS):
        case = Combination(operation, steps, step, kind, aftermath)
        yield case, next((each for each in EXCLUSIONS if each.excludes(case)), None)


def included(operation: Operation, steps: Sequence[str], kind: Kind) -> Iterator[list[Combination]]:
    """The combinations that are run, step by step."""
    for _, cases in groupby(combinations(operation, steps, kind), key=lambda found: found[0].step):
        if kept := [case for case, exclusion in cases if exclusion is None]:
            yield kept
