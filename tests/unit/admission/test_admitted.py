"""The admitted service checks by itself: no handler can forget to."""

import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from uuid import UUID

import pytest

from tests.unit.tiering.world import SMALL, BytesBody, World, open_world
from tierstore.admission.admitted import AdmittedService
from tierstore.admission.authentication import Caller
from tierstore.admission.buckets import BucketTable
from tierstore.admission.conditions import Condition
from tierstore.admission.controls import Controls
from tierstore.admission.facts import RequestFacts
from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import RateLimiter, Throughput, rate_of
from tierstore.admission.rules import Rules
from tierstore.errors import Forbidden, InvariantBroken, RateLimited, TierstoreError
from tierstore.service.service import ObjectService
from tierstore.tasks import TaskOwner
from tierstore.types.expiry import AfterNow
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import UploadId
from tierstore.types.permissions import ALL_PERMISSIONS, Permission
from tierstore.types.resumable import SessionId

SCOPES = (Scope("org", "1"),)
MINE = ObjectId("testing", SCOPES, "k")
_UPLOAD_UUID = UUID("0192f0c1-3c5e-8a4b-9d2f-6b1e8c7a5d40")

Call = Callable[[AdmittedService, ObjectId], Coroutine[Any, Any, object]]


def _upload(object_id: ObjectId) -> UploadId:
    return UploadId(Revision(object_id, _UPLOAD_UUID), "")


CALLS: Mapping[str, tuple[Permission, Call]] = {
    "put": (Permission.WRITE, lambda service, named: service.put(named, Metadata(), BytesBody(SMALL))),
    "get": (Permission.READ, lambda service, named: service.get(named, None)),
    "head": (Permission.READ, lambda service, named: service.head(named)),
    "delete": (Permission.DELETE, lambda service, named: service.delete(named)),
    "extend_expiry": (Permission.WRITE, lambda service, named: service.extend_expiry(named, AfterNow(1))),
    "initiate_upload": (Permission.WRITE, lambda service, named: service.initiate_upload(named, Metadata())),
    "upload_part": (
        Permission.WRITE,
        lambda service, named: service.upload_part(_upload(named), 1, BytesBody(SMALL), None),
    ),
    "list_parts": (Permission.WRITE, lambda service, named: service.list_parts(_upload(named), 0, 1)),
    "complete_upload": (Permission.WRITE, lambda service, named: service.complete_upload(_upload(named), [])),
    "abort_upload": (Permission.WRITE, lambda service, named: service.abort_upload(_upload(named))),
    "create_session": (Permission.WRITE, lambda service, named: service.create_session(named, Metadata(), 64)),
    "append": (
        Permission.WRITE,
        lambda service, named: service.append(SessionId(_upload(named)), 0, BytesBody(SMALL)),
    ),
    "query_session": (Permission.WRITE, lambda service, named: service.query_session(SessionId(_upload(named)))),
    "cancel_session": (Permission.WRITE, lambda service, named: service.cancel_session(SessionId(_upload(named)))),
}


def _admitted(
    world: World, permissions: frozenset[Permission], key: str | None, rules: Rules | None = None
) -> AdmittedService:
    service = ObjectService(
        world.store,
        world.uploads,
        world.resumable,
        world.high_volume,
        world.long_term,
        world.changelog,
        limits=world.limits,
        ids=world.ids,
        mutations=TaskOwner(8, lambda *_: None),
    )
    facts = RequestFacts(
        method="GET",
        raw_path=b"/",
        raw_query=b"",
        header=lambda _: None,
        usecase="testing",
        scopes=SCOPES,
        key=key,
        downstream_service=None,
        permission=None,
    )
    controls = Controls(rules or Rules(), RateLimiter(BucketTable.private(), world.clock))
    caller = Caller("kid", permissions)
    return AdmittedService(service, controls, facts, caller, lambda: caller)


def test_every_operation_has_its_case() -> None:
    """All that the admitted service offers on objects is tried here; and it offers nothing by inheritance."""
    offered = {name for name, _ in inspect.getmembers(AdmittedService, inspect.iscoroutinefunction)}
    assert offered == set(CALLS)
    assert AdmittedService.__mro__[1:] == (object,)


@pytest.mark.parametrize("name", CALLS)
async def test_an_operation_needs_its_permission(name: str) -> None:
    """Without its permission an operation is `Forbidden`, with the key's id, whatever others it has; with it, not."""
    needed, call = CALLS[name]
    async with open_world() as world:
        with pytest.raises(Forbidden) as refused:
            await call(_admitted(world, ALL_PERMISSIONS - {needed}, MINE.key), MINE)
        assert refused.value.kid == "kid"
        assert await _outcome(call(_admitted(world, frozenset({needed}), MINE.key), MINE)) is not Forbidden
        await world.drain()


@pytest.mark.parametrize("name", CALLS)
async def test_an_operation_stays_with_its_request(name: str) -> None:
    """Another usecase, other scopes or another key than the request's: `InvariantBroken`, even with all permissions."""
    _, call = CALLS[name]
    async with open_world() as world:
        for other in (
            ObjectId("testing2", SCOPES, "k"),
            ObjectId("testing", (), "k"),
            ObjectId("testing", (Scope("org", "2"),), "k"),
            ObjectId("testing", (*SCOPES, Scope("project", "1")), "k"),
            ObjectId("testing", SCOPES, "other"),
        ):
            with pytest.raises(InvariantBroken):
                await call(_admitted(world, ALL_PERMISSIONS, "k"), other)
        within = ObjectId("testing", SCOPES, "made here")
        assert await _outcome(call(_admitted(world, ALL_PERMISSIONS, None), within)) is not InvariantBroken
        await world.drain()


async def test_a_batch_is_admitted_operation_by_operation() -> None:
    """In bulk each operation needs its permission as well, and counts as a request, the first one with its batch."""
    rate = Throughput(all_requests=rate_of(0.001, 2))
    async with open_world() as world:
        admitted = _admitted(world, ALL_PERMISSIONS - {Permission.READ}, None, Rules(throughput=rate)).in_bulk()
        for _ in range(3):
            admitted.admit_operation()
        with pytest.raises(RateLimited):
            admitted.admit_operation()
        await admitted.delete(MINE)
        with pytest.raises(Forbidden):
            await admitted.head(MINE)
        stopped = Killswitches((Condition(usecase="testing"),))
        admitted = _admitted(world, ALL_PERMISSIONS, None, Rules(killswitches=stopped)).in_bulk()
        with pytest.raises(Forbidden):
            admitted.admit_operation()


async def _outcome(work: Coroutine[Any, Any, object]) -> type[TierstoreError] | None:
    try:
        await work
    except TierstoreError as error:
        return type(error)
    return None
