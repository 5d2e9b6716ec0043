"""The stores in memory, on which the simulation runs, and all others answer recorded histories in the same way.

Where a store may answer something else is said in `tests.engines.histories.freedoms`, and what is replayed where in
`tests.engines.histories.stores`.
"""

import inspect
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.engines.bigtable_emulator import VARIABLE, BigtableEmulator
from tests.engines.engine import memory_folder
from tests.engines.fake_gcs import FakeGcs
from tests.engines.gcs_tokens import credentials_file
from tests.engines.gcs_xml import StrictGcs
from tests.engines.histories import stores
from tests.engines.histories.__main__ import main, recorded
from tests.engines.histories.coverage import KINDS, STORES, kinds, server_of
from tests.engines.histories.freedoms import Freedom
from tests.engines.histories.notation import History, is_octets, read_octets, written_octets
from tests.engines.histories.recording import simulated, strolled
from tests.engines.histories.replay import Disagreement, Report, beginning, replay
from tests.engines.histories.stores import CHANGELOG, HIGH_VOLUME, LONG_TERM, Store
from tests.engines.postgres import Postgres
from tests.engines.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFs
from tierstore.backends.high_volume.contract import Content, HighVolumeBackend
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.contract import BlobInfo, LongTermBackend
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm
from tierstore.build import Stores
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.clock import UnixMicros
from tierstore.limits import MIB
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.planted import PLANTED
from tierstore.types.ids import ObjectId, Revision, Version
from tierstore.types.multipart import Part, UploadId

HISTORIES = recorded()
CONTRACTS = dict(zip(STORES, (HighVolumeBackend, LongTermBackend, ChangeLog), strict=True))
_ROOM_BYTES = 1 << 30
_LEFT_OUT_MAX = 1 / 8
"""How much may be left out of what is replayed at an engine that refuses small parts."""


async def replayed(store: Store, histories: Sequence[History] = HISTORIES) -> Report:
    """Replay ``histories`` at ``store``. Every call of its contract is made and compared, or counted as left out."""
    total = Report()
    for history in histories:
        now = time.time_ns() // 1_000
        clock = ManualClock(now)
        async with store.open(history, clock) as backend:
            report = await replay(history, store, backend, clock, beginning(now))
        total.compared += report.compared
        total.freedoms += report.freedoms
        total.left_out += report.left_out
    calls = sum(call.store == store.contract for history in histories for call in history.calls)
    assert total.compared + total.left_out.total() == calls
    assert total.left_out.total() <= _LEFT_OUT_MAX * calls
    return total


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose syncs cost nothing, where there is one."""
    with tempfile.TemporaryDirectory(prefix="tierstore-histories-", dir=memory_folder(_ROOM_BYTES)) as path:
        yield Path(path)


# The stores


@pytest.mark.parametrize(
    "store",
    [
        Store(HIGH_VOLUME, stores.memory_high_volume, strictly=True),
        Store(LONG_TERM, stores.memory_long_term, strictly=True),
        Store(CHANGELOG, stores.memory_changelog, strictly=True),
    ],
    ids=STORES,
)
async def test_memory_answers_the_same_again(store: Store) -> None:
    """With no freedom but names: so what is written down is what was answered, and the order is that of the effects."""
    report = await replayed(store)
    assert set(report.freedoms) <= {Freedom.VERSIONS, Freedom.FENCES, Freedom.ETAGS, Freedom.UPLOAD_IDS}


async def test_sqlite_high_volume_agrees(folder: Path) -> None:
    """Rows in a SQLite file."""
    await replayed(Store(HIGH_VOLUME, stores.sqlite_high_volume(folder)))


async def test_sqlite_changelog_agrees(folder: Path) -> None:
    """Entries in a SQLite file."""
    await replayed(Store(CHANGELOG, stores.sqlite_changelog(folder)))


async def test_filesystem_agrees(folder: Path) -> None:
    """Blobs in a directory."""
    await replayed(Store(LONG_TERM, stores.filesystem_long_term(folder)))


async def test_postgres_high_volume_agrees(postgres: Postgres) -> None:
    """Rows in PostgreSQL."""
    await replayed(Store(HIGH_VOLUME, stores.postgres_high_volume(postgres)))


async def test_postgres_changelog_agrees(postgres: Postgres) -> None:
    """Entries in PostgreSQL."""
    await replayed(Store(CHANGELOG, stores.postgres_changelog(postgres)))


async def test_bigtable_high_volume_agrees(
    bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in Bigtable, which removes expired inline rows by itself."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    await replayed(Store(HIGH_VOLUME, stores.bigtable_high_volume(bigtable_emulator), removes_inline=True))


async def test_bigtable_changelog_agrees(bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries in Bigtable."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    await replayed(Store(CHANGELOG, stores.bigtable_changelog(bigtable_emulator)))


async def test_s3_agrees(seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs in SeaweedFS. Some uploads it does not make, and those with parts that are large enough it does."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    store = Store(LONG_TERM, stores.s3_long_term(seaweedfs), part_bytes_min=5 * MIB)
    large = [history for history in HISTORIES if history.limits["part_bytes_min"] == 5 * MIB]
    report = await replayed(store, [history for history in HISTORIES if history not in large])
    assert report.left_out["long_term.complete"] > 0
    assert any(call.name == "long_term.complete" and call.error is None for history in large for call in history.calls)
    assert not (await replayed(store, large)).left_out


async def test_gcs_agrees(fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs in Google Cloud Storage, by a service that takes parts of any size: the smallest one is the settings'."""
    bucket = fake_gcs.new_bucket()
    async with StrictGcs(fake_gcs.url, part_bytes_min=0) as server:
        await server.make_bucket(bucket)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials_file(tmp_path, server.token_uri)))
        await replayed(Store(LONG_TERM, stores.gcs_long_term(server, bucket)))


# What is replayed


def test_every_method_gives_every_kind_of_answer() -> None:
    """The recorded histories have each method of each contract, but `close`, with each kind of answer."""
    covered = Counter[tuple[str, str]]()
    for history in HISTORIES:
        covered += kinds(history.calls)
    assert {f"{store}.{name}" for store in STORES for name in CONTRACTS[store].__abstractmethods__ - {"close"}} == {
        *KINDS
    }
    assert {*covered} == {(name, kind) for name, all_kinds in KINDS.items() for kind in all_kinds}


def test_several_servers_are_in_a_run() -> None:
    """Of the simulation's histories each has two servers or more, whose calls alternate."""
    for history in HISTORIES:
        if history.name.startswith("simulation"):
            servers = [server_of(call) for call in history.calls if " of server " in call.by]
            assert len({*servers}) > 1
            assert sum(before != after for before, after in pairwise(servers)) > 1


@pytest.mark.parametrize("record", [lambda: simulated(3), lambda: strolled(3, 10)], ids=["simulation", "stroll"])
def test_a_seed_gives_one_history(record: Callable[[], History], tmp_path: Path) -> None:
    """Byte for byte; and what is written is what is read."""
    first, second = record(), record()
    assert [*first.lines()] == [*second.lines()]
    path = tmp_path / f"{first.name}.jsonl"
    path.write_text("\n".join(first.lines()) + "\n")
    assert History.read(path) == first


@pytest.mark.parametrize("octets", [b"", b"plain", b"\x00\xff", b"text: \n", b"0123456789abcdef" * 4096])
def test_octets_are_read_as_they_were_written(octets: bytes) -> None:
    """Text, other bytes, and long repetitions; of other long ones only whether they are the same."""
    assert read_octets(written_octets(octets)) == octets
    assert is_octets(written_octets(octets), octets)
    long = octets + bytes(5_000) + b"\x01"
    assert len(written_octets(long)) < 100
    assert is_octets(written_octets(long), long)
    assert not is_octets(written_octets(long), long + b"\x01")


def test_the_command_tells_what_is_covered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes what it has chosen, and fails where kinds of answers are missing."""
    few = ["--seeds", "6", "--kept", "2", "--strolls", "1", "--steps", "5", "--calls", "1000"]
    assert main([*few, "--write", "--folder", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "changelog.claim: " in told
    assert "not covered: nothing" not in told
    assert len([*tmp_path.glob("simulation-*.jsonl")]) == 2
    assert len([*tmp_path.glob("stroll-*.jsonl")]) == 2


@pytest.mark.parametrize("freedom", Freedom, ids=lambda freedom: freedom.name)
def test_freedoms_are_the_contracts(freedom: Freedom) -> None:
    """Each rests on a sentence that a contract has."""
    assert freedom.sentence in " ".join(inspect.getsource(freedom.module).split())


# That differences are found


@pytest.mark.parametrize("rule", sorted(PLANTED))
async def test_a_planted_bug_is_found(rule: str) -> None:
    """Stores in memory that do not keep a rule of the protocol do not agree with those that do."""
    for store in STORES:
        if await disagrees(rule, store):
            return
    pytest.fail("the stores agree")


async def disagrees(rule: str, contract: str) -> bool:
    """Whether the bug is seen in what the store of ``contract`` answers."""

    def broken(history: History, clock: ManualClock) -> stores.Opened:
        right = Stores(
            MemoryHighVolume(MemoryRows(), clock=clock, ids=SeededIds(1)),
            MemoryLongTerm(MemoryBlobs(), limits=stores.limits_of(history), clock=clock),
            MemoryChangeLog(MemoryEntries(), clock=clock),
        )
        return stores.closing(getattr(PLANTED[rule](right), contract))

    try:
        await replayed(Store(contract, broken))
    except Disagreement:
        return True
    return False


class _FenceAnewEachTime(MemoryHighVolume):
    """``fenced`` does not stay."""

    def _store(self, object_id: ObjectId, content: Content, expires: UnixMicros | None) -> Version:
        version = super()._store(object_id, content, expires)
        self._rows[object_id] = replace(self._rows[object_id], fenced=version)
        return version


class _VersionsOnceMore(MemoryHighVolume):
    """The version stays when the content does."""

    def _store(self, object_id: ObjectId, content: Content, expires: UnixMicros | None) -> Version:
        before = self._rows.get(object_id)
        version = super()._store(object_id, content, expires)
        if before is not None and before.content == content:
            self._rows[object_id] = replace(self._rows[object_id], version=before.version)
            return before.version
        return version


class _OneTagForAll(MemoryLongTerm):
    """Parts with other content have the same ETag."""

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        part = replace(await super().upload_part(upload, number, source, size, md5), etag="same")
        self._blobs.uploads[upload.revision].parts[number].part = part
        return part


class _LastBlobUnlisted(MemoryLongTerm):
    """A listing ends early."""

    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        page = await super().list(prefix, after, limit)
        return page if after is None else page[:-1]


@pytest.mark.parametrize("bug", [_FenceAnewEachTime, _VersionsOnceMore, _OneTagForAll, _LastBlobUnlisted])
async def test_what_is_free_is_not_arbitrary(bug: type[MemoryHighVolume] | type[MemoryLongTerm]) -> None:
    """Names may be others, and the order of blobs: but what is the same must be, and what is not must not be."""

    def broken(history: History, clock: ManualClock) -> stores.Opened:
        if issubclass(bug, MemoryHighVolume):
            return stores.closing(bug(MemoryRows(), clock=clock, ids=SeededIds(1)))
        return stores.closing(bug(MemoryBlobs(), limits=stores.limits_of(history), clock=clock))

    contract = HIGH_VOLUME if issubclass(bug, MemoryHighVolume) else LONG_TERM
    with pytest.raises(Disagreement):
        await replayed(Store(contract, broken))


async def test_a_disagreement_tells_what_led_to_it() -> None:
    """Which call of which history, what was wanted and found, and what was asked before about the same thing."""

    def broken(_: History, clock: ManualClock) -> stores.Opened:
        return stores.closing(_FenceAnewEachTime(MemoryRows(), clock=clock, ids=SeededIds(1)))

    with pytest.raises(Disagreement) as raised:
        await replayed(Store(HIGH_VOLUME, broken))
    told = str(raised.value)
    assert "recorded: " in told
    assert "found:    fence " in told
    assert "before it, about the same:\n" in told
    assert "high_volume.put_inline {" in told
