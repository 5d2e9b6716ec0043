"""The operations of a batch: how many at once, what is in memory, and what becomes of them when nobody waits."""

import asyncio
import gc
import sys
import traceback
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, SMALL, World, object_id, open_world, payload_of
from tierstore.errors import ClientDisconnected, CorruptObject, Forbidden, InvalidRequest, ObjectNotFound, Unavailable
from tierstore.limits import Limits
from tierstore.service.batch import (
    BatchKind,
    BatchRun,
    Delete,
    Deleted,
    Get,
    Head,
    HeldBody,
    Insert,
    Operation,
    Outcome,
    Stored,
)
from tierstore.service.service import ObjectService
from tierstore.tasks import TaskOwner
from tierstore.testing.faults import FailBefore, Pause
from tierstore.tiering.objects import OpenObject
from tierstore.types.metadata import Metadata
from tierstore.types.objects import FoundObject, Tier

LIMITS = replace(Limits.tiny(), batch_held_max=3, operations_max=16, operations_queue_max=16)


class Admitting(ObjectService):
    """The service, which admits operations until it is told not to."""

    refusing = False

    def admit_operation(self) -> None:
        """Admit one, or refuse it."""
        if self.refusing:
            raise Forbidden("not any more")


class Scene:
    """A batch over a store in memory."""

    def __init__(self, world: World, limits: Limits = LIMITS) -> None:
        self.world = world
        self.failures: list[str] = []
        self.mutations = TaskOwner(64, lambda name, _: self.failures.append(name))
        self.tasks = TaskOwner(64, lambda name, _: self.failures.append(name))
        service = Admitting(
            world.store,
            world.uploads,
            world.resumable,
            world.high_volume,
            world.long_term,
            world.changelog,
            limits=limits,
            ids=world.ids,
            mutations=self.mutations,
        )
        self.gone = False
        self.objects = service.in_bulk()
        self.run = BatchRun(self.objects, limits, self.tasks, gone=lambda: self.gone)

    def begin(self, *operations: Operation) -> None:
        """Give the batch these operations."""
        for operation in operations:
            self.run.begin(operation)

    async def insert(self, index: int, key: str, payload: bytes = SMALL) -> None:
        """Give it an insert, once there is room for its body."""
        await self.run.hold()
        self.run.begin(insert(index, key, payload))

    async def rest(self) -> list[Outcome]:
        """The outcomes of all that it was given, with what was opened read."""
        self.run.end()
        return await self.taken()

    async def taken(self) -> list[Outcome]:
        """The outcomes, until there are no more."""
        outcomes = []
        async with aclosing(self.run.outcomes()) as coming:
            async for outcome in coming:
                if isinstance(outcome.result, OpenObject):
                    assert await payload_of(outcome.result)
                outcomes.append(outcome)
        return outcomes

    def asked(self, call: str) -> int:
        """How often the stores were asked for this."""
        return self.world.script.trace.count(call)


def insert(index: int, key: str, payload: bytes = SMALL) -> Insert:
    """An insert."""
    return Insert(index, object_id(key), Metadata(), HeldBody(payload))


def results(outcomes: Sequence[Outcome]) -> dict[int, type]:
    """The kinds of results, by index."""
    return {outcome.index: type(outcome.result) for outcome in outcomes}


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_each_kind_is_what_it_is_by_itself() -> None:
    """Inserts, gets, heads and deletes have the effects and the results that they have outside of batches."""
    async with open_world() as world:
        scene = Scene(world)
        async with scene.run:
            await scene.insert(0, "small")
            await scene.insert(1, "large", LARGE)
            first = await scene.rest()
        assert {outcome.index: outcome.result for outcome in first} == {
            0: Stored(Tier.HIGH_VOLUME),
            1: Stored(Tier.LONG_TERM),
        }
        assert await world.get("small") == SMALL
        assert await world.get("large") == LARGE
        scene = Scene(world)
        async with scene.run:
            scene.begin(
                Get(0, object_id("small")),
                Get(1, object_id("large")),
                Head(2, object_id("large")),
                Get(3, object_id("none")),
                Head(4, object_id("none")),
                Delete(5, object_id("none")),
            )
            second = await scene.rest()
        assert results(second) == {
            0: OpenObject, 1: OpenObject, 2: FoundObject, 3: ObjectNotFound, 4: ObjectNotFound, 5: Deleted,
        }  # fmt: skip
        assert {outcome.index: (outcome.kind, outcome.key) for outcome in second}[1] == (BatchKind.GET, "large")
        assert scene.failures == []


async def test_outcomes_come_as_they_are_known() -> None:
    """An operation that takes long keeps none of the others back; refused ones come with them."""
    async with open_world() as world:
        scene, pause = Scene(world), Pause()
        world.script.at("high_volume.put_inline", pause)
        async with scene.run, aclosing(scene.run.outcomes()) as outcomes:
            await scene.insert(0, "slow")
            await pause.reached.wait()
            await scene.insert(1, "quick")
            assert (await anext(outcomes)).index == 1
            scene.run.answer(Outcome(2, None, None, InvalidRequest("none")))
            assert (await anext(outcomes)).index == 2
            scene.begin(Head(3, object_id("quick")))
            assert (await anext(outcomes)).index == 3
            pause.release.set()
            assert (await anext(outcomes)).index == 0
            scene.run.end()
            with pytest.raises(StopAsyncIteration):
                await anext(outcomes)


async def test_only_some_bodies_are_held() -> None:
    """Who reads the request waits while as many bodies are in memory as may, and goes on when one was stored."""
    async with open_world() as world:
        scene, pause = Scene(world), Pause()
        world.script.at("high_volume.put_inline", *[pause] * 3)
        async with scene.run:
            for index in range(3):
                await scene.insert(index, f"{index}")
            fourth = asyncio.create_task(scene.insert(3, "3"))
            await _turns()
            assert not fourth.done()
            assert scene.asked("high_volume.put_inline") == 3
            pause.release.set()
            await fourth
            assert results(await scene.rest()) == dict.fromkeys(range(4), Stored)


async def test_a_body_that_is_let_go_makes_room() -> None:
    """A body that turns out to be none, and was not begun, counts no more."""
    async with open_world() as world:
        scene = Scene(world)
        async with scene.run:
            for _ in range(3):
                await scene.run.hold()
            waiting = asyncio.create_task(scene.run.hold())
            await _turns()
            assert not waiting.done()
            scene.run.let_go()
            await waiting
            assert await scene.rest() == []


async def test_gets_wait_for_the_writer_and_inserts_do_not() -> None:
    """No more objects are opened than may be held while nobody takes them; all inserts end meanwhile."""
    async with open_world() as world:
        await world.put("large", LARGE)
        scene = Scene(world)
        async with scene.run:
            scene.begin(*[Get(index, object_id("large")) for index in range(10)])
            for index in range(10, 30):
                await scene.insert(index, f"{index}")
            await _turns()
            assert scene.asked("long_term.get") == 3
            assert scene.asked("high_volume.put_inline") == 20
            outcomes = await scene.rest()
        assert results(outcomes) == dict.fromkeys(range(10), OpenObject) | dict.fromkeys(range(10, 30), Stored)
        assert scene.asked("long_term.aclose") >= scene.asked("long_term.get") == 10


@pytest.mark.parametrize(("operations_max", "at_once"), [(16, 3), (4, 2), (2, 1), (1, 1)])
async def test_no_more_run_at_once_than_the_share_of_bulk(operations_max: int, at_once: int) -> None:
    """A batch that is alone asks for no more turns than there are: none of its operations is refused as busy."""
    async with open_world() as world:
        limits = replace(LIMITS, operations_max=operations_max, operations_queue_max=0)
        scene, pause = Scene(world, limits), Pause()
        world.script.at("high_volume.head", *[pause] * 20)
        async with scene.run:
            scene.begin(*[Head(index, object_id("none")) for index in range(20)])
            await _turns()
            assert scene.asked("high_volume.head") == at_once
            pause.release.set()
            assert results(await scene.rest()) == dict.fromkeys(range(20), ObjectNotFound)


async def test_each_operation_is_admitted_when_it_begins() -> None:
    """Those that would begin after that was withdrawn are refused, each by itself."""
    async with open_world() as world:
        scene, pause = Scene(world), Pause()
        world.script.at("high_volume.put_inline", *[pause] * 3)
        async with scene.run:
            for index in range(3):
                await scene.insert(index, f"{index}")
            scene.begin(Delete(3, object_id("0")))
            await pause.reached.wait()
            scene.objects.refusing = True
            pause.release.set()
            assert results(await scene.rest()) == {0: Stored, 1: Stored, 2: Stored, 3: Forbidden}


async def test_a_failure_is_one_operations() -> None:
    """Whatever a store raises is the outcome of that operation; a get that failed keeps none from being opened."""
    async with open_world() as world:
        await world.put("small", SMALL)
        world.script.at("high_volume.read", *[FailBefore(Unavailable("away"))] * 4, FailBefore(KeyError("odd")))
        scene = Scene(world)
        async with scene.run:
            scene.begin(*[Get(index, object_id("small")) for index in range(12)])
            scene.run.answer(Outcome(12, BatchKind.GET, "k", InvalidRequest("no")))
            outcomes = await scene.rest()
        kinds = [type(outcome.result) for outcome in outcomes]
        assert (kinds.count(Unavailable), kinds.count(KeyError), kinds.count(OpenObject)) == (4, 1, 7)


@pytest.mark.parametrize("failing", ["admission", "high_volume.put_inline", "changelog.record", "long_term.put"])
async def test_a_failure_that_waits_for_the_writer_holds_no_body(failing: str) -> None:
    """Inserts that were refused, or failed in a store, are not in memory any more, however many nobody was told of."""
    async with open_world() as world:
        scene = Scene(world)
        scene.objects.refusing = failing == "admission"
        payload = bytes(40 if failing == "high_volume.put_inline" else 400)
        idle = sys.getrefcount(payload)
        async with scene.run:
            for index in range(20):
                world.script.at(failing, FailBefore(Unavailable("away")))
                await scene.insert(index, f"{index}", payload)
            await _turns()
            gc.collect()
            assert sys.getrefcount(payload) == idle
            expected = Forbidden if failing == "admission" else Unavailable
            assert results(await scene.rest()) == dict.fromkeys(range(20), expected)


@pytest.mark.parametrize("error", [KeyError("odd"), CorruptObject("bad")])
async def test_a_fault_keeps_what_the_log_says_of_it(error: Exception) -> None:
    """Where it comes from; other failures, and what led to them, keep their words alone."""
    async with open_world() as world:
        scene, away = Scene(world), Unavailable("away")
        away.__cause__ = OSError("gone")
        world.script.at("high_volume.read", FailBefore(error), FailBefore(away))
        async with scene.run:
            scene.begin(*[Get(index, object_id("k")) for index in range(2)])
            outcomes = await scene.rest()
        fault, failure = [outcome.result for outcome in outcomes]
        assert isinstance(fault, Exception)
        assert isinstance(failure, Unavailable)
        assert any("read" in frame.name for frame in traceback.extract_tb(fault.__traceback__))
        assert (str(failure), failure.__traceback__, repr(failure.__cause__)) == ("away", None, "OSError('gone')")


async def test_an_end_with_an_error() -> None:
    """It is raised for the writer when all that was begun has been told."""
    async with open_world() as world:
        scene, pause = Scene(world), Pause()
        world.script.at("high_volume.put_inline", pause)
        async with scene.run, aclosing(scene.run.outcomes()) as outcomes:
            await scene.insert(0, "k")
            scene.run.end(InvalidRequest("malformed"))
            await _turns()
            pause.release.set()
            assert (await anext(outcomes)).result == Stored(Tier.HIGH_VOLUME)
            with pytest.raises(InvalidRequest):
                await anext(outcomes)


async def test_a_batch_that_is_given_up() -> None:
    """The writer hears it at once; mutations that have begun go on, nothing else begins, what is open is closed."""
    async with open_world() as world:
        await world.put("large", LARGE)
        scene, pause = Scene(world), Pause()
        world.script.at("high_volume.put_inline", pause, pause)
        async with scene.run, aclosing(scene.run.outcomes()) as outcomes:
            for index in range(2):
                await scene.insert(index, f"{index}")
            scene.begin(Get(2, object_id("large")), Delete(3, object_id("large")))
            await pause.reached.wait()
            await _turns()
            scene.run.give_up(ClientDisconnected("gone"))
            scene.begin(Delete(4, object_id("large")))
            with pytest.raises(ClientDisconnected):
                await anext(outcomes)
        assert len(scene.tasks) == 0
        assert len(scene.mutations) == 2
        assert scene.asked("long_term.aclose") >= scene.asked("long_term.get") == 1
        left = {outcome.index: type(outcome.result) for outcome in scene.run.left}
        assert (left[0], left[1]) == (ClientDisconnected, ClientDisconnected)
        assert 4 not in left
        pause.release.set()
        await scene.mutations.drain(5)
        for key in ("0", "1"):
            assert await world.get(key) == SMALL
        assert scene.failures == []


async def test_all_that_was_opened_is_closed() -> None:
    """Also if the first of it cannot be."""
    async with open_world() as world:
        await world.put("large", LARGE)
        scene = Scene(world)
        world.script.at("long_term.aclose", FailBefore(Unavailable("away")))
        scene.begin(*[Get(index, object_id("large")) for index in range(3)])
        await _turns()
        assert scene.asked("long_term.get") == 3
        with pytest.raises(Unavailable):
            await scene.run.aclose()
        assert scene.asked("long_term.aclose") == 3


async def test_nothing_begins_for_a_caller_that_has_gone() -> None:
    """Operations that wait for their turn are dropped when it comes, once the connection is known to have ended."""
    async with open_world() as world:
        scene, pause = Scene(world), Pause()
        world.script.at("high_volume.put_inline", *[pause] * 3)
        async with scene.run:
            for index in range(3):
                await scene.insert(index, f"{index}")
            scene.begin(Delete(3, object_id("0")))
            await pause.reached.wait()
            scene.gone = True
            pause.release.set()
            with pytest.raises(ClientDisconnected):
                await scene.taken()
        assert scene.asked("high_volume.delete_inline") == 0


async def test_tasks_that_are_ended_from_outside() -> None:
    """When the process stops, what was cut short is told to be repeated, and the batch comes to its end."""
    async with open_world() as world:
        scene, pause = Scene(world), Pause()
        world.script.at("high_volume.head", pause)
        async with scene.run:
            scene.begin(Head(0, object_id("k")))
            await pause.reached.wait()
            await scene.tasks.drain(0)
            assert results(await scene.rest()) == {0: Unavailable}
