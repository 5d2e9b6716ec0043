"""Disks that say "synced" and have not: what the stores must not survive on, if each of their syncs is needed.

Each lie is told of the syncs of some files or directories; it turns a journal into that of the lying disk.
"""

import re
from collections.abc import Callable, Mapping

from tests.power_loss.journal import ROOT, Journal, Made, Names, Step, Synced, Wrote

_NOBODY = 0
"""The inode of a sync that does nothing. It stands in the place of the real one, so that steps keep their numbers."""
_WAL_HEADER_BYTES = 32

Lie = Callable[[Journal], Journal]


def _about(pattern: str, *, directories: bool) -> Lie:
    """Syncs of what is called so below the directory of the stores are not done; of directories, or of files."""
    compiled = re.compile(pattern)

    def lie(journal: Journal) -> Journal:
        names = Names()
        told: list[Step] = []
        made = {ROOT} if directories else set[int]()
        for step in journal:
            names.follow(step)
            told.append(step)
            match step:
                case Made(inode, is_directory) if is_directory is directories:
                    made.add(inode)
                case Synced(inode) if inode in made and compiled.fullmatch(names.path(inode).removeprefix("stores/")):
                    told[-1] = Synced(_NOBODY)
                case _:
                    continue
        return told

    return lie


def _synchronous_normal(journal: Journal) -> Journal:
    """What SQLite promises with ``synchronous=NORMAL``: the WAL is synced for a checkpoint, not for a commit.

    With FULL a checkpoint syncs once more what the commit has synced, and a new WAL's header is synced before its
    frames: these syncs are left.
    """
    names = Names()
    unsynced: set[int] = set()
    """Logs that have got frames since they were last synced."""
    told: list[Step] = []
    for step in journal:
        names.follow(step)
        told.append(step)
        match step:
            case Wrote(inode, offset) if offset >= _WAL_HEADER_BYTES and names.path(inode).endswith("-wal"):
                unsynced.add(inode)
            case Synced(inode) if inode in unsynced:
                unsynced.discard(inode)
                told[-1] = Synced(_NOBODY)
            case _:
                continue
    return told


_TEMPORARY = r"long-term/tmp/[^/]+/\d+"
_LEAF = r"long-term/blobs/[0-9a-f]{3}"

LIES: Mapping[str, Lie] = {
    "any directory": _about(".*", directories=True),
    "any file": _about(".*", directories=False),
    "files of the blob store": _about(rf"{_TEMPORARY}(/upload)?", directories=False),
    "files of blobs and parts": _about(_TEMPORARY, directories=False),
    "files of uploads": _about(rf"{_TEMPORARY}/upload", directories=False),
    "directories of blobs": _about(_LEAF, directories=True),
    "the directory of those": _about(r"long-term/blobs", directories=True),
    "directories of uploads": _about(rf"{_LEAF}/[^/]+\.parts", directories=True),
    "directories of uploads that begin": _about(_TEMPORARY, directories=True),
    "the directory of the blob store": _about(r"long-term", directories=True),
    "the directory of the stores": _about("stores", directories=True),
    "the directory of that": _about("", directories=True),
    "database files": _about(r".*\.sqlite3", directories=False),
    "SQLite with synchronous=OFF": _about(r".*\.sqlite3(-wal|-journal)?", directories=False),
    "SQLite with synchronous=NORMAL": _synchronous_normal,
}
"""By what the disk does not sync, or what SQLite would not ask it to."""
