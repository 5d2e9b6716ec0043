"""The public client of the protocol against a real server: what an application developer does, unchanged."""

import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, cast

import psutil
import pytest
import urllib3
import zstandard
from objectstore_client import (
    Client,
    ExpiryExtensionRejected,
    GetResponse,
    Metadata,
    ObjectNotFound,
    RequestError,
    Session,
    TimeToIdle,
    TimeToLive,
    Usecase,
)

from tierstore.limits import GIB, MIB, Limits
from tierstore.testing.hostile import HOSTILE_KEYS
from tierstore.testing.server import ServerProcess

TENANT = {"org": 17, "project": 42}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of this file, on its embedded default."""
    with ServerProcess(tmp_path_factory.mktemp("data")) as process:
        yield process


@pytest.fixture
def session(server: ServerProcess) -> Session:
    """A tenant's session, uncompressed by default."""
    return _session(server)


def _client(server: ServerProcess) -> Client:
    # By default the client gives up when the server takes in nothing for 100 ms, as it may on a busy machine.
    return Client(server.url, connection_kwargs={"timeout": urllib3.Timeout(connect=10, read=60)})


def _session(server: ServerProcess, usecase: str = "attachments", **scopes: str | int) -> Session:
    return _client(server).session(Usecase(usecase, compression="none"), **(scopes or TENANT))


def _get(session: Session, key: str) -> GetResponse:
    found = session.get(key)
    assert found is not None
    return found


def _head(session: Session, key: str) -> Metadata:
    head = session.head(key)
    assert head is not None
    return head


def _metadata_of_get(session: Session, key: str) -> Metadata:
    found = _get(session, key)
    found.payload.close()
    return found.metadata


def _read(session: Session, key: str) -> bytes:
    with _get(session, key).payload as payload:
        return bytes(payload.read())


@pytest.mark.parametrize("size", [0, 1, 1000, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
def test_put_get_head_delete(session: Session, size: int) -> None:
    """What is put is read back, described, and gone after a delete, on both sides of the tiers' boundary."""
    payload = os.urandom(size)
    key = session.put(payload, key=f"sized/{size}")
    assert key == f"sized/{size}"
    assert _read(session, key) == payload
    head = _head(session, key)
    assert (head.size, head.content_type, head.compression) == (size, "application/octet-stream", None)
    assert head.time_created is not None
    assert abs(datetime.now(UTC) - head.time_created) < timedelta(minutes=1)
    session.delete(key)
    assert session.get(key) is None
    assert session.head(key) is None
    session.delete(key)


def test_server_made_keys(session: Session) -> None:
    """Without a key the server makes one, new each time."""
    keys = {session.put(b"%d" % number) for number in range(5)}
    assert len(keys) == 5
    assert sorted(_read(session, key) for key in keys) == [b"0", b"1", b"2", b"3", b"4"]


def _can_be_sent(key: str) -> bool:
    """The client's HTTP library removes dot segments before it sends a path; `tests.http` sends those keys raw."""
    return not {".", ".."} & set(key.split("/"))


@pytest.mark.parametrize("size", [10, MIB + 1])
def test_extend_expiry(session: Session, size: int) -> None:
    """Each kind of target moves the deadline as the client documents it; the ttl tells the lifetime, the tti stays."""
    payload = os.urandom(size)
    key = session.put(payload, key=f"extended/{size}", expiration_policy=TimeToLive(timedelta(hours=1)))
    created = _head(session, key).time_created
    assert created is not None
    session.extend_expiry(key, from_creation=timedelta(hours=3))
    assert _head(session, key).time_expires == created + timedelta(hours=3)
    assert _head(session, key).expiration_policy == TimeToLive(timedelta(hours=3))
    session.extend_expiry(key, from_now=timedelta(hours=1))
    session.extend_expiry(key, from_now=timedelta(0))
    assert _head(session, key).time_expires == created + timedelta(hours=3)
    at = created + timedelta(days=9)
    session.extend_expiry(key, at=at)
    found = _head(session, key)
    assert found.time_expires is not None
    assert at <= found.time_expires <= at + timedelta(seconds=1)
    assert _read(session, key) == payload
    before = datetime.now(UTC)
    session.put(payload, key=key, expiration_policy=TimeToIdle(timedelta(hours=1)))
    session.extend_expiry(key, from_now=timedelta(hours=2))
    found = _head(session, key)
    assert found.time_expires is not None
    assert before + timedelta(hours=2) <= found.time_expires <= datetime.now(UTC) + timedelta(hours=2)
    assert found.expiration_policy == TimeToIdle(timedelta(hours=1))


def test_extend_expiry_is_refused(session: Session) -> None:
    """The client tells apart what is not there and what cannot be extended."""
    with pytest.raises(ObjectNotFound):
        session.extend_expiry("never there", from_now=timedelta(hours=1))
    key = session.put(b"manual")
    with pytest.raises(ExpiryExtensionRejected):
        session.extend_expiry(key, from_now=timedelta(hours=1))
    key = session.put(b"gone", expiration_policy=TimeToLive(timedelta(0)))
    with pytest.raises(ObjectNotFound):
        session.extend_expiry(key, from_now=timedelta(hours=1))
    key = session.put(b"for a time", expiration_policy=TimeToLive(timedelta(hours=1)))
    with pytest.raises(RequestError) as refused:
        session.extend_expiry(key, from_creation=timedelta(days=36_601))
    assert refused.value.status == 400


@pytest.mark.parametrize("key", [key for key in HOSTILE_KEYS if _can_be_sent(key)])
def test_structured_and_hostile_keys(session: Session, key: str) -> None:
    """Any key the client can send comes back to the same object, and to no other."""
    assert session.put(key.encode(), key=key) == key
    assert _read(session, key) == key.encode()
    session.delete(key)
    assert session.get(key) is None


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_compression_is_the_clients(server: ServerProcess, size: int) -> None:
    """A compressing client reads back what it put; the stored bytes are the compressed ones, recorded as such."""
    session = _client(server).session(Usecase("compressed", compression="zstd"), **TENANT)
    payload = os.urandom(size // 2) + b"a" * (size // 2)
    key = session.put(payload)
    assert _read(session, key) == payload
    raw = session.get(key, decompress=False)
    assert raw is not None
    assert raw.metadata.compression == "zstd"
    with raw.payload as stream:
        stored = stream.read()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(stored) == payload
    assert _head(session, key).size == len(stored)
    precompressed = session.put(stored, precompressed="zstd")
    assert _read(session, precompressed) == payload


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_metadata_comes_back(session: Session, size: int) -> None:
    """Content type, origin, filename and custom metadata, non-ASCII ones too, survive in both tiers."""
    custom = {"build": "1.2.3", "note": 'grüße 🚀 100% / \\ "quoted"'}
    key = session.put(
        b"x" * size,
        content_type="text/plain; charset=utf-8",
        origin="203.0.113.7",
        filename="crash ☃ report.txt",
        metadata=custom,
    )
    for found in (_head(session, key), _metadata_of_get(session, key)):
        assert found.content_type == "text/plain; charset=utf-8"
        assert found.origin == "203.0.113.7"
        assert found.filename == "crash ☃ report.txt"
        assert found.custom == custom
        assert found.size == size


@pytest.mark.parametrize("size", [10, 2 * MIB])
@pytest.mark.parametrize("policy", [TimeToLive(timedelta(hours=2)), TimeToIdle(timedelta(days=3, seconds=5))])
def test_expiration_is_kept(session: Session, policy: TimeToLive | TimeToIdle, size: int) -> None:
    """Ttl and tti come back, with the deadline they mean."""
    key = session.put(b"x" * size, expiration_policy=policy)
    head = _head(session, key)
    assert head.time_expires is not None
    assert head.time_created is not None
    assert head.expiration_policy == policy
    assert head.time_expires - head.time_created == policy.delta


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_an_expired_object_is_gone(session: Session, size: int) -> None:
    """A ttl of no time at all: the object is stored and never seen."""
    key = session.put(b"x" * size, expiration_policy=TimeToLive(timedelta(seconds=0)))
    assert session.get(key) is None
    assert session.head(key) is None


class _Unseekable(io.RawIOBase):
    """A stream of ``size`` generated bytes, whose length nobody can ask for."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # because the protocol type of a buffer has no name before 3.12
        count = min(len(buffer), self._left)
        buffer[:count] = b"\xa5" * count
        self._left -= count
        return count


@pytest.mark.parametrize("size", [0, 10, MIB, MIB + 1, 8 * MIB])
def test_streams_of_unknown_length(session: Session, size: int) -> None:
    """A stream that has no length is stored whole, in the tier its size asks for."""
    key = session.put(cast("BinaryIO", _Unseekable(size)))
    assert _read(session, key) == b"\xa5" * size


def test_a_large_stream_does_not_grow_the_server(server: ServerProcess, session: Session) -> None:
    """1 GiB in and out: the server's memory grows by less than 64 MiB, with and without an announced length."""
    process = psutil.Process(server.pid)
    session.put(b"warm" * MIB)
    before = process.memory_info().rss
    key = session.put(cast("BinaryIO", _Unseekable(GIB)))
    received = 0
    with _get(session, key).payload as payload:
        while chunk := payload.read(MIB):
            received += len(chunk)
    assert received == GIB
    assert process.memory_info().rss - before < 64 * MIB
    session.delete(key)


def test_a_resumable_threshold_falls_back_to_a_plain_upload(session: Session, tmp_path: Path) -> None:
    """A client that would rather resume is told that this release cannot, and uploads plainly."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * MIB))
    with path.open("rb") as file:
        key = session.put(file, resumable_threshold_bytes=1)
    assert _read(session, key) == path.read_bytes()


def test_tenants_are_apart(server: ServerProcess) -> None:
    """The same key under another usecase, other scopes or another order of scopes is another object."""
    sessions = [
        _session(server, "attachments", org=1, project=2),
        _session(server, "attachments", project=2, org=1),
        _session(server, "attachments", org=1),
        _session(server, "Attachments", org=1),
        _session(server, "attachments", org=2),
    ]
    for number, session in enumerate(sessions):
        session.put(b"%d" % number, key="same")
    assert [_read(session, "same") for session in sessions] == [b"0", b"1", b"2", b"3", b"4"]
    sessions[0].delete("same")
    assert sessions[1].get("same") is not None


def test_errors_are_the_protocols(session: Session) -> None:
    """A refused request is an error with a status, not a silent success."""
    with pytest.raises(RequestError) as refused:
        session.put(b"x", key="k", content_type="no media type")
    assert refused.value.status == 400


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_as_much_custom_metadata_as_there_may_be_can_be_read(session: Session, size: int) -> None:
    """What the server accepts, the client's HTTP library (which reads at most 100 headers) can take back."""
    custom = {f"entry-{number}": "v" * 100 for number in range(Limits().custom_metadata_max)}
    key = session.put(
        b"x" * size,
        metadata=custom,
        filename="name.txt",
        origin="here",
        content_type="text/plain",
        expiration_policy=TimeToLive(timedelta(hours=1)),
        precompressed="zstd",
    )
    assert _head(session, key).custom == custom
    found = session.get(key, decompress=False)
    assert found is not None
    found.payload.close()
    assert found.metadata.custom == custom
