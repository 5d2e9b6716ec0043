"""The model's picture of one object while a trace is walked, and the names that tie it to the implementation's.

A picture is the model's shared state, and where each operation is. It changes by the model's own steps only, but for
what the model has no clock for; each of those exceptions is a method here and says so. What the trace shows of the
stores is compared with it: row, blobs and entries, versions and epochs included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from tests.model.protocol import NO_ROW, Locals, ModelEntry, ModelRow, Outcome, empty_state, entry_of, step
from tierstore.backends.high_volume.contract import InlineHead, Row, RowHead, Tombstone, TombstoneRow
from tierstore.changelog.entries import Entry, State
from tierstore.types.ids import ObjectId, Revision

AnyRow = Row | RowHead | TombstoneRow


class Rejected(Exception):
    """The model does not allow what was recorded; says what it would have allowed."""


class Thread(NamedTuple):
    """Where one operation is."""

    kind: str
    me: str
    rev: str
    pc: str
    loc: Locals

    @property
    def old(self) -> str | None:
        """The revision that the row pointed to, in the row that the operation goes by."""
        return self.loc[1][1] if len(self.loc) > 1 and self.loc[1][0] == "tomb" else None

    @property
    def has_seen_blob(self) -> bool:
        """Of an attempt: whether it has been round before."""
        return self.loc == ("seen",) or (len(self.loc) == 4 and self.loc[3] is True)

    @property
    def its(self) -> str:
        """The revision that it is to commit, or is settling."""
        return self.loc[0][0] if self.kind == "S" and self.loc else self.rev

    def __str__(self) -> str:
        return f"{self.me} is at {self.pc!r} with {self.loc}"


@dataclass(slots=True)
class Names:
    """The model's names for the revisions and owners of one object."""

    object_id: ObjectId
    _revisions: dict[UUID, str] = field(default_factory=dict)
    _owners: dict[UUID, str] = field(default_factory=dict)

    def revision(self, uuid: UUID, me: str | None = None) -> str:
        """The name of a revision; ``me`` is the operation that makes it, if no upload does."""
        name = self._revisions.get(uuid)
        if name is None:
            number = len(self._revisions) + 1
            upload = Revision(self.object_id, uuid).is_upload
            name = f"r{number}" if upload else f"r{me}" if me else f"r?{number}"
            self._revisions[uuid] = name
        return name

    def own(self, owner: UUID, me: str) -> None:
        """``owner`` is the operation ``me``, now and ever."""
        if self._owners.setdefault(owner, me) != me:
            raise Rejected(f"{me} calls as owner {owner}, who is {self._owners[owner]}")

    def entry(self, entry: Entry) -> ModelEntry:
        """An entry of the change log, as the model has it."""
        owner = "U" if entry.owner_is_upload else self._owners.get(entry.owner, f"owner {entry.owner}")
        state = "swept" if entry.state is State.CONDEMNED and entry.sweeps else entry.state.value
        return (self.revision(entry.revision.uuid), owner, entry.role.value, entry.epoch, state)

    def __str__(self) -> str:
        return ", ".join(f"{name} = {uuid}" for uuid, name in self._revisions.items())


class Ties:
    """Which of the implementation's versions is which number of the model's: one to one, or something is wrong."""

    __slots__ = ("_numbers", "_versions")

    def __init__(self) -> None:
        self._versions: dict[int, bytes] = {}
        self._numbers: dict[bytes, int] = {}

    def tie(self, number: int, version: bytes, what: str) -> None:
        """``version`` is ``number``, or `Rejected`."""
        if self._versions.setdefault(number, version) != version:
            raise Rejected(f"the {what} is {version.hex()[:8]}, and the model's is {self._versions[number].hex()[:8]}")
        if self._numbers.setdefault(version, number) != number:
            was = self._numbers[version]
            raise Rejected(
                f"the {what} is still {version.hex()[:8]}, number {was}; the model's is new, number {number}"
            )

    def number(self, version: bytes) -> int | None:
        """The model's number of ``version``, if it has been seen."""
        return self._numbers.get(version)

    def copy(self) -> "Ties":
        """As it is now."""
        twin = Ties()
        twin._versions, twin._numbers = dict(self._versions), dict(self._numbers)
        return twin


class Picture:
    """One state that the model may be in, given what was recorded. Changed in place; `copy` it before a branch."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.state = empty_state()
        self.threads: dict[int, Thread] = {}
        """By the number of the actor."""
        self.assembling: frozenset[int] = frozenset()
        """Actors whose call of ``long_term.complete`` has not returned."""
        self.makers: dict[str, frozenset[int]] = {}
        """Of each upload that has been assembled, those of them who may have done it."""
        self.refused: frozenset[int] = frozenset()
        """Attempts whose parts the store has refused."""
        self.outlived: frozenset[str] = frozenset()
        """Uploads that were committed, and whose outcome has been remembered long enough."""
        self.lost: dict[int, Locals] = {}
        """What attempts went by that have lost their last race, and may not have been told so."""
        self.changed = 0
        """When the row was written last, by the store's clock."""
        self._versions = Ties()
        self._tokens = Ties()
        self._rows: dict[int, ModelRow] = {0: NO_ROW}
        """The rows that there were, by version."""

    def copy(self) -> "Picture":
        """The same state, to go another way."""
        twin = Picture(self.names)
        twin.state, twin.threads = dict(self.state), dict(self.threads)
        twin.assembling, twin.makers = self.assembling, dict(self.makers)
        twin.lost = dict(self.lost)
        twin.refused = self.refused
        twin.outlived, twin.changed = self.outlived, self.changed
        twin._versions, twin._tokens, twin._rows = self._versions.copy(), self._tokens.copy(), dict(self._rows)
        return twin

    @property
    def row(self) -> ModelRow:
        """The row."""
        row: ModelRow = self.state["row"]
        return row

    @property
    def blobs(self) -> frozenset[str]:
        """The blobs."""
        blobs: frozenset[str] = self.state["lt"]
        return blobs

    @property
    def log(self) -> frozenset[ModelEntry]:
        """The change log's entries."""
        log: frozenset[ModelEntry] = self.state["log"]
        return log

    @property
    def open(self) -> frozenset[str]:
        """The uploads in progress in the long-term store."""
        uploads: frozenset[str] = self.state["open"]
        return uploads

    @property
    def commits(self) -> Sequence[str]:
        """What has been committed."""
        commits: Sequence[str] = self.state["commits"]
        return commits

    def upload_entry(self, rev: str) -> ModelEntry | None:
        """The upload's own entry."""
        return entry_of(self.log, rev, "U")

    # The model's steps

    def begin(self, number: int, kind: str, rev: str | None = None) -> Thread:
        """A new operation, at its beginning."""
        me = f"{kind}{number}"
        self.threads[number] = thread = Thread(kind, me, rev or f"r{me}", "read", ())
        return thread

    def put_at(self, number: int, pc: str, loc: Locals | None = None) -> Thread:
        """Say that an operation is elsewhere: what each caller has to justify."""
        thread = self.threads[number]
        self.threads[number] = thread = thread._replace(pc=pc, loc=thread.loc if loc is None else loc)
        return thread

    def take(self, number: int, at: int, what: str, accept: Callable[[Outcome], bool] | None = None) -> Thread:
        """The operation's next step in the model, with an outcome that is as ``what`` was recorded to be."""
        thread = self.threads[number]
        outcomes = step(thread.kind, thread.me, thread.rev, thread.pc, thread.loc, self.state)
        for outcome in outcomes:
            if accept is None or accept(outcome):
                self._apply(number, outcome, at)
                return self.threads[number]
        raise Rejected(f"{what}: {thread}; the model's outcomes: {'; '.join(map(_described, outcomes))}")

    def assemble(self, rev: str) -> None:
        """The effect of an assembly: it depends on nothing that its operation knows, so it may come late as well."""
        makers = frozenset(number for number in self.assembling if self.threads[number].rev == rev)
        thread = self.threads[min(makers)]
        _, _, changes = step(thread.kind, thread.me, rev, "assemble", (), self.state)[0]
        self.state.update(changes)
        self.makers[rev] = makers
        self._pass_assemblies()

    def _pass_assemblies(self) -> None:
        """Assemblies that can have no effect any more are passed, for it cannot be seen whether they are called."""
        for number, thread in self.threads.items():
            if thread.kind == "A" and thread.pc == "assemble" and thread.rev not in self.open:
                self.threads[number] = thread._replace(pc="head")

    def _apply(self, number: int, outcome: Outcome, at: int) -> None:
        pc, loc, changes = outcome
        self.threads[number] = self.threads[number]._replace(pc=pc, loc=loc)
        self.state.update(changes)
        self._check(changes)
        if "row" in changes:
            self.changed = at
            self._rows[self.row[0]] = self.row
        if pc == "assemble" or "open" in changes:
            self._pass_assemblies()

    def _check(self, changes: Mapping[str, Any]) -> None:
        """What the model checks in every state that it explores, whatever has led to this one."""
        content = self.row[1]
        if content[0] == "tomb" and content[1] not in self.blobs:
            raise Rejected(f"the row points to {content[1]}, and the model has no such blob any more")
        if "commits" in changes and self.commits and self.commits[-1] in self.commits[:-1]:
            raise Rejected(f"{self.commits[-1]} is committed again")

    # What the model has no clock for

    def remove_marker(self) -> None:
        """A marker that has been kept long enough goes: what was based on it is too late by then."""
        self.state["row"] = NO_ROW

    def outlive(self, entry: ModelEntry) -> None:
        """An outcome that has been remembered long enough is forgotten."""
        self.state["log"] = self.log - {entry}
        self.outlived |= {entry[0]}

    # What the trace shows

    def observe_row(self, row: AnyRow | None) -> None:
        """The row is as in the model: absent or of the same content, and of the same version."""
        number, content, token = self.row
        seen = self.content_of(row)
        if seen[0] != content[0] or (seen[0] == "tomb" and seen != content):
            raise Rejected(f"the row is {seen}, and in the model {content}")
        if row is None:
            return
        self._versions.tie(number, row.version, "row's version")
        if isinstance(row, RowHead):
            self._tokens.tie(token, row.fenced, "row's mark of the last fence")

    def observe_base(self, thread: Thread, base: RowHead | None) -> None:
        """``base`` is what the operation has read."""
        number, content, token = thread.loc[:3]
        if base is None or number == 0:
            if (base is None) != (number == 0):
                raise Rejected(f"it goes by {base}, and has read {thread.loc[:3]}")
            return
        seen = self.content_of(base)
        if seen[0] != content[0] or (seen[0] == "tomb" and seen != content):
            raise Rejected(f"it goes by a row with {seen}, and has read {content}")
        self._versions.tie(number, base.version, "version of the row that it goes by")
        self._tokens.tie(token, base.fenced, "mark of the last fence in the row that it goes by")

    def observe_version(self, number: int, version: bytes, what: str) -> None:
        """The row of ``number`` has ``version``."""
        self._versions.tie(number, version, what)

    def row_of_version(self, version: bytes | None) -> ModelRow | None:
        """A row that there was, by its version."""
        number = None if version is None else self._versions.number(version)
        return None if number is None else self._rows.get(number)

    def last_row_with(self, content: tuple[str, ...]) -> ModelRow | None:
        """The newest row that had ``content``."""
        return max((row for row in self._rows.values() if row[1] == content), default=None)

    def content_of(self, row: AnyRow | None) -> tuple[str, ...]:
        """What a row holds, as the model has it, but for the name of who wrote an inline object."""
        match row:
            case None:
                return ("none",)
            case _ if isinstance(row.content, Tombstone):
                return ("tomb", self.names.revision(row.content.revision))
            case _ if isinstance(row.content, InlineHead):
                return ("inline",)
            case _:
                return ("gone",)

    def observe_blob(self, uuid: UUID, found: bool) -> None:
        """The blob is there, or not, as in the model."""
        name = self.names.revision(uuid)
        if found != (name in self.blobs):
            raise Rejected(f"blob {name} is {'there' if found else 'absent'}, and in the model it is not so")

    def observe_entries(self, entries: Sequence[Entry], *, all_of: str | None = None, all_there: bool = False) -> None:
        """``entries`` are in the log as in the model; of the revision ``all_of``, or at all, there are no others."""
        seen = {self.names.entry(entry) for entry in entries}
        if unknown := seen - self.log:
            raise Rejected(f"the log has {sorted(unknown)}, and the model has not")
        missing = {entry for entry in self.log if all_there or entry[0] == all_of} - seen
        if missing:
            raise Rejected(f"the model's log has {sorted(missing)}, and the implementation's has not")

    def is_like(self, other: "Picture") -> bool:
        """Whether two pictures of one moment are the same."""
        return (
            self.state == other.state
            and self.threads == other.threads
            and self.assembling == other.assembling
            and self.makers == other.makers
        )

    def __str__(self) -> str:
        shared = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in self.state.items()}
        threads = [f"  {thread}" for thread in self.threads.values() if thread.pc not in {"ok", "dead", "failed"}]
        return "\n".join([f"  {name}: {value}" for name, value in shared.items()] + threads)


def _described(outcome: Outcome) -> str:
    pc, _, changes = outcome
    changed = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in changes.items()}
    return f"to {pc!r}, changing {changed or 'nothing'}"
