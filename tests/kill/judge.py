"""Decides whether one key's history can be explained: by some order of its steps, each within its interval.

A key is a register that holds one write or nothing. Each acknowledged step takes effect at one instant of its interval;
one whose outcome is unknown at one instant between its start and the end of the server's processes, or never; an upload
at one instant at most, between the start of its first completion and the first that succeeded; an object with a time
to live goes by itself, not before its deadline. Readers, those during the load too, see what the register holds.

The search is exact (linearizability, decided just in time): at the end of each step it keeps every state in which the
key can be, with the steps that have taken effect there early, and fails when there is none. To keep it small it leaves
out only what explains nothing: an effect of unknown outcome is taken right before a reader that needs it.
`test_judge.py` compares it with a search that leaves out nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from tests.kill.history import Kind, Result, Step, Violation, Write, told

CLOCK_TOLERANCE_SECONDS = 0.05
"""Deadlines are on the server's wall clock, intervals on the monotonic one."""
_STATES_MAX = 200_000
_TOLD_BEFORE = 60


@dataclass(frozen=True, slots=True)
class _State:
    """One way in which the key can be."""

    holds: Write | None = None
    early: frozenset[Step | Write] = frozenset()
    """Steps and uploads that have taken effect though they have not ended."""
    deletes_used: int = 0
    """How many deletes of unknown outcome have been taken to explain it."""


class KeyJudge:
    """The judge of one key; takes its steps in portions, each of which holds whole steps in the order of time."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._states = {_State()}
        self._certain: set[Step] = set()
        """Acknowledged writes and deletes that have begun and not ended."""
        self._readers: set[Step] = set()
        """The same of reads, and of completions that were refused for now."""
        self._possible: dict[Write, Step] = {}
        """Puts of unknown outcome."""
        self._uploads: set[Write] = set()
        """Uploads that somebody has begun to complete, and of which it is not known whether they were committed."""
        self._decided: dict[Write, bool] = {}
        """Uploads of which it is known whether they were committed."""
        self._deletes_possible = 0
        self._told: list[Step] = []

    def judge(self, steps: Sequence[Step]) -> None:
        """Go on with ``steps``, all of which begin after the end of the earlier ones. Raises `Violation`."""
        self._told = self._told[-_TOLD_BEFORE:] + sorted(steps, key=lambda step: step.start)
        moments = [(step.start, 0, number, step) for number, step in enumerate(steps)]
        moments += [(step.end, 1, number, step) for number, step in enumerate(steps)]
        for _, is_end, _, step in sorted(moments):  # at the same instant the beginnings first: they overlap then
            if is_end:
                self._end(step)
            else:
                self._begin(step)

    def can_hold(self) -> set[Write | None]:
        """What the key can hold now."""
        return {state.holds for state in self._states}

    def _begin(self, step: Step) -> None:
        write = step.write
        match step.kind, step.result:
            case ((Kind.PUT | Kind.DELETE), Result.DONE):
                self._certain.add(step)
            case Kind.PUT, Result.UNKNOWN:
                assert write is not None
                self._possible[write] = step
            case Kind.DELETE, Result.UNKNOWN:
                self._deletes_possible += 1
            case Kind.READ, Result.DONE:
                self._readers.add(step)
            case Kind.COMPLETE, _:
                assert write is not None
                if write not in self._decided:
                    self._uploads.add(write)
                    if step.result is Result.NOT_YET:
                        self._readers.add(step)
                elif step.result is Result.NOT_YET:
                    self._fail_if(self._decided[write], step, "its upload had been completed before")
            case _:
                return

    def _end(self, step: Step) -> None:
        write = step.write
        match step.kind, step.result:
            case ((Kind.PUT | Kind.DELETE | Kind.READ), Result.DONE):
                self._require(step, step)
            case Kind.COMPLETE, Result.DONE:
                assert write is not None
                self._commit(write, step)
            case Kind.COMPLETE, Result.NOT_YET:
                if step in self._readers:  # else its upload was decided meanwhile
                    self._require(step, step)
            case ((Kind.COMPLETE | Kind.ABORT), Result.NEVER):
                assert write is not None
                self._refute(write, step)
            case Kind.LIFE_END, _:
                self._end_life()
            case _:
                return

    def _require(self, wanted: Step | Write, step: Step) -> None:
        """Keep, and extend, the states in which ``wanted`` takes effect until now; there must be one."""
        found: set[_State] = set()
        for state in self._states:
            if wanted in state.early:
                found.add(state)
            else:
                found |= self._extend(state, wanted, step.end)
        self._fail_if(not found, step, "nothing explains it")
        self._states = {replace(state, early=state.early - {wanted}) for state in found}
        if isinstance(wanted, Step):
            self._certain.discard(wanted)
            self._readers.discard(wanted)

    def _extend(self, begin: _State, wanted: Step | Write, now: float) -> set[_State]:
        """All states that end with ``wanted``, from ``begin`` on, by effects that are possible until ``now``."""
        found: set[_State] = set()
        begin = self._with_readers(begin)
        seen, left = {begin}, [begin]
        while left:
            state = left.pop()
            if wanted in state.early:
                found.add(state)
                continue
            for reached in self._effects(state, now):
                following = self._with_readers(reached)
                if following not in seen:
                    seen.add(following)
                    left.append(following)
            if len(seen) > _STATES_MAX:
                raise Violation(f"{self._key}: too many steps at once to judge: {len(seen)} states")
        return found

    def _with_readers(self, state: _State) -> _State:
        """``state``, with every reader that can be content with it."""
        content = {
            reader
            for reader in self._readers - state.early
            if (reader.kind is Kind.READ and reader.write is state.holds)
            or (reader.kind is Kind.COMPLETE and reader.write not in state.early)
        }
        return replace(state, early=state.early | content) if content else state

    def _effects(self, state: _State, now: float) -> Iterator[_State]:
        """The states that one effect leads to."""
        for step in self._certain - state.early:
            yield replace(state, holds=step.write, early=state.early | {step})
        for upload in self._uploads - state.early:
            yield replace(state, holds=upload, early=state.early | {upload})
        awaited = {reader.write for reader in self._readers - state.early if reader.kind is Kind.READ}
        for write in awaited:
            if write is not None and write in self._possible and write not in state.early:
                yield replace(state, holds=write, early=state.early | {write})
        if None in awaited and state.holds is not None:
            if _may_have_expired(state.holds, now):
                yield replace(state, holds=None)
            if state.deletes_used < self._deletes_possible:
                yield replace(state, holds=None, deletes_used=state.deletes_used + 1)
            for write in self._possible.keys() - state.early:
                if _may_have_expired(write, now):  # it came, and has gone
                    yield replace(state, holds=None, early=state.early | {write})

    def _commit(self, upload: Write, step: Step) -> None:
        """It is certain that ``upload`` has been committed by now."""
        if upload in self._decided:
            self._fail_if(not self._decided[upload], step, "its upload had been refused for good before")
            return
        self._require(upload, step)
        refused = {reader for reader in self._readers if reader.kind is Kind.COMPLETE and reader.write is upload}
        remaining = {state for state in self._states if refused <= state.early}
        self._fail_if(not remaining, step, "another completion was refused for now that began after the commit")
        self._decide(upload, remaining, refused, committed=True)

    def _refute(self, upload: Write, step: Step) -> None:
        """It is certain that ``upload`` was not committed: states in which it was are none."""
        self._fail_if(self._decided.get(upload, False), step, "its upload had been completed before")
        remaining = {state for state in self._states if upload not in state.early}
        self._fail_if(not remaining, step, "its upload had been committed, for a reader has seen it")
        refused = {reader for reader in self._readers if reader.kind is Kind.COMPLETE and reader.write is upload}
        self._decide(upload, remaining, refused, committed=False)

    def _decide(self, upload: Write, states: set[_State], content: set[Step], *, committed: bool) -> None:
        self._uploads.discard(upload)
        self._decided[upload] = committed
        self._readers -= content
        self._states = {replace(state, early=state.early - content - {upload}) for state in states}

    def _end_life(self) -> None:
        """What nobody has answered has happened by now, or never will. Uploads may be completed in the next life."""
        gone = set(self._possible)
        states = {replace(state, early=state.early - gone, deletes_used=0) for state in self._states}
        for state in self._states:
            # One of those effects may have been the last one of this life. Uploads may have been committed before it.
            last: set[Write | None] = {*(gone - state.early)}
            if state.deletes_used < self._deletes_possible:
                last.add(None)
            for uploads in _subsets(self._uploads - state.early):
                states |= {_State(holds, (state.early | uploads) - gone) for holds in last}
        self._states = states
        self._possible.clear()
        self._deletes_possible = 0

    def _fail_if(self, failed: bool, step: Step, reason: str) -> None:
        if not failed:
            return
        could = ", ".join(sorted(_name(write) for write in self.can_hold()))
        raise Violation(
            f"key {self._key}: {reason}:\n{step}\n"
            f"Before it, the key could hold: {could}. Its history (>> is the step):\n{told(self._told, step)}"
        )


def _subsets(uploads: Iterable[Write]) -> Iterator[frozenset[Write]]:
    every = list(uploads)
    for count in range(len(every) + 1):
        yield from map(frozenset, combinations(every, count))


def _may_have_expired(write: Write, now: float) -> bool:
    if write.ttl_seconds is None or write.begun is None:
        return False
    return now >= write.begun + write.ttl_seconds - CLOCK_TOLERANCE_SECONDS


def _name(write: Write | None) -> str:
    return "nothing" if write is None else write.identity
