"""The service by its public client, whose requests block and so are made in threads.

Its own repetitions are turned off: a request that it sends twice would have two effects and one answer.
"""

import asyncio
import io
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Self

import urllib3
import zstandard
from objectstore_client import Client, TimeToLive, Usecase
from objectstore_client._resumable import UploadComplete, UploadIncomplete, UploadOffsetMismatch
from objectstore_client.client import Session
from objectstore_client.errors import RequestError
from objectstore_client.multipart import CompletePart, MultipartCompleteError

from tests.kill.answers import Answer, Found, Verdict
from tests.kill.history import Write
from tests.kill.raw_wire import USECASE, verdict_of
from tests.kill.sessions import MISMATCH

_CONNECT_SECONDS = 1.0


class PublicWire:
    """One client of the server at ``url``. ``seconds`` is its patience with any pause in an answer."""

    name = "public"

    def __init__(self, url: str, seconds: float) -> None:
        self._client = Client(
            url,
            connection_kwargs={
                "retries": urllib3.Retry(False),
                "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds),
                "maxsize": 8,
            },
        )
        self._session: Session = self._client.session(Usecase(USECASE), org=1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client._pool.close()

    async def put(self, write: Write, payload: bytes, *, slowly: bool, seconds: float | None) -> Answer:
        """Put ``payload``; ``slowly``: compressed. It has one patience for everything, and no ``seconds``."""
        expiration = None if write.ttl_seconds is None else TimeToLive(timedelta(seconds=write.ttl_seconds))

        def ask(answer: Callable[..., Answer]) -> Answer:
            self._session.put(
                payload,
                key=write.key,
                compress="zstd" if slowly else "none",
                metadata={"write": write.identity},
                expiration_policy=expiration,
            )
            return answer("200")

        return await self._asked(ask)

    async def delete(self, key: str, *, seconds: float | None) -> Answer:
        """Delete the object."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            self._session.delete(key)
            return answer("204")

        return await self._asked(ask)

    async def get(self, key: str, byte_range: tuple[int, int] | None = None) -> Answer:
        """Get the whole object; this client knows no ranges."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            got = self._session.get(key)
            if got is None:
                return answer("404", Verdict.ABSENT)
            with got.payload as stream:
                payload = stream.read()
            metadata = got.metadata
            # It hides whether it has decompressed, so the size is compared where nothing is hidden.
            found = Found(
                metadata.custom.get("write", ""),
                payload,
                created=_unix_seconds(metadata.time_created),
                expires=_unix_seconds(metadata.time_expires),
            )
            return answer("200, a get", found=found)

        return await self._asked(ask)

    async def head(self, key: str) -> Answer:
        """Get the object's metadata."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            metadata = self._session.head(key)
            if metadata is None:
                return answer("404", Verdict.ABSENT)
            found = Found(
                metadata.custom.get("write", ""),
                None,
                stored_size=None if metadata.compression else metadata.size,
                created=_unix_seconds(metadata.time_created),
                expires=_unix_seconds(metadata.time_expires),
            )
            return answer("204, a head", found=found)

        return await self._asked(ask)

    async def initiate(self, write: Write) -> Answer:
        """Begin an upload."""
        expiration = None if write.ttl_seconds is None else TimeToLive(timedelta(seconds=write.ttl_seconds))

        def ask(answer: Callable[..., Answer]) -> Answer:
            upload = self._session.initiate_multipart_upload(
                key=write.key, compression="none", metadata={"write": write.identity}, expiration_policy=expiration
            )
            return answer("200", token=upload.upload_id)

        return await self._asked(ask)

    async def part(self, key: str, upload_id: str, number: int, payload: bytes) -> Answer:
        """Store one part."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            upload = self._session.resume_multipart_upload(key, upload_id)
            part = upload.put_part(payload, part_number=number, content_length=len(payload))
            return answer("200", token=part.etag)

        return await self._asked(ask)

    async def parts(self, key: str, upload_id: str) -> Answer:
        """List the parts."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            listed = self._session.resume_multipart_upload(key, upload_id).list_parts()
            return answer("200", parts={part.part_number: (part.etag, part.size) for part in listed})

        return await self._asked(ask)

    async def complete(self, key: str, upload_id: str, names: Mapping[int, str], *, seconds: float | None) -> Answer:
        """Complete an upload."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            upload = self._session.resume_multipart_upload(key, upload_id)
            try:
                upload.complete([CompletePart(number, etag) for number, etag in names.items()])
            except MultipartCompleteError as refused:
                return answer(f"200 {refused.code}", code=refused.code)
            except ValueError as error:
                return answer(f"200, which it cannot read: {error}", Verdict.WRONG)
            return answer("200 completed")

        return await self._asked(ask)

    async def abort(self, key: str, upload_id: str) -> Answer:
        """Abort an upload."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            self._session.resume_multipart_upload(key, upload_id).abort()
            return answer("204")

        return await self._asked(ask)

    async def begin(self, write: Write, size: int) -> Answer:
        """Begin a resumable upload of ``size`` bytes."""
        expiration = None if write.ttl_seconds is None else TimeToLive(timedelta(seconds=write.ttl_seconds))

        def ask(answer: Callable[..., Answer]) -> Answer:
            upload = self._session._create_upload(
                size, key=write.key, metadata={"write": write.identity}, expiration_policy=expiration
            )
            if upload is None:
                return answer("501", Verdict.WRONG)
            return answer("200", token=upload.token, granularity=upload.granularity)

        return await self._asked(ask)

    async def append(
        self, key: str, token: str, offset: int, piece: bytes, *, slowly: bool, seconds: float | None
    ) -> Answer:
        """Send a piece of a resumable upload; ``slowly``: from a stream. It has one patience, and no ``seconds``."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            contents = (io.BytesIO(piece), len(piece)) if slowly else piece
            return _told(answer, lambda: self._session._resume_upload(key, token).put(offset, contents))

        return await self._asked(ask)

    async def progress(self, key: str, token: str) -> Answer:
        """Ask how far a resumable upload has come."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            return _told(answer, self._session._resume_upload(key, token).progress)

        return await self._asked(ask)

    async def cancel(self, key: str, token: str) -> Answer:
        """Cancel a resumable upload."""

        def ask(answer: Callable[..., Answer]) -> Answer:
            self._session._resume_upload(key, token).cancel()
            return answer("204")

        return await self._asked(ask)

    async def _asked(self, ask: Callable[[Callable[..., Answer]], Answer]) -> Answer:
        return await asyncio.to_thread(_timed, ask)


def _told(answer: Callable[..., Answer], request: Callable[[], UploadComplete | UploadIncomplete]) -> Answer:
    """What a request about a resumable upload is answered with."""
    try:
        progress = request()
    except UploadOffsetMismatch as mismatch:
        return answer(f"409 at {mismatch.offset}", code=MISMATCH, offset=mismatch.offset)
    if isinstance(progress, UploadComplete):
        return answer("201 complete")
    return answer(f"204 at {progress.offset}", offset=progress.offset)


def _timed(ask: Callable[[Callable[..., Answer]], Answer]) -> Answer:
    """Make a request, and say when it was under way."""
    start = time.monotonic()

    def answer(text: str, verdict: Verdict = Verdict.DONE, **more: object) -> Answer:
        return Answer(start, time.monotonic(), verdict, text, **more)  # type: ignore[arg-type]  # because each is named

    try:
        return ask(answer)
    except RequestError as error:
        verdict = verdict_of(error.status or 0)
        told = str(error.status) if verdict is not Verdict.WRONG else f"{error.status} {error.response}"
        return answer(told, verdict)
    except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
        return answer(type(error).__name__, Verdict.UNSENT)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        return answer(type(error).__name__, Verdict.UNKNOWN)
    except zstandard.ZstdError as error:
        return answer(f"200, with a payload that cannot be decompressed: {error}", Verdict.WRONG)


def _unix_seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
