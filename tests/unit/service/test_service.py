"""The service: mutations run to their end without their callers, in bounded number."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, POINT, SMALL, BytesBody, World, object_id, open_world, payload_of
from tierstore.errors import (
    Busy,
    ClientDisconnected,
    InvalidPart,
    NoSuchUpload,
    ObjectNotFound,
    TierstoreError,
    Unavailable,
)
from tierstore.limits import Limits
from tierstore.service.service import ObjectService
from tierstore.tasks import TaskOwner
from tierstore.testing.faults import FailBefore, Pause
from tierstore.types.ids import Scope
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.objects import Tier
from tierstore.types.streams import Body


def _service(world: World, mutations_max: int = 64) -> tuple[ObjectService, TaskOwner, list[str]]:
    reported: list[str] = []
    mutations = TaskOwner(mutations_max, lambda name, _: reported.append(name))
    service = ObjectService(
        world.store,
        world.uploads,
        world.resumable,
        world.high_volume,
        world.long_term,
        world.changelog,
        limits=world.limits,
        ids=world.ids,
        mutations=mutations,
    )
    return service, mutations, reported


async def test_operations_pass_through() -> None:
    """Put, get, head and delete answer what the tiered store answers."""
    async with open_world() as world:
        service, _, _ = _service(world)
        assert await service.put(object_id("k"), Metadata(), BytesBody(LARGE)) is Tier.LONG_TERM
        assert await payload_of(await service.get(object_id("k"), None)) == LARGE
        assert (await service.head(object_id("k"))).info.size == len(LARGE)
        await service.delete(object_id("k"))
        with pytest.raises(ObjectNotFound):
            await service.head(object_id("k"))
        await world.drain()
        assert (await service.backlog()).entries == 0


@pytest.mark.parametrize(
    ("payload", "call", "after_effect"),
    [
        (SMALL, "high_volume.put_inline", False),
        (SMALL, "high_volume.put_inline", True),
        (LARGE, "long_term.put", True),
        (LARGE, POINT, False),
        (LARGE, POINT, True),
    ],
)
async def test_a_write_that_has_arrived_ends_without_its_caller(payload: bytes, call: str, after_effect: bool) -> None:
    """Once the body is whole, a caller that goes away does not undo the write."""
    async with open_world() as world:
        service, mutations, reported = _service(world)
        pause = Pause(after_effect=after_effect)
        world.script.at(call, pause)
        caller = asyncio.create_task(service.put(object_id("k"), Metadata(), BytesBody(payload)))
        await pause.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        pause.release.set()
        assert await mutations.drain(5) == 0
        assert await world.get("k") == payload
        assert reported == []
        await world.drain()
        await world.check_settled()


class _StuckBody(Body):
    """A body whose second chunk never comes."""

    def __init__(self) -> None:
        self.size = 1000
        self.reached = asyncio.Event()
        self._chunks = iter([b"x" * 100])

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        self.reached.set()
        await asyncio.Event().wait()
        raise StopAsyncIteration


async def test_a_write_that_has_not_arrived_ends_with_its_caller() -> None:
    """A caller that goes away in the middle of its body: nothing is stored, nothing goes on."""
    async with open_world() as world:
        service, mutations, _ = _service(world)
        body = _StuckBody()
        caller = asyncio.create_task(service.put(object_id("k"), Metadata(), body))
        await body.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert await mutations.drain(5) == 0
        assert await world.get("k") is None
        await world.drain()
        await world.check_settled()


async def _begun(service: ObjectService, key: str = "k", org: str = "1") -> tuple[UploadId, list[PartName]]:
    """An upload with two parts."""
    upload = await service.initiate_upload(replace(object_id(key), scopes=(Scope("org", org),)), Metadata())
    parts = [await service.upload_part(upload, number, BytesBody(LARGE), None) for number in (1, 2)]
    return upload, [PartName(part.number, part.etag) for part in parts]


async def test_uploads_pass_through() -> None:
    """Initiate, parts, list, complete and abort answer what the uploads answer."""
    async with open_world() as world:
        service, _, _ = _service(world)
        upload, names = await _begun(service)
        page = await service.list_parts(upload, 0, 3)
        assert ([PartName(part.number, part.etag) for part in page.parts], page.truncated) == (names, False)
        await service.complete_upload(upload, names)
        assert await world.get("k") == LARGE + LARGE
        with pytest.raises(NoSuchUpload):
            await service.abort_upload(upload)
        other, names = await _begun(service)
        await service.abort_upload(other)
        with pytest.raises(NoSuchUpload):
            await service.complete_upload(other, names)


@pytest.mark.parametrize("call", ["long_term.complete", "high_volume.point"])
@pytest.mark.parametrize("after_effect", [False, True])
async def test_a_completion_ends_without_its_caller(call: str, after_effect: bool) -> None:
    """A caller that goes away, wherever the completion is, does not end it."""
    async with open_world() as world:
        service, mutations, reported = _service(world)
        upload, names = await _begun(service)
        pause = Pause(after_effect=after_effect)
        world.script.at(call, pause)
        caller = asyncio.create_task(service.complete_upload(upload, names))
        await pause.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        pause.release.set()
        assert await mutations.drain(5) == 0
        assert await world.get("k") == LARGE + LARGE
        assert reported == []


async def test_a_part_that_has_not_arrived_ends_with_its_caller() -> None:
    """A caller that goes away in the middle of a part: it is not kept, and nothing goes on."""
    async with open_world() as world:
        service, mutations, _ = _service(world)
        upload, _ = await _begun(service)
        body = _StuckBody()
        caller = asyncio.create_task(service.upload_part(upload, 3, body, None))
        await body.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert await mutations.drain(5) == 0
        assert [part.number for part in (await service.list_parts(upload, 0, 3)).parts] == [1, 2]


async def test_a_part_that_has_arrived_is_kept_without_its_caller() -> None:
    """Once all of a part is there, a caller that goes away does not undo it."""
    async with open_world() as world:
        service, mutations, _ = _service(world)
        upload, _ = await _begun(service)
        pause = Pause(after_effect=True)
        world.script.at("long_term.upload_part", pause)
        caller = asyncio.create_task(service.upload_part(upload, 3, BytesBody(SMALL), None))
        await pause.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        pause.release.set()
        assert await mutations.drain(5) == 0
        assert [part.number for part in (await service.list_parts(upload, 0, 3)).parts] == [1, 2, 3]


async def test_a_failure_that_nobody_waits_for_is_reported() -> None:
    """When the caller has gone and the write fails, the owner of the task says so."""
    async with open_world() as world:
        service, mutations, reported = _service(world)
        pause = Pause(after_effect=True)
        world.script.at("long_term.put", pause)
        world.script.at(POINT, FailBefore(Unavailable("scripted")))
        caller = asyncio.create_task(service.put(object_id("k"), Metadata(), BytesBody(LARGE)))
        await pause.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        pause.release.set()
        await mutations.drain(5)
        assert reported == ["put"]


@pytest.mark.parametrize("error", [InvalidPart("scripted"), ClientDisconnected("scripted")])
async def test_mistakes_of_callers_that_have_gone_are_nobodys_failure(error: TierstoreError) -> None:
    """What a caller is to blame for is told to the caller, if it is still there, and else to nobody."""
    async with open_world() as world:
        service, mutations, reported = _service(world)
        upload, names = await _begun(service)
        pause = Pause()
        world.script.at("high_volume.head", pause)
        world.script.at("long_term.complete", FailBefore(error))
        caller = asyncio.create_task(service.complete_upload(upload, names))
        await pause.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        pause.release.set()
        assert await mutations.drain(5) == 0
        assert world.script.unused == []
        assert reported == []
        await service.complete_upload(upload, names)


async def test_few_completions_go_on_without_their_callers() -> None:
    """A client that comes and goes cannot fill the process: the next completion is refused as busy, and only that."""
    async with open_world(replace(Limits.tiny(), left_completions_max=2)) as world:
        service, mutations, _ = _service(world)
        begun = [await _begun(service, f"k{number}") for number in range(4)]
        pauses = [Pause(after_effect=True) for _ in range(3)]
        world.script.at("long_term.complete", *pauses)
        callers = []
        for pause, (upload, names) in zip(pauses, begun, strict=False):
            callers.append(asyncio.create_task(service.complete_upload(upload, names)))
            await pause.reached.wait()
        for caller in callers[1:]:
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
        calls = len(world.script.trace)
        with pytest.raises(Busy):
            await service.complete_upload(*begun[3])
        assert len(world.script.trace) == calls
        assert len(mutations) == 3
        await service.put(object_id("plain"), Metadata(), BytesBody(LARGE))
        await service.abort_upload((await _begun(service, "another"))[0])
        for pause in pauses:
            pause.release.set()
        await callers[0]
        assert await mutations.drain(5) == 0
        await service.complete_upload(*begun[3])
        for number in range(4):
            assert await world.get(f"k{number}") == LARGE + LARGE


async def test_left_completions_of_one_tenant_are_not_anothers() -> None:
    """Whoever leaves too many completions is refused more, others are not; all together are bounded too."""
    async with open_world(replace(Limits.tiny(), left_completions_max=2, left_completions_total_max=3)) as world:
        service, mutations, _ = _service(world)

        async def leave(org: str) -> Pause:
            pause = Pause(after_effect=True)
            world.script.at("long_term.complete", pause)
            caller = asyncio.create_task(service.complete_upload(*await _begun(service, org=org)))
            await pause.reached.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            return pause

        pauses = [await leave("1"), await leave("1")]
        with pytest.raises(Busy):
            await service.complete_upload(*await _begun(service, org="1"))
        await service.complete_upload(*await _begun(service, org="2"))
        pauses.append(await leave("2"))
        third = await _begun(service, org="3")
        with pytest.raises(Busy):
            await service.complete_upload(*third)
        for pause in pauses:
            pause.release.set()
        assert await mutations.drain(5) == 0
        await service.complete_upload(*third)
        await service.complete_upload(*await _begun(service, org="1"))


async def test_mutations_are_bounded() -> None:
    """Beyond the bound a write is refused as busy before anything is done for it; reads go on."""
    async with open_world() as world:
        service, mutations, _ = _service(world, mutations_max=2)
        pauses = [Pause(), Pause()]
        world.script.at("high_volume.put_inline", *pauses)
        callers = [
            asyncio.create_task(service.put(object_id(f"k{number}"), Metadata(), BytesBody(SMALL)))
            for number in range(2)
        ]
        for pause in pauses:
            await pause.reached.wait()
        calls = len(world.script.trace)
        with pytest.raises(Busy):
            await service.delete(object_id("k"))
        with pytest.raises(Busy):
            await service.initiate_upload(object_id("k"), Metadata())
        assert len(world.script.trace) == calls
        with pytest.raises(ObjectNotFound):
            await service.head(object_id("k"))
        for pause in pauses:
            pause.release.set()
        await asyncio.gather(*callers)
        assert len(mutations) == 0
        await service.delete(object_id("k"))


@pytest.mark.parametrize("call", ["high_volume.check", "changelog.check", "long_term.check"])
async def test_check_fails_when_any_store_does(call: str) -> None:
    """Readiness needs all three stores."""
    async with open_world() as world:
        service, _, _ = _service(world)
        await service.check()
        world.script.at(call, FailBefore(Unavailable("scripted")))
        with pytest.raises(Unavailable):
            await service.check()


async def test_server_made_keys_differ() -> None:
    """Every key is new."""
    async with open_world() as world:
        new_key: Callable[[], str] = _service(world)[0].new_key
        assert len({new_key() for _ in range(1000)}) == 1000
