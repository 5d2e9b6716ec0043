"""Multipart uploads with the public client against real servers on the embedded stores."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from objectstore_client import Client, TimeToLive, Usecase
from objectstore_client.client import GetResponse, Session
from objectstore_client.errors import RequestError
from objectstore_client.multipart import CompletePart, MultipartCompleteError

from tierstore.testing.server import ServerProcess

PARTS = [bytes([number]) * (200_000 + number) for number in range(1, 17)]
WHOLE = b"".join(PARTS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with two workers."""
    with ServerProcess(tmp_path, workers=2) as running:
        yield running


def _session(server: ServerProcess) -> Session:
    return Client(server.url).session(Usecase("testing"), org=1)


def _found(session: Session, key: str) -> GetResponse:
    found = session.get(key)
    assert found is not None
    return found


def _payload(session: Session, key: str) -> bytes:
    return _found(session, key).payload.read()


def test_parts_in_parallel_and_out_of_order(server: ServerProcess) -> None:
    """16 parts at once, through both workers, the last ones first, with metadata that the object then has."""
    session = _session(server)
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


def test_a_replaced_part_and_one_that_is_left_out(server: ServerProcess) -> None:
    """The etag of the first try no longer names the part; what is not named is not in the object."""
    session = _session(server)
    upload = session.initiate_multipart_upload(key="a/replaced %2F part", compression="none")
    first = upload.put_part(PARTS[0], part_number=1, content_length=len(PARTS[0]))
    again = upload.put_part(PARTS[0], part_number=1, content_length=len(PARTS[0]))
    upload.put_part(PARTS[1], part_number=2, content_length=len(PARTS[1]))
    third = upload.put_part(PARTS[2], part_number=3, content_length=len(PARTS[2]))
    assert first.etag != again.etag
    with pytest.raises(MultipartCompleteError) as refused:
        upload.complete([first, third])
    assert refused.value.code == "InvalidPart"
    assert upload.complete([again, third]) == "a/replaced %2F part"
    assert _payload(session, upload.key) == PARTS[0] + PARTS[2]


def test_an_upload_goes_on_after_a_restart_from_its_listing(tmp_path: Path) -> None:
    """Another server process, another client: the key and the upload id are all that it takes."""
    with ServerProcess(tmp_path) as server:
        upload = _session(server).initiate_multipart_upload(key="k", compression="none")
        upload.put_part(PARTS[0], part_number=1, content_length=len(PARTS[0]))
    with ServerProcess(tmp_path) as server:
        session = _session(server)
        resumed = session.resume_multipart_upload("k", upload.upload_id)
        listed = resumed.list_parts()
        assert [(part.part_number, part.size) for part in listed] == [(1, len(PARTS[0]))]
        second = resumed.put_part(PARTS[1], part_number=2, content_length=len(PARTS[1]))
        resumed.complete([*listed, second])
        assert _payload(session, "k") == PARTS[0] + PARTS[1]


def test_an_aborted_upload_is_gone(server: ServerProcess) -> None:
    """Its parts too; the object that was there stays."""
    session = _session(server)
    session.put(b"before", key="k", compress="none")
    upload = session.initiate_multipart_upload(key="k", compression="none")
    part = upload.put_part(PARTS[0], part_number=1, content_length=len(PARTS[0]))
    upload.abort()
    with pytest.raises(RequestError):
        upload.list_parts()
    with pytest.raises(RequestError):
        upload.put_part(PARTS[0], part_number=1, content_length=len(PARTS[0]))
    with pytest.raises(MultipartCompleteError) as refused:
        upload.complete([part])
    assert refused.value.code == "NoSuchUpload"
    assert _payload(session, "k") == b"before"


def test_completes_at_the_same_time(server: ServerProcess) -> None:
    """Eight at once, through two workers: all succeed."""
    session = _session(server)
    upload = session.initiate_multipart_upload(key="k", compression="none")
    part = upload.put_part(PARTS[0], part_number=1, content_length=len(PARTS[0]))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: upload.complete([part]), range(8))) == ["k"] * 8
    assert _payload(session, "k") == PARTS[0]
