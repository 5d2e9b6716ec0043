"""Acknowledged means there: what the stores promise survives the loss of power."""

import re
from collections.abc import Callable, Sequence
from random import Random

import pytest

from tests.power_loss.exploration import (
    explore,
    record,
    record_deaths,
    record_failures,
    record_played,
    record_processes,
    scratch,
    search,
    try_state,
)
from tests.power_loss.history import Action, Recording
from tests.power_loss.journal import ROOT, CrashState, Names, Synced, Wrote, draw, pending
from tests.power_loss.lying_disks import LIES, Lie
from tests.power_loss.recorded_disk import disk_or_skip

STATES = 40
LYING_STATES_MAX = 300


@pytest.fixture(scope="module", autouse=True)
def _disk() -> None:
    """Skip where there can be no recorded disk."""
    with scratch() as directory, disk_or_skip(directory):
        return


@pytest.fixture(scope="module")
def recording() -> Recording:
    """One recording for all that lie about it."""
    return record(1, 40)


@pytest.mark.parametrize("seed", [1, 2])
def test_promises_survive(seed: int) -> None:
    """Whenever the power goes, and whatever of the unsynced is lost with it, every promise is kept."""
    counts = explore(record(seed, 40), seed, STATES)
    assert counts["states"] == STATES
    assert counts["lost_steps"] > STATES
    assert counts["torn_writes"]


def test_promises_survive_deaths_of_processes() -> None:
    """So it is when processes die before, and others go on with what these had not synced."""
    assert explore(record_deaths(3, 12, 3), 3, STATES)["states"] == STATES


def test_promises_survive_a_second_loss() -> None:
    """So it is for what was written on a disk that had lost power before, the older promises included."""
    random = Random(4)
    first = record(4, 25)
    left = draw(first.journal, random.choice(first.promises), random)
    assert explore(record(5, 15, first.after(left)), 4, STATES)["states"] == STATES


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_lying_disk_is_found_out(lie: Lie, recording: Recording) -> None:
    """Each kind of sync is needed: without it some promise is broken, and that is seen."""
    told = lie(recording.journal)
    assert told != recording.journal, "there is something to lie about"
    _, failure = search(Recording(told), 1, LYING_STATES_MAX)
    assert failure is not None
    assert str(failure.error)


def test_promises_survive_failures_of_the_disk() -> None:
    """So it is when steps fail with an I/O error, and clients try again: a sync that failed has synced nothing."""
    assert explore(record_failures(6, 25, 12), 6, STATES)["states"] == STATES


def completion(begun: Recording) -> Action:
    """What completes the upload of `UPLOAD`."""
    history = begun.history(len(begun.journal))
    (number,) = history.uploads
    (part,) = [each for each in history.operations.values() if each.action.verb == "part"]
    return Action("complete", "k0", upload=number, parts=((part.action.part, part.result or ""),))


def deletion(_: Recording) -> Action:
    """What deletes the object of `SMALL`."""
    return Action("delete", "k0")


UPLOAD = [Action("initiate", "k0"), Action("part", "k0", 3_000, upload=2, part=1)]
SMALL = [Action("put", "k0", 100)]


@pytest.mark.parametrize(("before", "last"), [(SMALL, deletion), (UPLOAD, completion)], ids=["delete", "complete"])
def test_what_a_dead_process_had_not_synced_is_synced_before_it_is_promised(
    before: Sequence[Action], last: Callable[[Recording], Action]
) -> None:
    """A process dies between writing a commit and syncing it; its client tries again, and is told that it is done.

    The next process finds the commit, and so has nothing to write. It is durable all the same before anybody is told.
    """
    begun = record_played(1, before)
    action = last(begun)
    fatal = sync_of(record_played(2, [action], begun.journal), r"stores/high-volume\.sqlite3-wal")
    died, lived = record_processes(2, [[action], []], begun.journal, [fatal])
    assert lived == [False, True]
    assert not died.history(len(died.journal)).in_doubt, "the client has tried again, and was told"
    check_worst(died)


def test_directory_that_a_dead_process_made_is_synced_before_anything_is_promised() -> None:
    """A process dies in the very first start, between making the stores' directory and syncing its name.

    The next process finds the directory, and what it promises does not go with it.
    """
    put = [Action("put", "k0", 100), Action("put", "k1", 3_000)]
    fatal = next(at for at, step in enumerate(record_played(1, []).journal) if step == Synced(ROOT))
    died, lived = record_processes(1, [[], put], (), [fatal])
    assert lived == [False, True]
    check_worst(died)


def test_blob_whose_name_could_not_be_synced_is_not_promised() -> None:
    """The sync of the blob's name fails once while an upload is completed: then the blob is there, and may be lost."""
    begun = record_played(1, UPLOAD)
    action = completion(begun)
    names = r"stores/long-term/blobs/[0-9a-f]{3}"
    failing = sync_of(record_played(2, [action], begun.journal), names)
    failed = record_played(2, [action], begun.journal, [failing])
    assert failed.history(len(failed.journal)).operations[len(UPLOAD) + 3].acknowledged
    check_worst(failed)


def sync_of(recording: Recording, name: str) -> int:
    """The first sync after the start of what is called so; of a WAL: that comes right after a frame."""
    names = Names()
    for at, step in enumerate(recording.journal):
        names.follow(step)
        if at >= recording.start and isinstance(step, Synced) and re.fullmatch(name, names.path(step.inode)):
            before = recording.journal[at - 1]
            if not (isinstance(before, Wrote) and before.offset == 0):  # the header of a new WAL
                return at
    raise LookupError(f"nothing is synced that is called {name}")


def check_worst(recording: Recording) -> None:
    """Power goes right after the last promise, and all is lost that can be."""
    point = recording.promises[-1]
    try_state(recording, CrashState(point, frozenset(pending(recording.journal, point))), 7)
