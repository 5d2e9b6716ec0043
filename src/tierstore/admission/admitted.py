"""The service as an admitted request has it: the only one that handlers ever get.

Guarantees: every operation on objects asks for the caller's permission by itself, and reaches only the objects that the
request was admitted for (its usecase, its scopes, and its key if it names one); policies hold on every way to insert;
payloads are counted against the bandwidth limits. So a route that forgets a check fails closed. Does not: outlive its
request.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Self

from tierstore.admission.authentication import Caller
from tierstore.admission.controls import Controls
from tierstore.admission.facts import RequestFacts
from tierstore.errors import Refusal, UnreadableCredentials
from tierstore.invariants import invariant
from tierstore.service.service import ObjectService
from tierstore.tiering.objects import OpenObject
from tierstore.types.expiry import ExpiryTarget
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.permissions import Permission
from tierstore.types.ranges import ByteRange
from tierstore.types.resumable import Advance, SessionId
from tierstore.types.streams import Body


class AdmittedService:
    """What `ObjectService` does, for one request. Each operation raises what that one raises, and `Forbidden`.

    ``renewed`` is who the caller is by the settings and at the time of the call; it raises what is against them then.
    """

    __slots__ = ("_caller", "_controls", "_facts", "_paid", "_renewed", "_service", "passed_over")

    def __init__(
        self,
        service: ObjectService,
        controls: Controls,
        facts: RequestFacts,
        caller: Caller,
        renewed: Callable[[], Caller],
        passed_over: Refusal | UnreadableCredentials | None = None,
    ) -> None:
        self._service = service
        self._controls = controls
        self._facts = facts
        self._caller = caller
        self._renewed = renewed
        self._paid = True  # the request has been counted, and so its first operation
        self.passed_over = passed_over
        """Why the request would have been refused if refusals were enforced."""

    @property
    def kid(self) -> str | None:
        """The id of the key that speaks for the caller; None if nobody was asked for one."""
        return self._caller.kid

    def new_key(self) -> str:
        """A key for an object whose client gave none."""
        return self._service.new_key()

    def in_bulk(self) -> Self:
        """The same for a batch: its operations have their turns of the share of operations in bulk.

        Each asks `admit_operation` first.
        """
        bulk = copy(self)
        bulk._service = self._service.in_bulk()  # noqa: SLF001  # because it is another one of the same class
        return bulk

    @property
    def bulk_operations_max(self) -> int:
        """How many operations in bulk may be under way at once, of all requests together."""
        return self._service.bulk_operations_max

    def admit_operation(self) -> None:
        """Admit one operation of a batch, as if it were a request that came now.

        Raises `Forbidden`, `RateLimited`, and what is against the credentials by now: a batch may take so long that
        they expire. The first one has been counted with its request, so that a batch counts as many requests as it has
        operations.
        """
        facts = self._facts
        self._controls.check_killswitches(facts.usecase, facts.scopes, facts.downstream_service)
        self._caller = self._renewed()
        if self._paid:
            self._paid = False
        else:
            self._controls.take_request(facts.usecase, facts.scopes, facts.downstream_service)

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

    async def extend_expiry(self, object_id: ObjectId, target: ExpiryTarget) -> Tier:
        """Let an object live longer: `Permission.WRITE`. Raises `InvalidRequest` by the usecase's policy.

        The policy holds for what the extension leads to, as if the object were inserted so: a ttl by its whole lifetime
        since the creation, a tti from now to the deadline.
        """
        self._check(Permission.WRITE, object_id)
        permit = partial(self._controls.check_policy, object_id.usecase)
        return await self._service.extend_expiry(object_id, target, permit)

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

    async def create_session(self, object_id: ObjectId, metadata: Metadata, length: int) -> SessionId:
        """Begin a resumable upload: `Permission.WRITE`. Raises `InvalidRequest` by the usecase's policy."""
        self._check(Permission.WRITE, object_id)
        self._controls.check_policy(object_id.usecase, metadata.expiration)
        return await self._service.create_session(object_id, metadata, length)

    def granularity(self, length: int) -> int:
        """The fewest bytes of a piece of a resumable upload of ``length`` bytes, but for the last; 0 if any will do."""
        return self._service.granularity(length)

    async def append(self, session: SessionId, offset: int, body: Body) -> Advance:
        """Store the next bytes of a resumable upload: `Permission.WRITE`."""
        self._check(Permission.WRITE, session.upload.revision.object_id)
        transfer = self._controls.transfer(self._facts.usecase, self._facts.scopes)
        return await self._service.append(session, offset, transfer.body(body))

    async def query_session(self, session: SessionId) -> Advance:
        """Ask how far a resumable upload has come: `Permission.WRITE`."""
        self._check(Permission.WRITE, session.upload.revision.object_id)
        return await self._service.query_session(session)

    async def cancel_session(self, session: SessionId) -> None:
        """End a resumable upload: `Permission.WRITE`, for it deletes nothing that was ever an object."""
        self._check(Permission.WRITE, session.upload.revision.object_id)
        await self._service.cancel_session(session)

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
