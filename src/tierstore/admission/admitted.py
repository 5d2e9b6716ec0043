"""The service as an admitted request has it: the only one that handlers ever get.

Guarantees: every operation on objects asks for the caller's permission by itself, and reaches only the objects that the
request was admitted for (its usecase, its scopes, and its key if it names one); policies hold on every way to insert;
payloads are counted against the bandwidth limits. So a route that forgets a check fails closed. Does not: outlive its
request.
"""

from collections.abc import Sequence

from tierstore.admission.authentication import Caller
from tierstore.admission.controls import Controls
from tierstore.admission.facts import RequestFacts
from tierstore.errors import Refusal, UnreadableCredentials
from tierstore.invariants import invariant
from tierstore.service.service import ObjectService
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.permissions import Permission
from tierstore.types.ranges import ByteRange
from tierstore.types.streams import Body


class AdmittedService:
    """What `ObjectService` does, for one request. Each operation raises what that one raises, and `Forbidden`."""

    __slots__ = ("_caller", "_controls", "_facts", "_service", "passed_over")

    def __init__(
        self,
        service: ObjectService,
        controls: Controls,
        facts: RequestFacts,
        caller: Caller,
        passed_over: Refusal | UnreadableCredentials | None = None,
    ) -> None:
        self._service = service
        self._controls = controls
        self._facts = facts
        self._caller = caller
        self.passed_over = passed_over
        """Why the request would have been refused if refusals were enforced."""

    @property
    def kid(self) -> str | None:
        """The id of the key that speaks for the caller; None if nobody was asked for one."""
        return self._caller.kid

    def new_key(self) -> str:
        """A key for an object whose client gave none."""
        return self._service.new_key()

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        """Insert or replace an object: `Permission.WRITE`. Raises `PolicyViolation`."""
        self._check(Permission.WRITE, object_id)
        self._controls.check_policy(object_id.usecase, metadata.expiration)
        transfer = self._controls.transfer(object_id.usecase, object_id.scopes)
        return await self._service.put(object_id, metadata, transfer.body(body))

    async def get(self, object_id: ObjectId, byte_range: ByteRange | None) -> OpenObject:
        """Open an object: `Permission.READ`."""
        self._check(Permission.READ, object_id)
        transfer = self._controls.transfer(object_id.usecase, object_id.scopes)
        return transfer.opened(await self._service.get(object_id, byte_range))

    async def head(self, object_id: ObjectId) -> FoundObject:
        """What is known of an object: `Permission.READ`."""
        self._check(Permission.READ, object_id)
        return await self._service.head(object_id)

    async def delete(self, object_id: ObjectId) -> None:
        """Delete an object: `Permission.DELETE`."""
        self._check(Permission.DELETE, object_id)
        await self._service.delete(object_id)

    async def initiate_upload(self, object_id: ObjectId, metadata: Metadata) -> UploadId:
        """Begin a multipart upload: `Permission.WRITE`. Raises `PolicyViolation`."""
        self._check(Permission.WRITE, object_id)
        self._controls.check_policy(object_id.usecase, metadata.expiration)
        return await self._service.initiate_upload(object_id, metadata)

    async def upload_part(self, upload: UploadId, number: int, body: Body, md5: bytes | None) -> Part:
        """Store a part: `Permission.WRITE`."""
        self._check(Permission.WRITE, upload.revision.object_id)
        transfer = self._controls.transfer(self._facts.usecase, self._facts.scopes)
        return await self._service.upload_part(upload, number, transfer.body(body), md5)

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        """List parts: `Permission.WRITE`, for it is of use to those who upload alone."""
        self._check(Permission.WRITE, upload.revision.object_id)
        return await self._service.list_parts(upload, after, limit)

    async def complete_upload(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        """Make the object of the parts: `Permission.WRITE`."""
        self._check(Permission.WRITE, upload.revision.object_id)
        await self._service.complete_upload(upload, parts)

    async def abort_upload(self, upload: UploadId) -> None:
        """End an upload: `Permission.WRITE`."""
        self._check(Permission.WRITE, upload.revision.object_id)
        await self._service.abort_upload(upload)

    def _check(self, permission: Permission, object_id: ObjectId) -> None:
        """Raise `Forbidden` without the permission, `InvariantBroken` for an object that is not the request's."""
        facts = self._facts
        invariant(
            object_id.usecase == facts.usecase
            and object_id.scopes == facts.scopes
            and facts.key in (None, object_id.key),
            "a request reaches only the objects that it was admitted for",
        )
        self._caller.require(permission)
