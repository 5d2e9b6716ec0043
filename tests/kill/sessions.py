"""Resumable uploads in the ledger: how far each has come, what may have become of it, and whether that is told truly.

Guarantees: an offset that was acknowledged is never lost, and none is told that nobody has sent; a session is complete
only when somebody may have sent its last byte, and gone only if somebody may have ended it; what was acknowledged once
is not denied later.
"""

from dataclasses import dataclass, field

from tests.kill.answers import Answer, Verdict
from tests.kill.history import Kind, Piece, Result, Step, Violation, Write
from tests.kill.judge import CLOCK_TOLERANCE_SECONDS
from tests.kill.ledger import Ledger

MISMATCH = "OffsetMismatch"
"""The code of an answer that refuses a piece, and says where to go on."""


@dataclass(eq=False, slots=True)
class Session:
    """One resumable upload, and all that was learned of it."""

    write: Write
    token: str
    payload: bytes
    granularity: int
    """The fewest bytes of a piece that is not the last."""
    ends_by_itself: float
    """From when on the server may give it up, if nothing was ever stored to it; later, if something was."""
    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    """When an offset was acknowledged, and which."""
    sent_to: int = 0
    """How far somebody may have sent it."""
    ending: float = float("inf")
    """When somebody began to send its last byte first."""
    cancelling: float = float("inf")
    """When somebody began to cancel it first."""
    decided: bool = False
    """Whether it is known whether it was committed."""

    @property
    def offset(self) -> int:
        """How far it has come, as far as anybody was told."""
        return max((offset for _, offset in self.acknowledged), default=0)

    def floor(self, at: float) -> int:
        """What had been acknowledged by then."""
        return max((offset for when, offset in self.acknowledged if when <= at), default=0)


class SessionLedger:
    """Keeps sessions in ``ledger``."""

    def __init__(self, ledger: Ledger, retention_seconds: float) -> None:
        self._ledger = ledger
        self._retention_seconds = retention_seconds
        self.sessions: list[Session] = []

    def created(self, write: Write, size: int, answer: Answer) -> Session | None:
        """Keep what came of beginning a session of ``size`` bytes; None if nobody knows of one."""
        if answer.verdict not in {Verdict.DONE, Verdict.UNKNOWN, Verdict.REFUSED, Verdict.UNSENT}:
            raise Violation(f"key {write.key}: the beginning of a session was answered: {answer.text}")
        if answer.verdict is not Verdict.DONE:
            return None
        self._ledger.counts["acknowledged"] += 1
        payload = self._ledger.content(write, Piece(write.identity, size))
        ends_by_itself = answer.start + self._retention_seconds
        session = Session(write, answer.token, payload, answer.granularity, ends_by_itself)
        self.sessions.append(session)
        return session

    def sending(self, session: Session, end: int, now: float) -> None:
        """Somebody is about to send it up to ``end``; with the last byte, the object may be there from now on."""
        session.sent_to = max(session.sent_to, end)
        if end == len(session.payload):
            session.ending = min(session.ending, now)
            session.write.begun = session.ending

    def told(self, session: Session, answer: Answer, by: str) -> Result:
        """Keep what a piece, or a question for the offset, was told, which must be the truth."""
        result = self._result(session, answer)
        if result is Result.DONE:
            self._ledger.counts["session_done"] += session.write.acknowledged is None
            known = session.write.acknowledged
            session.write.acknowledged = answer.end if known is None else min(known, answer.end)
        if result is not Result.NOTHING and session.ending < answer.end:
            self._step(session, Kind.COMPLETE, answer, result, by)
        session.decided = session.decided or result in {Result.DONE, Result.NEVER}
        return result

    def cancel_begins(self, session: Session, now: float) -> None:
        """Somebody is about to cancel it."""
        session.cancelling = min(session.cancelling, now)

    def cancelled(self, session: Session, answer: Answer, by: str) -> Result:
        """Keep what a cancellation was told. That there is no such session says of a complete one, too."""
        if answer.verdict is Verdict.WRONG:
            raise self._wrong(session, f"a cancellation was answered: {answer.text}")
        if answer.verdict is not Verdict.DONE:
            return Result.UNKNOWN
        self._ledger.counts["acknowledged"] += 1
        self._ledger.counts["session_cancelled"] += 1
        session.decided = True
        self._step(session, Kind.ABORT, answer, Result.NEVER, by)
        return Result.NEVER

    def _result(self, session: Session, answer: Answer) -> Result:
        match answer.verdict:
            case Verdict.UNSENT:
                return Result.NOTHING
            case Verdict.UNKNOWN | Verdict.REFUSED:
                return Result.UNKNOWN
            case Verdict.ABSENT:
                if min(session.cancelling, session.ends_by_itself - CLOCK_TOLERANCE_SECONDS) > answer.end:
                    raise self._wrong(session, f"nobody has ended the session, and it is gone: {answer.text}")
                return Result.NEVER
            case Verdict.WRONG:
                raise self._wrong(session, f"a piece was answered: {answer.text}")
            case Verdict.DONE:
                return self._acknowledged(session, answer)

    def _acknowledged(self, session: Session, answer: Answer) -> Result:
        self._ledger.counts["acknowledged"] += 1
        if answer.offset is not None:
            return self._learn(session, answer, answer.offset)
        if session.ending > answer.end:
            raise self._wrong(session, f"nobody has sent all of it, and it is complete: {answer.text}")
        return Result.DONE

    def _learn(self, session: Session, answer: Answer, offset: int) -> Result:
        floor, size = session.floor(answer.start), len(session.payload)
        if not floor <= offset <= session.sent_to:
            raise self._wrong(
                session,
                f"it is at {offset}, and {floor} were acknowledged of {session.sent_to} that were sent: {answer.text}",
            )
        session.acknowledged.append((answer.end, offset))
        if offset < size or (not size and not answer.code):  # one of no bytes wants a piece, too
            return Result.NOT_YET
        if answer.code != MISMATCH:
            raise self._wrong(session, f"it has all {size} bytes, and is not complete: {answer.text}")
        return Result.UNKNOWN  # of a complete one too, a shorter piece is told so

    def _step(self, session: Session, kind: Kind, answer: Answer, result: Result, by: str) -> None:
        note = f"session of {len(session.payload)} bytes, {answer.text}"
        self._ledger.step(session.write.key, Step(kind, answer.start, answer.end, result, session.write, by, note))

    def _wrong(self, session: Session, reason: str) -> Violation:
        told = "\n".join(f"  {when:.4f}  {offset}" for when, offset in session.acknowledged)
        write = session.write
        return Violation(
            f"key {write.key}, session {write.identity} of {len(session.payload)} bytes: {reason}\n"
            f"Offsets that were acknowledged:\n{told}"
        )
