"""Change log entries: one revision that one operation may leave unreferenced."""

from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from tierstore.clock import UnixMicros
from tierstore.types.ids import Revision


class Role(Enum):
    """Why the revision may become unreferenced."""

    NEW = "new"
    """The owner is about to write and commit it."""
    OLD = "old"
    """It is committed, and the owner is about to swap it out."""


class State(Enum):
    """Who decides over the revision."""

    OPEN = "open"
    """The owner."""
    CONDEMNED = "condemned"
    """A sweeper: the owner may not commit it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the log. ``(revision, owner)`` is its key."""

    revision: Revision
    owner: UUID
    """The operation that recorded it; drawn new for each."""
    role: Role
    state: State
    epoch: int
    """Grows with every change of hands; a change conditional on it loses against any later one. Starts at 0."""
    sweeps: int
    """How often a sweeper has deleted the revision's blob on behalf of this entry."""
    recorded: UnixMicros
    """When it was first recorded. For people and metrics; and the sweeper's second visit to an entry of role new is not
    before ``operation_deadline`` has passed since then."""
    not_before: UnixMicros
    """When a sweeper may take it: politeness, not safety."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much is in the log."""

    entries: int
    oldest: UnixMicros | None
    """When the oldest entry was recorded; None if there is none."""
