"""Opens the stores on what a power loss has left, and holds them to what had been acknowledged.

Every acknowledged object is there, whole and with its metadata, and what was deleted is not; what nobody had been told
of is as it was before, or as it was to be. The parts of an upload are there and make its object; an upload that was
completed stays completed, one that was aborted stays aborted. New writes are taken. Once the sweeper has come, every
blob belongs to a row and every row that points has its blob, the change log is empty, and nothing else is on the disk.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.power_loss.history import Content, History, Upload
from tests.power_loss.stores import LIMITS, Opened, Payload, object_id, opened
from tests.power_loss.workload import upload_id
from tierstore.backends.high_volume.contract import Tombstone
from tierstore.backends.long_term.contract import BlobStream
from tierstore.clock import UnixMicros
from tierstore.errors import NoSuchUpload, ObjectNotFound, StartupError, TierstoreError, Unavailable
from tierstore.types.ids import Revision
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import Part, PartName

_LISTED_MAX = 10_000
_SWEEPS_MAX = 8


class BrokenPromise(Exception):
    """Something that was acknowledged is not so any more, or the stores need a person's help."""


class NotYetMade(Exception):
    """The very first start was cut off while it gave the stores their identity: nothing was promised yet."""


async def judge(directory: Path, history: History, random: Random) -> None:
    """Raise `BrokenPromise` unless the stores in ``directory`` keep what ``history`` promises; or `NotYetMade`."""
    try:
        async with opened(directory, history.now, random.getrandbits(64)) as stores:
            await _Judgement(stores, history, random, directory).run()
    except StartupError as error:
        if not history.was_opened and "no identity" in str(error):
            raise NotYetMade(str(error)) from error
        raise BrokenPromise(f"the stores do not open: {error}") from error
    except (TierstoreError, OSError, ExceptionGroup) as error:
        raise BrokenPromise(f"{type(error).__name__}: {error}") from error


class _Judgement:
    """One look at the stores."""

    def __init__(self, stores: Opened, history: History, random: Random, directory: Path) -> None:
        self._stores = stores
        self._store, self._uploads = stores.tiering.store, stores.tiering.uploads
        self._history = history
        self._random = random
        self._directory = directory
        self._possible = {key: history.contents(key) for key in history.keys}

    async def run(self) -> None:
        """The whole judgement, in one of several orders."""
        await self._check_objects("after the start")
        await self._check_parts()
        if self._random.random() < 0.75:
            # First those that clients had tried to complete: what is completed later is in their place.
            for number, upload in sorted(self._history.uploads.items(), key=lambda item: item[1].in_progress):
                if upload.begun.acknowledged:
                    await self._finish(number, upload)
            await self._check_objects("when the uploads were finished")
        await self._write_anew()
        await self._sweep()
        await self._check_objects("after the sweeps")
        await self._check_settled()
        for number, upload in self._history.uploads.items():
            if upload.begun.acknowledged:
                await self._check_ended(number, upload)
        if self._stores.failures:
            raise BrokenPromise(f"cleanup failed: {self._stores.failures}")

    async def _check_objects(self, when: str) -> None:
        for key, possible in self._possible.items():
            found = await self._read(key)
            now = self._stores.clock.now()
            visible = [None if content is None else _visible(content, now) for content in possible]
            if found not in visible:
                expected = " or ".join(sorted({_described(content) for content in visible}))
                raise BrokenPromise(f"{key} {when}: {_described(found)}, not {expected}")

    async def _read(self, key: str) -> tuple[int, bytes] | None:
        try:
            found = await self._store.get(object_id(key), None)
        except ObjectNotFound:
            return None
        payload = found.payload if isinstance(found.payload, bytes) else await _read_all(found.payload)
        return int(dict(found.info.metadata.custom)["operation"]), payload

    async def _check_parts(self) -> None:
        """Uploads in progress have the parts that were acknowledged, those that were aborted have not come back.

        A completed one whose object was being replaced may look as if it were in progress, until the sweeper comes:
        its blob goes before its parts. Its client is told that it was completed, all the same.
        """
        for number, upload in self._history.uploads.items():
            if upload.in_progress:
                await self._listed(number, upload)
            elif any(each.acknowledged for each in upload.aborts):
                await self._check_ended(number, upload)

    async def _check_ended(self, number: int, upload: Upload) -> None:
        try:
            await self._uploads.list_parts(upload_id(upload), 0, LIMITS.parts_listed_max)
        except NoSuchUpload:
            return
        raise BrokenPromise(f"upload {number} was ended, and is in progress again")

    async def _listed(self, number: int, upload: Upload) -> Sequence[Part]:
        page = await self._uploads.list_parts(upload_id(upload), 0, LIMITS.parts_listed_max)
        listed = {part.number: part for part in page.parts}
        for part, sent in upload.parts.items():
            last = max((at for at, each in enumerate(sent) if each.acknowledged), default=None)
            possible = [None, *sent] if last is None else sent[last:]
            digests = {None if each is None else hashlib.md5(each.payload).hexdigest() for each in possible}
            found = listed.pop(part, None)
            if (None if found is None else found.etag.partition("-")[0]) not in digests:
                raise BrokenPromise(f"upload {number}, part {part}: {found}, not one of {digests}")
            if found is not None and last is not None and len(possible) == 1 and found.etag != sent[last].result:
                raise BrokenPromise(f"upload {number}, part {part} has another ETag than its client was told")
        if listed:
            raise BrokenPromise(f"upload {number} has parts that nobody sent: {listed}")
        return page.parts

    async def _finish(self, number: int, upload: Upload) -> None:
        """Do what the upload's client would do now."""
        if upload.in_progress:
            await self._finish_in_progress(number, upload)
        elif upload.completes:
            await self._complete_again(number, upload)
        else:
            # It may be gone, and forgotten; or it was condemned, and then is the sweeper's when its lease has ended.
            with suppress(NoSuchUpload, Unavailable):
                await self._uploads.abort(upload_id(upload))

    async def _finish_in_progress(self, number: int, upload: Upload) -> None:
        parts = [PartName(part.number, part.etag) for part in await self._listed(number, upload)]
        if not parts or self._random.random() < 0.2:
            await self._uploads.abort(upload_id(upload))
            return
        payload = b"".join([self._payload_of(upload, part) for part in parts])
        await self._uploads.complete(upload_id(upload), parts)
        content = self._history.uploaded(number, [], self._stores.clock.now())
        self._possible[upload.begun.action.key] = [Content(number, payload, content.expires)]

    def _payload_of(self, upload: Upload, part: PartName) -> bytes:
        for sent in upload.parts[part.number]:
            if hashlib.md5(sent.payload).hexdigest() == part.etag.partition("-")[0]:
                return sent.payload
        raise BrokenPromise(f"part {part.number} is none that was sent")

    async def _complete_again(self, number: int, upload: Upload) -> None:
        """Completing an upload once more says what became of it: it was completed, now or before."""
        attempt = upload.completes[-1]
        key = attempt.action.key
        names = [PartName(part, etag) for part, etag in attempt.action.parts]
        await self._uploads.complete(upload_id(upload), names)
        if attempt.acknowledged:
            return
        content = self._history.uploaded(number, attempt.action.parts, attempt.begun)
        later = [each for each in self._history.operations.values() if each.action.key == key]
        if later[-1] is attempt:
            self._possible[key] = [content]
        else:
            self._possible[key].append(content)

    async def _write_anew(self) -> None:
        """The stores take writes, small and large, and overwrites of what they have."""
        keys = ["new small", "new large", *self._random.sample(list(self._possible), min(1, len(self._possible)))]
        for at, key in enumerate(keys):
            size = self._random.randint(1, 100) + at % 2 * LIMITS.inline_bytes_max
            content = Content(-1 - at, self._random.randbytes(size))
            metadata = Metadata(custom=(("operation", str(content.written_by)),))
            await self._store.put(object_id(key), metadata, Payload(content.payload))
            self._possible[key] = [content]

    async def _sweep(self) -> None:
        """Let time pass until all has been settled, uploads that nobody will complete too."""
        for _ in range(_SWEEPS_MAX):
            await self._stores.sweep(LIMITS.upload_retention_seconds + LIMITS.operation_deadline_seconds)
            if not await self._stores.stores.changelog.list(None, 1):
                await self._stores.sweep(LIMITS.sweep_second_visit_seconds)
                return

    async def _check_settled(self) -> None:
        stores = self._stores.stores
        rows = await stores.high_volume.scan("", None, _LISTED_MAX)
        pointed = {
            Revision(found.object_id, found.row.content.revision)
            for found in rows
            if isinstance(found.row.content, Tombstone)
        }
        blobs = {blob.revision for blob in await stores.long_term.list("", None, _LISTED_MAX)}
        if dangling := pointed - blobs:
            raise BrokenPromise(f"tombstones without a blob: {dangling}")
        if orphans := blobs - pointed:
            raise BrokenPromise(f"blobs that nothing points to: {orphans}")
        if entries := await stores.changelog.list(None, _LISTED_MAX):
            raise BrokenPromise(f"the change log still has {entries}")
        self._check_files({str(revision.uuid) for revision in pointed})

    def _check_files(self, live: set[str]) -> None:
        """Nothing is on the disk but live blobs, the parts that they are made of, and the living process's own."""
        long_term = self._directory / "long-term"
        for leaf in (long_term / "blobs").iterdir():
            for path in leaf.iterdir():
                blob = path.with_suffix(".blob")
                if path.stem not in live or not blob.exists():
                    raise BrokenPromise(f"{path.relative_to(long_term)} is left, and belongs to nothing")
        instances = [path for path in (long_term / "tmp").iterdir() if path.is_dir()]
        if len(instances) != 1:
            raise BrokenPromise(f"directories of dead processes are left: {instances}")
        if left := [path.name for path in instances[0].iterdir() if path.name != "lock"]:
            raise BrokenPromise(f"temporary files are left: {left}")


async def _read_all(stream: BlobStream) -> bytes:
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


def _visible(content: Content, now: UnixMicros) -> tuple[int, bytes] | None:
    return None if content.expires is not None and content.expires <= now else _seen(content)


def _seen(content: Content | None) -> tuple[int, bytes] | None:
    return None if content is None else (content.written_by, content.payload)


def _described(found: tuple[int, bytes] | None) -> str:
    return "nothing" if found is None else f"{len(found[1])} bytes of operation {found[0]}"
