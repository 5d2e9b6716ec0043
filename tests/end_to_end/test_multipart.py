"""Multipart uploads with the public client against real servers on the embedded stores."""

import contextlib
import hashlib
import inspect
import io
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, cast

import pytest
import urllib3
import zstandard
from objectstore_client import Client, TimeToIdle, TimeToLive, Usecase
from objectstore_client.client import GetResponse, Session
from objectstore_client.errors import RequestError
from objectstore_client.multipart import CompletePart, MultipartCompleteError, MultipartUpload

from tests.end_to_end import another_client
from tests.end_to_end.another_client import session_at
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.mounts import small_disk
from tierstore.testing.server import ServerProcess

PARTS = [bytes([number]) * (200_000 + number) for number in range(1, 17)]
WHOLE = b"".join(PARTS)
STREAM_BYTES_MAX = 8 * MIB
"""What one stream may add to a server's memory: two chunks and two batches of 512 KiB, the socket's buffers, and what
the allocators of the threads that take turns keep back."""
_orgs = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two workers, for all tests of this file that need nothing special."""
    with ServerProcess(tmp_path_factory.mktemp("data"), workers=2) as running:
        yield running


@pytest.fixture
def session(server: ServerProcess) -> Session:
    """A session of an organisation that no other test has."""
    return session_at(server.url, next(_orgs))


def _found(session: Session, key: str) -> GetResponse:
    found = session.get(key)
    assert found is not None
    return found


def _payload(session: Session, key: str) -> bytes:
    with _found(session, key).payload as payload:
        return bytes(payload.read())


def _put(upload: MultipartUpload, number: int, content: bytes) -> CompletePart:
    return upload.put_part(content, part_number=number, content_length=len(content))


def _raw(session: Session, key: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """The object as HTTP has it, without the client."""
    return urllib3.request("GET", session.object_url(key), headers=headers, decode_content=False)


# The whole way


def test_this_file_drives_the_whole_surface() -> None:
    """A call, or an option of one, that a new version of the client brings is missed here; none of them is async."""

    def surface(owner: type) -> dict[str, set[str]]:
        functions = {name: call for name, call in vars(owner).items() if inspect.isfunction(call)}
        assert not any(map(inspect.iscoroutinefunction, functions.values()))
        return {
            name: set(inspect.signature(call).parameters) - {"self"}
            for name, call in functions.items()
            if not name.startswith("_") and (owner is MultipartUpload or "multipart" in name)
        }

    metadata = {"content_type", "metadata", "expiration_policy", "origin", "filename"}
    assert surface(Session) == {
        "initiate_multipart_upload": {"key", "compression", *metadata},
        "resume_multipart_upload": {"key", "upload_id"},
    }
    assert surface(MultipartUpload) == {
        "put_part": {"contents", "part_number", "content_length", "content_md5"},
        "list_parts": set(),
        "abort": set(),
        "complete": {"parts"},
    }


def test_parts_in_parallel_and_out_of_order(session: Session) -> None:
    """16 parts at once, through both workers, the last ones first, with metadata that the object then has."""
    upload = session.initiate_multipart_upload(
        compression="none",
        metadata={"build": "17"},
        expiration_policy=TimeToLive(timedelta(days=1)),
        origin="10.0.0.1",
        filename="core.dmp",
    )

    def send(number: int) -> CompletePart:
        part = PARTS[number - 1]
        digest = hashlib.md5(part, usedforsecurity=False).digest()
        return upload.put_part(part, part_number=number, content_length=len(part), content_md5=digest)

    with ThreadPoolExecutor(16) as threads:
        sent = list(threads.map(send, range(16, 0, -1)))
    assert [part.size for part in upload.list_parts()] == [len(part) for part in PARTS]
    key = upload.complete(sent)
    found = _found(session, key)
    assert found.payload.read() == WHOLE
    assert (found.metadata.custom, found.metadata.filename) == ({"build": "17"}, "core.dmp")
    assert upload.complete(sent) == key
    session.delete(key)
    assert upload.complete(sent) == key


def test_a_replaced_part_and_one_that_is_left_out(session: Session) -> None:
    """The etag of the first try no longer names the part; what is not named is not in the object."""
    upload = session.initiate_multipart_upload(key="a/replaced %2F part", compression="none")
    first = _put(upload, 1, PARTS[0])
    again = _put(upload, 1, PARTS[0])
    _put(upload, 2, PARTS[1])
    third = _put(upload, 3, PARTS[2])
    assert first.etag != again.etag
    with pytest.raises(MultipartCompleteError) as refused:
        upload.complete([first, third])
    assert refused.value.code == "InvalidPart"
    assert upload.complete([again, third]) == "a/replaced %2F part"
    assert _payload(session, upload.key) == PARTS[0] + PARTS[2]


def test_an_upload_goes_on_after_a_restart_from_its_listing(tmp_path: Path) -> None:
    """Another server process, another client: the key and the upload id are all that it takes."""
    with ServerProcess(tmp_path) as server:
        upload = session_at(server.url).initiate_multipart_upload(key="k", compression="none")
        _put(upload, 1, PARTS[0])
    with ServerProcess(tmp_path) as server:
        session = session_at(server.url)
        resumed = session.resume_multipart_upload("k", upload.upload_id)
        listed = resumed.list_parts()
        assert [(part.part_number, part.size) for part in listed] == [(1, len(PARTS[0]))]
        resumed.complete([*listed, _put(resumed, 2, PARTS[1])])
        assert _payload(session, "k") == PARTS[0] + PARTS[1]


def test_another_client_process_resumes_from_the_listing(server: ServerProcess) -> None:
    """One that is killed while it sends a part has stored the parts before; another one sends the rest and no more."""
    program = [sys.executable, "-m", "tests.end_to_end.another_client"]
    key = "core dump/17"
    with subprocess.Popen(
        [*program, "begin", server.url, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        upload_id = killed.stdout.readline().strip()
        killed.kill()
    assert upload_id
    upload = session_at(server.url).resume_multipart_upload(key, upload_id)
    assert [part.part_number for part in upload.list_parts()] == list(range(1, another_client.TORN))
    finished = subprocess.run(
        [*program, "finish", server.url, key, upload_id], stdout=subprocess.PIPE, timeout=60, check=True
    )
    assert json.loads(finished.stdout) == list(range(another_client.TORN, another_client.PARTS + 1))
    expected = b"".join(another_client.part(number) for number in range(1, another_client.PARTS + 1))
    assert _payload(session_at(server.url), key) == expected


def test_more_parts_than_a_page_of_the_listing(session: Session) -> None:
    """The client lists all of them, and completes with what is listed."""
    upload = session.initiate_multipart_upload(key="k", compression="none")
    numbers = range(1, Limits().parts_listed_max + 6)
    with ThreadPoolExecutor(8) as threads:
        sent = list(threads.map(lambda number: _put(upload, number, b"%d," % number), numbers))
    listed = upload.list_parts()
    assert [(part.part_number, part.etag) for part in listed] == [(part.part_number, part.etag) for part in sent]
    assert upload.complete(listed) == "k"
    assert _payload(session, "k") == b"".join(b"%d," % number for number in numbers)


def test_an_aborted_upload_is_gone(session: Session) -> None:
    """Its parts too; the object that was there stays."""
    session.put(b"before", key="k", compress="none")
    upload = session.initiate_multipart_upload(key="k", compression="none")
    part = _put(upload, 1, PARTS[0])
    upload.abort()
    for refused in (upload.list_parts, lambda: _put(upload, 1, PARTS[0])):
        assert _status(refused) == 404
    assert _code(upload, [part]) == "NoSuchUpload"
    assert _payload(session, "k") == b"before"
    upload.abort()


def test_a_completed_upload_takes_nothing_more(session: Session) -> None:
    """No part and no abort; completing it again, even with other parts, says what it said."""
    upload = session.initiate_multipart_upload(compression="none")
    part = _put(upload, 1, PARTS[0])
    key = upload.complete([part])
    for refused in (upload.list_parts, upload.abort, lambda: _put(upload, 1, PARTS[1])):
        assert _status(refused) == 404
    assert upload.complete([CompletePart(1, "another")]) == key
    assert _payload(session, key) == PARTS[0]


def test_completes_at_the_same_time(session: Session) -> None:
    """Eight at once, through two workers: all succeed."""
    upload = session.initiate_multipart_upload(key="k", compression="none")
    part = _put(upload, 1, PARTS[0])
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: upload.complete([part]), range(8))) == ["k"] * 8
    assert _payload(session, "k") == PARTS[0]


# Compression


def _frames(whole: bytes) -> list[bytes]:
    """Each part compressed for itself."""
    return [zstandard.compress(whole[start : start + 300_000]) for start in range(0, len(whole), 300_000)]


def _pieces(whole: bytes) -> list[bytes]:
    """One compressed stream, cut where it happens to be."""
    compressed = zstandard.compress(whole)
    return [compressed[:100_000], compressed[100_000:250_000], compressed[250_000:]]


@pytest.mark.parametrize("compressed", [_frames, _pieces])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_compressed_parts(
    session: Session, compressed: Callable[[bytes], list[bytes]], compression: Literal["zstd"] | None
) -> None:
    """Parts are kept as the client compressed them; the object says so, and the client reads it as it was before.

    Without being told, the client compresses as its usecase says.
    """
    whole = random.Random(1).randbytes(400_000) + b"a" * 400_000
    parts = compressed(whole)
    upload = session.initiate_multipart_upload(key="k", compression=compression)
    upload.complete([_put(upload, number, part) for number, part in enumerate(parts, start=1)])
    assert _payload(session, "k") == whole
    stored = b"".join(parts)
    for kept in (session.get("k", decompress=False), session.get("k", accept_encoding=["zstd"])):
        assert kept is not None
        assert (kept.metadata.compression, kept.payload.read()) == ("zstd", stored)
    raw = _raw(session, "k", {})
    assert (raw.status, raw.headers["content-encoding"], raw.data) == (200, "zstd", stored)
    border = len(parts[0])
    within = _raw(session, "k", {"range": f"bytes={border - 10}-{border + 9}"})
    assert (within.status, within.headers["content-encoding"]) == (206, "zstd")
    assert within.data == stored[border - 10 : border + 10]
    head = session.head("k")
    assert head is not None
    assert (head.compression, head.size) == ("zstd", len(stored))


# Options


def test_parts_that_are_not_compressed(server: ServerProcess, session: Session) -> None:
    """If the usecase says so, or the upload does, the object has no encoding."""
    usecase = Usecase("testing", compression="none")
    plain = Client(server.url).session(usecase, org=next(_orgs))
    for by, upload in (
        (plain, plain.initiate_multipart_upload(key="k")),
        (session, session.initiate_multipart_upload(key="k", compression="none")),
    ):
        upload.complete([_put(upload, 1, b"as it is")])
        raw = _raw(by, "k", {})
        assert ("content-encoding" in raw.headers, raw.data) == (False, b"as it is")


@pytest.mark.parametrize("policy", [TimeToLive(timedelta(hours=2)), TimeToIdle(timedelta(days=3)), None])
def test_metadata_of_the_beginning_is_the_objects(session: Session, policy: TimeToLive | TimeToIdle | None) -> None:
    """All of it, non-ASCII too; time, and with it the deadline, count from the end."""
    custom = {"build": "1.2.3", "note": 'grüße 🚀 100% / \\ "quoted"'}
    upload = session.initiate_multipart_upload(
        key="crash ☃/1",
        compression="none",
        content_type="text/plain; charset=utf-8",
        metadata=custom,
        expiration_policy=policy,
        origin="203.0.113.7",
        filename="crash ☃ report.txt",
    )
    sent = [_put(upload, 2, b"two"), _put(upload, 1, b"one")]
    before = datetime.now(UTC)
    assert upload.complete(sent) == upload.key == "crash ☃/1"
    head = session.head(upload.key)
    got = _found(session, upload.key)
    assert got.payload.read() == b"onetwo"
    for found in (head, got.metadata):
        assert found is not None
        assert found.time_created is not None
        assert found.time_created >= before - timedelta(milliseconds=1)
        assert found.expiration_policy == policy
        assert (found.time_expires is None) == (policy is None)
        if policy is not None and found.time_expires is not None:
            assert found.time_expires - found.time_created == policy.delta
        assert found.content_type == "text/plain; charset=utf-8"
        assert (found.custom, found.origin, found.filename) == (custom, "203.0.113.7", "crash ☃ report.txt")
        assert (found.compression, found.size) == (None, 6)


def test_a_listed_part_tells_what_it_is(session: Session) -> None:
    """Number, etag, size, and when it was stored: the last time."""
    upload = session.initiate_multipart_upload(compression="none")
    _put(upload, 7, b"replaced")
    begun = datetime.now(UTC) - timedelta(milliseconds=1)
    sent = [_put(upload, 7, b"seven"), _put(upload, 3, b"")]
    third, seventh = upload.list_parts()
    assert (seventh.part_number, seventh.etag, seventh.size) == (7, sent[0].etag, 5)
    assert (third.part_number, third.etag, third.size) == (3, sent[1].etag, 0)
    assert begun <= seventh.last_modified <= third.last_modified <= datetime.now(UTC)
    upload.abort()


def test_streams_as_parts(session: Session, tmp_path: Path) -> None:
    """Files, from where they stand, and streams that nobody can rewind; with and without a digest."""
    upload = session.initiate_multipart_upload(compression="none")
    path = tmp_path / "file"
    path.write_bytes(b"skipped" + PARTS[0])
    digest = hashlib.md5(PARTS[0], usedforsecurity=False).digest()
    with path.open("rb") as file:
        file.seek(7)
        first = upload.put_part(file, part_number=1, content_length=len(PARTS[0]), content_md5=digest)
    generated = upload.put_part(cast("BinaryIO", _Generated(3 * MIB)), part_number=2, content_length=3 * MIB)
    key = upload.complete([first, generated])
    assert _payload(session, key) == PARTS[0] + _generated(0, 3 * MIB)


# Errors, as the client shows them


def _status(refused: Callable[[], object]) -> int | None:
    """The status of a refused request."""
    with pytest.raises(RequestError) as raised:
        refused()
    assert not isinstance(raised.value, MultipartCompleteError)
    assert json.loads(raised.value.response or "")["detail"], "the answer says why"
    return raised.value.status


def _code(upload: MultipartUpload, parts: Sequence[CompletePart]) -> str:
    """The code of a completion that was refused."""
    with pytest.raises(MultipartCompleteError) as raised:
        upload.complete(parts)
    assert raised.value.code in str(raised.value)
    assert raised.value.response, "the answer says why"
    return str(raised.value.code)


def test_refused_parts(session: Session) -> None:
    """Numbers outside 1 to 10,000, and other bytes than the digest says: 400, and nothing is kept."""
    upload = session.initiate_multipart_upload(compression="none")
    for number in (0, -1, 10_001):
        assert _status(partial(_put, upload, number, b"x")) == 400
    assert _status(lambda: upload.put_part(b"x", part_number=1, content_length=1, content_md5=bytes(16))) == 400
    with pytest.raises(ValueError, match="content_length"):
        upload.put_part(b"xyz", part_number=1, content_length=2)
    assert upload.list_parts() == []
    upload.complete([_put(upload, 10_000, b"the last number")])


def test_a_stream_that_ends_early(server: ServerProcess) -> None:
    """A client that cannot send what it announced gives up, and the part before stays."""
    org = next(_orgs)
    upload = session_at(server.url, org).initiate_multipart_upload(compression="none")
    before = _put(upload, 1, b"before")
    impatient = session_at(server.url, org, read_seconds=0.3).resume_multipart_upload(upload.key, upload.upload_id)
    with pytest.raises(urllib3.exceptions.HTTPError):
        impatient.put_part(io.BytesIO(bytes(70 * KIB)), part_number=1, content_length=70 * KIB + 1)
    assert [(part.etag, part.size) for part in upload.list_parts()] == [(before.etag, 6)]
    assert _payload(session_at(server.url, org), upload.complete([before])) == b"before"


def test_refused_uploads(server: ServerProcess, session: Session) -> None:
    """An id of another object, one that is damaged or made up: 400; one that never was: 404. Nothing is changed."""
    upload = session.initiate_multipart_upload(key="k", compression="none")
    part = _put(upload, 1, b"one")
    elsewhere = session_at(server.url, next(_orgs))
    for resumed in (
        session.resume_multipart_upload("another", upload.upload_id),
        elsewhere.resume_multipart_upload("k", upload.upload_id),
        session.resume_multipart_upload("k", upload.upload_id[:-1]),
        session.resume_multipart_upload("k", "made-up"),
    ):
        put, complete = partial(_put, resumed, 1, b"two"), partial(resumed.complete, [part])
        for refused in (resumed.list_parts, resumed.abort, put, complete):
            assert _status(refused) == 400
    assert _status(lambda: session.initiate_multipart_upload(content_type="no media type")) == 400
    upload.complete([part])
    assert _payload(session, "k") == b"one"


def test_refused_completions(session: Session) -> None:
    """The outcome's code reaches the caller; the upload is as it was, and the right list completes it."""
    upload = session.initiate_multipart_upload(compression="none")
    one, two = _put(upload, 1, b"one"), _put(upload, 2, b"two")
    assert _code(upload, [one, CompletePart(2, one.etag)]) == "InvalidPart"
    assert _code(upload, [one, two, CompletePart(3, two.etag)]) == "InvalidPart"
    assert _code(upload, [one, one]) == "InvalidPartOrder"
    assert _status(lambda: upload.complete([])) == 422
    assert _status(lambda: upload.complete([CompletePart(0, one.etag)])) == 422
    assert upload.complete([two, one]) == upload.key, "the client sorts"
    assert _payload(session, upload.key) == b"onetwo"


def test_sizes_that_are_refused(tmp_path: Path) -> None:
    """Where parts have a smallest size, as with S3, a smaller one can only be the last; so it is told."""
    config = {"uploads": {"part_min": "100 KiB"}, "tiering": {"object_max": "500 KiB", "inline_max": "10 KiB"}}
    with ServerProcess(tmp_path, config=config) as server:
        session = session_at(server.url)
        upload = session.initiate_multipart_upload(compression="none")
        small, large = _put(upload, 1, b"x" * (100 * KIB - 1)), _put(upload, 2, PARTS[0])
        another, last = _put(upload, 3, PARTS[1]), _put(upload, 4, PARTS[2])
        assert _code(upload, [small, large]) == "EntityTooSmall"
        assert _code(upload, [large, another, last]) == "EntityTooLarge"
        one = _put(upload, 4, b"x")
        upload.complete([large, another, one])
        assert _payload(session, upload.key) == PARTS[0] + PARTS[1] + b"x"


def _fill(file: Path) -> None:
    """Write to a file until its disk is full."""
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(KIB)):
            continue


def test_trying_again_when_the_disk_was_full(tmp_path: Path) -> None:
    """ServiceUnavailable: nothing is lost, and the same call succeeds as soon as there is room."""
    config = {"high_volume": {"reserve": 0}, "long_term": {"reserve": 0}}
    with small_disk(tmp_path / "disk", "32m") as disk, ServerProcess(disk.path / "data", config=config) as server:
        session = session_at(server.url)
        upload = session.initiate_multipart_upload(key="k", compression="none")
        sent = [_put(upload, number, part) for number, part in enumerate(PARTS, start=1)]
        filler = disk.path / "filler"
        _fill(filler)
        assert _code(upload, sent) == "ServiceUnavailable"
        filler.unlink()
        assert upload.complete(sent) == "k"
        assert _payload(session, "k") == WHOLE


# Memory


class _Generated(io.RawIOBase):
    """A stream of ``size`` bytes that are made as they are read."""

    def __init__(self, size: int) -> None:
        self._position = 0
        self._size = size

    def read(self, size: int = -1) -> bytes:
        count = min(size if size >= 0 else self._size, MIB, self._size - self._position)
        chunk = _generated(self._position, count)
        self._position += count
        return chunk


_CYCLE = random.Random(3).randbytes(65_521)


def _generated(start: int, size: int) -> bytes:
    """Some bytes of the endless stream."""
    begin = start % len(_CYCLE)
    return (_CYCLE * ((begin + size) // len(_CYCLE) + 1))[begin : begin + size]


class _Peak:
    """By how much the memory of a process grows at most (proc(5): ``VmHWM``, which a 5 in ``clear_refs`` sets back)."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._bytes()

    def growth(self) -> int:
        """Bytes, since this was made."""
        return self._bytes() - self._before

    def _bytes(self) -> int:
        lines = self._status.read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * KIB


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process's memory"
)
def test_parts_stream_through(tmp_path: Path) -> None:
    """However large a part, or an object of parts, the server holds a few chunks of it; 5 GiB are as 256 MiB."""
    size = 256 * MIB
    with ServerProcess(tmp_path) as server:
        session = session_at(server.url)

        def send(key: str, sizes: Sequence[int]) -> None:
            upload = session.initiate_multipart_upload(key=key, compression="none")
            upload.complete(
                [
                    upload.put_part(cast("BinaryIO", _Generated(each)), part_number=number, content_length=each)
                    for number, each in enumerate(sizes, start=1)
                ]
            )

        send("warm", [4 * MIB] * 4)
        assert len(_payload(session, "warm")) == 16 * MIB
        (pid,) = server.worker_pids
        peak = _Peak(pid)
        send("k", [size, MIB, size // 4])
        assert peak.growth() <= STREAM_BYTES_MAX
        peak = _Peak(pid)
        position = 0
        with _found(session, "k").payload as payload:
            for each in (size, MIB, size // 4):
                for start in range(0, each, MIB):
                    assert payload.read(MIB) == _generated(start, MIB)
                    position += MIB
            assert payload.read(1) == b""
        assert position == size + MIB + size // 4
        assert peak.growth() <= STREAM_BYTES_MAX
