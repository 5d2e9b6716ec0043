"""What clients saw, and whether it can have happened: linearizability of each object, unknown outcomes included.

An object is a register whose every write has a value of its own. A history is right if there is an order of its
operations, each somewhere between its beginning and its end, in which every read returns what was written last. An
operation without an answer may have happened at any time since its beginning, or never.

The search is the one of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the memory of visited
states that Lowe added ("Testing for linearizability", 2017), cut short by what is special here: a write nobody has
read needs no place unless it was acknowledged, a read that fits can be taken at once, a value that is still to be read
cannot be overwritten yet, and of the deletes without an answer only their number matters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tierstore.clock import UnixMicros

_STATES_MAX = 300_000
"""After so many states a history counts as undecided."""


class Act(Enum):
    """What an operation does to the register."""

    WRITE = "write"
    DELETE = "delete"
    READ = "read"
    EXTEND = "extend"
    """Let what is there live longer."""


@dataclass(slots=True)
class Seen:
    """One operation as its client saw it. ``begun`` and ``ended`` are places in the order of all events of a run."""

    act: Act
    value: str | None
    """What was written or read; None for an absence."""
    begun: int
    ended: float = math.inf
    """Infinite while there is no answer."""
    latest_clock: UnixMicros = 0
    """For a read: the most that any server's clock could show when it ended."""
    until: UnixMicros = 0
    """For an extension that was acknowledged: what it has extended does not expire earlier."""

    @property
    def answered(self) -> bool:
        """Whether the outcome is known."""
        return self.ended < math.inf

    def __str__(self) -> str:
        end = str(int(self.ended)) if self.answered else "?"
        return f"[{self.begun}, {end}] {self.act.value} {self.value or 'nothing'}"


class Verdict(Enum):
    """What the search found."""

    RIGHT = "right"
    WRONG = "wrong"
    UNDECIDED = "undecided"
    """The search was given up."""


@dataclass(slots=True)
class History:
    """The operations of one run, by object."""

    by_key: dict[str, list[Seen]] = field(default_factory=dict)
    earliest_deadlines: dict[str, UnixMicros | None] = field(default_factory=dict)
    """By value: before this, no right clock takes it for expired; None if it never expires."""
    events: int = 0

    def begin(self, key: str, act: Act, value: str | None = None) -> Seen:
        """A client calls."""
        self.events += 1
        seen = Seen(act, value, self.events)
        self.by_key.setdefault(key, []).append(seen)
        return seen

    def end(self, seen: Seen) -> None:
        """Its call has been answered."""
        self.events += 1
        seen.ended = min(seen.ended, self.events)

    def forget(self, key: str, seen: Seen) -> None:
        """A read without an answer says nothing."""
        self.by_key[key].remove(seen)

    def judge(self, key: str) -> Verdict:
        """Whether there is an order that explains the operations on ``key``."""
        return _Search(self.by_key[key], self.earliest_deadlines).run()


_State = tuple[int, str | None, int, UnixMicros]
"""Where a search stands: bits of the operations that have their place, the value now, how many deletes without an
answer have been used, and until when the value was extended. A tuple, since hundreds of thousands are made."""


class _Search:
    """The search for an order that explains the operations on one object."""

    def __init__(self, operations: Sequence[Seen], deadlines: Mapping[str, UnixMicros | None]) -> None:
        self._certain, self._deletes = _prepare(operations, deadlines)
        self._deadlines = deadlines
        self._readers: dict[str | None, int] = {}
        """Bits of the reads of each value."""
        self._extensions = 0
        """Bits of the extensions."""
        for position, one in enumerate(self._certain):
            if one.act is Act.EXTEND:
                self._extensions |= 1 << position
            if one.act is Act.READ:
                self._readers[one.value] = self._readers.get(one.value, 0) | 1 << position

    def run(self) -> Verdict:
        """Look for an order, for as long as it is worth it."""
        everything = (1 << len(self._certain)) - 1
        first: _State = (0, None, 0, 0)
        todo, visited = [first], {first}
        while todo:
            state = todo.pop()
            if state[0] == everything:
                return Verdict.RIGHT
            for following in self._following(state):
                if following not in visited:
                    visited.add(following)
                    todo.append(following)
            if len(visited) > _STATES_MAX:
                return Verdict.UNDECIDED
        return Verdict.WRONG

    def _following(self, state: _State) -> list[_State]:
        """The states that one operation leads to, of those that may come next; the most promising one last."""
        taken, value, deletes, extended = state
        candidates, horizon = self._candidates(taken)
        for bit, one in candidates:
            if self._changes_nothing(one, value, extended):
                return [(taken | bit, value, deletes, extended)]
        extending: list[_State] = []
        if self._can_expire(value):
            extending = [(taken | bit, value, deletes, one.until) for bit, one in candidates if one.act is Act.EXTEND]
        if value is not None and self._readers.get(value, 0) & ~taken:
            return extending  # nobody writes this value again, so these reads would never have their place
        writes = [(bit, one) for bit, one in candidates if one.act in {Act.WRITE, Act.DELETE}]
        if self._is_done_with(value, taken):
            for bit, one in writes:
                if self._is_done_with(one.value, taken):  # nobody needs either: it may as well come now
                    return [(taken | bit, one.value, deletes, 0)]
        found = [*extending, *((taken | bit, one.value, deletes, 0) for bit, one in writes)]
        wanted = {one.value for _, one in candidates if one.act is Act.READ}
        if None in wanted and deletes < len(self._deletes) and self._deletes[deletes] < horizon:
            found.append((taken, None, deletes + 1, 0))
        found.sort(key=lambda one: one[1] in wanted)
        return found

    def _changes_nothing(self, one: Seen, value: str | None, extended: UnixMicros) -> bool:
        """Whether it fits, and may as well have its place now: a read of the value, or what extends it no further."""
        if one.act is Act.READ:
            return one.value == value or (one.value is None and self._may_have_expired(value, extended, one))
        return one.act is Act.EXTEND and one.until <= extended and self._can_expire(value)

    def _candidates(self, taken: int) -> tuple[list[tuple[int, Seen]], float]:
        """What has no place yet and began before anything of that kind ended; and when the first of them ended."""
        horizon = math.inf
        found: list[tuple[int, Seen]] = []
        position = (~taken & (taken + 1)).bit_length() - 1  # the first that is not taken
        for one in self._certain[position:]:
            if one.begun > horizon:
                break
            bit = 1 << position
            position += 1
            if not taken & bit:
                found.append((bit, one))
                horizon = min(horizon, one.ended)
        return [(bit, one) for bit, one in found if one.begun < horizon], horizon

    def _is_done_with(self, value: str | None, taken: int) -> bool:
        """Whether nothing is left that ``value`` would explain."""
        left = self._readers.get(value, 0) & ~taken
        if not left and self._can_expire(value):
            left = (self._readers.get(None, 0) | self._extensions) & ~taken
        return not left

    def _can_expire(self, value: str | None) -> bool:
        return value is not None and self._deadlines.get(value) is not None

    def _may_have_expired(self, value: str | None, extended: UnixMicros, read: Seen) -> bool:
        if value is None:
            return True
        deadline = self._deadlines.get(value)
        return deadline is not None and max(deadline, extended) <= read.latest_clock


def _prepare(operations: Sequence[Seen], deadlines: Mapping[str, UnixMicros | None]) -> tuple[list[Seen], list[int]]:
    """The operations that must have a place, and the beginnings of the deletes that may have one; both in order.

    A write without an answer that nobody has read is like such a delete if it could expire: it may have come and gone.
    It may have been what an extension has extended, too: those that had not ended before it began say nothing then.
    """
    read_by: dict[str | None, float] = {}
    for one in operations:
        if one.act is Act.READ and one.answered:
            read_by[one.value] = min(one.ended, read_by.get(one.value, math.inf))
    certain, deletes = [], []
    unseen = min(
        (
            one.begun
            for one in operations
            if one.act is Act.WRITE and not one.answered and one.value not in read_by and _expires(one, deadlines)
        ),
        default=math.inf,
    )
    for one in operations:
        if one.act is Act.EXTEND:
            if one.ended < unseen:
                certain.append(one)
        elif one.answered:
            certain.append(one)
        elif one.act is Act.DELETE:
            deletes.append(one.begun)
        elif one.act is Act.WRITE and one.value in read_by:  # somebody has read it, so it has happened by then
            certain.append(Seen(one.act, one.value, one.begun, read_by[one.value]))
        elif one.act is Act.WRITE and _expires(one, deadlines):
            deletes.append(one.begun)
    certain.sort(key=lambda one: one.begun)
    return certain, sorted(deletes)


def _expires(write: Seen, deadlines: Mapping[str, UnixMicros | None]) -> bool:
    return write.value is not None and deadlines.get(write.value) is not None
