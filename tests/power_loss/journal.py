"""What was done to a disk, call by call, and what of it survives when the power goes.

The rules are those of POSIX at its strictest, which are harder than any one filesystem's:

- What was written to a file, or cut from it, is there for certain once the file has been synced, and not before. Until
  then each write may be kept, be lost, or be torn into sectors of which any may be missing.
- A name that was made, moved or removed is so for certain once a directory that it was in, or is in, has been synced.
  Until then it may be so or not, each change for itself. A rename is one change: never half of it survives.
- Syncing a file makes none of its names durable, and syncing a directory not the directory's own name.

The bytes beside those that are written stay what they are (SQLite relies on it too: "powersafe overwrite").
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeAlias

ROOT = 1
"""The inode of the disk's root directory."""
SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Made:
    """A new file or directory, which has no name yet."""

    inode: int
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Named:
    """Names that were changed in one step."""

    changes: tuple[tuple[int, str, int | None], ...]
    """Directory, name, and what it names from now on, if anything."""


@dataclass(frozen=True, slots=True)
class Wrote:
    """Bytes that were written to a file."""

    inode: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Resized:
    """A file that was cut or lengthened."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A file or directory that was synced."""

    inode: int


Step: TypeAlias = Made | Named | Wrote | Resized | Synced
Journal: TypeAlias = Sequence[Step]


@dataclass(frozen=True, slots=True)
class CrashState:
    """Power lost after ``point`` steps, and what was lost with it."""

    point: int
    lost: frozenset[int] = frozenset()
    """Steps, counted from 0, that did not survive."""
    torn: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Writes that survived in part: the sectors of them, counted from 0, that did not."""


def survived(tree: "Tree") -> list[Step]:
    """A journal that leaves a disk with these contents, all of them durable: the one that a restarted machine finds."""
    steps: list[Step] = []
    for inode, names in sorted(tree.directories.items()):
        steps += [] if inode == ROOT else [Made(inode, True)]
        steps += [Named(((inode, name, child),)) for name, child in names.items()]
    for inode, content in sorted(tree.files.items()):
        steps += [Made(inode, False), Wrote(inode, 0, bytes(content))]
    order = {Made: 0, Wrote: 1, Named: 2}
    steps.sort(key=lambda step: order[type(step)])
    return steps + [Synced(inode) for inode in (*tree.directories, *tree.files)]


def pending(journal: Journal, point: int) -> list[int]:
    """The steps among the first ``point`` that are not durable then, in order."""
    synced: set[int] = set()
    found: list[int] = []
    for index in range(point - 1, -1, -1):
        match journal[index]:
            case Synced(inode):
                synced.add(inode)
            case Wrote(inode) | Resized(inode):
                if inode not in synced:
                    found.append(index)
            case Named(changes):
                if synced.isdisjoint(directory for directory, _, _ in changes):
                    found.append(index)
            case Made():
                continue
    return found[::-1]


@dataclass(frozen=True, slots=True)
class Tree:
    """The contents of a disk."""

    files: dict[int, bytearray]
    directories: dict[int, dict[str, int]]

    def find(self, *names: str) -> int | None:
        """The inode at a path from the root."""
        inode: int | None = ROOT
        for name in names:
            inode = None if inode is None else self.directories.get(inode, {}).get(name)
        return inode

    def write(self, inode: int, target: Path) -> None:
        """Write the directory ``inode`` and what is in it to the existing, empty directory ``target``."""
        self._write(inode, target, {})

    def _write(self, inode: int, target: Path, written: dict[int, Path]) -> None:
        for name, child in self.directories[inode].items():
            path = target / name
            if child in self.directories:
                path.mkdir()
                self._write(child, path, written)
            elif child in written:
                path.hardlink_to(written[child])
            else:
                path.write_bytes(self.files[child])
                written[child] = path


class Names:
    """What files and directories are called while a journal is read on; those that have no name any more, were."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, str]] = {}

    def follow(self, step: Step) -> None:
        """Take the next step in."""
        if isinstance(step, Named):
            for directory, name, inode in step.changes:
                if inode is not None:
                    self._places[inode] = directory, name

    def path(self, inode: int) -> str:
        """The path from the root of the disk, without a slash before it."""
        if inode not in self._places:
            return "" if inode == ROOT else f"inode {inode}"
        directory, name = self._places[inode]
        return f"{self.path(directory)}/{name}".removeprefix("/")


def survivors(journal: Journal, state: CrashState) -> Tree:
    """What is on the disk after the power came back."""
    tree = Tree({}, {ROOT: {}})
    for index in range(state.point):
        if index not in state.lost:
            _redo(tree, journal[index], state.torn.get(index, frozenset()))
    return tree


def _redo(tree: Tree, step: Step, torn: frozenset[int]) -> None:
    match step:
        case Made(inode, is_directory):
            if is_directory:
                tree.directories[inode] = {}
            else:
                tree.files[inode] = bytearray()
        case Named(changes):
            for directory, name, named in changes:
                if named is None:
                    tree.directories[directory].pop(name, None)
                else:
                    tree.directories[directory][name] = named
        case Wrote(inode, offset, content):
            for start, piece in _kept(content, torn):
                write(tree.files[inode], offset + start, piece)
        case Resized(inode, size):
            resize(tree.files[inode], size)
        case Synced():
            return


def _kept(content: bytes, torn: frozenset[int]) -> Iterable[tuple[int, bytes]]:
    """The runs of sectors of ``content`` that are not in ``torn``."""
    if not torn:
        yield 0, content
        return
    for sector in range(sectors(content)):
        if sector not in torn:
            start = sector * SECTOR_BYTES
            yield start, content[start : start + SECTOR_BYTES]


def sectors(content: bytes) -> int:
    """How many sectors a write has."""
    return -(-len(content) // SECTOR_BYTES)


def write(file: bytearray, offset: int, content: bytes | memoryview) -> None:
    """Write into a file; a hole before it is zeros."""
    if offset > len(file):
        file.extend(bytes(offset - len(file)))
    file[offset : offset + len(content)] = content


def resize(file: bytearray, size: int) -> None:
    """Cut or lengthen a file."""
    if size < len(file):
        del file[size:]
    else:
        file.extend(bytes(size - len(file)))


def draw(journal: Journal, point: int, random: Random) -> CrashState:
    """A state that power lost after ``point`` steps may leave, by one of several ways of losing."""
    unsure = pending(journal, point)
    ways = ["all", "none", "one", "all but one", "later", "names", "contents", "some", "some", "some"]
    way = random.choice(ways) if unsure else "none"
    if way == "some":
        return _draw_some(journal, point, unsure, random)
    chosen = _late(unsure, random) if unsure else 0
    lost = {
        "all": unsure,
        "none": [],
        "one": [chosen],
        "all but one": [index for index in unsure if index != chosen],
        "later": [index for index in unsure if index >= chosen],
        "names": [index for index in unsure if isinstance(journal[index], Named)],
        "contents": [index for index in unsure if not isinstance(journal[index], Named)],
    }
    return CrashState(point, frozenset(lost[way]))


def _late(unsure: Sequence[int], random: Random) -> int:
    """One of the steps; half of the time one of the last few, which the newest promises hang on."""
    return random.choice(unsure[-6:] if random.random() < 0.5 else unsure)


def _draw_some(journal: Journal, point: int, unsure: Sequence[int], random: Random) -> CrashState:
    share = random.choice([0.1, 0.5, 0.9])
    tearing = random.choice([0.0, 0.3])
    lost, torn = set(), {}
    for index in unsure:
        step = journal[index]
        if random.random() < share:
            lost.add(index)
        elif isinstance(step, Wrote) and random.random() < tearing:
            torn[index] = _draw_torn(sectors(step.content), random)
    return CrashState(point, frozenset(lost), torn)


def _draw_torn(count: int, random: Random) -> frozenset[int]:
    if random.random() < 0.5:
        return frozenset(range(random.randrange(count), count))
    return frozenset(sector for sector in range(count) if random.random() < 0.5)
