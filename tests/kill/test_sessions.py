"""The ledger of resumable uploads believes the truth, and catches each kind of lie that a server could tell."""

import time
from collections.abc import Callable

import pytest

from tests.kill.answers import Answer, Found, Verdict
from tests.kill.history import Result, Violation
from tests.kill.ledger import Ledger
from tests.kill.sessions import MISMATCH, Session, SessionLedger

KEY = "k"
SIZE = 10_000
RETENTION_SECONDS = 1_000.0


class Story:
    """A server's answers, made up by a test: each takes a second, one after the other."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.sessions = SessionLedger(self.ledger, RETENTION_SECONDS)
        self.now = time.monotonic()

    def answer(self, verdict: Verdict = Verdict.DONE, offset: int | None = None, code: str = "") -> Answer:
        """The next answer."""
        start = self.now
        self.now += 1
        return Answer(start, start + 0.5, verdict, token="t", offset=offset, code=code)

    def begin(self, size: int = SIZE) -> Session:
        """A session that was begun."""
        session = self.sessions.created(self.ledger.new_write(KEY, None), size, self.answer())
        assert session is not None
        return session

    def piece(self, session: Session, end: int, answer: Callable[[], Answer]) -> Result:
        """A piece up to ``end``, and what it was answered with."""
        self.sessions.sending(session, end, self.now)
        return self.sessions.told(session, answer(), "test")

    def ask(self, session: Session, answer: Callable[[], Answer]) -> Result:
        """A question for the offset."""
        return self.sessions.told(session, answer(), "test")

    def stored(self, offset: int) -> Callable[[], Answer]:
        """204 with an offset."""
        return lambda: self.answer(offset=offset)

    def mismatch(self, offset: int) -> Callable[[], Answer]:
        """409 with an offset."""
        return lambda: self.answer(offset=offset, code=MISMATCH)

    def complete(self) -> Answer:
        """201."""
        return self.answer()

    def unknown(self) -> Answer:
        """No answer."""
        return self.answer(Verdict.UNKNOWN)

    def absent(self) -> Answer:
        """404."""
        return self.answer(Verdict.ABSENT)

    def cancel(self, session: Session, verdict: Verdict = Verdict.DONE) -> None:
        """A cancellation."""
        self.sessions.cancel_begins(session, self.now)
        self.sessions.cancelled(session, self.answer(verdict), "test")

    def read(self, session: Session | None) -> None:
        """A reader finds the object of a session, or nothing."""
        answer = self.answer(Verdict.ABSENT if session is None else Verdict.DONE)
        if session is not None:
            found = Found(session.write.identity, session.payload)
            answer = Answer(answer.start, answer.end, Verdict.DONE, found=found)
        self.ledger.read(KEY, answer, "test")

    def judge(self) -> None:
        """Judge all of it."""
        self.ledger.judge_round()


def test_the_truth_is_believed() -> None:
    """Pieces, lost answers, repetitions, a commit that nobody was told of, one that was cancelled, an empty one."""
    story = Story()
    session = story.begin()
    assert story.piece(session, 4_000, story.stored(4_000)) is Result.NOT_YET
    assert story.piece(session, 7_000, story.unknown) is Result.UNKNOWN
    assert story.ask(session, story.stored(5_000)) is Result.NOT_YET
    assert story.piece(session, 7_000, story.mismatch(7_000)) is Result.NOT_YET
    story.read(None)
    assert story.piece(session, SIZE, story.unknown) is Result.UNKNOWN
    story.read(session)
    assert story.ask(session, story.complete) is Result.DONE
    assert story.piece(session, SIZE, story.complete) is Result.DONE
    assert session.decided
    empty = story.begin(0)
    assert story.ask(empty, story.stored(0)) is Result.NOT_YET
    assert story.piece(empty, 0, story.complete) is Result.DONE
    story.read(empty)
    cancelled = story.begin()
    story.piece(cancelled, SIZE, story.unknown)
    story.cancel(cancelled)
    assert story.ask(cancelled, story.absent) is Result.NEVER
    story.read(empty)
    story.judge()


def forgets_an_offset(story: Story) -> None:
    """Bytes that were acknowledged are gone."""
    session = story.begin()
    story.piece(session, 4_000, story.stored(4_000))
    story.ask(session, story.stored(3_999))


def makes_an_offset_up(story: Story) -> None:
    """More is there than anybody has sent."""
    session = story.begin()
    story.piece(session, 4_000, story.stored(4_001))


def is_complete_too_early(story: Story) -> None:
    """Complete without its last byte."""
    story.piece(story.begin(), SIZE - 1, story.complete)


def is_full_and_not_complete(story: Story) -> None:
    """All bytes are there, and it says no more than that."""
    story.piece(story.begin(), SIZE, story.stored(SIZE))


def is_gone_by_itself(story: Story) -> None:
    """Nobody has ended it, and it is gone."""
    story.ask(story.begin(), story.absent)


def is_denied_after_success(story: Story) -> None:
    """It was complete, and then it is not."""
    session = story.begin()
    story.piece(session, SIZE, story.complete)
    story.piece(session, SIZE, story.stored(4_000))
    story.judge()


def succeeds_after_it_was_cancelled(story: Story) -> None:
    """It was cancelled, and is complete later."""
    session = story.begin()
    story.piece(session, SIZE, story.unknown)
    story.cancel(session)
    story.ask(session, story.complete)
    story.judge()


def is_seen_though_it_was_cancelled(story: Story) -> None:
    """It was cancelled, and its object is there."""
    session = story.begin()
    story.piece(session, SIZE, story.unknown)
    story.cancel(session)
    story.read(session)
    story.judge()


def is_lost(story: Story) -> None:
    """It was complete, and nobody finds it."""
    story.piece(story.begin(), SIZE, story.complete)
    story.read(None)
    story.judge()


def fails(story: Story) -> None:
    """An answer that no fault explains."""
    story.piece(story.begin(), SIZE, lambda: story.answer(Verdict.WRONG))


@pytest.mark.parametrize(
    "lie",
    [
        *(forgets_an_offset, makes_an_offset_up, is_complete_too_early, is_full_and_not_complete, is_gone_by_itself),
        *(is_denied_after_success, succeeds_after_it_was_cancelled, is_seen_though_it_was_cancelled, is_lost, fails),
    ],
    ids=lambda lie: str(lie.__name__),
)
def test_a_lie_is_caught(lie: Callable[[Story], None]) -> None:
    """Each of them is a violation, and nothing else is raised."""
    with pytest.raises(Violation):
        lie(Story())


def test_it_may_be_gone_when_its_time_is_over() -> None:
    """A session that nobody has stored to for so long may have been given up."""
    story = Story()
    session = story.begin()
    story.now += RETENTION_SECONDS
    assert story.ask(session, story.absent) is Result.NEVER
