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
    DONE = "done"
    """Nobody any more: the upload was committed. Only an upload's own entry has this state, and keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the log. ``(revision, owner)`` is its key.

    A multipart upload has one entry, in role new, that all attempts to complete it share. Its owner is the revision's
    own UUID.
    """

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
    upload: bytes | None = None
    """For an upload's own entry: what its object is to be, opaque here (see `tierstore.types.metadata_storage`), and
    empty once it is done. None for all others."""

    @property
    def owner_is_upload(self) -> bool:
        """Whether this is an upload's own entry."""
        return self.upload is not None


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much is in the log."""

    entries: int
    """What operations under way have recorded, and what is left to the sweeper."""
    oldest: UnixMicros | None
    """When the oldest of those was recorded, apart from uploads' own entries, which are as old as their uploads and no
    sign that anything waits; None if there is none."""
    uploads: int
    """Uploads in progress: their own entries that are open."""
    outcomes: int
    """Uploads that are done and remembered."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The upload is the claimant's to complete, as it is everybody's who claims it."""

    entry: Entry
    """The upload's own entry, as it is now."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The upload has been committed: by an earlier attempt, or by one that was faster."""


@dataclass(frozen=True, slots=True)
class Condemned:
    """A sweeper has the upload. While it is not ``swept``, nobody knows yet whether it was committed before."""

    swept: bool
    """Whether it has found that the upload was not committed, and has aborted it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The log has no such upload: it never was, was swept, or was committed so long ago that it is forgotten."""


Claim = Claimed | Committed | Condemned | Unknown
