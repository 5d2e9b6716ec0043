"""What clients did to one key, and were answered: the judge of reads, of writes that were acknowledged, and of uploads.

Guarantees: what is judged wrong is wrong, by the one clock that all share. Does not: find everything that is wrong; a
read is compared with every write, but reads are not compared with each other.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ABSENT = "absent"
"""What a read of no object sees, and what a delete writes."""
SUCCESS, NO_SUCH_UPLOAD, INVALID_PART, TRY_AGAIN = "success", "NoSuchUpload", "InvalidPart", "ServiceUnavailable"
"""Answers to a completion. The last one stands also for no answer."""


@dataclass(frozen=True)
class Write:
    """One write that may have taken effect, once, between ``begun`` and ``ended``."""

    sees: frozenset[str]
    """What a read may see of it: one of these."""
    begun: float
    ended: float = math.inf
    """When it was certain to have taken effect; without an end it may never, or at any time."""


@dataclass(frozen=True)
class Read:
    """What a read saw."""

    seen: str
    begun: float
    ended: float


def check_reads(reads: Iterable[Read], writes: Sequence[Write]) -> None:
    """Each read saw a write that had begun, and that no other write had certainly replaced before the read began."""
    for read in reads:
        candidates = [write for write in writes if read.seen in write.sees and write.begun <= read.ended]
        assert candidates, f"{read} saw what nobody had written"
        for candidate in candidates:
            replaced = any(other.begun > candidate.ended and other.ended < read.begun for other in writes)
            if not replaced:
                break
        else:
            raise AssertionError(f"{read} saw only what had been replaced: an acknowledged write is lost")


@dataclass(frozen=True)
class Answer:
    """What one attempt to complete an upload was told, and with which parts it was made."""

    text: str
    parts: str
    """A name of the list of parts."""
    begun: float
    ended: float


@dataclass(frozen=True)
class Commit:
    """When a revision became the object: at some time between the two."""

    begun: float
    ended: float


@dataclass
class UploadHistory:
    """All that happened to one upload."""

    answers: list[Answer] = field(default_factory=list)
    aborted: bool = False
    """Whether a client was told so."""
    commits: list[Commit] = field(default_factory=list)
    """As the servers tell."""

    def check(self, sees: dict[str, str]) -> None:
        """Committed at most once, and every answer was true when it was given.

        ``sees`` is what is read of the object if it was made of each list of parts.
        """
        assert len(self.commits) <= 1, f"committed {len(self.commits)} times"
        committed = self.commits[0] if self.commits else Commit(math.inf, math.inf)
        for answer in self.answers:
            match answer.text:
                case "success":
                    assert committed.begun <= answer.ended, f"{answer}, but it had not been committed"
                case "NoSuchUpload":
                    assert not self.commits, f"{answer}, but it was committed: {committed}"
                case "InvalidPart":
                    assert committed.ended > answer.begun, f"{answer}, but it had been committed: {committed}"
                case "ServiceUnavailable":
                    continue
                case _:
                    raise AssertionError(f"{answer} is no answer to these parts")
        assert not (self.aborted and self.commits), "it was aborted, and committed"
        assert set(sees) >= {answer.parts for answer in self.answers}

    def writes(self, sees: dict[str, str]) -> list[Write]:
        """The write that it was, if it was committed. Parts that were once refused as another's never make it."""
        if not self.commits:
            return []
        refused = {answer.parts for answer in self.answers if answer.text == INVALID_PART}
        possible = frozenset(seen for parts, seen in sees.items() if parts not in refused)
        return [Write(possible, self.commits[0].begun, self.commits[0].ended)]
