"""The stores on Bigtable keep the laws, on Google's emulator."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from struct import Struct
from uuid import UUID

import pytest
import xxhash

from tests.engines.bigtable_emulator import NEVER_SECONDS, VARIABLE, BigtableEmulator
from tests.engines.bigtable_raw import RawCell, RawTable
from tests.engines.bigtable_stores import open_change_log, open_high_volume
from tierstore.backends.high_volume.bigtable import BigtableHighVolume
from tierstore.backends.high_volume.contract import Content, Gone, Inline, Tombstone
from tierstore.changelog.bigtable import BigtableChangeLog
from tierstore.changelog.entries import Entry, Role, State
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.changelog import ChangeLogLaws
from tierstore.testing.laws.high_volume import HighVolumeLaws, RawRow
from tierstore.types.ids import ObjectId, Revision

STORED_ENTRY = Struct(">cc?xQQqq")
FOREVER = 253_402_300_799_000_000


def key_of(path: str) -> bytes:
    """The row key of a storage path, by what the decision page says of it."""
    encoded = path.encode()
    return encoded if len(encoded) <= 4_000 else encoded[:4_000] + b"\xff" + sha256(encoded).digest()


def instant(value: int) -> bytes:
    """As the stores write instants."""
    return (value + (1 << 63)).to_bytes(8)


class TestBigtableChangeLog(ChangeLogLaws):
    """The change log in a table of Bigtable."""

    @pytest.fixture(autouse=True)
    def _store(self, bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
        self.clock = ManualClock()
        self.table = bigtable_emulator.make_table("entry", "index")
        self.raw = RawTable(self.table)
        self.opened = 0
        yield
        self.raw.close()

    async def open(self) -> BigtableChangeLog:
        self.opened += 1
        return await open_change_log(self.table, self.clock, SeededIds(self.opened))

    async def stored(self) -> Sequence[Entry]:
        entries = []
        for key, cells in self.raw.rows().items():
            latest: dict[tuple[str, bytes], bytes] = {}
            for cell in cells:
                latest.setdefault((cell.family, cell.qualifier), cell.value)
            path = latest.get(("index", b"l"), key)
            for (family, name), value in latest.items():
                if family != "entry":
                    continue
                assert ("index", b"t") in latest, "an entry without its row's mark"
                role, state, is_upload, epoch, sweeps, recorded, not_before = STORED_ENTRY.unpack_from(value)
                entries.append(
                    Entry(
                        revision=Revision(ObjectId.from_storage_path(path.decode()), UUID(bytes=name[:16])),
                        owner=UUID(bytes=name[16:]),
                        role={b"n": Role.NEW, b"o": Role.OLD}[role],
                        state={b"o": State.OPEN, b"c": State.CONDEMNED, b"d": State.DONE}[state],
                        epoch=epoch,
                        sweeps=sweeps,
                        recorded=recorded,
                        not_before=not_before,
                        upload=value[STORED_ENTRY.size :] if is_upload else None,
                    )
                )
        return entries

    async def plant(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            path = entry.revision.object_id.storage_path
            value = STORED_ENTRY.pack(
                entry.role.value[:1].encode(),
                entry.state.value[:1].encode(),
                entry.upload is not None,
                entry.epoch,
                entry.sweeps,
                entry.recorded,
                entry.not_before,
            ) + (entry.upload or b"")
            hint = b"\x00t" + instant(entry.not_before) + entry.owner.bytes + key_of(path)
            self.raw.put(hint, RawCell("index", b"w", 0, instant(entry.recorded)))
            self.raw.put(b"\x00o" + entry.owner.bytes, RawCell("index", hint, 0, b""))
            name = entry.revision.uuid.bytes + entry.owner.bytes
            cells = [RawCell("entry", name, 0, value), RawCell("index", b"t", 0, b"planted".ljust(16))]
            if key_of(path) != path.encode():
                cells.append(RawCell("index", b"l", 0, path.encode()))
            self.raw.put(key_of(path), *cells)


class TestBigtableHighVolume(HighVolumeLaws):
    """The rows in a table of Bigtable, where nothing that is superseded or expired is ever collected."""

    removes_inline = True

    @pytest.fixture(autouse=True)
    def _store(self, bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
        self.clock = ManualClock()
        self.table = bigtable_emulator.make_table(
            "index", kept_seconds={"row": NEVER_SECONDS, "payload": NEVER_SECONDS}
        )
        self.raw = RawTable(self.table)
        self.opened = 0
        yield
        self.raw.close()

    async def open(self) -> BigtableHighVolume:
        self.opened += 1
        return await open_high_volume(self.table, self.clock, SeededIds(self.opened))

    async def stored(self, object_id: ObjectId) -> RawRow | None:
        latest: dict[tuple[str, bytes], bytes] = {}
        for cell in self.raw.cells(key_of(object_id.storage_path)):
            latest.setdefault((cell.family, cell.qualifier), cell.value)
        if not latest:
            return None
        record, head, deadline = (latest.get(("row", name), b"") for name in (b"v", b"h", b"d"))
        content: Content = Gone()
        if head[:1] == b"i":
            content = Inline(head[1:], latest["payload", b"p"])
        elif head[:1] == b"t":
            content = Tombstone(head[17:], UUID(bytes=head[1:17]))
        assert isinstance(content, Inline) == (("payload", b"p") in latest), "a payload without its row"
        expires = int.from_bytes(deadline[-8:]) - (1 << 63) if deadline else None
        return RawRow(record[-24:-8], content, expires, int.from_bytes(record[-8:]) - (1 << 63))

    async def plant(self, object_id: ObjectId, row: RawRow) -> None:
        path = object_id.storage_path.encode()
        key = key_of(object_id.storage_path)
        cells = [("row", b"v", row.version + instant(row.changed)), ("row", b"f", row.version)]
        match row.content:
            case Inline(metadata, payload):
                cells += [("row", b"h", b"i" + metadata)]
                cells += [("payload", b"p", payload), ("payload", b"s", xxhash.xxh3_128_digest(payload))]
            case Tombstone(metadata, revision):
                cells += [("row", b"h", b"t" + revision.bytes + metadata)]
            case Gone():
                cells += [("row", b"h", b"g")]
        if row.expires is not None:
            cells += [("row", b"d", instant(row.expires))]
            if isinstance(row.content, Tombstone):
                hint = b"\x00d" + instant(row.expires) + row.version + key
                self.raw.put(hint, RawCell("index", b"w", 0, instant(row.changed)))
        if key != path:
            cells += [("row", b"l", path)]
        self.raw.remove(key)
        self.raw.put(key, *(RawCell(family, qualifier, FOREVER, value) for family, qualifier, value in cells))

    async def damage(self, object_id: ObjectId, payload: bytes) -> None:
        key = key_of(object_id.storage_path)
        [cell] = [cell for cell in self.raw.cells(key) if cell.qualifier == b"p"]
        self.raw.put(key, RawCell("payload", b"p", cell.timestamp, payload))
