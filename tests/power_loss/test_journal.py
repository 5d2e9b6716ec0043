"""What a journal says of the disk after a loss of power."""

from random import Random

import pytest

from tests.power_loss.journal import (
    ROOT,
    SECTOR_BYTES,
    CrashState,
    Made,
    Named,
    Names,
    Resized,
    Step,
    Synced,
    Tree,
    Wrote,
    draw,
    pending,
    survived,
    survivors,
)

DIRECTORY, FILE, OTHER = 2, 3, 4


def new_file(inode: int, name: str, directory: int = ROOT) -> list[Step]:
    """The steps that make an empty file."""
    return [Made(inode, False), Named(((directory, name, inode),))]


def all_lost(journal: list[Step]) -> Tree:
    """What is left when everything is lost that can be."""
    return survivors(journal, CrashState(len(journal), frozenset(pending(journal, len(journal)))))


def test_synced_file_without_synced_name_may_be_lost() -> None:
    """Syncing a file makes its bytes durable, not its name."""
    journal = [*new_file(FILE, "f"), Wrote(FILE, 0, b"x"), Synced(FILE)]
    assert all_lost(journal).find("f") is None
    assert pending(journal, len(journal)) == [1]


def test_synced_name_without_synced_bytes_may_be_empty() -> None:
    """Syncing a directory makes names durable, not what is in the files."""
    journal = [*new_file(FILE, "f"), Wrote(FILE, 0, b"x"), Synced(ROOT)]
    tree = all_lost(journal)
    assert tree.find("f") == FILE
    assert tree.files[FILE] == b""


def test_file_in_a_directory_whose_own_name_was_not_synced_may_be_lost() -> None:
    """A directory's name is in another directory, which must be synced too."""
    journal: list[Step] = [Made(DIRECTORY, True), Named(((ROOT, "d", DIRECTORY),))]
    journal += [*new_file(FILE, "f", DIRECTORY), Synced(FILE), Synced(DIRECTORY)]
    assert all_lost(journal).find("d", "f") is None
    assert all_lost([*journal, Synced(ROOT)]).find("d", "f") == FILE


@pytest.mark.parametrize("synced", [ROOT, DIRECTORY])
def test_rename_is_durable_whole_with_either_directory(synced: int) -> None:
    """A rename from one directory to another survives whole or not at all, and one sync is enough for it."""
    journal: list[Step] = [Made(DIRECTORY, True), Named(((ROOT, "d", DIRECTORY),)), *new_file(FILE, "f"), Synced(ROOT)]
    journal.append(Named(((ROOT, "f", None), (DIRECTORY, "g", FILE))))
    before, after = all_lost(journal), all_lost([*journal, Synced(synced)])
    assert (before.find("f"), before.find("d", "g")) == (FILE, None)
    assert (after.find("f"), after.find("d", "g")) == (None, FILE)


def test_what_a_durable_change_replaced_does_not_come_back() -> None:
    """An older change of a name that could still be lost is as good as lost once a later one is durable."""
    journal = [*new_file(FILE, "f"), *new_file(OTHER, "f"), Synced(ROOT)]
    assert survivors(journal, CrashState(len(journal))).find("f") == OTHER
    assert all_lost(journal).find("f") == OTHER


def test_writes_after_the_last_sync_may_be_lost_each_for_itself() -> None:
    """A later write may survive an earlier one, and what is between is zeros."""
    journal = [*new_file(FILE, "f"), Synced(ROOT), Wrote(FILE, 0, b"ab"), Wrote(FILE, 2, b"cd")]
    assert pending(journal, len(journal)) == [3, 4]
    assert survivors(journal, CrashState(len(journal), frozenset([3]))).files[FILE] == b"\0\0cd"


def test_torn_write_lacks_sectors() -> None:
    """Any sectors of a write that was not synced may be missing; what was there before is there then."""
    old, new = b"o" * 3 * SECTOR_BYTES, b"n" * 3 * SECTOR_BYTES
    journal = [*new_file(FILE, "f"), Wrote(FILE, 0, old), Synced(FILE), Wrote(FILE, 0, new)]
    state = CrashState(len(journal), torn={4: frozenset([1])})
    kept = survivors(journal, state).files[FILE]
    assert kept == new[:SECTOR_BYTES] + old[:SECTOR_BYTES] + new[:SECTOR_BYTES]


def test_cut_that_was_not_synced_may_be_lost() -> None:
    """A file may be as long as it was before it was cut."""
    journal = [*new_file(FILE, "f"), Wrote(FILE, 0, b"abc"), Synced(FILE), Synced(ROOT), Resized(FILE, 1)]
    assert all_lost(journal).files[FILE] == b"abc"
    assert survivors(journal, CrashState(len(journal))).files[FILE] == b"a"


@pytest.mark.parametrize("seed", range(20))
def test_drawn_states_lose_nothing_durable(seed: int) -> None:
    """Whatever is drawn, only steps are lost or torn that nothing had made durable; and all kinds are drawn."""
    random = Random(seed)
    journal: list[Step] = [Made(DIRECTORY, True), Named(((ROOT, "d", DIRECTORY),)), *new_file(FILE, "f", DIRECTORY)]
    for _ in range(50):
        write = Wrote(FILE, random.randint(0, 9), random.randbytes(2_000))
        choices: list[Step] = [write, Resized(FILE, 3), Synced(FILE), Synced(ROOT)]
        drawn = random.choice(choices)
        journal += [drawn]
    for _ in range(50):
        state = draw(journal, random.randint(0, len(journal)), random)
        unsure = set(pending(journal, state.point))
        assert state.lost <= unsure
        assert set(state.torn) <= unsure - state.lost


def test_restarted_disk_has_the_same_contents_all_durable() -> None:
    """What survived a loss of power is durable from then on, hard links too."""
    journal: list[Step] = [Made(DIRECTORY, True), Named(((ROOT, "d", DIRECTORY),)), *new_file(FILE, "f", DIRECTORY)]
    journal += [Named(((ROOT, "g", FILE),)), Wrote(FILE, 0, b"abc")]
    tree = survivors(journal, CrashState(len(journal)))
    again = survived(tree)
    assert all_lost(again) == tree
    assert pending(again, len(again)) == []


def test_names_are_those_of_the_moment() -> None:
    """A file is called what it was called last, and keeps that name when it has none any more."""
    names = Names()
    steps: list[Step] = [Made(DIRECTORY, True), Named(((ROOT, "d", DIRECTORY),)), *new_file(FILE, "f", DIRECTORY)]
    for step in steps:
        names.follow(step)
    assert names.path(FILE) == "d/f"
    names.follow(Named(((DIRECTORY, "f", None), (ROOT, "g", FILE))))
    names.follow(Named(((ROOT, "g", None),)))
    assert names.path(FILE) == "g"
