"""Credentials for S3: found where botocore finds them, and refreshed beside the requests."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tierstore.backends.long_term.s3_credentials import S3Credentials
from tierstore.clock import SystemClock
from tierstore.errors import StartupError, Unavailable
from tierstore.object_storage.transport import Answer
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock

ADDRESS = URL("https://bucket.example.org/blobs/a~2Fb?list-type=2", encoded=True)


class Metadata:
    """A service on loopback that gives credentials, as a container's does: each time others."""

    def __init__(self) -> None:
        self.asked = 0
        self.good_for = timedelta(hours=6)
        self.delay_seconds = 0.0
        self.fails = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                time.sleep(outer.delay_seconds)
                ends = datetime.now(UTC) + outer.good_for
                body = json.dumps(
                    {
                        "AccessKeyId": f"key{outer.asked}", "SecretAccessKey": "the-secret", "Token": "token",
                        "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    }
                ).encode()  # fmt: skip
                self.send_response(400 if outer.fails else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                del args

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.server.server_address[1]}/credentials"


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Metadata]:
    """The only place where credentials are."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    service = Metadata()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", service.url)
    service.thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()
        service.thread.join()


@pytest.fixture
def tasks() -> TaskOwner:
    """Who owns the refreshes."""
    return TaskOwner(8, structlog.get_logger().error)


async def opened(tasks: TaskOwner, *, clock: ManualClock | None = None, profile: str = "") -> S3Credentials:
    """The credentials, wherever they are."""
    return await S3Credentials.open(
        profile=profile, region="eu-central-1", tasks=tasks, clock=clock or SystemClock(), timeout_seconds=2.0
    )


async def key_of(credentials: S3Credentials) -> str:
    """The key that a request is signed with."""
    headers = await credentials.headers("GET", ADDRESS, {"Range": "bytes=0-1"})
    assert headers["Range"] == "bytes=0-1"
    assert headers["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"
    assert "/eu-central-1/s3/aws4_request" in headers["Authorization"]
    assert "the-secret" not in str(headers)
    return headers["Authorization"].partition("Credential=")[2].partition("/")[0]


async def test_credentials_of_the_container(metadata: Metadata, tasks: TaskOwner) -> None:
    """Are asked for once while they are good."""
    credentials = await opened(tasks)
    assert {await key_of(credentials) for _ in range(20)} == {"key1"}
    assert metadata.asked == 1
    credentials.close()


async def test_a_refresh_holds_nobody_up(metadata: Metadata, tasks: TaskOwner) -> None:
    """While credentials are still good, requests are signed with them until the new ones are there."""
    metadata.good_for = timedelta(minutes=12)
    credentials = await opened(tasks, clock=(clock := ManualClock()))
    first, asked = await key_of(credentials), metadata.asked
    metadata.delay_seconds = 0.4
    clock.advance(60)
    begun = time.monotonic()
    assert await key_of(credentials) == first
    assert time.monotonic() - begun < 0.3
    await asyncio.sleep(0.8)
    assert {await key_of(credentials) for _ in range(20)} == {f"key{asked + 1}"}
    assert metadata.asked == asked + 1, "not more often than now and then"
    await tasks.drain(2)
    credentials.close()


async def test_a_refresh_that_fails_while_they_are_good(metadata: Metadata, tasks: TaskOwner) -> None:
    """Is told to the operator, and tried again; requests go on."""
    metadata.good_for = timedelta(minutes=12)
    credentials = await opened(tasks, clock=(clock := ManualClock()))
    first, metadata.fails = await key_of(credentials), True
    clock.advance(60)
    assert await key_of(credentials) == first
    await asyncio.sleep(0.3)
    assert await key_of(credentials) == first
    metadata.fails = False
    for _ in range(100):  # botocore itself asks several times, with pauses
        clock.advance(60)
        if await key_of(credentials) != first:
            break
        await asyncio.sleep(0.1)
    assert await key_of(credentials) != first
    await tasks.drain(2)
    credentials.close()


async def test_credentials_that_have_ended_are_not_used(metadata: Metadata, tasks: TaskOwner) -> None:
    """Who has none is unavailable, in time, and has some when there are some."""
    metadata.good_for = timedelta(seconds=2)
    credentials = await opened(tasks)
    metadata.fails = True
    await asyncio.sleep(2.2)
    with structlog.testing.capture_logs() as lines, pytest.raises(Unavailable):
        await key_of(credentials)
    assert "the-secret" not in str(lines)
    metadata.fails, metadata.good_for = False, timedelta(hours=6)
    assert await key_of(credentials) != "key1"
    credentials.close()


async def test_credentials_that_the_store_refuses_as_too_old(metadata: Metadata, tasks: TaskOwner) -> None:
    """Are asked for anew; other refusals are none of theirs."""
    credentials = await opened(tasks)
    assert metadata.asked

    def refusal(status: int, code: str) -> Answer:
        body = f"<Error><Code>{code}</Code></Error>".encode()
        return Answer(status, CIMultiDictProxy(CIMultiDict()), body)

    assert not credentials.renew(refusal(403, "AccessDenied"))
    assert not credentials.renew(refusal(500, "ExpiredToken"))
    assert credentials.renew(refusal(403, "ExpiredToken"))
    assert await key_of(credentials) == "key1", "which botocore takes for good until its end"
    credentials.close()


async def test_without_credentials_a_server_does_not_start(
    metadata: Metadata, tasks: TaskOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it says what to do; likewise with a profile that is not there, and a service that gives none."""
    metadata.fails = True
    with pytest.raises(StartupError, match="cannot be had"):
        await opened(tasks)
    monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    with pytest.raises(StartupError, match="no credentials for S3 were found"):
        await opened(tasks)
    with pytest.raises(StartupError, match="nobody"):
        await opened(tasks, profile="nobody")


async def test_a_profile(metadata: Metadata, tasks: TaskOwner, tmp_path: Path) -> None:
    """Is the one that is named."""
    (tmp_path / "credentials").write_text(
        "[store]\naws_access_key_id = fixed\naws_secret_access_key = the-secret\n", encoding="ascii"
    )
    credentials = await opened(tasks, profile="store")
    assert await key_of(credentials) == "fixed"
    assert not credentials.renew(
        Answer(403, CIMultiDictProxy(CIMultiDict()), b"<Error><Code>ExpiredToken</Code></Error>")
    )
    assert metadata.asked == 0
    credentials.close()
