"""What was acknowledged, refused, or left unknown, kept outside of the server; and the judgement over it.

Guarantees: every request that a client makes for an object is a step in its key's history, with its real-time interval;
every answer is checked by itself at once (whole payloads of one write, metadata that belong to them, deadlines), and
all of them together by `judge_round` (`tests.kill.judge`). What does not fit raises `Violation`.

Does not: talk to anybody. Used from one thread; the times come with the answers.
"""

import time
from collections import Counter, defaultdict

from tests.kill.answers import Answer, Found, Verdict
from tests.kill.history import Kind, Piece, Result, Step, Violation, Write, told
from tests.kill.judge import CLOCK_TOLERANCE_SECONDS, KeyJudge
from tests.kill.payloads import described, digest_of, payload_of

_OUTCOMES = {
    Verdict.DONE: Result.DONE,
    Verdict.REFUSED: Result.NOTHING,
    Verdict.UNKNOWN: Result.UNKNOWN,
}


class Ledger:
    """The histories of all keys of one campaign."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._unix_minus_monotonic = time.time() - time.monotonic()
        self._writes: dict[str, Write] = {}
        self._steps: dict[str, list[Step]] = defaultdict(list)
        self._judges: dict[str, KeyJudge] = {}

    @property
    def keys(self) -> list[str]:
        """Every key that was ever used."""
        return list(self._judges)

    def new_write(self, key: str, ttl_seconds: float | None) -> Write:
        """A write of ``key`` that nobody has made before."""
        self._judge_of(key)
        write = Write(f"w{len(self._writes)}", key, ttl_seconds)
        self._writes[write.identity] = write
        return write

    def content(self, write: Write, *pieces: Piece) -> bytes:
        """The payload of ``pieces``, which ``write`` may have from now on."""
        payload = b"".join(payload_of(piece.name, piece.size) for piece in pieces)
        write.contents[digest_of(payload)] = pieces
        return payload

    def put(self, write: Write, answer: Answer, by: str) -> Result:
        """Keep what came of putting ``write``."""
        result = self._outcome(write.key, Kind.PUT, answer)
        if answer.verdict is not Verdict.UNSENT:
            write.begun = answer.start if write.begun is None else min(write.begun, answer.start)
            write.acknowledged = answer.end if result is Result.DONE else None
            size = sum(piece.size for pieces in write.contents.values() for piece in pieces)
            note = f"{size} bytes{self._ttl_note(write)}, {answer.text}"
            self.step(write.key, Step(Kind.PUT, answer.start, answer.end, result, write, by, note))
        return result

    def delete(self, key: str, answer: Answer, by: str) -> Result:
        """Keep what came of deleting ``key``."""
        result = self._outcome(key, Kind.DELETE, answer)
        if answer.verdict is not Verdict.UNSENT:
            self.step(key, Step(Kind.DELETE, answer.start, answer.end, result, None, by, answer.text))
        return result

    def read(self, key: str, answer: Answer, by: str) -> bool:
        """Keep what a reader of ``key`` saw; return whether it saw anything."""
        if answer.verdict is Verdict.WRONG:
            raise self._wrong(key, f"a read was answered: {answer.text}")
        if answer.verdict not in {Verdict.DONE, Verdict.ABSENT}:
            return False
        self.counts["acknowledged"] += 1
        write = None if answer.found is None else self._recognized(key, answer.found, answer, by)
        self.step(key, Step(Kind.READ, answer.start, answer.end, Result.DONE, write, by, answer.text))
        return True

    def step(self, key: str, step: Step) -> None:
        """Add to the history of ``key``."""
        self._judge_of(key)
        self.counts[f"{step.kind.name.lower()}_{step.result.name.lower()}"] += 1
        self._steps[key].append(step)

    def end_life(self, at: float) -> None:
        """Every process that was asked anything so far has ended."""
        for key in self._judges:
            self._steps[key].append(Step(Kind.LIFE_END, at, at, Result.DONE))

    def judge_round(self) -> None:
        """Judge what has been added since the last time; every step of it has ended. Raises `Violation`."""
        for key, steps in self._steps.items():
            self._judges[key].judge(steps)
            steps.clear()

    def can_hold(self, key: str) -> set[Write | None]:
        """What ``key`` can hold, by what has been judged."""
        return self._judge_of(key).can_hold()

    def _judge_of(self, key: str) -> KeyJudge:
        return self._judges.setdefault(key, KeyJudge(key))

    def _outcome(self, key: str, kind: Kind, answer: Answer) -> Result:
        if answer.verdict is Verdict.UNSENT:
            return Result.NOTHING
        if answer.verdict not in _OUTCOMES:
            raise self._wrong(key, f"a {kind.value} was answered: {answer.text}")
        result = _OUTCOMES[answer.verdict]
        self.counts["acknowledged"] += result is Result.DONE
        return result

    def _recognized(self, key: str, found: Found, answer: Answer, by: str) -> Write:
        """The write that a reader found, all of whose answer must belong to it."""
        write = self._writes.get(found.identity)
        seen = f"{answer.start:.4f} to {answer.end:.4f}, {by}: {answer.text}"
        if write is None or write.key != key:
            raise self._wrong(key, f"a reader ({seen}) found {found.identity}, which was never written to it")
        self._check_payload(write, found, seen)
        self._check_times(write, found, answer, seen)
        return write

    def _check_payload(self, write: Write, found: Found, seen: str) -> None:
        sizes = {sum(piece.size for piece in pieces) for pieces in write.contents.values()}
        if found.stored_size is not None and found.stored_size not in sizes:
            raise self._wrong(
                write.key,
                f"a reader ({seen}) was told that {write.identity} has {found.stored_size} bytes, not {sizes}",
            )
        if found.payload is None:
            return
        if found.first is not None:
            if not any(self._has_range(pieces, found.first, found.payload) for pieces in write.contents.values()):
                raise self._wrong(write.key, f"a reader ({seen}) got a range that {write.identity} does not have")
            return
        digest = digest_of(found.payload)
        if digest not in write.contents:
            raise self._wrong(
                write.key,
                f"a reader ({seen}) got a payload that is none of {write.identity}, whose metadata it has: "
                + described(found.payload, self._payloads(write.key)),
            )
        if write.seen not in {None, digest}:
            raise self._wrong(write.key, f"a reader ({seen}) got another payload of {write.identity} than one before")
        write.seen = digest

    def _check_times(self, write: Write, found: Found, answer: Answer, seen: str) -> None:
        created = None if found.created is None else found.created - self._unix_minus_monotonic
        if created is not None and write.begun is not None and created < write.begun - CLOCK_TOLERANCE_SECONDS:
            raise self._wrong(write.key, f"a reader ({seen}) was told that {write.identity} was created at {created}")
        if write.ttl_seconds is None:
            return
        if created is None or found.expires is None or found.created is None:
            raise self._wrong(write.key, f"a reader ({seen}) was not told when {write.identity} expires")
        if abs(found.expires - found.created - write.ttl_seconds) > 0.001:
            raise self._wrong(write.key, f"a reader ({seen}) was told a wrong lifetime of {write.identity}")
        latest = created + write.ttl_seconds
        if write.acknowledged is not None:
            latest = min(latest, write.acknowledged + write.ttl_seconds)
        if answer.start > latest + CLOCK_TOLERANCE_SECONDS:
            raise self._wrong(write.key, f"a reader ({seen}) found {write.identity}, which expired at {latest:.4f}")

    def _has_range(self, pieces: tuple[Piece, ...], first: int, payload: bytes) -> bool:
        whole = b"".join(payload_of(piece.name, piece.size) for piece in pieces)
        return whole[first : first + len(payload)] == payload

    def _payloads(self, key: str) -> dict[str, bytes]:
        """Every payload that ``key`` may ever have had."""
        return {
            write.identity: b"".join(payload_of(piece.name, piece.size) for piece in pieces)
            for write in self._writes.values()
            if write.key == key
            for pieces in write.contents.values()
        }

    def _ttl_note(self, write: Write) -> str:
        return "" if write.ttl_seconds is None else f", ttl {write.ttl_seconds:g} s"

    def _wrong(self, key: str, reason: str) -> Violation:
        return Violation(f"key {key}: {reason}\nIts steps since the last judgement:\n{told(self._steps[key])}")
