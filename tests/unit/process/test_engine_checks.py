"""Laws of `tierstore.process.engine_checks`, and of the command that shows what it finds."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tierstore.backends.high_volume.contract import Content
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats
from tierstore.build import Stores
from tierstore.changelog.entries import Entry
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import Unavailable
from tierstore.limits import Limits
from tierstore.process.engine_checks import CHECK_USECASE, Finding, try_promises
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import FailBefore, FaultScript, FaultyLongTerm
from tierstore.testing.ids import SeededIds
from tierstore.testing.planted import PLANTED
from tierstore.types.ids import ObjectId, Revision, Version

NOW = 1_700_000_000 * MICROS_PER_SECOND


class World:
    """Stores in memory, each opened twice."""

    def __init__(self, repeats: Repeats = Repeats.SUCCEED, limits: Limits | None = None) -> None:
        self.clock, self.limits = ManualClock(NOW), limits or Limits()
        self.store_clock = ManualClock(NOW)
        self.rows, self.blobs, self.entries = MemoryRows(), MemoryBlobs(), MemoryEntries()
        self.repeats = repeats

    def opened(self, seed: int) -> Stores:
        """The stores as one server has them."""
        clock = self.store_clock
        return Stores(
            MemoryHighVolume(self.rows, clock=clock, ids=SeededIds(seed)),
            MemoryLongTerm(self.blobs, limits=self.limits, clock=clock, repeats=self.repeats),
            MemoryChangeLog(self.entries, clock=clock),
        )

    async def findings(self, change: Callable[[Stores], Stores] = lambda stores: stores) -> Sequence[Finding]:
        """What is found on stores that ``change`` was made to."""
        found: list[Finding] = []
        stores = change(self.opened(1)), change(self.opened(2))
        failed = await try_promises(stores, Limits(), self.clock, SeededIds(3), found.append)
        assert failed == sum(finding.problem is not None for finding in found)
        return found


def problems(findings: Sequence[Finding]) -> str:
    """The words about all promises that were not kept."""
    return "\n".join(f"{each.store}: {each.problem}" for each in findings if each.problem is not None)


@pytest.mark.parametrize("repeats", Repeats)
async def test_sound_stores_keep_every_promise(repeats: Repeats) -> None:
    """On stores that obey the laws nothing is found, and nothing but markers of deletes is left."""
    world = World(repeats)
    findings = await world.findings()
    assert problems(findings) == ""
    assert {each.store for each in findings} == {"high-volume store", "long-term store", "change log"}
    assert world.entries.by_key == {}
    assert world.blobs.by_revision == {}
    assert world.blobs.uploads == {}
    rows = world.rows.by_id
    assert {object_id.usecase for object_id in rows} == {CHECK_USECASE}
    assert {type(row.content).__name__ for row in rows.values()} == {"Gone"}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("version-cas", "high-volume store: a writer that compares with what was there before gets through"),
        ("gone-marker", "high-volume store: a delete leaves no marker"),
        ("token", "high-volume store: a write that was fenced off gets through"),
        ("fence", "high-volume store: a write that was fenced off gets through"),
        ("time", "high-volume store: a write whose time was over 5 seconds ago is accepted"),
        ("record-old", "change log: what one server has recorded, another does not find"),
        ("revalidate", "change log: a write that was given up can go on"),
        ("mark-done", "change log: that an upload was completed is not remembered"),
        ("abort-first", "long-term store: an upload that was aborted can still be completed"),
    ],
)
async def test_a_broken_promise_is_found(rule: str, words: str) -> None:
    """A store that takes one rule of the protocol away is found by it, and the words say what is wrong."""
    assert words in problems(await World().findings(PLANTED[rule]))


class _ComparesFirst(MemoryHighVolume):
    """Compares and writes in two steps."""

    async def compare_and_write(
        self,
        object_id: ObjectId,
        expected: Version | None,
        content: Content,
        expires: UnixMicros | None,
        **conditions: UnixMicros | None,
    ) -> Version | None:
        row = self._rows.get(object_id)
        if (None if row is None else row.version) != expected:
            return None
        await self._clock.sleep(0)
        return self._store(object_id, content, expires)


class _TakesFirst(MemoryChangeLog):
    """Looks at an entry and takes it in two steps."""

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        await self.check()
        (own,) = await self.find(entry.revision)
        return await super().condemn(replace(entry, state=own.state, epoch=own.epoch), lease_until)


async def test_steps_that_are_not_one_are_found() -> None:
    """Stores that compare in one step and write in another lose against many at once, and are found by that."""

    def high_volume(stores: Stores) -> Stores:
        sound = stores.high_volume
        assert isinstance(sound, MemoryHighVolume)
        wrong = _ComparesFirst(sound._store_of_rows, clock=sound._clock, ids=sound._ids)
        return replace(stores, high_volume=wrong)

    def change_log(stores: Stores) -> Stores:
        sound = stores.changelog
        assert isinstance(sound, MemoryChangeLog)
        return replace(stores, changelog=_TakesFirst(sound._store, clock=sound._clock))

    assert "of 16 writers at once that compare, " in problems(await World().findings(high_volume))
    assert "of 16 sweepers at once, " in problems(await World().findings(change_log))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-30, "high-volume store: a write whose time was over 5 seconds ago is accepted: the store's clock is slow"),
        (30, "high-volume store: a write that has 5 seconds left is refused as late: the store's clock is fast"),
        (30, "long-term store: the store's clock differs from this machine's by +30 seconds"),
        (90, "long-term store: a write that has a minute left is refused as late"),
    ],
)
async def test_clocks_that_differ_are_found(seconds: int, words: str) -> None:
    """A store whose clock is not this machine's is found."""
    world = World()
    world.store_clock = ManualClock(NOW + seconds * MICROS_PER_SECOND)
    assert words in problems(await world.findings())


async def test_a_part_min_that_is_too_small_is_found() -> None:
    """Where the store wants larger parts than the settings say, the words name the setting."""
    words = problems(await World(limits=replace(Limits(), part_bytes_min=1000)).findings())
    assert "the store wants larger parts than uploads.part_min, 0 bytes: set it to" in words


async def test_a_store_that_refuses_is_told_with_its_words() -> None:
    """What a store raises is the problem of that check, and the others are made all the same."""
    script = FaultScript()
    script.at("long_term.put", *[FailBefore(Unavailable("the bucket is closed")) for _ in range(2)])
    findings = await World().findings(
        lambda stores: replace(stores, long_term=FaultyLongTerm(stores.long_term, script))
    )
    assert len(findings) == len(await World().findings())
    failed = [each for each in findings if each.problem is not None]
    assert failed
    assert {each.store for each in failed} == {"long-term store"}
    assert all(each.problem == "Unavailable: the bucket is closed" for each in failed)


class _FindsNothing(MemoryChangeLog):
    """Keeps what is recorded, and does not find it."""

    async def find(self, revision: Revision) -> Sequence[Entry]:
        await super().find(revision)
        return []


async def test_a_log_that_finds_nothing_is_found() -> None:
    """By words of each check that looks there, and all checks are made."""

    def change_log(stores: Stores) -> Stores:
        sound = stores.changelog
        assert isinstance(sound, MemoryChangeLog)
        return replace(stores, changelog=_FindsNothing(sound._store, clock=sound._clock))

    findings = await World().findings(change_log)
    assert len(findings) == len(await World().findings())
    assert problems(findings).count("change log: what one server has recorded, another does not find") == 2


async def test_a_check_that_may_not_abort_leaves_no_blob() -> None:
    """A permission that is missing for uploads keeps the checks from nothing else that they have to take away."""
    world, script = World(), FaultScript()
    script.at("long_term.abort", *[FailBefore(Unavailable("no permission")) for _ in range(99)])
    await world.findings(lambda stores: replace(stores, long_term=FaultyLongTerm(stores.long_term, script)))
    assert world.blobs.by_revision == {}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "tierstore", "engines", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_shows_each_promise(tmp_path: Path) -> None:
    """The command tries the configured stores: a line for each promise, exit code 0 if all are kept."""
    for_people, for_programs = run("--data", str(tmp_path)), run("--data", str(tmp_path), "--json")
    assert (for_people.returncode, for_people.stderr) == (0, "")
    assert all(line.startswith("ok    ") for line in for_people.stdout.splitlines())
    lines = [json.loads(line) for line in for_programs.stdout.splitlines()]
    assert len(lines) == len(for_people.stdout.splitlines())
    assert all(line["kept"] and line["problem"] is None for line in lines)


def test_the_command_says_how_many_are_broken(tmp_path: Path) -> None:
    """With stores that cannot be opened there is one sentence, and exit code 1."""
    (tmp_path / "file").touch()
    ended = run("--data", str(tmp_path / "file"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("tierstore: ")
