"""The ledger catches each kind of lie that a server could tell, and believes the truth."""

import time
from collections.abc import Callable

import pytest

from tests.kill.answers import Answer, Found, Verdict
from tests.kill.history import Piece, Result, Violation, Write
from tests.kill.ledger import Ledger
from tests.kill.uploads import INVALID_PART, NO_SUCH_UPLOAD, PartTry, Upload, UploadLedger

KEY = "k"
SIZE = 10_000
RETENTION_SECONDS = 1_000.0


class Story:
    """A server's answers, made up by a test: each takes a second, one after the other."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.uploads = UploadLedger(self.ledger, RETENTION_SECONDS)
        self._now = time.monotonic()
        self._unix = time.time() - self._now

    def answer(self, verdict: Verdict = Verdict.DONE, **more: object) -> Answer:
        """The next answer."""
        start = self._now
        self._now += 1
        return Answer(start, start + 0.5, verdict, **more)  # type: ignore[arg-type]  # because each is named

    def put(self, verdict: Verdict = Verdict.DONE, ttl_seconds: float | None = None) -> Write:
        """A put with this outcome."""
        write = self.ledger.new_write(KEY, ttl_seconds)
        self.ledger.content(write, Piece(write.identity, SIZE))
        self.ledger.put(write, self.answer(verdict), "test")
        return write

    def payload(self, write: Write) -> bytes:
        """What a put wrote."""
        return self.ledger.content(write, Piece(write.identity, SIZE))

    def read(self, write: Write, payload: bytes | None = None, **more: object) -> None:
        """A reader gets ``write``, with its own payload if no other is given."""
        fields = {"created": write.begun + self._unix if write.begun is not None else None} | more
        whole = self.payload(write) if payload is None else payload
        found = Found(write.identity, whole, **fields)  # type: ignore[arg-type]  # because each is named
        self.ledger.read(KEY, self.answer(found=found), "test")

    def read_nothing(self) -> None:
        """A reader gets a 404."""
        self.ledger.read(KEY, self.answer(Verdict.ABSENT), "test")

    def delete(self, verdict: Verdict = Verdict.DONE) -> None:
        """A delete with this outcome."""
        self.ledger.delete(KEY, self.answer(verdict), "test")

    def end_life(self) -> None:
        """All processes end."""
        end = self.answer().end
        self.ledger.end_life(end)
        self.uploads.end_life(end)

    def upload(self, ttl_seconds: float | None = None) -> Upload:
        """An upload that was begun."""
        write = self.ledger.new_write(KEY, ttl_seconds)
        upload = self.uploads.initiated(write, self.answer(token="upload"))
        assert upload is not None
        return upload

    def part(self, upload: Upload, number: int, etag: str, verdict: Verdict = Verdict.DONE) -> PartTry:
        """A try to store a part."""
        part = self.uploads.new_part(upload, number, SIZE, self._now)
        self.uploads.stored(upload, part, self.answer(verdict, token=etag))
        return part

    def complete(
        self, upload: Upload, names: dict[int, str], code: str = "", verdict: Verdict = Verdict.DONE
    ) -> Result:
        """A completion with this outcome."""
        self.uploads.completing(upload, names, self._now)
        return self.uploads.completed(upload, names, self.answer(verdict, code=code), "test")

    def abort(self, upload: Upload, verdict: Verdict = Verdict.DONE) -> None:
        """An abort with this outcome."""
        self.uploads.abort_begins(upload, self._now)
        self.uploads.aborted(upload, self.answer(verdict), "test")

    def read_uploaded(self, upload: Upload, *parts: PartTry) -> None:
        """A reader gets an upload's object, made of these parts."""
        payload = self.ledger.content(Write("other", "other"), *[part.piece for part in parts])
        self.read(upload.write, payload)


def truth(story: Story) -> None:
    """A long story without a lie."""
    story.read_nothing()
    first = story.put()
    story.read(first)
    story.read(first, story.payload(first)[100:200], first=100)
    second = story.put(Verdict.UNKNOWN)
    story.put(Verdict.REFUSED)
    story.read(first)
    story.read(second)
    story.delete(Verdict.UNKNOWN)
    story.end_life()
    story.read_nothing()
    upload = story.upload()
    one = story.part(upload, 1, "e1")
    story.part(upload, 2, "", Verdict.UNKNOWN)
    two = story.part(upload, 2, "e2")
    story.complete(upload, {1: "e1", 2: "e2"}, INVALID_PART)
    story.complete(upload, {1: "e1", 2: "e2"}, verdict=Verdict.UNKNOWN)
    story.complete(upload, {1: "e1", 2: "e2"})
    story.read_uploaded(upload, one, two)
    story.delete()
    story.complete(upload, {1: "e1", 2: "e2"})
    story.read_nothing()
    aborted = story.upload()
    story.part(aborted, 1, "e3")
    story.abort(aborted)
    story.complete(aborted, {1: "e3"}, NO_SUCH_UPLOAD)


def test_the_truth_is_believed() -> None:
    """Answers of a server that does its work are no violation, and the ledger knows what the key holds."""
    story = Story()
    truth(story)
    story.ledger.judge_round()
    assert story.ledger.can_hold(KEY) == {None}


def lost_write(story: Story) -> None:
    """An acknowledged write that is not there."""
    story.put()
    story.read_nothing()


def lost_at_restart(story: Story) -> None:
    """An acknowledged overwrite of which only the old content has survived."""
    first = story.put()
    story.put()
    story.end_life()
    story.read(first)


def undone_delete(story: Story) -> None:
    """A deleted object that comes back."""
    write = story.put()
    story.delete()
    story.read(write)


def undone_refusal(story: Story) -> None:
    """A write that was refused, and is there."""
    story.read(story.put(Verdict.REFUSED))


def mixed_payload(story: Story) -> None:
    """The beginning of one write, and the end of another."""
    first, second = story.put(), story.put()
    story.read(second, story.payload(second)[:8192] + story.payload(first)[8192:])


def mixed_range(story: Story) -> None:
    """A range with bytes of another write than its metadata say."""
    first, second = story.put(), story.put()
    story.read(second, story.payload(first)[100:200], first=100)


def torn_payload(story: Story) -> None:
    """A payload that ends early and looks whole."""
    write = story.put()
    story.read(write, story.payload(write)[:-1])


def wrong_size(story: Story) -> None:
    """A size that is not the object's."""
    story.read(story.put(), stored_size=SIZE - 1)


def strange_object(story: Story) -> None:
    """An object that nobody wrote to this key."""
    story.ledger.new_write(KEY, None)
    story.read(Write("w99", "other"), b"")


def stale_read(story: Story) -> None:
    """A reader that sees the new content, and a later one that sees the old."""
    first, second = story.put(), story.put(Verdict.UNKNOWN)
    story.read(second)
    story.read(first)


def undead_object(story: Story) -> None:
    """An object that is read after its time."""
    write = story.put(ttl_seconds=1.0)
    story.answer()
    created = story.answer().start
    story.read(write, created=write.begun, expires=created)


def early_end(story: Story) -> None:
    """An object that goes before its time."""
    story.put(ttl_seconds=60.0)
    story.read_nothing()


def absent_upload(story: Story) -> None:
    """A completion that succeeded, and no object."""
    upload = story.upload()
    story.part(upload, 1, "e1")
    story.complete(upload, {1: "e1"})
    story.read_nothing()


def denied_upload(story: Story) -> None:
    """A completion that is refused for good after one that succeeded."""
    upload = story.upload()
    story.part(upload, 1, "e1")
    story.complete(upload, {1: "e1"})
    story.abort(upload, Verdict.ABSENT)
    story.complete(upload, {1: "e1"}, NO_SUCH_UPLOAD)


def vanished_upload(story: Story) -> None:
    """An upload that is refused for good, though nobody has ended it."""
    upload = story.upload()
    story.part(upload, 1, "e1")
    story.complete(upload, {1: "e1"}, NO_SUCH_UPLOAD)


def vanished_while_parts_come(story: Story) -> None:
    """An upload whose parts are refused, though nobody has ended it."""
    story.part(story.upload(), 1, "", Verdict.ABSENT)


def aborted_and_there(story: Story) -> None:
    """An upload that was aborted, and committed."""
    upload = story.upload()
    part = story.part(upload, 1, "e1")
    story.complete(upload, {1: "e1"}, verdict=Verdict.UNKNOWN)
    story.abort(upload)
    story.read_uploaded(upload, part)


def committed_twice(story: Story) -> None:
    """An upload that comes back when it is completed once more."""
    upload = story.upload()
    part = story.part(upload, 1, "e1")
    story.complete(upload, {1: "e1"})
    story.put()
    story.complete(upload, {1: "e1"})
    story.read_uploaded(upload, part)


def lost_part(story: Story) -> None:
    """A completion that is refused for parts that were acknowledged."""
    upload = story.upload()
    story.part(upload, 1, "e1")
    story.complete(upload, {1: "e1"}, INVALID_PART)


def part_not_listed(story: Story) -> None:
    """A listing without a part that was acknowledged."""
    upload = story.upload()
    story.part(upload, 1, "e1")
    story.uploads.listed(upload, story.answer(parts={}))


def strange_part(story: Story) -> None:
    """A listing with a part that nobody has sent."""
    story.uploads.listed(story.upload(), story.answer(parts={1: ("e1", 7)}))


def replaced_part(story: Story) -> None:
    """An object that is made of a part that had been replaced."""
    upload = story.upload()
    old = story.part(upload, 1, "e1")
    story.part(upload, 1, "e2")
    story.complete(upload, {1: "e2"})
    story.read_uploaded(upload, old)


def strange_code(story: Story) -> None:
    """A completion that is refused for a reason that it does not have."""
    upload = story.upload()
    story.part(upload, 1, "e1")
    story.complete(upload, {1: "e1"}, "InternalError")


def fault_of_its_own(story: Story) -> None:
    """A request that is answered with 500."""
    story.put(Verdict.WRONG)


LIES = (
    *(lost_write, lost_at_restart, undone_delete, undone_refusal, mixed_payload, mixed_range, torn_payload),
    *(wrong_size, strange_object, stale_read, undead_object, early_end, absent_upload, denied_upload),
    *(vanished_upload, vanished_while_parts_come, aborted_and_there, committed_twice, lost_part, part_not_listed),
    *(strange_part, replaced_part, strange_code, fault_of_its_own),
)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie.__name__))
def test_a_lie_is_caught(lie: Callable[[Story], None]) -> None:
    """What the server must never answer is a violation, at once or when the round is judged; also after a true story.

    Its text names the key.
    """
    for before in (lambda _: None, truth):
        story = Story()
        before(story)
        with pytest.raises(Violation, match=f"key {KEY}"):
            _tell(lie, story)


def _tell(lie: Callable[[Story], None], story: Story) -> None:
    lie(story)
    story.ledger.judge_round()


def test_the_owners_of_a_mix_are_told() -> None:
    """The text about a mixed payload says which bytes are whose."""
    with pytest.raises(Violation, match=r"bytes 0 to 8192 of w1, bytes 8192 to 10000 of w0"):
        mixed_payload(Story())
