"""What goes wrong between the store and Google Cloud Storage: the right error, nothing lost, and an end by itself."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engines.fake_gcs import FakeGcs
from tests.engines.gcs_bench import CONTENT, LIMITS, TIMEOUT_SECONDS, Bench, begun, new_bench
from tierstore.backends.long_term.contract import BlobStream, LongTermBackend
from tierstore.backends.long_term.gcs import GcsLongTerm
from tierstore.clock import SystemClock
from tierstore.errors import Busy, EntityTooSmall, GivenUp, NoSuchUpload, StartupError, Unavailable
from tierstore.limits import KIB, MIB
from tierstore.testing.laws.long_term import Source, cut, payload, read
from tierstore.testing.tcp_proxy import TcpProxy


@pytest.fixture
async def bench(fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A new bucket behind a strict server, and credentials for it."""
    async with new_bench(fake_gcs, tmp_path, monkeypatch) as bench:
        yield bench


@pytest.fixture
async def proxy(bench: Bench) -> AsyncIterator[TcpProxy]:
    """A proxy before the server."""
    async with TcpProxy("127.0.0.1", bench.server.port) as proxy:
        yield proxy


def address_of(proxy: TcpProxy) -> str:
    """Where the proxy is reached."""
    return f"http://127.0.0.1:{proxy.port}"


async def expect_works(store: LongTermBackend, bench: Bench) -> None:
    """The store serves as if nothing had been."""
    revision = bench.revision()
    await store.put(revision, Source([CONTENT]), len(CONTENT))
    assert await read(store, revision) == CONTENT
    await store.delete(revision)
    assert await store.head(revision) is None


# Connections


@pytest.mark.parametrize("size", [len(CONTENT), None])
async def test_a_connection_that_is_cut_during_a_put_leaves_nothing(
    bench: Bench, proxy: TcpProxy, size: int | None
) -> None:
    """The put is unavailable, there is no blob, and the next one works."""
    async with bench.opened(address_of(proxy)) as store:
        revision = bench.revision()
        source = Source(cut(CONTENT, 100 * KIB), pause_at=2)
        put = asyncio.create_task(store.put(revision, source, size))
        await source.reached.wait()
        proxy.cut()
        source.release.set()
        with pytest.raises(Unavailable):
            await put
        assert await store.head(revision) is None
        await expect_works(store, bench)


async def read_on(stream: BlobStream, delivered: list[bytes]) -> None:
    """Read to the end; what has come is in ``delivered``, however it ends."""
    async for chunk in stream:
        delivered.append(chunk)  # noqa: PERF401  # because what came before a failure must be kept


async def test_a_connection_that_is_cut_during_a_read_is_no_end(bench: Bench, proxy: TcpProxy) -> None:
    """The stream fails, and what came before is right."""
    content = payload(8 * MIB)
    async with bench.opened(address_of(proxy)) as store:
        revision = bench.revision()
        await store.put(revision, Source([content]), len(content))
        stream = await store.get(revision)
        assert stream is not None
        delivered = [await anext(aiter(stream))]
        proxy.cut()
        with pytest.raises(Unavailable):
            await read_on(stream, delivered)
        assert content.startswith(b"".join(delivered))
        await stream.aclose()
        await expect_works(store, bench)


async def test_a_service_that_does_not_answer_is_not_waited_for(bench: Bench, proxy: TcpProxy) -> None:
    """Every method ends within its bound, and the store recovers by itself."""
    async with bench.opened(address_of(proxy)) as store:
        revision = bench.revision()
        await store.put(revision, Source([CONTENT]), len(CONTENT))
        proxy.hold()
        began = time.monotonic()
        calls = (
            store.head(revision),
            store.get(revision),
            store.delete(bench.revision()),
            store.list("", None, 3),
            store.initiate(bench.revision(upload=True)),
            store.put(bench.revision(), Source([payload(20 * MIB)]), 20 * MIB),
            store.check(),
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Unavailable}
        assert time.monotonic() - began < 10 * LIMITS.object_store_attempts_max * TIMEOUT_SECONDS
        proxy.resume()
        assert await read(store, revision) == CONTENT
        await expect_works(store, bench)


async def test_a_service_that_is_restarted_is_found_again(bench: Bench) -> None:
    """While it is down the store is unavailable, and what was acknowledged before is there afterwards."""
    async with bench.opened() as store:
        revision = bench.revision()
        await store.put(revision, Source([CONTENT]), len(CONTENT))
        await bench.server.__aexit__(None, None, None)
        for call in (store.head(revision), store.put(bench.revision(), Source([b"x"]), 1), store.check()):
            with pytest.raises(Unavailable):
                await call
        await bench.server.__aenter__()
        assert await read(store, revision) == CONTENT
        await expect_works(store, bench)


async def test_connections_that_are_all_in_use_refuse_and_do_not_queue_for_long(bench: Bench) -> None:
    """A read that holds the only connection makes others busy; when it ends they work."""
    content = payload(8 * MIB)
    async with bench.opened(connections=1) as store:
        revision = bench.revision()
        await store.put(revision, Source([content]), len(content))
        stream = await store.get(revision)
        assert stream is not None
        with pytest.raises(Busy):
            await store.head(revision)
        await stream.aclose()
        await expect_works(store, bench)


# Answers that are lost


async def test_the_lost_answer_of_a_put_says_nothing(bench: Bench) -> None:
    """The put is unavailable, and the blob is there, whole, for whoever looks."""
    async with bench.opened() as store:
        revision = bench.revision()
        bench.server.answers_lost = 1
        with pytest.raises(Unavailable):
            await store.put(revision, Source([CONTENT]), len(CONTENT))
        known = await store.head(revision)
        assert known is not None
        assert known.size == len(CONTENT)


async def test_the_lost_answer_of_an_initiate_leaves_an_upload_that_its_revision_ends(bench: Bench) -> None:
    """It is not repeated, for then there were two; and aborting the revision ends it."""
    async with bench.opened() as store:
        revision = bench.revision(upload=True)
        bench.server.answers_lost = 1
        with pytest.raises(Unavailable):
            await store.initiate(revision)
        assert len(bench.server.uploads.all_in_progress(bench.bucket)) == 1
        await store.abort(revision)
        assert bench.server.uploads.all_in_progress(bench.bucket) == []


async def test_lost_answers_of_what_may_be_repeated_are_asked_for_again(bench: Bench) -> None:
    """A complete, an abort, a delete and an adoption whose answers are lost succeed."""
    async with bench.opened() as store:
        upload, names = await begun(store, bench, 5 * MIB, 3)
        bench.server.answers_lost = 1
        await store.complete(upload, names)
        assert await read(store, upload.revision) == payload(5 * MIB) + payload(3)
        bench.server.answers_lost = 1
        await store.delete(upload.revision)
        assert await store.head(upload.revision) is None
        other, _ = await begun(store, bench, 3)
        bench.server.answers_lost = 1
        await store.abort(other)
        assert bench.server.uploads.all_in_progress(bench.bucket) == []
        bench.server.answers_lost = 1
        identity = bench.ids.uuid()
        assert await store.adopt(identity) == identity


class SteppingClock(SystemClock):
    """Goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> int:
        self.looks += 1
        return self.looks * 1_000_000


async def test_what_appears_too_late_is_taken_back(bench: Bench) -> None:
    """A put whose answer comes after its time has given up, and no blob is left; likewise an upload that begins."""
    clock = SteppingClock()
    async with bench.opened(clock=clock) as store:
        for looks, made in ((1, False), (2, True)):
            revision, bench.server.requests = bench.revision(), []
            not_after = (clock.looks + looks) * 1_000_000
            with pytest.raises(GivenUp):
                await store.put(revision, Source([CONTENT]), len(CONTENT), not_after=not_after)
            assert any(request.startswith("DELETE ") for request in bench.server.requests) == made
            assert await store.head(revision) is None
        upload = bench.revision(upload=True)
        with pytest.raises(GivenUp):
            await store.initiate(upload, not_after=(clock.looks + 2) * 1_000_000)
        assert bench.server.uploads.all_in_progress(bench.bucket) == []
        revision = bench.revision()
        await store.put(revision, Source([CONTENT]), len(CONTENT), not_after=(clock.looks + 3) * 1_000_000)
        assert await read(store, revision) == CONTENT


# Refusals


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_passing_refusals_are_asked_again(bench: Bench, status: int) -> None:
    """What may be repeated is; a put is not, and says whether it was the service's load."""
    async with bench.opened() as store:
        revision = bench.revision()
        await store.put(revision, Source([CONTENT]), len(CONTENT))
        bench.server.refusals = [status, status]
        assert await store.head(revision) is not None
        bench.server.refusals = [status, status]
        assert await read(store, revision) == CONTENT
        bench.server.refusals = [status]
        with pytest.raises(Busy if status == 429 else Unavailable):
            await store.put(bench.revision(), Source([CONTENT]), len(CONTENT))
        bench.server.refusals = [status] * LIMITS.object_store_attempts_max
        with pytest.raises(Busy if status == 429 else Unavailable):
            await store.head(revision)
        assert bench.server.refusals == []
        await expect_works(store, bench)


async def test_a_part_that_is_too_small_is_the_clients_mistake(bench: Bench) -> None:
    """The service's minimum is its own to keep; the upload goes on."""
    async with bench.opened() as store:
        upload, names = await begun(store, bench, 3, 4)
        with pytest.raises(EntityTooSmall):
            await store.complete(upload, names)
        await store.complete(upload, names[:1])
        assert await read(store, upload.revision) == payload(3)


async def test_a_refusal_that_comes_before_the_body_has_is_heard(bench: Bench) -> None:
    """A long part of an upload that has ended is no such upload, although its bytes were still on their way."""
    async with bench.opened() as store:
        upload, _ = await begun(store, bench)
        await store.abort(upload)
        for _ in range(5):
            source = Source(cut(payload(20 * MIB), 100 * KIB))
            with pytest.raises(NoSuchUpload):
                await store.upload_part(upload, 1, source, 20 * MIB, None)
        await expect_works(store, bench)


async def test_a_bucket_that_is_gone_does_not_make_blobs_absent(bench: Bench) -> None:
    """Nothing is "not found" in a bucket that is not there: it is unavailable."""
    async with bench.opened() as store:
        bench.server.buckets_lost = {bench.bucket}
        for call in (
            store.head(bench.revision()),
            store.get(bench.revision()),
            store.delete(bench.revision()),
            store.identity(),
            store.check(),
            store.list("", None, 3),
            store.put(bench.revision(), Source([CONTENT]), len(CONTENT)),
            store.initiate(bench.revision(upload=True)),
        ):
            with pytest.raises(Unavailable):
                await call


# Credentials


async def test_a_revoked_token_is_replaced(bench: Bench) -> None:
    """Requests that may be made twice do not notice; the others fail once."""
    clock = SystemClock()
    async with bench.opened(clock=clock) as store:
        await asyncio.sleep(1.1)  # a new token is trusted for a second
        bench.server.tokens.revoke_all()
        await expect_head(store, bench)
        assert bench.server.tokens.issued == 2
        await expect_works(store, bench)


async def expect_head(store: LongTermBackend, bench: Bench) -> None:
    """An absent blob is absent."""
    assert await store.head(bench.revision()) is None


async def test_tokens_are_replaced_before_they_end(bench: Bench) -> None:
    """With tokens of a second, requests go on for as long as one likes."""
    bench.server.tokens.lifetime_seconds = 1.0
    async with bench.opened() as store:
        for _ in range(15):
            await expect_head(store, bench)
            await asyncio.sleep(0.1)
    assert bench.server.tokens.issued >= 2


async def test_an_account_that_is_refused_tokens_for_a_while_recovers(bench: Bench) -> None:
    """Its last token is used until its end; then the store is unavailable, until it gets another."""
    bench.server.tokens.lifetime_seconds = 1.0
    async with bench.opened() as store:
        bench.server.tokens.refuses = True
        await expect_head(store, bench)
        await asyncio.sleep(1.1)
        for call in (store.head(bench.revision()), store.put(bench.revision(), Source([b"x"]), 1)):
            with pytest.raises(Unavailable, match="credentials"):
                await call
        bench.server.tokens.refuses = False
        await expect_works(store, bench)


async def test_tokens_are_in_no_log_and_no_error(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Neither when all is well, nor when anything fails."""
    caplog.set_level(logging.DEBUG)
    texts = []
    async with bench.opened() as store:
        await expect_works(store, bench)
        texts.append(repr(vars(store)))
        bench.server.refusals = [503] * LIMITS.object_store_attempts_max
        for call in (store.head(bench.revision()), store.put(bench.revision(), Source([b"x"]), 1)):
            with pytest.raises(Unavailable) as raised:
                await call
            texts += [repr(raised.value), repr(raised.value.__cause__)]
            bench.server.answers_lost = 1
    texts.append(caplog.text)
    assert bench.server.tokens.all_issued
    for token in bench.server.tokens.all_issued:
        assert not any(token in text for text in texts)


# Starting


async def test_what_is_wrong_at_the_start_is_said_in_words(bench: Bench, tmp_path: Path) -> None:
    """The bucket is missing, a permission is, the service is, or the file of authorities cannot be read."""
    with pytest.raises(StartupError, match="no bucket another-bucket"):
        await bench.open(bucket="another-bucket")
    bench.server.permissions_missing = {"storage.objects.delete"}
    with pytest.raises(StartupError, match=r"lacks storage\.objects\.delete"):
        await bench.open()
    bench.server.permissions_missing = set()
    bench.server.forbidden = f"GET /storage/v1/b/{bench.bucket}/o"
    with pytest.raises(StartupError, match="does not let this server"):
        await bench.open()
    with pytest.raises(StartupError, match="cannot be reached"):
        await bench.open("http://127.0.0.1:9")
    with pytest.raises(StartupError, match=r"certificates in .* cannot be read"):
        await GcsLongTerm.open(
            bucket="b", ca=str(tmp_path / "none.pem"), limits=LIMITS, clock=SystemClock(), ids=bench.ids
        )


async def test_credentials_that_are_wrong_are_said_in_words(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The account is refused, or its file is missing, or is none."""
    bench.server.tokens.refuses = True
    with pytest.raises(StartupError, match=r"give no token: .*invalid_grant"):
        await bench.open()
    bench.server.tokens.refuses = False
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(StartupError, match="no credentials of Google Cloud were found"):
        await bench.open()
    (tmp_path / "nonsense.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nonsense.json"))
    with pytest.raises(StartupError, match="no credentials of Google Cloud were found"):
        await bench.open()
