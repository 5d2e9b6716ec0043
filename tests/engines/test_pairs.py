"""Two servers on each pair of stores: what is done through one is seen through the other at once."""

import asyncio
import io
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from objectstore_client import RequestError
from objectstore_client.multipart import CompletePart, MultipartCompleteError, MultipartUpload

from tests.end_to_end.another_client import session_at
from tests.end_to_end.helpers import get, put, stop
from tests.engines.deployment import Deployment
from tierstore.limits import KIB, MIB
from tierstore.testing.server import ServerProcess

OBJECTS = "/v1/objects/attachments/org=17;project=42"
SIZES = (0, 1, 300, MIB, MIB + 1, 5 * MIB + 3)
"""On both sides of the tiers' boundary."""
EMBEDDED_KINDS = (("high_volume", "sqlite"), ("long_term", "filesystem"), ("change_log", "sqlite"))
PAYLOAD = random.Random(7).randbytes(SIZES[-1])


@pytest.fixture(scope="module")
def servers(
    pair: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers side by side, begun at the same time."""
    data = tmp_path_factory.mktemp("data")
    servers = pair.server(data), pair.server(data)
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_ready()
        yield servers
        for server in servers:
            stop(server)
    finally:
        for server in servers:
            server.close()


@pytest_asyncio.fixture
async def both(
    servers: tuple[ServerProcess, ServerProcess],
) -> AsyncIterator[tuple[aiohttp.ClientSession, aiohttp.ClientSession]]:
    """A client of each server."""
    async with aiohttp.ClientSession(servers[0].url) as one, aiohttp.ClientSession(servers[1].url) as other:
        yield one, other


Both = tuple[aiohttp.ClientSession, aiohttp.ClientSession]


@pytest.mark.parametrize("size", SIZES)
async def test_what_one_writes_the_other_reads_at_once(both: Both, size: int) -> None:
    """Whole, in part, described, overwritten and deleted: the other server sees it with the very next request."""
    path, payload = f"{OBJECTS}/sized {size}", PAYLOAD[:size]
    for writer, reader in (both, both[::-1]):
        headers = {"content-type": "text/x-note", "x-snme-by": "one"}
        async with writer.put(path, data=io.BytesIO(payload), headers=headers) as written:
            assert written.status == 200
        async with reader.get(path) as found:
            assert (found.status, await found.read()) == (200, payload)
            assert (found.headers["content-type"], found.headers["x-snme-by"]) == ("text/x-note", "one")
        async with reader.head(path) as head:
            assert (head.status, int(head.headers["x-sn-size"])) == (204, size)
            assert head.headers["x-snme-by"] == "one"
        await _check_ranges(reader, path, payload)
        overwritten = payload[::-1] + b"."
        assert await put(writer, path, overwritten) == 200
        assert await get(reader, path) == (200, overwritten)
        async with writer.delete(path) as deleted:
            assert deleted.status == 204
        assert (await get(reader, path))[0] == 404


async def _check_ranges(reader: aiohttp.ClientSession, path: str, payload: bytes) -> None:
    size = len(payload)
    for first, last in {(0, 0), (size // 2, size // 2 + 70 * KIB), (size - 1, size - 1)}:
        if 0 <= first < size:
            async with reader.get(path, headers={"range": f"bytes={first}-{last}"}) as part:
                assert part.status == 206
                assert await part.read() == payload[first : last + 1]
    async with reader.get(path, headers={"range": f"bytes={size}-"}) as beyond:
        assert beyond.status == 416


async def test_an_object_moves_between_the_tiers(both: Both) -> None:
    """Overwritten small by large and large by small, by turns through either server, it is always the last one."""
    path = f"{OBJECTS}/moving"
    for number in range(6):
        payload = PAYLOAD[number : number + (1000 if number % 2 else 2 * MIB)]
        assert await put(both[number % 2], path, payload) == 200
        for reader in both:
            assert await get(reader, path) == (200, payload)


async def test_writers_race_through_both(both: Both) -> None:
    """Of writers at once, small and large, through both servers, one stands, whole; and both servers have the same."""
    path = f"{OBJECTS}/raced"
    payloads = [PAYLOAD[number : number + (5000 if number % 3 else MIB + number)] for number in range(12)]
    statuses = await asyncio.gather(*[put(both[number % 2], path, each) for number, each in enumerate(payloads)])
    assert set(statuses) == {200}
    found = [await get(reader, path) for reader in both]
    assert found[0] == found[1]
    assert found[0][1] in payloads


async def test_expiry_is_everybodys(both: Both) -> None:
    """An object that has expired is seen through neither server, and an extension through one holds for the other."""
    one, other = both
    for size in (10, MIB + 1):
        gone, kept = f"{OBJECTS}/gone {size}", f"{OBJECTS}/kept {size}"
        for path in (gone, kept):
            async with one.put(path, data=io.BytesIO(PAYLOAD[:size]), headers={"x-sn-expiration": "ttl:1s"}) as written:
                assert written.status == 200
        async with other.patch(kept, json={"extend_expiry": {"after": "1h", "from": "now"}}) as extended:
            assert extended.status == 204
        await asyncio.sleep(1.1)
        for reader in both:
            assert (await get(reader, gone))[0] == 404
            assert await get(reader, kept) == (200, PAYLOAD[:size])


def test_three_lines_configure_it(pair: Deployment, tmp_path: Path) -> None:
    """A file with one line for each store is all that a server and ``tierstore engines check`` need; all is well."""
    file = pair.file(tmp_path / "tierstore.yaml")
    assert len(file.read_text().splitlines()) == (0 if pair.is_embedded else 3)
    environment = {**os.environ, **pair.environment}
    command = [sys.executable, "-m", "tierstore", "engines", "check", "--config", str(file), "--json"]
    command += ["--data", str(tmp_path / "data")]
    checked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    findings = [json.loads(line) for line in checked.stdout.splitlines()]
    assert [finding for finding in findings if not finding["kept"]] == []
    assert (checked.returncode, len(findings) >= 12) == (0, True), checked.stderr
    arguments = ("--config", str(file))
    with ServerProcess(tmp_path / "data", arguments=arguments, environment=pair.environment) as server:
        (begun,) = server.logs("listening")
        kinds = {section: pair.settings.get(section, {}).get("type", embedded) for section, embedded in EMBEDDED_KINDS}
        assert {section: begun[section] for section in kinds} == kinds


def test_operators_see_an_upload_and_end_it(pair: Deployment, tmp_path: Path) -> None:
    """The commands show an upload's parts and the id that its client holds, on every store; and abort ends it."""
    file, data = pair.file(tmp_path / "tierstore.yaml"), str(tmp_path / "data")

    def operate(*arguments: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "tierstore", *arguments, "--json", "--config", str(file), "--data", data]
        environment = {**os.environ, **pair.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    with pair.server(Path(data)) as server:
        upload = session_at(server.url).initiate_multipart_upload(key="watched", compression="none")
        upload.put_part(PAYLOAD, part_number=3, content_length=len(PAYLOAD))
        (shown,) = (line for line in operate("uploads", "list") if line["key"] == "watched")
        assert (shown["upload_id"], shown["parts"], shown["bytes"]) == (upload.upload_id, 1, len(PAYLOAD))
        (entry,) = operate("changelog", "show", shown["revision"])
        assert (entry["stored"], entry["parts"]) == ("parts", 1)
        (aborted,) = operate("uploads", "abort", shown["revision"])
        assert aborted["revision"] == shown["revision"]
        with pytest.raises(RequestError, match="404"):
            upload.list_parts()


def test_an_upload_goes_through_both(servers: tuple[ServerProcess, ServerProcess]) -> None:
    """Parts of one upload go through either server, in parallel, the last ones first; either can list, and complete it.

    A part that is sent again replaces the first one; a wrong name and a small part are told by their codes; an upload
    that was completed through one is complete for the other; one that was aborted through one is gone for the other.
    """
    one, other = (session_at(server.url) for server in servers)
    parts = [PAYLOAD[number:] + PAYLOAD[: 5 * MIB - len(PAYLOAD) + number] for number in range(3)] + [b"the last one"]
    upload = one.initiate_multipart_upload(key="a/large one", compression="none", metadata={"build": "17"})
    ways = itertools.cycle((upload, other.resume_multipart_upload("a/large one", upload.upload_id)))

    def send(number: int, part: bytes | None = None) -> CompletePart:
        part = part or parts[number - 1]
        return next(ways).put_part(part, part_number=number, content_length=len(part))

    replaced = send(2, PAYLOAD[::-1])
    with ThreadPoolExecutor(len(parts)) as threads:
        sent = sorted(threads.map(send, range(len(parts), 0, -1)), key=lambda part: part.part_number)
    for way in (next(ways), next(ways)):
        assert [(part.part_number, part.size) for part in way.list_parts()] == [
            (number, len(part)) for number, part in enumerate(parts, start=1)
        ]
    assert _refused(next(ways), [sent[0], replaced]) == "InvalidPart"
    assert one.get(upload.key) is None
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: next(ways).complete(sent), range(4))) == [upload.key] * 4
    for session in (one, other):
        found = session.get(upload.key)
        assert found is not None
        assert found.metadata.custom == {"build": "17"}
        assert found.payload.read() == b"".join(parts)
    other.delete(upload.key)
    assert next(ways).complete(sent) == next(ways).complete(sent) == upload.key
    aborted = one.initiate_multipart_upload(key=upload.key, compression="none")
    part = aborted.put_part(b"one", part_number=1, content_length=3)
    resumed = other.resume_multipart_upload(upload.key, aborted.upload_id)
    resumed.abort()
    assert _refused(aborted, [part]) == _refused(resumed, [part]) == "NoSuchUpload"
    assert one.get(upload.key) is None


def test_small_parts_are_refused_by_name(pair: Deployment, servers: tuple[ServerProcess, ServerProcess]) -> None:
    """Where parts have a smallest size, a smaller one can only be the last, and clients are told so; or it is fine."""
    upload = session_at(servers[0].url).initiate_multipart_upload(compression="none")
    sent = [upload.put_part(b"small", part_number=number, content_length=5) for number in (1, 2)]
    if pair.part_bytes_min:
        assert _refused(upload, sent) == "EntityTooSmall"
        sent = sent[:1]
    assert upload.complete(sent) == upload.key


def _refused(upload: MultipartUpload, parts: Sequence[CompletePart]) -> str:
    """The code that a completion is refused with."""
    with pytest.raises(MultipartCompleteError) as refused:
        upload.complete(parts)
    return str(refused.value.code)
