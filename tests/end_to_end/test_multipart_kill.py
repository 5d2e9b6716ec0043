"""``kill -9`` at every step of completing an upload: trying again succeeds with the object whole, and nothing is left.

What the steps are, a first completion tells, which nothing happens to: every call of a store's contract by the attempt
and by what it leaves to do off its path, and between the calls every change that the filesystem store makes to names of
files. Then a server dies at each of them, before its effect and after it; the next one takes the retry, and is the one
that dies at the next step, on the same stores. What is left is looked at in between, as the crash has left it.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
import urllib3
from objectstore_client import Client, Usecase
from objectstore_client.client import Session
from objectstore_client.multipart import CompletePart, MultipartCompleteError, MultipartUpload

from tests.end_to_end.helpers import PROMPT_SWEEPER, remains, stop, until_swept
from tierstore.limits import MIB, Limits
from tierstore.testing.process_faults import Act, ProcessFault
from tierstore.testing.server import ServerProcess
from tierstore.types.ids import ObjectId, Scope
from tierstore.types.multipart import UploadId

CALLS = (
    "complete_upload:high_volume.head",
    "complete_upload:changelog.claim",
    "complete_upload:long_term.complete",
    "complete_upload:long_term.head",
    "complete_upload:high_volume.point",
    "finish_upload:changelog.mark_done",
    "finish_upload:changelog.forget",
)
"""What every completion calls; over a blob there is more."""

FINISHED = CALLS[-1]
COMPLETE, DELETE = "long_term.complete", "long_term.delete"
QUIET_SWEEPER = ProcessFault("changelog.due", Act.DELAY_BEFORE, seconds=3600)
"""Keeps the sweeper of a server at its first step for good: it would settle what a later server is to find."""
SETTINGS = PROMPT_SWEEPER | {"uploads": {"retention": 1}}
"""Those of all servers; the sweeper of the last one, the only one that is not quiet, settles whatever it finds."""
TIMEOUT = urllib3.Timeout(connect=10, read=60)
CUT_OFF = (urllib3.exceptions.HTTPError, ValueError)
"""What the client raises when the server dies under it."""
NEW = [bytes([64 + number]) * (70_000 + number) for number in range(1, 4)]
NAMED = 2
"""Parts that are named to complete the upload; the others are removed by it."""
WHOLE = b"".join(NEW[:NAMED])
OLD = {"small": b"o" * 300, "large": b"O" * (MIB + 1), "upload": b"p" * 60_000 + b"q" * 60_000}


@dataclass(frozen=True)
class Case:
    """An upload whose completion has met a crash."""

    key: str
    over: str
    fault: ProcessFault
    upload_id: str
    parts: Sequence[CompletePart]
    acknowledged: bool


def session_of(server: ServerProcess) -> Session:
    """A public client of the server."""
    client = Client(server.url, connection_kwargs={"timeout": TIMEOUT})
    return client.session(Usecase("killed"), org=1)


def payload_of(session: Session, key: str) -> bytes | None:
    """The object, or None if there is none."""
    found = session.get(key)
    return None if found is None else found.payload.read()


def arm(server: ServerProcess, *faults: ProcessFault) -> list[str]:
    """Give the server its next faults; return what it has called since it was given the last ones."""
    (report,) = server.arm(QUIET_SWEEPER, *faults)
    return list(report.trace)


def until_called(server: ServerProcess, call: str, *faults: ProcessFault) -> list[str]:
    """Wait until the server has made the call, since it was last armed; return all its calls. Arms it meanwhile."""
    called: list[str] = []

    def seen() -> bool:
        called.extend(arm(server, *faults))
        return call in called

    server.wait_until(seen, f"has called {call}")
    return called


def put_old(server: ServerProcess, key: str, over: str) -> None:
    """Store what is there before, and let all come to rest."""
    session = session_of(server)
    arm(server)
    if over == "upload":
        upload = session.initiate_multipart_upload(key=key, compression="none")
        half = len(OLD[over]) // 2
        upload.complete([send(upload, 1, OLD[over][:half]), send(upload, 2, OLD[over][half:])])
        until_called(server, FINISHED)
    elif over != "nothing":
        session.put(OLD[over], key=key, compress="none")
        if over == "large":
            until_called(server, "clean_up:changelog.forget")


def send(upload: MultipartUpload, number: int, piece: bytes) -> CompletePart:
    """Send a part."""
    return upload.put_part(piece, part_number=number, content_length=len(piece))


def begin(server: ServerProcess, key: str) -> tuple[MultipartUpload, list[CompletePart]]:
    """Begin the upload and send its parts; return those that are to be named."""
    upload = session_of(server).initiate_multipart_upload(key=key, compression="none")
    return upload, [send(upload, number, piece) for number, piece in enumerate(NEW, 1)][:NAMED]


def faults_of(trace: Sequence[str]) -> list[ProcessFault]:
    """A crash before and after each call of the trace, and before each change of a name by those that were watched."""
    faults: list[ProcessFault] = []
    counts: Counter[str] = Counter()
    changes = 0
    for step in trace:
        if step.startswith(" "):
            changes += 1
            faults.append(ProcessFault(faults[-1].call, Act.KILL_AMID, faults[-1].task, step=changes))
            continue
        changes = 0
        counts[step] += 1
        task, _, call = step.partition(":")
        faults += [ProcessFault(call, act, task, counts[step]) for act in (Act.KILL_BEFORE, Act.KILL_AFTER)]
    return faults


class Chain:
    """Servers on the same stores, one after the other, each of which dies at the next step of a completion.

    The next one takes the retry; or, if not ``retries``, all come last, when the uploads that can be have been aborted.
    """

    def __init__(self, data: Path, overs: Sequence[str], *, watched: str, retries: bool) -> None:
        self._data = data
        self._overs = overs
        self._watched = watched
        self._retries = retries
        self.cases: list[Case] = []
        self.aborted = 0

    def run(self) -> None:
        """All of it, to the sweep and what is left after it."""
        last: Case | None = None
        for number, (fault, over) in enumerate(zip(self._faults(), cycle(self._overs), strict=False)):
            with self._server() as server, named(last):
                self._judge_restarted(server, last)
                last = self._die(server, f"{over}-{number}", over, fault)
            with named(last):
                self._judge_crash(last)
            self.cases.append(last)
        with self._server() as server, named(last):
            self._judge_restarted(server, last)
        with ServerProcess(self._data, config=SETTINGS) as server:
            asyncio.run(until_swept(server))
            for case in self.cases:
                with named(case):
                    self._judge_swept(server, case)
            asyncio.run(until_swept(server))
            stop(server)
        left = asyncio.run(remains(self._data))
        left.check_settled()
        assert len(left.blobs) == len(self.cases) + 1, "an object of the chain is missing"

    def _server(self) -> ServerProcess:
        return ServerProcess(self._data, faults=[QUIET_SWEEPER], config=SETTINGS)

    def _faults(self) -> list[ProcessFault]:
        """What can happen, from a completion that nothing happens to."""
        with self._server() as server:
            put_old(server, "unharmed", self._overs[-1])
            upload, parts = begin(server, "unharmed")
            watch = ProcessFault(self._watched, Act.WATCH)
            arm(server, watch)
            upload.complete(parts)
            trace = until_called(server, FINISHED, watch)
        assert set(CALLS) <= set(trace), trace
        return faults_of([step for step in trace if step.startswith((" ", "complete_upload", "finish_upload"))])

    def _die(self, server: ServerProcess, key: str, over: str, fault: ProcessFault) -> Case:
        """Complete an upload on a server that dies of it."""
        put_old(server, key, over)
        upload, parts = begin(server, key)
        arm(server, fault)
        try:
            upload.complete(parts)
            acknowledged = True
        except CUT_OFF:
            acknowledged = False
        assert server.wait() == -signal.SIGKILL
        return Case(key, over, fault, upload.upload_id, parts, acknowledged)

    def _judge_crash(self, case: Case) -> None:
        """What the crash has left, before anybody has had a chance to mend it."""
        left = asyncio.run(remains(self._data))
        left.check_recoverable()
        revision = UploadId.decode(
            case.upload_id, ObjectId("killed", (Scope("org", "1"),), case.key), Limits()
        ).revision
        assert revision in left.referenced or not case.acknowledged, "it was acknowledged, and is not committed"

    def _judge_restarted(self, server: ServerProcess, case: Case | None) -> None:
        """The object is the old one or the new one, and new once it was acknowledged; the retry succeeds."""
        if case is None:
            return
        session = session_of(server)
        assert payload_of(session, case.key) in {WHOLE, WHOLE if case.acknowledged else OLD.get(case.over)}
        if self._retries:
            upload = session.resume_multipart_upload(case.key, case.upload_id)
            assert upload.complete(case.parts) == case.key
            assert payload_of(session, case.key) == WHOLE

    def _judge_swept(self, server: ServerProcess, case: Case) -> None:
        """The outcome is remembered, and the same for those who ask again; where it was an end, a new upload works."""
        session = session_of(server)
        committed = payload_of(session, case.key) == WHOLE
        assert committed or not (case.acknowledged or self._retries)
        upload = session.resume_multipart_upload(case.key, case.upload_id)
        if committed:
            assert upload.complete(case.parts) == case.key
            return
        with pytest.raises(MultipartCompleteError) as refused:
            upload.complete(case.parts)
        assert refused.value.code == "NoSuchUpload"
        assert payload_of(session, case.key) == OLD.get(case.over)
        another, parts = begin(server, case.key)
        assert another.complete(parts) == case.key
        assert payload_of(session, case.key) == WHOLE
        self.aborted += 1


@contextmanager
def named(case: Case | None) -> Iterator[None]:
    """Say of a failure which case it is of."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{case}: {error!r}") from error


@pytest.mark.parametrize(
    ("overs", "watched"), [(("nothing", "small"), COMPLETE), (("large",), DELETE), (("upload",), DELETE)]
)
def test_after_a_crash_at_any_step_the_retry_succeeds(tmp_path: Path, overs: Sequence[str], watched: str) -> None:
    """A server dies there; the next one completes the same upload, over what was there before it; nothing is left."""
    chain = Chain(tmp_path, overs, watched=watched, retries=True)
    chain.run()
    assert Act.KILL_AMID in {case.fault.act for case in chain.cases}
    assert {case.acknowledged for case in chain.cases} == {True, False}


def test_after_a_crash_and_a_sweep_an_upload_is_committed_or_begun_anew(tmp_path: Path) -> None:
    """A server dies at any step and a sweeper ends what it can: a retry then learns the truth, or starts again."""
    chain = Chain(tmp_path, ["upload"], watched=COMPLETE, retries=False)
    chain.run()
    assert 0 < chain.aborted < len(chain.cases)
