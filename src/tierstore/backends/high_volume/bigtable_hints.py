"""The index of tombstones by deadline: rows that say "look at this one then".

A hint is a row of its own, and so cannot change together with the row it is for. It is written **before** a write that
may give a row an earlier deadline than it had, and it stays true when the deadline moves later. So for every tombstone
with a deadline there is a hint at that instant or before it: `due` reads hints in the order of time, looks at the rows,
and has seen everything that is due up to the last hint it has read.

A hint may be left over: its write did not come to pass, or its row is another by now. It is removed when its write is
over for certain, and no sooner, for a write that is still on its way relies on it: once a row with the hint's version
was seen, or when the hint is older than any operation may live. If a hint is missing all the same, because an operator
restored a table or a process stood still for hours in the midst of a write, the tombstone is found by the slow walk of
`remove_markers`, which writes the hint anew.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from google.cloud.bigtable.data import DeleteAllFromRow, SetCell

from tierstore.bigtable.identity import INDEX
from tierstore.bigtable.keys import INSTANT_BYTES, instant_bytes, instant_of
from tierstore.bigtable.predicates import family
from tierstore.bigtable.table import BigtableTable, Cells
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.limits import Limits
from tierstore.types.ids import Version

_PREFIX = b"\x00d"
_VERSION_BYTES = 16
_WRITTEN = b"w"


@dataclass(frozen=True, slots=True)
class Hint:
    """Look at the row ``key`` at ``instant``, for a write of ``version``."""

    instant: UnixMicros
    version: Version
    key: bytes

    @property
    def name(self) -> bytes:
        """The hint's own row key."""
        return _PREFIX + instant_bytes(self.instant) + self.version + self.key

    @classmethod
    def from_name(cls, name: bytes) -> "Hint":
        """The hint whose row key is ``name``."""
        start = len(_PREFIX)
        version = start + INSTANT_BYTES
        key = version + _VERSION_BYTES
        return cls(instant_of(name[start:version]), name[version:key], name[key:])


@dataclass(frozen=True, slots=True)
class Looked:
    """What a hint's row turned out to be: its version and content, if it can be read."""

    version: Version
    points: bool
    expires: UnixMicros | None


class DeadlineHints:
    """The hints of one table."""

    def __init__(self, table: BigtableTable, clock: Clock, limits: Limits) -> None:
        self._table = table
        self._clock = clock
        self._limits = limits
        self._over: dict[bytes, None] = {}
        """Names of hints whose writes have been seen done, so that they can go when their rows are others."""

    async def add(self, key: bytes, version: Version, expires: UnixMicros) -> None:
        """Make the row be looked at when ``expires`` has come. Safe to repeat."""
        await self._table.write_rows({Hint(expires, version, key).name: [self._written()]})

    async def due(
        self,
        by: UnixMicros,
        limit: int,
        wanted: Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, Cells]]],
        look: Callable[[bytes, Cells], Looked | None],
    ) -> list[bytes]:
        """Keys of rows that are tombstones whose deadline is at or before ``by``, earliest first, at most ``limit``.

        ``wanted`` reads the rows, and ``look`` tells what one is, or None for what cannot be read.
        """
        found: dict[bytes, UnixMicros] = {}
        rows = self._limits.bigtable_page_rows
        end = _PREFIX + instant_bytes(by + 1)
        async for page in self._table.pages(_PREFIX, end, family(INDEX), rows):
            hints = {Hint.from_name(name): cells for name, cells in page}
            cells_by_key = await wanted(list({hint.key: None for hint in hints}))
            looked = {key: look(key, cells) for key, cells in cells_by_key.items()}
            for key, row in looked.items():
                if row is not None and row.points and row.expires is not None and row.expires <= by:
                    found[key] = row.expires
            await self._tidy(hints, cells_by_key, looked)
            seen_to = Hint.from_name(page[-1][0]).instant
            if sum(expires <= seen_to for expires in found.values()) >= limit:
                break
        return sorted(found, key=lambda key: (found[key], key))[:limit]

    async def _tidy(
        self, hints: Mapping[Hint, Cells], cells_by_key: Mapping[bytes, Cells], looked: Mapping[bytes, Looked | None]
    ) -> None:
        """Move hints whose rows are to be looked at later, and remove those that are for nothing any more."""
        later: list[bytes] = []
        over: list[bytes] = []
        for hint, cells in hints.items():
            row = looked.get(hint.key)
            if row is None and hint.key in cells_by_key:
                continue  # it cannot be read, and so says nothing
            done = row is not None and row.version == hint.version
            if done:
                self._remember(hint.name)
            if row is not None and row.points and row.expires is not None:
                if row.expires <= hint.instant or not (done or self._is_over(hint, cells)):
                    continue
                later.append(Hint(row.expires, row.version, hint.key).name)
                over.append(hint.name)
            elif self._is_over(hint, cells):
                over.append(hint.name)
        moved = SetCell(INDEX, _WRITTEN, b"", timestamp_micros=0)  # for no write that is still to come
        await self._table.write_rows({name: [moved] for name in later})  # first the new ones
        await self._table.write_rows({name: [DeleteAllFromRow()] for name in over})
        for name in over:
            self._over.pop(name, None)

    def _is_over(self, hint: Hint, cells: Cells) -> bool:
        """Whether the write that the hint is for has happened, or never will."""
        if hint.name in self._over:
            return True
        written = cells.get((INDEX, _WRITTEN), b"")
        before = self._clock.now() - round(self._limits.new_entry_kept_seconds_min * MICROS_PER_SECOND)
        return len(written) != INSTANT_BYTES or instant_of(written) <= before

    def _remember(self, name: bytes) -> None:
        self._over[name] = None
        while len(self._over) > self._limits.bigtable_hints_known_max:
            del self._over[next(iter(self._over))]

    def _written(self) -> SetCell:
        return SetCell(INDEX, _WRITTEN, instant_bytes(self._clock.now()), timestamp_micros=0)
