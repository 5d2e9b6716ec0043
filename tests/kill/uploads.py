"""Multipart uploads in the ledger: their parts, what may have become of them, and whether they are told the truth.

Guarantees: an acknowledged part is there until another of its number may have replaced it or the upload may have ended;
an upload is gone only if somebody may have ended it; a completion is refused only if the upload was not committed, and
for a reason that its history has; what was acknowledged once is not denied later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.kill.answers import Answer, Verdict
from tests.kill.history import Kind, Piece, Result, Step, Violation, Write
from tests.kill.judge import CLOCK_TOLERANCE_SECONDS
from tests.kill.ledger import Ledger

NO_SUCH_UPLOAD, INVALID_PART, RETRY = "NoSuchUpload", "InvalidPart", "ServiceUnavailable"
COMPLETED_AFTER_A_KILL = "completed_after_a_kill"
"""Counts uploads that were completed after a process of the server had been killed since they began."""


@dataclass(eq=False, slots=True)
class PartTry:
    """One request to store one part."""

    number: int
    piece: Piece
    start: float
    end: float = float("inf")
    etag: str | None = None
    refused: bool = False

    @property
    def acknowledged(self) -> bool:
        """Whether it is known to have been stored."""
        return self.etag is not None


@dataclass(eq=False, slots=True)
class Upload:
    """One upload, and all that was asked of it."""

    write: Write
    upload_id: str
    ends_by_itself: float
    """From when on the server may give it up."""
    tries: list[PartTry] = field(default_factory=list)
    ending: float = float("inf")
    """When somebody began to complete or abort it first."""
    aborting: float = float("inf")
    """When somebody began to abort it first."""
    named: dict[int, str] = field(default_factory=dict)
    """The parts that it was completed with last."""
    gone: bool = False
    """Whether the server has said that it knows nothing of it, when asked to abort it."""
    decided: bool = False
    """Whether it is known whether it was committed."""
    kills_before: int = 0
    """How many processes or groups had been killed when it began."""

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to be learned of it: nobody commits what nobody has named parts of."""
        return self.decided or (self.gone and not self.named)

    def current(self) -> dict[int, PartTry]:
        """The last acknowledged try of each part."""
        return {part.number: part for part in self.tries if part.acknowledged}

    def may_be_replaced(self, part: PartTry, until: float) -> bool:
        """Whether another try of its number may have taken its place by ``until``."""
        return any(
            other.number == part.number and not other.refused and other.end > part.start and other.start <= until
            for other in self.tries
            if other is not part
        )


class UploadLedger:
    """Keeps uploads in ``ledger``."""

    def __init__(self, ledger: Ledger, retention_seconds: float) -> None:
        self._ledger = ledger
        self._retention_seconds = retention_seconds
        self._kills = 0
        self.uploads: list[Upload] = []

    def initiated(self, write: Write, answer: Answer) -> Upload | None:
        """Keep what came of an initiate; None if nobody knows of an upload."""
        if answer.verdict is Verdict.WRONG:
            raise Violation(f"key {write.key}: an initiate was answered: {answer.text}")
        if answer.verdict is not Verdict.DONE:
            return None
        self._ledger.counts["acknowledged"] += 1
        upload = Upload(write, answer.token, answer.start + self._retention_seconds, kills_before=self._kills)
        self.uploads.append(upload)
        return upload

    def killed(self) -> None:
        """A process of the server, or all of them, have been killed."""
        self._kills += 1

    def end_life(self, at: float) -> None:
        """Every process that was asked anything so far has ended."""
        for upload in self.uploads:
            for part in upload.tries:
                part.end = min(part.end, at)

    def new_part(self, upload: Upload, number: int, size: int, now: float) -> PartTry:
        """A try to store part ``number``; its size differs from that of every other try of the number."""
        taken = {part.piece.size for part in upload.tries if part.number == number}
        while size in taken:
            size += 1
        name = f"{upload.write.identity}/{number}.{len(upload.tries)}"
        part = PartTry(number, Piece(name, size), now)
        upload.tries.append(part)
        return part

    def stored(self, upload: Upload, part: PartTry, answer: Answer) -> None:
        """Keep what came of a try to store a part."""
        part.start = answer.start
        if answer.verdict is Verdict.DONE:
            self._ledger.counts["acknowledged"] += 1
            part.etag, part.end = answer.token, answer.end
        elif answer.verdict in {Verdict.REFUSED, Verdict.UNSENT}:
            part.refused = True
        elif answer.verdict is Verdict.ABSENT:
            part.refused = True
            self._check_gone(upload, upload.ending, answer)
        elif answer.verdict is Verdict.WRONG:
            raise self._wrong(upload, f"part {part.number} was answered: {answer.text}")

    def listed(self, upload: Upload, answer: Answer) -> None:
        """Check a listing, and learn from it which try of a part without an answer was stored."""
        if answer.verdict is Verdict.ABSENT:
            self._check_gone(upload, upload.ending, answer)
        if answer.verdict is Verdict.WRONG:
            raise self._wrong(upload, f"a listing was answered: {answer.text}")
        if answer.verdict is not Verdict.DONE:
            return
        self._ledger.counts["acknowledged"] += 1
        for number, part in upload.current().items():
            if answer.parts.get(number, ("", 0))[0] != part.etag and not upload.may_be_replaced(part, answer.end):
                raise self._wrong(upload, f"part {number} ({part.etag}) was acknowledged, the listing: {answer.parts}")
        for number, (etag, size) in answer.parts.items():
            self._learn(upload, number, etag, size, answer)

    def completing(self, upload: Upload, names: Mapping[int, str], now: float) -> None:
        """Somebody is about to complete it: from now on the object may be made of the named parts."""
        upload.ending = min(now, upload.ending)
        upload.write.begun = upload.ending
        upload.named = dict(names)
        pieces = [part.piece for number, etag in names.items() for part in upload.tries if part.etag == etag]
        if len(pieces) == len(names):
            self._ledger.content(upload.write, *pieces)

    def abort_begins(self, upload: Upload, now: float) -> None:
        """Somebody is about to abort it."""
        upload.ending = min(now, upload.ending)
        upload.aborting = min(now, upload.aborting)

    def completed(self, upload: Upload, names: Mapping[int, str], answer: Answer, by: str) -> Result:
        """Keep what a completion was told, which must be the truth."""
        if answer.verdict is Verdict.UNSENT:
            return Result.NOTHING
        result = self._completion(upload, names, answer)
        write = upload.write
        if result is Result.DONE:
            self._ledger.counts["acknowledged"] += 1
            if write.acknowledged is None and self._kills > upload.kills_before:
                self._ledger.counts[COMPLETED_AFTER_A_KILL] += 1
            write.acknowledged = answer.end if write.acknowledged is None else min(write.acknowledged, answer.end)
        upload.decided = upload.decided or result in {Result.DONE, Result.NEVER}
        self._ledger.step(write.key, Step(Kind.COMPLETE, answer.start, answer.end, result, write, by, answer.text))
        return result

    def aborted(self, upload: Upload, answer: Answer, by: str) -> Result:
        """Keep what an abort was told."""
        if answer.verdict is Verdict.WRONG:
            raise self._wrong(upload, f"an abort was answered: {answer.text}")
        if answer.verdict is Verdict.ABSENT:
            self._check_gone(upload, upload.ending, answer)
            upload.gone = True
        if answer.verdict is not Verdict.DONE:
            return Result.UNKNOWN
        self._ledger.counts["acknowledged"] += 1
        upload.decided = True
        write = upload.write
        self._ledger.step(write.key, Step(Kind.ABORT, answer.start, answer.end, Result.NEVER, write, by, answer.text))
        return Result.NEVER

    def _completion(self, upload: Upload, names: Mapping[int, str], answer: Answer) -> Result:
        if answer.verdict is Verdict.DONE and not answer.code:
            return Result.DONE
        match answer.code:
            case "" if answer.verdict in {Verdict.UNKNOWN, Verdict.REFUSED}:
                return Result.UNKNOWN
            case code if code == RETRY:
                return Result.UNKNOWN
            case code if code == NO_SUCH_UPLOAD:
                self._check_gone(upload, upload.aborting, answer)
                return Result.NEVER
            case code if code == INVALID_PART:
                self._check_invalid(upload, names, answer)
                return Result.NOT_YET
            case _:
                raise self._wrong(upload, f"a completion was answered: {answer.text}")

    def _check_gone(self, upload: Upload, ending: float, answer: Answer) -> None:
        if min(ending, upload.ends_by_itself - CLOCK_TOLERANCE_SECONDS) > answer.end:
            raise self._wrong(upload, f"nobody has ended the upload, and it is gone: {answer.text}")

    def _check_invalid(self, upload: Upload, names: Mapping[int, str], answer: Answer) -> None:
        """A part that was named must not be what the server has: it may have been replaced, or never was."""
        for number, etag in names.items():
            named = [part for part in upload.tries if part.number == number and part.etag == etag]
            if not named or upload.may_be_replaced(named[-1], answer.end):
                return
        raise self._wrong(upload, f"all of its parts were acknowledged, and a completion was told: {answer.text}")

    def _learn(self, upload: Upload, number: int, etag: str, size: int, answer: Answer) -> None:
        tries = [part for part in upload.tries if part.number == number]
        if any(part.etag == etag and part.piece.size == size for part in tries):
            return
        for part in tries:
            if part.etag is None and not part.refused and part.piece.size == size:
                part.etag = etag
                return
        raise self._wrong(upload, f"part {number} ({etag}, {size} bytes) was never sent ({answer.text})")

    def _wrong(self, upload: Upload, reason: str) -> Violation:
        tries = "\n".join(
            f"  {part.start:.4f} to {part.end:.4f}  part {part.number}, {part.piece.size} bytes: "
            f"{part.etag or ('refused' if part.refused else 'outcome unknown')}"
            for part in upload.tries
        )
        return Violation(f"key {upload.write.key}, upload {upload.write.identity}: {reason}\nIts parts:\n{tries}")


def names_of(parts: Sequence[PartTry]) -> dict[int, str]:
    """How parts are named to complete an upload, ascending."""
    return {part.number: part.etag for part in sorted(parts, key=lambda part: part.number) if part.etag is not None}
