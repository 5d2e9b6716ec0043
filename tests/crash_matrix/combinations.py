"""Which steps, faults and aftermaths go together; and, in one place, which do not, and why."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from tests.crash_matrix.aftermath import AFTERMATHS, Aftermath
from tests.crash_matrix.faults import Arrival, Kind, has_effect
from tests.crash_matrix.operations import Operation
from tests.crash_matrix.scene import BODY


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
    Exclusion(
        "A long-term store makes nothing new of an operation's call after its deadline (the rule [time]).",
        lambda case: case.kind.arrival is Arrival.AFTER_ALL and case.call in {"long_term.put", "long_term.initiate"},
    ),
)


@dataclass(frozen=True)
class Gap:
    """A known gap: combinations in which something is wrong for a while. If it is not, the gap is to be struck out."""

    reason: str
    applies: Callable[[Combination], bool]
    violation: str


GAPS = (
    Gap(
        "A process that is paused for longer than the operation's deadline, while a sweeper gives its write up and "
        "forgets it, may still publish the blob when it goes on. It finds itself given up, and deletes it.",
        lambda case: (
            case.kind.name == "process paused" and _is_in(case, "long_term.put") and "high_volume.point" in case.steps
        ),
        "a blob is neither referenced nor in the log",
    ),
    Gap(
        "Likewise it may still begin an upload. It finds itself given up, and leaves the upload to the sweeper.",
        lambda case: (
            case.kind.name == "process paused"
            and _is_in(case, "long_term.initiate")
            and "changelog.expedite" not in case.steps
        ),
        "an upload is in progress that is not in the log",
    ),
)


def _is_in(case: Combination, call: str) -> bool:
    """Whether the fault comes in ``call``, the taking of a body that belongs to it included."""
    before = [step for step in case.steps[: case.step + 1] if step != BODY]
    return before[-1:] == [call]


def gap_of(case: Combination) -> Gap | None:
    """The known gap that a combination shows, if any."""
    return next((gap for gap in GAPS if gap.applies(case)), None)


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
