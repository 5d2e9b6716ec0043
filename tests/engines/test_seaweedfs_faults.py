"""What becomes of a long-term store in S3 when the network, the store or its operator fails it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from tests.engines.altered_s3 import AlteredS3, Answered, Asked, OpaqueTags, error
from tests.engines.engine import HOST, free_ports
from tests.engines.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFs
from tierstore.backends.long_term.contract import BlobStream
from tierstore.backends.long_term.s3 import S3LongTerm
from tierstore.backends.long_term.s3_uploads import S3Sizes
from tierstore.clock import MICROS_PER_SECOND, SystemClock, UnixMicros
from tierstore.errors import (
    Busy,
    CorruptObject,
    EntityTooSmall,
    GivenUp,
    InvalidPart,
    InvariantBroken,
    NoSuchUpload,
    NotOffered,
    ObjectTooLarge,
    StartupError,
    StorageFull,
    TierstoreError,
    Unavailable,
)
from tierstore.idsource import SystemIds
from tierstore.limits import KIB, MIB, Limits
from tierstore.object_storage.layout import KnownLayout, Layout
from tierstore.testing.laws.long_term import Boom, Source, cut, listed, object_id, opened, payload, read
from tierstore.testing.tcp_proxy import TcpProxy
from tierstore.types.ids import Revision
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.ranges import Span

LIMITS = replace(Limits(), part_bytes_min=5 * MIB, object_store_pause_seconds_max=0.05, operation_wait_seconds_max=0.2)
OVER = replace(LIMITS, operation_deadline_seconds=-1e6)
"""By which every put must be over."""
SMALL = S3Sizes(buffer_bytes=5 * MIB, request_bytes_max=11 * MIB, streamed_part_bytes=5 * MIB)
CONTENT = payload(3 * MIB)
CHUNKS = cut(CONTENT, 64 * KIB)
Opening = Callable[..., AbstractAsyncContextManager[S3LongTerm]]


@pytest.fixture
def opening(seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> Opening:
    """Opens instances on one prefix, at the engine or at another port or address."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    prefix = seaweedfs.new_prefix()

    @asynccontextmanager
    async def opened_at(
        url: str = seaweedfs.url, *, limits: Limits = LIMITS, bucket: str = seaweedfs.bucket, **settings: object
    ) -> AsyncIterator[S3LongTerm]:
        chosen: dict[str, object] = {"timeout_seconds": 5.0, "prefix": prefix} | settings
        store = await S3LongTerm.open(
            bucket=bucket, endpoint=url, limits=limits, clock=SystemClock(), ids=SystemIds(), **chosen  # type: ignore[arg-type]  # because tests choose settings by name
        )  # fmt: skip
        try:
            yield store
        finally:
            await store.close()

    return opened_at


def revision(*, upload: bool = False) -> Revision:
    """A new one."""
    return Revision(object_id(), SystemIds().upload_uuid() if upload else SystemIds().uuid())


def through(proxy: TcpProxy) -> str:
    """The engine's address, by way of the proxy."""
    return f"http://{HOST}:{proxy.port}"


async def exhausted(stream: BlobStream) -> None:
    """Read all that is left."""
    async for _ in stream:
        await asyncio.sleep(0)


async def begun(store: S3LongTerm, *parts: bytes) -> tuple[UploadId, list[PartName]]:
    """An upload with these parts."""
    new = revision(upload=True)
    upload = UploadId(new, await store.initiate(new))
    names = []
    for number, part in enumerate(parts, start=1):
        stored = await store.upload_part(upload, number, Source(cut(part, 64 * KIB)), len(part), None)
        names.append(PartName(number, stored.etag))
    return upload, names


def without_answers_to_posts(asked: Asked, answered: Answered) -> Answered:
    """What was asked for is done, and its answer lost on the way."""
    return error(502, "BadGateway") if asked.method == "POST" else answered


# The network


@pytest.mark.parametrize("after_chunks", [0, 20, len(CHUNKS) - 1])
async def test_a_put_that_is_cut_off_leaves_nothing(seaweedfs: SeaweedFs, opening: Opening, after_chunks: int) -> None:
    """It fails as unavailable, no blob appears, and the next one succeeds."""
    async with TcpProxy(HOST, seaweedfs.port) as proxy, opening(through(proxy)) as store:
        one, source = revision(), Source(CHUNKS, pause_at=after_chunks)
        put = asyncio.create_task(store.put(one, source, len(CONTENT)))
        await source.reached.wait()
        await asyncio.sleep(0.05)
        proxy.cut()
        source.release.set()
        if after_chunks:
            with pytest.raises(Unavailable):
                await put
            assert await store.head(one) is None
        else:
            with suppress(Unavailable):
                await put
        await store.put(one, Source(CHUNKS), len(CONTENT))
        assert await read(store, one) == CONTENT


async def test_a_read_that_is_cut_off_does_not_look_whole(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """It fails as unavailable; reading again gives all of it."""
    big = payload(24 * MIB)
    async with TcpProxy(HOST, seaweedfs.port) as proxy, opening(through(proxy)) as store:
        one = revision()
        await store.put(one, Source(cut(big, MIB)), len(big))
        stream = await opened(store, one)
        await anext(aiter(stream))
        proxy.cut()
        with pytest.raises(Unavailable):
            await exhausted(stream)
        await stream.aclose()
        assert await read(store, one) == big


async def test_a_store_that_does_not_answer_is_not_waited_for_for_long(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Every call fails as unavailable in its time, and all is well when the store answers again."""
    limits = replace(LIMITS, object_store_attempts_max=2)
    async with (
        TcpProxy(HOST, seaweedfs.port) as proxy,
        opening(through(proxy), timeout_seconds=1.0, limits=limits) as store,
    ):
        one, big = revision(), payload(24 * MIB)
        await store.put(one, Source(CHUNKS), len(CONTENT))
        upload, names = await begun(store, b"last")
        proxy.hold()
        other = revision()
        calls = [
            store.put(other, Source(cut(big, MIB)), len(big)),
            store.upload_part(upload, 2, Source(cut(big, MIB)), len(big), None),
            store.head(one),
            store.get(one),
            store.check(),
            store.list("", None, 5),
            store.list_parts(upload, 0, 5),
        ]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Unavailable}
        proxy.resume()
        assert await read(store, one) == CONTENT
        assert await store.head(other) is None
        await store.complete(upload, names)
        assert await read(store, upload.revision) == b"last"


async def test_lost_answers_are_found_out_by_looking(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """What was done although nobody was told is there: a blob, and one of an upload, which is completed again."""
    async with TcpProxy(HOST, seaweedfs.port) as proxy, opening(through(proxy)) as store:
        one = revision()
        proxy.lose_answers()
        with pytest.raises(Unavailable):
            await store.put(one, Source(CHUNKS), len(CONTENT))
        proxy.resume()
        assert await read(store, one) == CONTENT

    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        parts = payload(5 * MIB), b"last"
        upload, names = await begun(store, *parts)
        altered.after = without_answers_to_posts
        with pytest.raises(Unavailable):
            await store.complete(upload, names)
        async with opening() as other:
            await other.complete(upload, names)
            found = await other.head(upload.revision)
            assert found is not None
            assert found.size == 5 * MIB + 4
            assert await read(other, upload.revision) == b"".join(parts)
            with pytest.raises(TierstoreError):
                await other.complete(upload, names[:1])


async def test_short_failures_are_not_noticed(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """What may be repeated is, when a connection ends under it; also while the store accepts none for a moment."""
    async with TcpProxy(HOST, seaweedfs.port) as proxy, opening(through(proxy)) as store:
        one = revision()
        await store.put(one, Source(CHUNKS), len(CONTENT))
        for _ in range(5):
            proxy.cut()
            assert await store.head(one) is not None
        proxy.refuse()
        asyncio.get_running_loop().call_later(0.02, proxy.resume)
        assert await store.head(one) is not None


async def test_no_more_connections_than_may_be(opening: Opening) -> None:
    """Who gets none in time is told that the store is busy, and gets one when another has ended."""
    big = payload(24 * MIB)
    async with opening(connections_max=1, timeout_seconds=2.0) as store:
        one = revision()
        await store.put(one, Source(cut(big, MIB)), len(big))
        stream = await opened(store, one)
        await anext(aiter(stream))
        with pytest.raises(Busy):
            await store.head(one)
        await stream.aclose()
        assert await store.head(one) is not None


async def test_slow_readers_leave_connections_to_others(opening: Opening) -> None:
    """However many there are, what is written goes on; who finds too many of them is told that the store is busy."""
    big = payload(24 * MIB)
    async with opening(connections_max=4, timeout_seconds=1.0) as store:
        one = revision()
        await store.put(one, Source(cut(big, MIB)), len(big))
        streams = [await opened(store, one) for _ in range(3)]
        with pytest.raises(Busy):
            await store.get(one)
        assert await store.head(one) is not None
        new = revision()
        await store.put(new, Source(CHUNKS), len(CONTENT))
        waiting = asyncio.ensure_future(store.get(new))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        cancelled = asyncio.ensure_future(store.get(new))
        await asyncio.sleep(0)
        cancelled.cancel()
        await streams.pop().aclose()
        stream = await waiting
        assert stream is not None
        await exhausted(stream)
        assert await store.get(revision()) is None
        assert await store.get(revision()) is None  # which hold nothing
        await exhausted(await opened(store, new))
        for stream in streams:
            await stream.aclose()


# The engine


async def test_what_was_acknowledged_survives_a_crash_and_a_restart(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Under load, killed and stopped: what failed may be missing, what was acknowledged is whole; so is what `head` has
    shown of an upload whose completion nobody was told of.
    """
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as untold, opening(timeout_seconds=2.0) as store:
        upload, names = await begun(untold, b"all of it")
        altered.after = without_answers_to_posts
        with pytest.raises(Unavailable):
            await untold.complete(upload, names)
        assert await store.head(upload.revision) is not None
        acknowledged: dict[Revision, bytes] = {upload.revision: b"all of it"}
        stopped = asyncio.Event()

        async def write(number: int) -> None:
            while not stopped.is_set():
                content = payload(200_000 + number + len(acknowledged))
                one = revision()
                try:
                    await store.put(one, Source(cut(content, 64 * KIB)), len(content))
                    acknowledged[one] = content
                except Unavailable:
                    await asyncio.sleep(0.05)

        writers = [asyncio.create_task(write(number)) for number in range(4)]
        for way in (seaweedfs.kill, seaweedfs.stop):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(way)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(seaweedfs.start)
        await asyncio.sleep(0.2)
        stopped.set()
        await asyncio.gather(*writers)
        assert len(acknowledged) > 4
        for one, content in acknowledged.items():
            assert await read(store, one) == content


# Operators


@pytest.mark.parametrize(
    ("secret", "bucket", "words"),
    [
        ("wrong", SeaweedFs.bucket, "refuses the credentials"),
        (SECRET_KEY, "no-such-bucket", "does not exist"),
    ],
)
async def test_wrong_settings_are_told_in_words(
    opening: Opening, monkeypatch: pytest.MonkeyPatch, secret: str, bucket: str, words: str
) -> None:
    """A server does not start on them, and the secret is not in the text."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(StartupError, match=words) as raised:
        async with opening(bucket=bucket):
            await asyncio.sleep(0)
    assert SECRET_KEY not in str(raised.value)


async def test_a_store_that_is_not_there_is_told_in_words(opening: Opening) -> None:
    """A server does not start."""
    with pytest.raises(StartupError, match="cannot be reached"):
        async with opening(f"http://{HOST}:{free_ports(1)[0]}"):
            await asyncio.sleep(0)


async def test_a_bucket_that_has_gone_is_not_an_absent_blob(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """While the bucket is missing, reads are unavailable and not empty."""
    bucket = "short-lived"
    assert seaweedfs.put_bucket(bucket)
    async with opening(bucket=bucket, limits=replace(LIMITS, object_store_attempts_max=1)) as store:
        one = revision()
        await store.put(one, Source([b"content"]), 7)
        assert seaweedfs.delete_bucket(bucket)
        for call in (store.head(one), store.get(one), store.check(), store.put(one, Source([b"content"]), 7)):
            with pytest.raises(Unavailable):
                await call


# What other stores do


async def test_a_store_that_is_slow_is_asked_again_later(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """After SlowDown, not before the time that it names; one that names a long time is unavailable at once."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        refusals: list[Answered] = [error(503, "SlowDown", Retry_After="0"), error(503, "SlowDown")]
        altered.before = lambda asked: refusals.pop() if refusals and asked.method == "GET" else None
        assert await store.head(revision()) is None
        assert not refusals
        before = len(altered.asked)
        altered.before = lambda _: error(503, "SlowDown", Retry_After="600")
        with pytest.raises(Unavailable):
            await store.list("", None, 1)
        assert len(altered.asked) == before + 1


async def test_an_error_in_a_success_is_an_error(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """A completion is answered 200 before it is done, and may end in an error."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        upload, names = await begun(store, b"all of it")
        altered.before = lambda asked: error(200, "InternalError") if asked.method == "POST" else None
        with pytest.raises(Unavailable):
            await store.complete(upload, names)
        assert await store.head(upload.revision) is None
        altered.before = lambda _: None
        await store.complete(upload, names)
        assert await read(store, upload.revision) == b"all of it"


async def test_an_answer_may_begin_with_blanks(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """By which a store keeps the connection from being taken for dead while it puts parts together."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        upload, names = await begun(store, b"all of it")
        altered.after = lambda _, answered: replace(answered, body=b" \n" + answered.body)
        await store.complete(upload, names)
        altered.before = lambda _: replace(error(200, "X"), body=b" " + error(200, "NoSuchUpload").body)
        with pytest.raises(NoSuchUpload):
            await store.list_parts(upload, 0, 10)


@pytest.mark.parametrize("upload", [False, True])
async def test_other_bytes_than_those_asked_for_are_not_delivered(
    seaweedfs: SeaweedFs, opening: Opening, upload: bool
) -> None:
    """A store, or a cache before it, may give all of an object where a part was asked for, or another part."""
    content = payload(5 * MIB) + b"last"

    def ignore(asked: Asked, answered: Answered) -> Answered:
        if "Range" in asked.headers and asked.method == "GET" and asked.headers["Range"].startswith("bytes=9-"):
            return whole
        return answered

    def shift(asked: Asked, answered: Answered) -> Answered:
        if asked.method == "GET" and asked.headers.get("Range", "").startswith("bytes=9-"):
            headers = {**answered.headers, "Content-Range": f"bytes 8-27/{stored_bytes}"}
            return Answered(206, content[8:28], headers)
        return answered

    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        if upload:
            begun_upload, names = await begun(store, content[: 5 * MIB], content[5 * MIB :])
            one = begun_upload.revision
            await store.complete(begun_upload, names)
        else:
            one = revision()
            await store.put(one, Source([content]), len(content))
        answer = seaweedfs.ask("GET", store._names.blob(one))
        stored_bytes = len(answer.content)
        whole = Answered(200, answer.content, {"ETag": answer.headers["ETag"]})
        whole.headers["Last-Modified"] = answer.headers["Last-Modified"]
        assert await read(store, one, Span(9, 29)) == content[9:29]
        for rule in (ignore, shift):
            altered.after = rule
            with pytest.raises(Unavailable, match="other bytes"):
                await read(store, one, Span(9, 29))


async def test_a_layout_is_kept_before_its_blob_is_committed(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """However the completion has ended: else every process looks at each part in turn before its first read."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        upload, names = await begun(store, payload(5 * MIB), b"last")
        name = store._names.layout(upload.revision)
        altered.before = lambda asked: (
            error(503, "SlowDown", Retry_After="9") if (asked.method, asked.name) == ("PUT", name) else None
        )
        with pytest.raises(Unavailable):
            await store.complete(upload, names)
        assert await read(store, upload.revision) == payload(5 * MIB) + b"last"
        altered.before = lambda _: None
        assert await store.head(upload.revision) is not None
        assert seaweedfs.ask("GET", name).ok
        before = len(altered.asked)
        assert await store.head(upload.revision) is not None
        assert len(altered.asked) == before + 1  # what is known to be kept is not looked for again


@pytest.mark.parametrize("by", ["complete", "head"])
async def test_a_layout_that_comes_late_leaves_nothing_behind(seaweedfs: SeaweedFs, opening: Opening, by: str) -> None:
    """The blob is deleted, and its layout after it, while another server is about to write that: it goes, too."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store, opening() as other:
        upload, names = await begun(store, payload(5 * MIB), b"last")
        blob, layout = store._names.blob(upload.revision), store._names.layout(upload.revision)
        if by == "head":
            await other.complete(upload, names)
            assert seaweedfs.ask("DELETE", layout).ok
        late: list[Asked] = []

        def delete_before(asked: Asked) -> None:
            if (asked.method, asked.name) == ("PUT", layout):
                late.append(asked)
                for name in (blob, layout):
                    assert seaweedfs.ask("DELETE", name).ok

        altered.before = delete_before
        await (store.complete(upload, names) if by == "complete" else store.head(upload.revision))
        assert len(late) == 1
        assert [seaweedfs.ask("GET", name).status_code for name in (blob, layout)] == [404, 404]


async def test_a_layout_of_another_blob_changes_no_span(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """What is kept beside a blob may be of another state of it; then the blob tells, and the span is as it was."""
    whole = payload(5 * MIB) + b"last"
    async with opening() as store, opening() as later:
        upload, names = await begun(store, whole[: 5 * MIB], whole[5 * MIB :])
        await store.complete(upload, names)
        for sizes in ([5 * MIB], [7], [5 * MIB + 2, 2, 9]):
            stale = KnownLayout(Layout(upload.revision, sizes), "another", of_parts=True)
            content = stale.encode(upload.revision)
            assert seaweedfs.ask("PUT", store._names.layout(upload.revision), content).ok
            for span in (Span(0, 5 * MIB), Span(0, 7), Span(5 * MIB, 5 * MIB + 4)):
                later._layouts.drop(upload.revision)
                assert await read(later, upload.revision, span) == whole[span.start : span.stop]


async def test_a_store_below_another_ones_prefix_is_left_alone(opening: Opening) -> None:
    """Whatever its own deadline is: its puts are not ended as this one's debris, and its blobs not listed."""
    async with opening(limits=OVER) as store:
        below = store._names.root + "below"
        async with opening(prefix=below) as other:
            await other._bucket.begin_upload(other._names.blob(revision()))
            await store._bucket.begin_upload(store._names.blob(revision()))
            await store._bucket.begin_upload(store._names.probe(SystemIds().uuid()))
            await other.put(revision(), Source([b"x"]), 1)
            assert await listed(store) == []
            assert await store.remove_debris() == 2
            assert await uploads_in_progress(other) == 1


async def test_a_store_that_is_full_says_so(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """As full, and not as unavailable, so that clients are told what to wait for."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        altered.before = lambda asked: error(507, "XMinioStorageFull") if asked.method == "PUT" else None
        with pytest.raises(StorageFull):
            await store.put(revision(), Source(CHUNKS), len(CONTENT))


async def test_a_store_without_conditions_gets_no_identity(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """It is told at the first start, in words."""

    def ignore(asked: Asked) -> Answered | None:
        return Answered(200) if "If-None-Match" in asked.headers else None

    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        altered.before = ignore
        with pytest.raises(NotOffered, match="If-None-Match"):
            await store.adopt(SystemIds().uuid())
        assert await store.identity() is None


async def test_etags_need_not_be_digests(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Blobs of uploads are read, in spans too, where nothing but their trailers tells where their parts are."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store, opening(altered.url) as later:
        rules = OpaqueTags()
        altered.before, altered.after = rules.before, rules.after
        parts = payload(5 * MIB), payload(5 * MIB + 3), b"last"
        whole = b"".join(parts)
        upload, names = await begun(store, *parts)
        await store.complete(upload, names)
        for instance in (store, later):
            assert await read(instance, upload.revision, Span(5 * MIB - 1, 10 * MIB + 5)) == whole[5 * MIB - 1 : -2]
            assert await read(instance, upload.revision) == whole


async def test_a_store_that_forgets_replaced_parts_is_not_asked_for_more(
    seaweedfs: SeaweedFs, opening: Opening
) -> None:
    """Nothing is kept beside its uploads, and each part is one request."""
    replaced: dict[str, str] = {}

    def forget(asked: Asked, answered: Answered) -> Answered:
        if asked.method == "PUT" and "uploadId" in asked.query:
            replaced[asked.query["partNumber"]] = answered.headers["Etag"].strip('"')
        if asked.method == "GET" and "uploadId" in asked.query:
            parts = answered.body.split(b"<Part>")
            kept = [part for part in parts[1:] if any(etag.encode() in part for etag in replaced.values())]
            end = parts[-1].partition(b"</Part>")[2]
            answered.body = (
                b"<Part>".join([parts[0], *[part.partition(b"</Part>")[0] + b"</Part>" for part in kept]]) + end
            )
        return answered

    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        altered.after = forget
        upload, (before,) = await begun(store, b"before")
        count = len(altered.asked)
        after = await store.upload_part(upload, 1, Source([b"after"]), 5, None)
        assert len(altered.asked) == count + 1
        with pytest.raises(InvalidPart):
            await store.complete(upload, [before])
        await store.complete(upload, [PartName(1, after.etag)])
        assert await read(store, upload.revision) == b"after"


# Payloads beyond one request, and what is kept beside a blob


async def test_a_payload_of_unknown_length_is_put_in_parts(opening: Opening) -> None:
    """It comes back whole and in spans, like any other; one that fails, or is cancelled, leaves nothing."""
    content = payload(12 * MIB + 5)
    async with opening(sizes=SMALL) as store:
        for size in (5 * MIB - 1, 5 * MIB, 10 * MIB, len(content)):
            one = revision()
            known = await store.put(one, Source(cut(content[:size], 100_000)), None)
            assert known.size == size
            assert await read(store, one) == content[:size]
            assert await read(store, one, Span(size - 9, size - 2)) == content[size - 9 : size - 2]
        failed = revision()
        with pytest.raises(Boom):
            await store.put(failed, Source(cut(content, 100_000), fail_at=120), None)
        source = Source(cut(content, 100_000), pause_at=120)
        put = asyncio.create_task(store.put(failed, source, None))
        await source.reached.wait()
        put.cancel()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert await store.head(failed) is None
        assert await uploads_in_progress(store) == 0


async def test_a_payload_beyond_one_request_is_streamed_in_parts(opening: Opening) -> None:
    """It comes back whole; one whose source is longer or shorter than announced, or too late, leaves nothing."""
    content = payload(12 * MIB + 5)
    async with opening(sizes=SMALL) as store:
        one = revision()
        known = await store.put(one, Source(cut(content, 100_001)), len(content))
        assert known.size == len(content)
        assert await read(store, one) == content
        other = revision()
        for announced in (len(content) - 1, len(content) + 1):
            with pytest.raises(InvariantBroken):
                await store.put(other, Source(cut(content, 100_000)), announced)
        with pytest.raises(GivenUp):
            await store.put(other, Source(cut(content, 100_000)), len(content), not_after=1)
        assert await store.head(other) is None
        assert await uploads_in_progress(store) == 0


async def test_a_payload_in_parts_that_the_store_does_not_put_together(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Is unavailable, whatever the store says about the parts, which nobody but us has named."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url, sizes=SMALL) as store:
        altered.before = lambda asked: error(400, "InvalidPart") if asked.query.keys() == {"uploadId"} else None
        with pytest.raises(Unavailable):
            await store.put(revision(), Source(cut(payload(6 * MIB), MIB)), None)


async def test_a_late_put_in_parts_is_not_asked_for_again(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """What comes of one that has been asked for is unknown, whatever a repetition would be told; and when its time is
    over there is none: by then nobody may remember that its blob could appear.
    """
    content = payload(12 * MIB)
    asked_at = list[UnixMicros]()
    clock = SystemClock()

    def refuse(asked: Asked) -> Answered | None:
        if asked.method != "POST" or "uploadId" not in asked.query:
            return None
        asked_at.append(clock.now())
        return error(503, "SlowDown") if len(asked_at) == 1 else error(507, "StorageFull")

    slow = replace(LIMITS, object_store_pause_seconds_max=3.0)
    async with AlteredS3(seaweedfs) as altered, opening(altered.url, sizes=SMALL, limits=slow) as store:
        altered.before = refuse
        with pytest.raises(Unavailable) as answered:
            await store.put(revision(), Source(cut(content, MIB)), len(content))
        assert len(asked_at) == 2
        assert not isinstance(answered.value, StorageFull | GivenUp)
        asked_at.clear()
        ends = clock.now() + 2 * MICROS_PER_SECOND
        altered.before = lambda asked: refuse(asked) and error(503, "SlowDown", Retry_After="3")
        with pytest.raises(Unavailable) as answered:
            await store.put(revision(), Source(cut(content, MIB)), len(content), not_after=ends)
        assert asked_at
        assert max(asked_at) <= ends
        assert not isinstance(answered.value, GivenUp)


async def test_a_part_has_its_bound(opening: Opening) -> None:
    """Of announced length, what a request may have; of another, what is buffered."""
    async with opening(sizes=SMALL) as store:
        upload, _ = await begun(store)
        for content, size in ((11 * MIB, 11 * MIB), (6 * MIB, None)):
            with pytest.raises(ObjectTooLarge):
                await store.upload_part(upload, 1, Source(cut(payload(content), MIB)), size, None)
        assert list((await store.list_parts(upload, 0, 5)).parts) == []


def calls_of(store: S3LongTerm, one: Revision, upload: UploadId) -> list[Coroutine[Any, Any, object]]:
    """One of each call that asks the store."""
    return [
        store.put(one, Source([b"content"]), 7),
        store.get(one),
        store.get(upload.revision),
        store.head(one),
        store.delete(one),
        store.list("", None, 5),
        store.initiate(upload.revision),
        store.upload_part(upload, 1, Source([b"content"]), 7, None),
        store.list_parts(upload, 0, 5),
        store.complete(upload, [PartName(1, "etag")]),
        store.abort(upload),
        store.abort(upload.revision),
        store.remove_debris(),
        store.identity(),
        store.adopt(SystemIds().uuid()),
        store.check(),
    ]


@pytest.mark.parametrize(
    "answer", [error(403, "AccessDenied"), error(500, "InternalError"), Answered(502, b"<html>"), Answered(301)]
)
async def test_whatever_a_store_refuses_is_unavailable(
    seaweedfs: SeaweedFs, opening: Opening, answer: Answered
) -> None:
    """Every call, and never an absent blob or an empty listing."""
    limits = replace(LIMITS, object_store_attempts_max=1)
    async with AlteredS3(seaweedfs) as altered, opening(altered.url, limits=limits) as store:
        upload, _ = await begun(store, b"part")
        altered.before = lambda _: replace(answer, headers={})
        answers = await asyncio.gather(*calls_of(store, revision(), upload), return_exceptions=True)
        assert {type(each) for each in answers} == {Unavailable}


async def test_answers_that_cannot_be_read_are_unavailable(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Every call that reads one."""
    limits = replace(LIMITS, object_store_attempts_max=1)
    async with AlteredS3(seaweedfs) as altered, opening(altered.url, limits=limits) as store:
        upload, names = await begun(store, b"part")
        altered.before = lambda _: Answered(200, b"what is this?", {"Content-Range": "bytes"})
        for call in (
            store.list("", None, 5), store.initiate(upload.revision), store.list_parts(upload, 0, 5),
            store.complete(upload, names), store.abort(upload.revision), store.remove_debris(),
        ):  # fmt: skip
            with pytest.raises(Unavailable):
                await call
        with pytest.raises(CorruptObject):
            await store.identity()
        altered.before = lambda _: Answered(206, b"what is this?", {"Content-Range": "bytes */*"})
        for reading in (store.head(upload.revision), store.get(revision())):
            with pytest.raises(Unavailable):
                await reading


async def test_long_names_are_listed_by_what_the_blobs_say(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """One that says that it is another, or nothing, is passed over."""
    long = [Revision(object_id("k" * 2_000 + end), SystemIds().uuid()) for end in "ab"]
    async with opening() as store:
        for each in long:
            await store.put(each, Source([b"content"]), 7)
        assert set(await listed(store)) == set(long)
        assert await listed(store, long[0].storage_path[:1_990]) == await listed(store)
        assert await listed(store, long[1].object_id.storage_path) == [long[1]]
        content = seaweedfs.ask("GET", store._names.blob(long[1])).content
        for damaged in (content, b"nothing", b""):
            assert seaweedfs.ask("PUT", store._names.blob(long[0]), damaged).ok
            assert await listed(store) == [long[1]]


async def test_a_payload_of_unknown_length_has_its_bound(opening: Opening) -> None:
    """Beyond what an object may have it is refused, and nothing is left."""
    async with opening(sizes=SMALL, limits=replace(LIMITS, object_bytes_max=6 * MIB)) as store:
        with pytest.raises(ObjectTooLarge):
            await store.put(revision(), Source(cut(payload(12 * MIB), MIB)), None)
        assert await uploads_in_progress(store) == 0


async def test_puts_that_died_are_removed_when_they_must_be_over(opening: Opening) -> None:
    """Not sooner, and no upload of a client."""
    async with opening() as store:
        await begun(store, b"a client's")
        await store._bucket.begin_upload(store._names.blob(revision()))
        assert await store.remove_debris() == 0
    async with opening(limits=OVER) as store:
        assert await store.remove_debris() == 1
        assert await uploads_in_progress(store) == 1


async def test_a_blob_that_changes_while_it_is_looked_at(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Its layout is found out anew; if that does not help, it is unavailable, and other bytes are never delivered."""
    turns = count()
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        upload, names = await begun(store, payload(5 * MIB), b"last")
        await store.complete(upload, names)

        def change(asked: Asked, answered: Answered) -> Answered:
            if asked.method == "GET" and asked.name == store._names.blob(upload.revision) and next(turns) < changes:
                answered.headers["Etag"] = f'"{next(turns)}"'
            return answered

        altered.after, changes = change, 1
        assert await read(store, upload.revision, Span(5 * MIB, 5 * MIB + 2)) == b"la"
        turns, changes = count(), 1_000
        for call in (store.get(upload.revision), store.get(upload.revision, Span(0, 5))):
            with pytest.raises(Unavailable):
                await call


async def test_what_a_completion_is_told_is_not_believed(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Parts that are not listed, uploads that are not known, ETags of something else: the blob decides."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        upload, names = await begun(store, payload(5 * MIB), b"last")
        altered.before = lambda asked: error(404, "NoSuchUpload") if asked.method == "POST" else None
        with pytest.raises(NoSuchUpload):
            await store.complete(upload, names)
        altered.before = lambda _: None
        altered.after = strange_etags
        await store.complete(upload, names)
        altered.after = lambda _, answered: answered
        assert await read(store, upload.revision, Span(5 * MIB, 5 * MIB + 4)) == b"last"
        altered.before = without_parts
        await store.complete(upload, names)
        with pytest.raises(InvalidPart):
            await store.complete((await begun_without_parts(store)), names)
        altered.before = endless
        with pytest.raises(Unavailable):
            await store.complete(upload, names)


def strange_etags(asked: Asked, answered: Answered) -> Answered:
    """Completions are told the ETag of something else."""
    if asked.method == "POST":
        answered.body = answered.body.replace(b"-2", b"-3")
    return answered


def without_parts(asked: Asked) -> Answered | None:
    """Listings of parts are empty."""
    if asked.method == "GET" and "uploadId" in asked.query:
        return Answered(200, b"<ListPartsResult></ListPartsResult>")
    return None


def endless(asked: Asked) -> Answered | None:
    """Listings of parts never end."""
    if asked.method == "GET" and "uploadId" in asked.query:
        after = int(asked.query.get("part-number-marker", "0"))
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>e</ETag><Size>70</Size>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Part>"
            for number in (after + 1, after + 2)
        )
        text = f"<ListPartsResult><IsTruncated>true</IsTruncated>{parts}</ListPartsResult>"
        return Answered(200, text.encode())
    return None


async def begun_without_parts(store: S3LongTerm) -> UploadId:
    """An upload that has none."""
    upload, _ = await begun(store)
    return upload


async def test_uploads_are_found_on_every_page(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Those to be aborted, and debris, wherever the store lists them."""

    def one_at_a_time(asked: Asked) -> None:
        if asked.method == "GET" and "uploads" in asked.query:
            asked.query["max-uploads"] = "1"

    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        uploads = [(await begun(store, b"part"))[0] for _ in range(4)]
        for _ in range(3):
            await store._bucket.begin_upload(store._names.blob(revision()))
        altered.before = one_at_a_time
        await store.abort(uploads[2].revision)
        for upload in uploads:
            with nullcontext() if upload is not uploads[2] else pytest.raises(NoSuchUpload):
                await store.list_parts(upload, 0, 1)
    async with AlteredS3(seaweedfs) as altered, opening(altered.url, limits=OVER) as store:
        altered.before = one_at_a_time
        assert sum([await store.remove_debris() for _ in range(100)]) == 3
        altered.before = lambda asked: error(500, "InternalError") if "uploads" in asked.query else None
        with pytest.raises(Unavailable):
            await store.remove_debris()


@pytest.mark.parametrize("part_bytes_min", [1, 5 * MIB])
async def test_parts_that_are_too_small_are_refused(opening: Opening, part_bytes_min: int) -> None:
    """By us, or by the store if it wants more than was set; the upload is as it was, and can be mended."""
    async with opening(limits=replace(LIMITS, part_bytes_min=part_bytes_min)) as store:
        upload, names = await begun(store, b"small", b"last")
        with pytest.raises(EntityTooSmall):
            await store.complete(upload, names)
        large = payload(5 * MIB)
        part = await store.upload_part(upload, 1, Source(cut(large, MIB)), len(large), None)
        await store.complete(upload, [PartName(1, part.etag), names[1]])
        assert await read(store, upload.revision) == large + b"last"


async def test_an_upload_that_is_not_in_progress_is_aborted_again(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """By its id, a store may say that there is none; by its revision, it has succeeded."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        upload, _ = await begun(store, b"part")
        altered.before = lambda asked: error(404, "NoSuchUpload") if asked.method == "DELETE" else None
        with pytest.raises(NoSuchUpload):
            await store.abort(upload)
        await store.abort(upload.revision)


async def test_what_says_which_parts_are_replaced_goes_with_the_upload(opening: Opening) -> None:
    """Whether it is completed, aborted by its id or by its revision; meanwhile it tells the present part."""
    async with opening() as store:
        for ends in ("complete", "upload", "revision"):
            upload, (before,) = await begun(store, b"before")
            names = [before]
            for content in (b"after", b"and again", b"before"):
                part = await store.upload_part(upload, 1, Source([content]), len(content), None)
                (listed_part,) = (await store.list_parts(upload, 0, 5)).parts
                assert listed_part.etag == part.etag
                with pytest.raises(InvalidPart):
                    await store.complete(upload, names)
                names = [PartName(1, part.etag)]
            if ends == "complete":
                await store.complete(upload, names)
                assert await read(store, upload.revision) == b"before"
            else:
                await store.abort(upload if ends == "upload" else upload.revision)
            names_left, _ = await store._bucket.names(store._names.replaced_parts(upload.revision), "", 5)
            assert list(names_left) == []


async def test_an_identity_that_somebody_is_just_giving(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """Is waited for by trying again."""
    async with AlteredS3(seaweedfs) as altered, opening(altered.url) as store:
        altered.before = lambda asked: (
            error(412, "PreconditionFailed") if asked.method == "PUT" and asked.name == store._names.identity else None
        )
        with pytest.raises(Unavailable):
            await store.adopt(SystemIds().uuid())


async def test_a_lost_or_damaged_layout_is_made_again(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """The blob tells it; head keeps it for others; a read does without."""
    parts = payload(5 * MIB), payload(5 * MIB + 1), b"last"
    whole = b"".join(parts)
    async with opening() as store:
        upload, names = await begun(store, *parts)
        await store.complete(upload, names)
        name = store._names.layout(upload.revision)
        for damage in (None, b"", b"x" * 60, seaweedfs.ask("GET", name).content[:-1] + b"x"):
            if damage is None:
                assert seaweedfs.ask("DELETE", name).ok
            else:
                assert seaweedfs.ask("PUT", name, damage).ok
            async with opening() as later:
                assert await read(later, upload.revision, Span(1, 10 * MIB + 3)) == whole[1 : 10 * MIB + 3]
                assert await read(later, upload.revision) == whole
            async with opening() as later:
                assert await later.head(upload.revision) is not None
            assert seaweedfs.ask("GET", name).ok
        await store.delete(upload.revision)
        assert await listed(store) == []
        assert seaweedfs.ask("GET", name).status_code == 404


async def test_a_damaged_blob_of_parts_is_not_delivered_whole(seaweedfs: SeaweedFs, opening: Opening) -> None:
    """A flipped bit in any part, or in a trailer, fails a full read before its last chunk."""
    async with opening() as store:
        upload, names = await begun(store, payload(5 * MIB), b"last")
        await store.complete(upload, names)
        name = store._names.blob(upload.revision)
        stored = seaweedfs.ask("GET", name).content
        for position in (0, 5 * MIB - 1, 5 * MIB + 20, len(stored) - 66, len(stored) - 1):
            damaged = bytearray(stored)
            damaged[position] ^= 1
            assert seaweedfs.ask("PUT", name, bytes(damaged)).ok
            async with opening() as later:
                with pytest.raises(CorruptObject):
                    await read(later, upload.revision)


async def uploads_in_progress(store: S3LongTerm) -> int:
    """Uploads below the prefix of ``store``, of whatever kind."""
    return len((await store._bucket.uploads(store._names.root, ("", ""))).uploads())
