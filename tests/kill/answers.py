"""What a client learns from one request, whichever client it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Verdict(Enum):
    """What an answer, or the lack of one, says of its request."""

    DONE = "done"
    ABSENT = "absent"
    """404."""
    REFUSED = "refused"
    """Nothing happened, and nothing will: 429 and 507 promise that."""
    UNSENT = "unsent"
    """Nobody listened."""
    UNKNOWN = "unknown"
    """No answer, half of one, or "try again"."""
    WRONG = "wrong"
    """An answer that no fault here can explain."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object, or a part of it, as a reader got it."""

    identity: str
    """From its metadata."""
    payload: bytes | None
    """None from a HEAD."""
    first: int | None = None
    """Where the payload begins in the object; None if it is the whole of it."""
    stored_size: int | None = None
    """As the server tells it; None if that is the size of something compressed."""
    created: float | None = None
    expires: float | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request, between two readings of the monotonic clock."""

    start: float
    end: float
    verdict: Verdict
    text: str = ""
    """For people: the status, or the exception."""
    found: Found | None = None
    token: str = ""
    """The upload id of an initiate, the token of a session, the ETag of a part."""
    parts: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    """ETag and size of each part that a listing has."""
    code: str = ""
    """What a completion, or a piece of a session, was refused with."""
    offset: int | None = None
    """How far a session has come; None if it is complete."""
    granularity: int = 0
    """The fewest bytes of a piece of a session that is not the last."""
