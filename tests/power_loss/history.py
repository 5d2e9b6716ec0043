"""What clients asked for and what they were told, kept in a ledger on the recorded disk.

The ledger is a file beside the stores: one line when an operation begins, one when it has been acknowledged. Its writes
stand in the journal among those of the stores, so that for any moment the journal itself tells what had been promised
by then. No store knows of it, and a crash state does not need it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import msgspec

from tests.power_loss.journal import ROOT, CrashState, Journal, Step, Wrote, survived, survivors
from tierstore.clock import MICROS_PER_SECOND, UnixMicros

LEDGER = "ledger"
STORES = "stores"
Verb = Literal["open", "put", "delete", "initiate", "part", "complete", "abort", "sweep"]


class Action(msgspec.Struct, frozen=True):
    """What a client asks for."""

    verb: Verb
    key: str = ""
    size: int = 0
    """Bytes of the payload of a put or of a part."""
    ttl: int | None = None
    upload: int | None = None
    """The number of the operation that began the upload."""
    part: int = 0
    parts: tuple[tuple[int, str], ...] = ()
    """What completes an upload: numbers and ETags."""


class Line(msgspec.Struct, frozen=True):
    """A line of the ledger: with an action it begins an operation, without it tells its result."""

    number: int
    now: UnixMicros
    action: Action | None = None
    result: str = ""
    """What the client needs later: an upload's id, a part's ETag."""


@dataclass(slots=True)
class Operation:
    """An operation that was begun."""

    number: int
    action: Action
    begun: UnixMicros
    result: str | None = None
    """None until it has been acknowledged."""

    @property
    def acknowledged(self) -> bool:
        """Whether the client was told that it was done."""
        return self.result is not None

    @property
    def payload(self) -> bytes:
        """The payload of a put or of a part."""
        return payload(self.number, self.action.size)


def payload(number: int, size: int) -> bytes:
    """The payload of operation ``number``: no two have the same."""
    return Random(number).randbytes(size)


@dataclass(frozen=True, slots=True)
class Content:
    """An object as its readers should find it."""

    written_by: int
    """The operation whose number its metadata has."""
    payload: bytes
    expires: UnixMicros | None = None


@dataclass(slots=True)
class Upload:
    """A multipart upload as its client knows it."""

    begun: Operation
    parts: dict[int, list[Operation]] = field(default_factory=dict)
    """What was sent for each part number, in order."""
    completes: list[Operation] = field(default_factory=list)
    aborts: list[Operation] = field(default_factory=list)

    @property
    def in_progress(self) -> bool:
        """Whether it was begun, and nobody has tried to end it."""
        return self.begun.acknowledged and not self.completes and not self.aborts

    def sent(self, part: int, etag: str) -> Operation | None:
        """The operation that sent a part, if it was told this ETag."""
        return next((each for each in self.parts.get(part, []) if each.result == etag), None)


class History:
    """All operations up to a moment."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.operations: dict[int, Operation] = {}
        self.uploads: dict[int, Upload] = {}
        self.now: UnixMicros = 0
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Take the next line of the ledger in."""
        self.now = line.now
        if line.action is None:
            self.operations[line.number].result = line.result
        else:
            operation = self.operations[line.number] = Operation(line.number, line.action, line.now)
            self._note(operation)

    def _note(self, operation: Operation) -> None:
        action = operation.action
        if action.verb == "initiate":
            self.uploads[operation.number] = Upload(operation)
        if action.upload is None:
            return
        upload = self.uploads[action.upload]
        match action.verb:
            case "part":
                upload.parts.setdefault(action.part, []).append(operation)
            case "complete":
                upload.completes.append(operation)
            case "abort":
                upload.aborts.append(operation)
            case _:
                raise ValueError(f"{action.verb} is nothing that is done to an upload")

    @property
    def was_opened(self) -> bool:
        """Whether the stores had been opened once."""
        return any(each.acknowledged for each in self.operations.values() if each.action.verb == "open")

    @property
    def in_doubt(self) -> list[Action]:
        """What clients have asked for and were never told of, neither then nor when they tried again."""
        last: dict[str, Operation] = {}
        for operation in self.operations.values():
            if operation.action.key:
                last[operation.action.key] = operation
        return [each.action for each in last.values() if not each.acknowledged]

    @property
    def keys(self) -> list[str]:
        """The keys that anything was asked for."""
        return sorted({each.action.key for each in self.operations.values() if each.action.key})

    def contents(self, key: str) -> list[Content | None]:
        """What a reader of ``key`` may find: what was acknowledged last, or something that was asked for since."""
        possible: list[Content | None] = [None]
        for operation in self.operations.values():
            if operation.action.key == key and operation.action.verb in {"put", "delete", "complete"}:
                content = self._content(operation)
                if operation.acknowledged:
                    possible = [content]
                else:
                    possible.append(content)
        return possible

    def _content(self, operation: Operation) -> Content | None:
        match operation.action.verb:
            case "put":
                return Content(operation.number, operation.payload, _deadline(operation.begun, operation.action.ttl))
            case "complete" if operation.action.upload is not None:
                return self.uploaded(operation.action.upload, operation.action.parts, operation.begun)
            case _:
                return None

    def uploaded(self, number: int, parts: Sequence[tuple[int, str]], committed: UnixMicros) -> Content:
        """The object that upload ``number`` makes of these parts."""
        upload = self.uploads[number]
        sent = [upload.sent(part, etag) for part, etag in parts]
        joined = b"".join(each.payload for each in sent if each is not None)
        return Content(number, joined, _deadline(committed, upload.begun.action.ttl))


def _deadline(start: UnixMicros, ttl: int | None) -> UnixMicros | None:
    return None if ttl is None else start + ttl * MICROS_PER_SECOND


def parse(ledger: bytes) -> list[Line]:
    """The whole lines of a ledger."""
    return [msgspec.json.decode(line, type=Line) for line in ledger.split(b"\n")[:-1]]


class Recording:
    """The journal of a disk with a ledger and stores on it. What it begins with is durable: ``start`` steps."""

    def __init__(self, journal: Journal, start: int = 0) -> None:
        self.journal = journal
        self.start = start
        self.whole = survivors(journal, CrashState(len(journal)))
        ledger = self.whole.find(LEDGER)
        self._lines: list[tuple[int, Line]] = []
        self.points: list[int] = []
        """After how many steps the power may go: after any that is not the ledger's."""
        self.promises: list[int] = []
        """Those that come right after an acknowledgement."""
        written = b""
        for index, step in enumerate(journal, start=1):
            if not isinstance(step, Wrote) or step.inode != ledger:
                if index > start:
                    self.points.append(index)
                continue
            written += step.content
            for line in parse(written):  # one, unless the kernel has written it in two pieces
                self._lines.append((index, line))
                if line.action is None and index > start:
                    self.promises.append(index)
            written = written.rpartition(b"\n")[2]

    def after(self, state: CrashState) -> list[Step]:
        """The journal of a disk with what a loss of power has left, and the whole ledger."""
        tree = survivors(self.journal, state)
        ledger = self.whole.find(LEDGER)
        if ledger is not None:
            lines = [msgspec.json.encode(line) + b"\n" for index, line in self._lines if index <= state.point]
            tree.directories[ROOT][LEDGER] = ledger
            tree.files[ledger] = bytearray(b"".join(lines))
        return survived(tree)

    def history(self, point: int) -> History:
        """What had been asked for and acknowledged after ``point`` steps."""
        return History(line for index, line in self._lines if index <= point)
