"""What clients did to one key and what they were told: steps with their real-time intervals.

A step lies between two readings of the monotonic clock: before its request was sent, after its answer had come.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """What a step asked for."""

    PUT = "put"
    DELETE = "delete"
    READ = "read"
    COMPLETE = "complete"
    ABORT = "abort"
    LIFE_END = "every process of the server has ended"


class Result(Enum):
    """What is known of a step after it."""

    DONE = "acknowledged"
    """It took effect, within its interval."""
    NOTHING = "refused"
    """It has no effect, then or later."""
    UNKNOWN = "outcome unknown"
    """It took effect, will do so before the server's processes have ended, or never does."""
    NOT_YET = "refused for now"
    """Of a `COMPLETE`: at some instant of its interval its upload had not been committed."""
    NEVER = "refused for good"
    """Of a `COMPLETE` or an `ABORT`: its upload was not committed before, and never will be."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that follow from a name: the payload of a put, or of a part."""

    name: str
    size: int


@dataclass(eq=False, slots=True)
class Write:
    """One content that a key may get, by a put or by a multipart upload."""

    identity: str
    """Kept with the object as metadata, and never used twice."""
    key: str
    ttl_seconds: float | None = None
    contents: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    """The payloads it may have, by digest: one for a put, one for each list of parts that an upload was completed with.
    """
    seen: str | None = None
    """The digest that a reader has seen: an object has one content."""
    begun: float | None = None
    """When its effect was possible first."""
    acknowledged: float | None = None
    """When its effect was certain first."""


@dataclass(eq=False, slots=True)
class Step:
    """One request for a key."""

    kind: Kind
    start: float
    end: float
    result: Result
    write: Write | None = None
    """What is written, completed or aborted; what a `READ` saw, None for an absence."""
    by: str = ""
    note: str = ""

    def __str__(self) -> str:
        named = self.write.identity if self.write is not None else "nothing" if self.kind is Kind.READ else ""
        words = f"{self.kind.value} {named}".rstrip()
        told = "" if self.kind in {Kind.READ, Kind.LIFE_END} else self.result.value
        rest = "; ".join(text for text in (told, self.note, self.by) if text)
        return f"{self.start:10.4f} to {self.end:10.4f}  {words:<32}  {rest}"


class Violation(AssertionError):
    """The server did what it must never do. The text tells all that is known."""


def told(steps: Iterable[Step], marked: Step | None = None) -> str:
    """The steps for people, in the order in which they began."""
    lines = [f"{'>>' if step is marked else '  '}{step}" for step in sorted(steps, key=lambda step: step.start)]
    return "\n".join(lines)
