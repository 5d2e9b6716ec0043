"""How the change log lies in Bigtable: one row for all entries of an object, and two kinds of index rows.

An object's row, under the key of its storage path, has a column ``entry:…`` for each entry, named by the revision's
UUID and the owner, and a mark, ``index:t``, that is drawn anew with each change: who has read the row changes it only
if the mark is still the one that was read. All revisions that one operation records are of one object, so all that it
does is atomic.

Index rows, in the family ``index`` alone:

- *hints* by time: "look at the entries of this owner, in this row, at this instant". One is written before an entry is
  recorded, or is to be due earlier than it was; so each entry has one at its ``not_before``, or earlier.
- *owners*: a column for each hint of an owner, so that the owner's rows and hints are found without a search.

All cells have the timestamp 0: a write replaces the one before in its place. Nothing of the log is collected by age.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from uuid import UUID

from google.cloud.bigtable.data import DeleteRangeFromColumn, Mutation, SetCell
from google.cloud.bigtable.data.row_filters import RowFilter

from tierstore.bigtable.identity import INDEX
from tierstore.bigtable.keys import INSTANT_BYTES, instant_bytes, instant_of, is_long
from tierstore.bigtable.predicates import any_of, columns, exists, family, first_of, matches, quoted
from tierstore.bigtable.table import Cells
from tierstore.changelog.entries import Entry, Role, State
from tierstore.clock import UnixMicros
from tierstore.errors import CorruptObject, InvalidRequest
from tierstore.types.ids import AS_STORED, ObjectId, Revision

ENTRY = "entry"
MARK, PATH = b"t", b"l"
_FIELDS = Struct(">cc?xQQqq")
"""Role, state, whether it is an upload's own; epoch, sweeps, when recorded, not before. Then what the upload is."""
_ROLES = {b"n": Role.NEW, b"o": Role.OLD}
_STATES = {b"o": State.OPEN, b"c": State.CONDEMNED, b"d": State.DONE}
_ROLE_CODES = {role: code for code, role in _ROLES.items()}
_STATE_CODES = {state: code for code, state in _STATES.items()}
_UUID_BYTES = 16
_OTHER = rb"\C{16}"

Key = tuple[UUID, UUID]
"""What names an entry in its object's row: the revision's UUID, and the owner."""
Entries = Mapping[Key, Entry]
Changes = Mapping[Key, Entry | None]
"""What is to become of entries; None: removed."""


def column(key: Key) -> bytes:
    """The qualifier of an entry."""
    return key[0].bytes + key[1].bytes


def key_of(entry: Entry) -> Key:
    """What names the entry."""
    return entry.revision.uuid, entry.owner


# What is read

ALL: RowFilter = any_of(family(ENTRY), columns(INDEX, PATH))
"""All entries of a row, and its path."""
PATHS: RowFilter = columns(INDEX, PATH)
"""A row's path, where its key is another."""
HAS_ENTRIES: RowFilter = family(ENTRY)
FIRST_ENTRIES = 4
"""How many of a row's entries are looked at by who may remove the last one."""


def entries_of(*, revision: UUID | None = None, owner: UUID | None = None, exactly: Iterable[Key] = ()) -> RowFilter:
    """A row's mark and path, and those of its entries that are of the revision, of the owner, or named."""
    patterns = [quoted(column(key)) for key in exactly]
    if revision is not None:
        patterns.append(quoted(revision.bytes) + _OTHER)
    if owner is not None:
        patterns.append(_OTHER + quoted(owner.bytes))
    return any_of(columns(ENTRY, b"(?:" + b"|".join(patterns) + b")"), columns(INDEX, b"[tl]"))


OWNERS_MAX = 100
"""How many one request names: the service takes filters of 20 KB, and an owner may take 64 bytes of one."""


def of_owners(owners: Iterable[UUID]) -> RowFilter:
    """The path of rows, and those of their entries that are of one of the owners."""
    wanted = b"|".join(quoted(owner.bytes) for owner in owners)
    return any_of(columns(ENTRY, _OTHER + b"(?:" + wanted + b")"), PATHS)


def with_first_entries(wanted: RowFilter) -> RowFilter:
    """What is ``wanted``, and the first entries of the row: where there are fewer than `FIRST_ENTRIES`, all of them."""
    return any_of(wanted, first_of(ENTRY, FIRST_ENTRIES))


def named(keys: Iterable[Key]) -> RowFilter:
    """Holds if one of these entries is there."""
    return columns(ENTRY, b"(?:" + b"|".join(quoted(column(key)) for key in keys) + b")")


def has_mark(mark: bytes) -> RowFilter:
    """Nothing has changed in the row since this mark was read."""
    return matches(INDEX, MARK, quoted(mark))


HAS_ANY_MARK: RowFilter = exists(INDEX, MARK)


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry as it is in the store. ``path`` is that of its row."""

    path: bytes
    qualifier: bytes
    value: bytes

    def parsed(self) -> Entry:
        """The entry. Raises `CorruptObject` if it cannot be read."""
        return entry_from(_object_of(self.path), self.qualifier, self.value)


def raw_entries(row_key: bytes, cells: Cells) -> Iterator[RawEntry]:
    """The entries that were read of a row."""
    path = path_of(row_key, cells)
    for (name, qualifier), value in cells.items():
        if name == ENTRY:
            yield RawEntry(path, qualifier, value)


def path_of(row_key: bytes, cells: Cells) -> bytes:
    """The storage path of the object whose row this is."""
    return cells.get((INDEX, PATH), row_key)


def _object_of(path: bytes) -> ObjectId:
    try:
        return ObjectId.from_storage_path(path.decode(), AS_STORED)
    except (InvalidRequest, UnicodeDecodeError) as error:
        raise CorruptObject(f"a row of the change log names no object: {path!r}") from error


def entry_from(object_id: ObjectId, qualifier: bytes, value: bytes) -> Entry:
    """The entry of a column. Raises `CorruptObject` if it cannot be read."""
    if len(qualifier) != 2 * _UUID_BYTES or len(value) < _FIELDS.size:
        raise CorruptObject(f"an entry of the change log for {object_id.storage_path!r} cannot be read")
    role, state, is_upload, epoch, sweeps, recorded, not_before = _FIELDS.unpack_from(value)
    if role not in _ROLES or state not in _STATES:
        raise CorruptObject(f"an entry of the change log for {object_id.storage_path!r} cannot be read")
    return Entry(
        revision=Revision(object_id, UUID(bytes=qualifier[:_UUID_BYTES])),
        owner=UUID(bytes=qualifier[_UUID_BYTES:]),
        role=_ROLES[role],
        state=_STATES[state],
        epoch=epoch,
        sweeps=sweeps,
        recorded=recorded,
        not_before=not_before,
        upload=value[_FIELDS.size :] if is_upload else None,
    )


# What is written


def value_of(entry: Entry) -> bytes:
    """An entry as its column holds it."""
    fields = _FIELDS.pack(
        _ROLE_CODES[entry.role],
        _STATE_CODES[entry.state],
        entry.upload is not None,
        entry.epoch,
        entry.sweeps,
        entry.recorded,
        entry.not_before,
    )
    return fields + (entry.upload or b"")


def changes_of(path: bytes, changes: Changes, mark: bytes) -> list[Mutation]:
    """Mutations of an object's row."""
    mutations: list[Mutation] = [cell(INDEX, MARK, mark)]
    if is_long(path):
        mutations.append(cell(INDEX, PATH, path))
    for key, entry in changes.items():
        if entry is None:
            mutations.append(DeleteRangeFromColumn(ENTRY, column(key)))
        else:
            mutations.append(cell(ENTRY, column(key), value_of(entry)))
    return mutations


def cell(name: str, qualifier: bytes, value: bytes) -> SetCell:
    """A cell in the place of the one that was there."""
    return SetCell(name, qualifier, value, timestamp_micros=0)


# Indexes

_HINT, _OWNER = b"\x00t", b"\x00o"
WRITTEN = b"w"
FIRST_HINT = _HINT


@dataclass(frozen=True, slots=True)
class Hint:
    """Look at the entries of ``owner`` in the row ``key`` at ``instant``."""

    instant: UnixMicros
    owner: UUID
    key: bytes

    @property
    def name(self) -> bytes:
        """The hint's own row key."""
        return _HINT + instant_bytes(self.instant) + self.owner.bytes + self.key

    @classmethod
    def from_name(cls, name: bytes) -> "Hint":
        """The hint whose row key is ``name``."""
        owner = len(_HINT) + INSTANT_BYTES
        key = owner + _UUID_BYTES
        return cls(instant_of(name[len(_HINT) : owner]), UUID(bytes=name[owner:key]), name[key:])


def end_of_hints(by: UnixMicros) -> bytes:
    """Behind all hints at or before ``by``."""
    return _HINT + instant_bytes(by + 1)


def owner_key(owner: UUID) -> bytes:
    """The row key of an owner's index."""
    return _OWNER + owner.bytes


def hints_of(cells: Cells | None) -> list[Hint]:
    """The hints that an owner's row names."""
    return [Hint.from_name(qualifier) for name, qualifier in cells or {} if name == INDEX]
