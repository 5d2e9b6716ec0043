"""The ledger: what clients asked for and were told, held against what became of the object.

The watcher knows the order in which the object changed, and every write has a payload of its own. So what clients were
told is consistent exactly if every change has one write that explains it, and every answer fits the changes:

- a write that was acknowledged has taken effect between its call and its answer; one that certainly failed, never;
- no write takes effect twice, and none before it was asked for: what readers see is old, or new, or what came after;
- nothing vanishes but by a delete (expiry is no change: it has no effect);
- an attempt to complete an upload that succeeded was committed before its answer, and one that was told that there is
  no such upload was never committed and never will be; nor was an upload whose abort succeeded;
- a read returns what could be seen at some moment between its call and its answer;
- an extension that was acknowledged holds for what was there, unless that was replaced since; a refused one had reason.
"""

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from tests.crash_matrix.watch import Watch
from tierstore.clock import UnixMicros
from tierstore.errors import (
    ClientDisconnected,
    ClientMistake,
    Conflict,
    GivenUp,
    NoSuchUpload,
    ObjectNotFound,
    OutcomeUnknown,
    TierstoreError,
    Unavailable,
)


class Outcome(Enum):
    """What an answer says."""

    DONE = "done"
    NOT_DONE = "not done"
    """It has not happened, and never will."""
    UNKNOWN = "unknown"


@dataclass
class Asked:
    """One mutation of the object that was asked for."""

    what: str
    """``write`` (also ``delete``), ``complete`` or ``abort``."""
    payload: bytes | None
    """What it is to make of the object; None for an absence. Of an upload: what that would make."""
    begun: int
    """How many changes there had been when it was asked for."""
    absent: bool
    """Whether the object was absent then, or when the answer came."""
    ended: int = 0
    outcome: Outcome = Outcome.UNKNOWN


@dataclass(frozen=True)
class AskedExtension:
    """An extension of the object's expiry that was asked for."""

    until: UnixMicros
    begun: int
    """How many changes there had been."""
    absent: bool
    """Whether the object was absent then."""
    endless: bool
    """Whether it had no deadline."""


@dataclass
class Ledger:
    """What clients asked for."""

    watch: Watch
    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Answers that were wrong in themselves."""

    def ask(self, what: str, payload: bytes | None) -> Asked:
        """Enter a mutation."""
        asked = Asked(what, payload, len(self.watch.changes), self.watch.visible() is None)
        self.asked.append(asked)
        return asked

    def answer(self, asked: Asked, error: BaseException | None) -> None:
        """Enter its answer."""
        asked.ended = len(self.watch.changes)
        asked.absent = asked.absent or self.watch.visible() is None
        asked.outcome = self._outcome(asked.what, error)

    def _outcome(self, what: str, error: BaseException | None) -> Outcome:
        match error:
            case None:
                return Outcome.DONE
            case NoSuchUpload():
                return Outcome.NOT_DONE if what == "complete" else Outcome.UNKNOWN
            case asyncio.CancelledError() | OutcomeUnknown():
                return Outcome.UNKNOWN
            case ClientMistake() | ClientDisconnected() | GivenUp() | Unavailable():
                # Another attempt may still complete the upload.
                return Outcome.NOT_DONE if what == "write" else Outcome.UNKNOWN
            case TierstoreError():
                self.wrong.append(f"{what} was answered by {error!r}")
                return Outcome.UNKNOWN
            case _:
                raise error

    def violations(self) -> list[str]:
        """What is inconsistent."""
        found = list(self.wrong)
        found += self._unexplained_changes()
        for asked in self.asked:
            if asked.payload is None:
                found += self._of_delete(asked)
            else:
                found += self._of_write(asked, asked.payload)
        return found

    def _unexplained_changes(self) -> list[str]:
        found = []
        deletes = [
            asked.begun for asked in self.asked if asked.payload is None and asked.outcome is not Outcome.NOT_DONE
        ]
        explained: set[bytes] = set()
        absences = 0
        for index, payload in enumerate(self.watch.changes):
            if payload is None:
                absences += 1
                if sum(begun <= index for begun in deletes) < absences:
                    found.append("the object vanished, and no delete explains it")
            elif payload in explained:
                found.append(f"{_named(payload)} took effect twice")
            elif not any(
                asked.payload == payload and asked.begun <= index
                for asked in self.asked
                if asked.what in {"write", "complete"}
            ):
                found.append(f"{_named(payload)} was seen, and nobody asked for it")
            else:
                explained.add(payload)
        return found

    def _of_delete(self, asked: Asked) -> list[str]:
        seen_absent = asked.absent or None in self.watch.changes[asked.begun : asked.ended]
        if asked.outcome is Outcome.DONE and not seen_absent:
            return ["a delete was acknowledged, and had no effect"]
        return []

    def _of_write(self, asked: Asked, payload: bytes) -> list[str]:
        begun = 0 if asked.what == "complete" else asked.begun
        happened = payload in self.watch.changes
        match asked.what, asked.outcome:
            case "abort", Outcome.DONE if happened:
                return [f"{_named(payload)} was committed, and its abort succeeded"]
            case "write" | "complete", Outcome.DONE if payload not in self.watch.changes[begun : asked.ended]:
                return [f"{_named(payload)}: {asked.what} was acknowledged, and had no effect"]
            case "write" | "complete", Outcome.NOT_DONE if happened:
                return [f"{_named(payload)}: {asked.what} was said not to have happened, and did"]
            case _:
                return []

    def ask_extension(self, until: UnixMicros) -> AskedExtension:
        """An extension is asked for."""
        watch = self.watch
        return AskedExtension(until, len(watch.changes), watch.visible() is None, watch.deadline() is None)

    def answer_extension(self, asked: AskedExtension, error: BaseException | None) -> None:
        """Enter its answer."""
        since = self.watch.changes[asked.begun :]
        deadline = self.watch.deadline()
        match error:
            case None:
                if not since and (deadline is None or deadline < asked.until):
                    self.wrong.append("an extension was acknowledged, and had no effect")
            case ObjectNotFound():
                if not (asked.absent or None in since or self.watch.visible() is None):
                    self.wrong.append("an object was not found to be extended, and was there")
            case Conflict():
                if not (since or asked.endless):
                    self.wrong.append("an extension lost against nobody")
            case asyncio.CancelledError() | Unavailable():
                return
            case TierstoreError():
                self.wrong.append(f"an extension was answered by {error!r}")
            case _:
                raise error

    def check_read(self, seen: bytes | None, before: bytes | None, begun: int) -> None:
        """A read that began when ``before`` was visible, after ``begun`` changes, has returned ``seen``."""
        possible = {before, self.watch.visible(), *self.watch.changes[begun:]}
        if seen not in possible:
            self.wrong.append(f"a read returned {_named(seen)}, not one of {[_named(each) for each in possible]}")


def _named(payload: bytes | None) -> str:
    return "absence" if payload is None else payload.rstrip(b".").decode()
