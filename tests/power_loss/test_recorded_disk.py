"""The recorded disk is a disk, and its journal is what was done to it."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from tests.power_loss.journal import ROOT, CrashState, Journal, Names, Synced, Wrote, survivors
from tests.power_loss.recorded_disk import disk_or_skip, recorded_disk


def contents(directory: Path) -> dict[str, bytes | None]:
    """All that is below a directory: files with their bytes, directories with None."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def sync(path: Path) -> None:
    """Sync a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def synced(journal: Journal) -> list[str]:
    """What was synced, by its name at the time."""
    names, found = Names(), []
    for step in journal:
        names.follow(step)
        if isinstance(step, Synced):
            found.append(names.path(step.inode))
    return found


def test_journal_leads_to_what_the_disk_shows(tmp_path: Path) -> None:
    """Done again from its beginning, the journal makes the same files and directories: no change escapes it."""
    (tmp_path / "copy").mkdir()
    with disk_or_skip(tmp_path) as disk:
        (disk.path / "a" / "b").mkdir(parents=True)
        (disk.path / "a" / "f").write_bytes(b"x" * 300_000)
        os.truncate(disk.path / "a" / "f", 200_001)
        with (disk.path / "a" / "f").open("r+b") as opened:
            os.pwritev(opened.fileno(), [b"one", b"two"], 4_094)
        os.link(disk.path / "a" / "f", disk.path / "linked")
        (disk.path / "a" / "f").rename(disk.path / "a" / "b" / "g")
        (disk.path / "gone").write_bytes(b"")
        (disk.path / "gone").unlink()
        (disk.path / "a" / "gone").mkdir()
        (disk.path / "a" / "gone").rmdir()
        (disk.path / "new").write_bytes(b"new")
        (disk.path / "new").replace(disk.path / "linked")
        seen = contents(disk.path)
    tree = survivors(disk.journal, CrashState(len(disk.journal)))
    tree.write(ROOT, tmp_path / "copy")
    assert contents(tmp_path / "copy") == seen
    assert len(seen["a/b/g"] or b"") == 200_001


def test_every_sync_is_seen(tmp_path: Path) -> None:
    """Syncs of files and of directories stand in the journal, in order, and no others."""
    with disk_or_skip(tmp_path) as disk:
        (disk.path / "d").mkdir()
        (disk.path / "d" / "f").write_bytes(b"x")
        sync(disk.path / "d" / "f")
        sync(disk.path / "d")
        sync(disk.path)
    assert synced(disk.journal) == ["d/f", "d", ""]


def test_sqlite_runs_on_it_in_wal_mode(tmp_path: Path) -> None:
    """Two connections share a WAL on the disk, and a commit with ``synchronous=FULL`` ends with a sync of it."""
    with disk_or_skip(tmp_path) as disk:
        one, two = (apsw.Connection(str(disk.path / "database")) for _ in range(2))
        assert one.pragma("journal_mode", "WAL") == "wal"
        one.pragma("synchronous", "FULL")
        one.execute("CREATE TABLE t (x)")
        one.execute("INSERT INTO t VALUES (1)")
        assert two.execute("SELECT x FROM t").get == 1
        mark = disk.path / "mark"
        mark.write_bytes(b"committed")
        one.close()
        two.close()
    at = next(at for at, step in enumerate(disk.journal) if isinstance(step, Wrote) and step.content == b"committed")
    assert synced(disk.journal[:at])[-1] == "database-wal"


def test_second_disk_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    """A disk can be mounted with what another one had, and its journal goes on from there."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with disk_or_skip(tmp_path / "first") as first:
        (first.path / "f").write_bytes(b"x")
        os.link(first.path / "f", first.path / "g")
    with recorded_disk(tmp_path / "second", first.journal) as second:
        assert contents(second.path) == {"f": b"x", "g": b"x"}
        assert (second.path / "g").stat().st_nlink == 2
        (second.path / "h").write_bytes(b"y")
    assert second.journal[: len(first.journal)] == first.journal
    assert len(second.journal) > len(first.journal)


def test_fatal_step_is_not_taken(tmp_path: Path) -> None:
    """A process that is about to take a fatal step is killed, and the step is not done; later ones are."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with disk_or_skip(tmp_path / "first") as first:
        (first.path / "d").mkdir()
    fatal = len(first.journal) + 2
    program = "import pathlib, sys; d = pathlib.Path(sys.argv[1]); (d / 'a').mkdir(); (d / 'b').mkdir()"
    with recorded_disk(tmp_path / "second", first.journal, [fatal]) as second:
        done = subprocess.run([sys.executable, "-c", program, str(second.path)], check=False)
        (second.path / "c").mkdir()
        assert sorted(contents(second.path)) == ["a", "c", "d"]
    assert done.returncode == -signal.SIGKILL


def leave_open(directory: Path, error: Exception | None) -> None:
    """Use a disk and leave a file on it open until it has been unmounted; fail meanwhile, if with something."""
    with contextlib.ExitStack() as files, disk_or_skip(directory) as disk:
        files.callback(os.close, os.open(disk.path / "f", os.O_RDWR | os.O_CREAT))
        assert disk.path.is_mount()
        if error is not None:
            raise error


@pytest.mark.parametrize(("error", "seen"), [(LookupError(), LookupError), (None, RuntimeError)])
def test_disk_is_unmounted_after_a_failure(error: Exception | None, seen: type[Exception], tmp_path: Path) -> None:
    """A failure leaves no mount behind, though a file is still open; a file that was forgotten is a failure."""
    with pytest.raises(seen):
        leave_open(tmp_path, error)
    assert not (tmp_path / "disk").is_mount()
