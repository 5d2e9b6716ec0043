"""Services that are wrong in one way each, as a change of the real one might make it: the machine must find them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from tierstore.errors import InvalidPart, NoSuchUpload, ObjectNotFound
from tierstore.service.service import ObjectService
from tierstore.tiering.objects import OpenObject
from tierstore.types.expiry import AfterCreation, AfterNow, ExpiryTarget
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.metadata import MANUAL, Expiration, Metadata, TimeToIdle
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.ranges import ByteRange
from tierstore.types.streams import Body


class KeepsLargeObjects(ObjectService):
    """A delete leaves an object of the long-term tier alone."""

    async def delete(self, object_id: ObjectId) -> None:
        try:
            found = await self.head(object_id)
        except ObjectNotFound:
            return
        if found.tier is Tier.HIGH_VOLUME:
            await super().delete(object_id)


class ForgetsOrigins(ObjectService):
    """A put loses a piece of metadata."""

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        return await super().put(object_id, msgspec.structs.replace(metadata, origin=None), body)


class NeverExpires(ObjectService):
    """Objects put without an upload stay for ever."""

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        return await super().put(object_id, msgspec.structs.replace(metadata, expiration=MANUAL), body)


class MovesNoDeadline(ObjectService):
    """A look at an object is no access."""

    async def head(self, object_id: ObjectId) -> FoundObject:
        row = await self._high_volume.head(object_id)
        found = await super().head(object_id)
        if row is not None and isinstance(found.info.metadata.expiration, TimeToIdle):
            await self._store._cleanup.drain(1)
            now = await self._high_volume.head(object_id)
            assert now is not None
            if now.expires != row.expires:  # put it back where it was
                raw = await self._high_volume.read(object_id)
                assert raw is not None
                await self._high_volume.compare_and_write(object_id, now.version, raw.content, row.expires)
        return found


class ExtendsFromNow(ObjectService):
    """Extensions count from now, whatever they say."""

    async def extend_expiry(
        self, object_id: ObjectId, target: ExpiryTarget, permit: Callable[[Expiration], None]
    ) -> Tier:
        from_now = AfterNow(target.seconds) if isinstance(target, AfterCreation) else target
        return await super().extend_expiry(object_id, from_now, permit)


class ServesOtherBytes(ObjectService):
    """A range of a small object has the right length, and that is all."""

    async def get(self, object_id: ObjectId, byte_range: ByteRange | None) -> OpenObject:
        opened = await super().get(object_id, byte_range)
        if opened.span is None or not isinstance(opened.payload, bytes):
            return opened
        return replace(opened, payload=bytes(len(opened.payload)))


class BelievesTags(ObjectService):
    """A completion takes what it finds, whatever its client named."""

    async def complete_upload(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        try:
            await super().complete_upload(upload, parts)
        except InvalidPart:
            found = (await self.list_parts(upload, 0, 100)).parts
            if found:
                await super().complete_upload(upload, [PartName(part.number, part.etag) for part in found])


class ForgetsOutcomes(ObjectService):
    """A repeated completion is told that there is no such upload."""

    async def complete_upload(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        if await self._long_term.head(upload.revision) is not None:
            raise NoSuchUpload("it was completed")
        await super().complete_upload(upload, parts)


class AbortsNothing(ObjectService):
    """An abort only says that it did."""

    async def abort_upload(self, upload: UploadId) -> None:
        await self.list_parts(upload, 0, 1)


class TrustsDigests(ObjectService):
    """A part is stored whatever its digest."""

    async def upload_part(self, upload: UploadId, number: int, body: Body, md5: bytes | None) -> Part:
        del md5
        return await super().upload_part(upload, number, body, None)


class EndsListsEarly(ObjectService):
    """A list of parts never goes on."""

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        return replace(await super().list_parts(upload, after, limit), truncated=False)


class LeavesOrphans(ObjectService):
    """A large put writes its blob twice, once for nobody."""

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        tier = await super().put(object_id, metadata, body)
        if tier is Tier.LONG_TERM:
            opened = await super().get(object_id, None)
            assert not isinstance(opened.payload, bytes)
            await self._long_term.put(Revision(object_id, self._ids.uuid()), aiter(opened.payload), None)
        return tier


PLANTED: Final = (
    KeepsLargeObjects, ForgetsOrigins, NeverExpires, MovesNoDeadline, ExtendsFromNow, ServesOtherBytes, BelievesTags,
    ForgetsOutcomes, AbortsNothing, TrustsDigests, EndsListsEarly, LeavesOrphans,
)  # fmt: skip
