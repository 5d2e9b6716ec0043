"""The mutating operations: what is done, and over what."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from tests.crash_matrix.scene import LIMITS, OBJECT, Process, Scene
from tierstore.changelog.entries import State
from tierstore.errors import (
    Conflict,
    NoSuchUpload,
    ObjectNotFound,
    OutcomeUnknown,
    StorageFull,
    TierstoreError,
    Unavailable,
)
from tierstore.limits import Limits
from tierstore.testing.faults import ArriveLate, Crash, Effect, FailBefore, Fault, Interpose, LoseReply
from tierstore.types.metadata import TimeToIdle, TimeToLive

_LARGE_SESSION, _SMALL_SESSION = 70, 40
"""Bytes of resumable uploads whose object stays in the long-term store, and is brought inline."""
_SESSION_LIMITS = replace(LIMITS, session_unit_bytes_min=40)
"""A large one takes two units."""

Before = Callable[[Scene], Awaitable[object]]
Act = Callable[[Scene, Process], Awaitable[object]]


def _never(_scene: Scene) -> bool:
    return False


@dataclass(frozen=True)
class Operation:
    """What is done, over what."""

    name: str
    before: Before
    act: Act
    given: Callable[[Scene], tuple[str, Fault]] | None = None
    """A call, and what happens in it besides the fault of the run: so that the steps that answer it are steps too."""
    upload: bool = False
    """Whether it is about an upload that was in progress."""
    completes: bool = False
    """Whether it completes an upload, so that it matters what the long-term store answers to a repetition."""
    retry_may_fail: Callable[[Scene], bool] = _never
    """Whether a retry may be told that others have taken the upload over."""
    limits: Limits = LIMITS

    async def prepare(self, scene: Scene) -> None:
        """Bring the stores to the state before the operation."""
        await self.before(scene)
        await scene.drain()

    async def start(self, scene: Scene, process: Process) -> None:
        """Do it, with what is given."""
        if self.given is not None:
            call, fault = self.given(scene)
            process.script.at(call, fault)
        await self.act(scene, process)


# What is there before


async def nothing(scene: Scene) -> None:
    """The object has never been."""
    await scene.read(scene.doomed)


async def a_small_object(scene: Scene) -> None:
    """A small object."""
    await scene.put(scene.doomed, scene.small())


async def a_large_object(scene: Scene) -> None:
    """A large object."""
    await scene.put(scene.doomed, scene.large())


async def an_uploaded_object(scene: Scene) -> None:
    """A large object that was made by an upload."""
    await scene.complete(scene.doomed, await scene.begin_upload(scene.doomed))


async def a_deleted_object(scene: Scene) -> None:
    """What a delete has left."""
    await a_small_object(scene)
    await scene.delete(scene.doomed)


def expired(before: Before) -> Before:
    """The same, past its deadline."""

    async def prepare(scene: Scene) -> None:
        await before(scene)
        await scene.pass_time(61)

    return prepare


async def a_small_object_for_a_minute(scene: Scene) -> None:
    """A small object that lives for a minute."""
    await scene.put(scene.doomed, scene.small(), expiration=TimeToLive(60))


async def a_large_object_for_a_minute(scene: Scene) -> None:
    """A large object that lives for a minute."""
    await scene.put(scene.doomed, scene.large(), expiration=TimeToLive(60))


async def an_uploaded_object_for_a_minute(scene: Scene) -> None:
    """An uploaded object that lives for a minute."""
    upload = await scene.begin_upload(scene.doomed, expiration=TimeToLive(60))
    await scene.complete(scene.doomed, upload)


async def a_small_object_for_some_time(scene: Scene) -> None:
    """A small object that lives for longer than a sweeper waits."""
    await scene.put(scene.doomed, scene.small(), expiration=TimeToLive(2_000))


async def a_large_object_for_some_time(scene: Scene) -> None:
    """A large object that lives as long."""
    await scene.put(scene.doomed, scene.large(), expiration=TimeToLive(2_000))


async def a_small_idle_object(scene: Scene) -> None:
    """A small object that nobody has read for some time, and whose deadline a read moves."""
    await scene.put(scene.doomed, scene.small(), expiration=TimeToIdle(1000))
    await scene.pass_time(500)


async def a_large_idle_object(scene: Scene) -> None:
    """A large object that nobody has read for some time."""
    await scene.put(scene.doomed, scene.large(), expiration=TimeToIdle(1000))
    await scene.drain()
    await scene.pass_time(500)


def and_an_upload(before: Before) -> Before:
    """The same, and an upload with all its parts is in progress."""

    async def prepare(scene: Scene) -> None:
        await before(scene)
        await scene.drain()
        scene.upload = await scene.begin_upload(scene.doomed)

    return prepare


def and_a_session(before: Before, size: int) -> Before:
    """The same, and a resumable upload of ``size`` bytes has been begun."""

    async def prepare(scene: Scene) -> None:
        await before(scene)
        await scene.drain()
        scene.upload = await scene.begin_session(scene.doomed, size)

    return prepare


def and_then(before: Before, act: Act) -> Before:
    """The same, after ``act``."""

    async def prepare(scene: Scene) -> None:
        await before(scene)
        await scene.drain()
        await act(scene, scene.doomed)

    return prepare


def with_a_crash(before: Before, act: Act, call: str, effect: Effect) -> Before:
    """The same, and then a process has died in the first ``call`` of ``act``."""

    async def prepare(scene: Scene) -> None:
        await before(scene)
        await scene.drain()
        scene.doomed.script.at(call, Crash(effect))
        await scene.end_of(act(scene, scene.doomed))
        await scene.drain()
        scene.doomed.script.restart()

    return prepare


def left_by(before: Before, act: Act, call: str, effect: Effect) -> Before:
    """What is left when a process has died in the first ``call`` of ``act``, and the sweeper's time has come."""

    async def prepare(scene: Scene) -> None:
        await with_a_crash(before, act, call, effect)(scene)
        await until_due(scene)

    return prepare


async def until_due(scene: Scene) -> None:
    """Let time pass until a sweeper may take all that is in the log."""
    await scene.pass_until(max(entry.not_before for entry in scene.watch.entries.by_key.values()))


def at_the_second_visit(before: Before) -> Before:
    """The same, after a sweeper's first visit, when it is time for the second."""

    async def prepare(scene: Scene) -> None:
        await before(scene)
        await scene.sweep()
        await until_due(scene)

    return prepare


# What is done


async def put_small(scene: Scene, process: Process) -> None:
    """Write a small object."""
    await scene.put(process, scene.small())


async def put_large(scene: Scene, process: Process) -> None:
    """Write a large object."""
    await scene.put(process, scene.large())


async def put_large_unannounced(scene: Scene, process: Process) -> None:
    """Write a large object whose length is not known beforehand."""
    await scene.put(process, scene.large(), announced=False)


async def delete(scene: Scene, process: Process) -> None:
    """Delete the object."""
    await scene.delete(process)


async def initiate(scene: Scene, process: Process) -> None:
    """Begin an upload."""
    await scene.initiate(process)


async def upload_part(scene: Scene, process: Process) -> None:
    """Replace a part of the upload."""
    await scene.upload_part(process)


async def complete(scene: Scene, process: Process) -> None:
    """Complete the upload."""
    await scene.complete(process, scene.upload)


async def complete_twice(scene: Scene, process: Process) -> None:
    """Complete the upload, and once more."""
    await complete(scene, process)
    await complete(scene, process)


async def abort(scene: Scene, process: Process) -> None:
    """Abort the upload."""
    await scene.abort(process, scene.upload)


async def begin_session(scene: Scene, process: Process) -> None:
    """Begin a resumable upload that gets no bytes."""
    await scene.begin_session(process, _LARGE_SESSION)


async def resume(scene: Scene, process: Process) -> None:
    """Send what is left of the resumable upload."""
    await scene.resume(process, scene.upload)


async def cancel_session(scene: Scene, process: Process) -> None:
    """Cancel the resumable upload."""
    await scene.cancel_session(process, scene.upload)


async def abort_what_was_completed(scene: Scene, process: Process) -> None:
    """Abort an upload that was completed: it is told so."""
    with suppress(NoSuchUpload):
        await scene.abort(process, scene.upload)


async def extend(scene: Scene, process: Process) -> None:
    """Extend the object's expiry. What is not there, was replaced, or has none is refused."""
    with suppress(ObjectNotFound, Conflict):
        await scene.extend(process, 5_000)


async def read(scene: Scene, process: Process) -> None:
    """Read the object, which moves the deadline of an idle one."""
    await scene.read(process)


async def sweep(_scene: Scene, process: Process) -> None:
    """Sweep once."""
    await process.sweeper.run_once()


# What is given besides


def _overtaken(call: str) -> Callable[[Scene], tuple[str, Fault]]:
    """Another large write comes right before ``call``."""

    def given(scene: Scene) -> tuple[str, Fault]:
        async def write(scene: Scene) -> None:
            await scene.put(scene.other, scene.large())

        return call, Interpose(lambda: scene.overtake(write))

    return given


def _fenced(call: str) -> Callable[[Scene], tuple[str, Fault]]:
    """A sweeper's fence comes right before ``call``."""
    return lambda scene: (call, Interpose(lambda: scene.high_volume.fence(OBJECT)))


def _reply_lost(call: str) -> Callable[[Scene], tuple[str, Fault]]:
    return lambda _scene: (call, LoseReply(OutcomeUnknown("scripted")))


def _arrives_late(call: str) -> Callable[[Scene], tuple[str, Fault]]:
    return lambda _scene: (call, ArriveLate(OutcomeUnknown("scripted")))


def _fails(call: str, error: TierstoreError) -> Callable[[Scene], tuple[str, Fault]]:
    return lambda _scene: (call, FailBefore(error))


def _settled(call: str) -> Callable[[Scene], tuple[str, Fault]]:
    """A sweeper gives the operation up right before ``call``."""
    return lambda scene: (call, Interpose(scene.settle_now))


def _condemned(call: str) -> Callable[[Scene], tuple[str, Fault]]:
    """A sweeper begins to settle the upload right before ``call``."""
    return lambda scene: (call, Interpose(scene.condemn_upload))


_POINT, _SWAP = "high_volume.point", "high_volume.compare_and_write"


def _writes() -> Iterator[Operation]:
    existing: dict[str, Before] = {
        "nothing": nothing,
        "small": a_small_object,
        "large": a_large_object,
        "an upload": an_uploaded_object,
        "expired small": expired(a_small_object_for_a_minute),
        "expired large": expired(a_large_object_for_a_minute),
        "deleted": a_deleted_object,
    }
    for name, before in existing.items():
        yield Operation(f"small over {name}", before, put_small)
    for name, before in existing.items():
        yield Operation(f"large over {name}", before, put_large)
    for name, before in existing.items():
        yield Operation(f"delete {name}", before, delete)
    yield Operation("large of unknown length over large", a_large_object, put_large_unannounced)
    yield Operation("small over large, overtaken", a_large_object, put_small, _overtaken(_SWAP))
    yield Operation("delete large, overtaken", a_large_object, delete, _overtaken(_SWAP))
    yield Operation("large over large, overtaken", a_large_object, put_large, _overtaken(_POINT))
    yield Operation("large over large, reply of the commit lost", a_large_object, put_large, _reply_lost(_POINT))
    yield Operation("large over large, commit late", a_large_object, put_large, _arrives_late(_POINT))
    yield Operation(
        "large over large, no room", a_large_object, put_large, _fails("long_term.put", StorageFull("scripted"))
    )
    yield Operation("large over large, given up", a_large_object, put_large, _settled(_POINT))
    yield Operation(
        "large over an upload, cleaned up on the caller's path",
        an_uploaded_object,
        put_large,
        limits=replace(LIMITS, background_tasks_max=0),
    )


def _is_settled(scene: Scene) -> bool:
    entry = scene.own_entry()
    return entry is None or entry.state is State.CONDEMNED


def _is_not_open(scene: Scene) -> bool:
    entry = scene.own_entry()
    return entry is None or entry.state is not State.OPEN


def _is_not_in_progress(scene: Scene) -> bool:
    return scene.upload.id.revision not in scene.watch.blobs.uploads


def _completion(
    name: str, before: Before, act: Act = complete, given: Callable[[Scene], tuple[str, Fault]] | None = None
) -> Operation:
    return Operation(name, and_an_upload(before), act, given, upload=True, completes=True, retry_may_fail=_is_settled)


def _uploads() -> Iterator[Operation]:
    yield Operation("initiate", a_large_object, initiate)
    yield Operation(
        "initiate, refused", a_large_object, initiate, _fails("long_term.initiate", Unavailable("scripted"))
    )
    yield Operation(
        "upload part", and_an_upload(a_large_object), upload_part, upload=True, retry_may_fail=_is_not_in_progress
    )
    yield _completion("complete over nothing", nothing)
    yield _completion("complete over small", a_small_object)
    yield _completion("complete over large", a_large_object)
    yield _completion("complete over an upload", an_uploaded_object)
    yield _completion("complete over expired large", expired(a_large_object_for_a_minute))
    yield _completion("complete twice", a_large_object, complete_twice)
    yield _completion("complete over large, overtaken", a_large_object, given=_overtaken(_POINT))
    yield _completion("complete over large, reply of the commit lost", a_large_object, given=_reply_lost(_POINT))
    yield _completion("complete over large, commit late", a_large_object, given=_arrives_late(_POINT))
    yield _completion("complete over large, assembly late", a_large_object, given=_arrives_late("long_term.complete"))
    yield replace(
        _completion("complete over large, being settled", a_large_object, given=_condemned("changelog.claim")),
        limits=replace(LIMITS, complete_poll_seconds=0.4),  # each look is a step
    )
    yield _completion("complete over large, given up", a_large_object, given=_settled(_POINT))
    yield Operation(
        "complete again what was overwritten",
        and_then(and_then(and_an_upload(a_large_object), complete), put_large),
        complete,
        upload=True,
        completes=True,
    )
    unmarked = with_a_crash(and_an_upload(a_large_object), complete, "changelog.mark_done", Effect.NEVER)
    swapped = with_a_crash(unmarked, put_small, _SWAP, Effect.DONE)
    yield Operation("complete again what is being overwritten", swapped, complete, upload=True, completes=True)
    yield Operation("small over an upload not yet marked", unmarked, put_small, upload=True)
    yield Operation("large over an upload not yet marked", unmarked, put_large, upload=True)
    yield Operation("abort", and_an_upload(a_large_object), abort, upload=True, retry_may_fail=_is_not_open)
    yield Operation(
        "abort what was completed",
        and_then(and_an_upload(a_large_object), complete),
        abort_what_was_completed,
        upload=True,
    )


def _resumed(name: str, before: Before, size: int) -> Operation:
    return Operation(
        name, and_a_session(before, size), resume, upload=True, retry_may_fail=_is_settled, limits=_SESSION_LIMITS
    )


def _sessions() -> Iterator[Operation]:
    yield Operation("begin a resumable upload", a_large_object, begin_session)
    yield _resumed("resume over nothing", nothing, _LARGE_SESSION)
    yield _resumed("resume over large", a_large_object, _LARGE_SESSION)
    yield _resumed("resume small over large", a_large_object, _SMALL_SESSION)
    full = with_a_crash(and_a_session(a_small_object, _LARGE_SESSION), resume, _POINT, Effect.NEVER)
    yield Operation("resume what is full", full, resume, upload=True, retry_may_fail=_is_settled)
    outside = with_a_crash(
        and_a_session(a_small_object, _SMALL_SESSION), resume, "high_volume.bring_inline", Effect.NEVER
    )
    yield Operation("small over what is not inline yet", outside, put_small, upload=True)
    yield Operation("sweep what is not inline yet", and_then(outside, _until_due), sweep, upload=True)
    begun = and_a_session(a_large_object, _LARGE_SESSION)
    yield Operation("cancel a resumable upload", begun, cancel_session, upload=True, retry_may_fail=_is_not_open)


async def _until_due(scene: Scene, _process: Process) -> None:
    await until_due(scene)


def _extensions() -> Iterator[Operation]:
    small, large, call = a_small_object_for_some_time, a_large_object_for_some_time, "high_volume.extend"
    yield Operation("extend small", small, extend)
    yield Operation("extend large", large, extend)
    yield Operation("extend what does not expire", a_small_object, extend)
    yield Operation("extend expired large", expired(a_large_object_for_a_minute), extend)
    yield Operation("extend large, fenced", large, extend, _fenced(call))
    yield Operation("extend small, overtaken", small, extend, _overtaken(call))
    yield Operation("extend small, reply lost", small, extend, _reply_lost(call))
    yield Operation("extend large, late", large, extend, _arrives_late(call))


def _expiry() -> Iterator[Operation]:
    yield Operation("sweep expired small", expired(a_small_object_for_a_minute), sweep)
    yield Operation("sweep expired large", expired(a_large_object_for_a_minute), sweep)
    yield Operation("sweep an expired upload", expired(an_uploaded_object_for_a_minute), sweep)
    yield Operation("read idle small", a_small_idle_object, read)
    yield Operation("read idle large", a_large_idle_object, read)
    yield Operation("read idle small, fenced", a_small_idle_object, read, _fenced("high_volume.extend"))


async def _an_unfinished_upload(scene: Scene) -> None:
    await and_an_upload(a_large_object)(scene)
    await until_due(scene)


def _sweeps() -> Iterator[Operation]:
    before_blob = left_by(a_large_object, put_large, "long_term.put", Effect.NEVER)
    unreferenced = left_by(a_large_object, put_large, _POINT, Effect.NEVER)
    overwritten = left_by(a_large_object, put_large, _POINT, Effect.DONE)
    upload_overwritten = left_by(an_uploaded_object, put_small, _SWAP, Effect.DONE)
    assembled = left_by(and_an_upload(a_large_object), complete, _POINT, Effect.NEVER)
    committed = left_by(and_an_upload(a_large_object), complete, _POINT, Effect.DONE)
    settled = at_the_second_visit
    yield Operation("sweep after a large write that wrote no blob", before_blob, sweep)
    yield Operation("sweep after a large write that did not commit", unreferenced, sweep)
    yield Operation("sweep after an overwrite by large", overwritten, sweep)
    yield Operation("sweep after an overwrite by small", left_by(a_large_object, put_small, _SWAP, Effect.DONE), sweep)
    yield Operation("sweep after an overwritten upload", upload_overwritten, sweep)
    yield Operation("sweep after a delete", left_by(a_large_object, delete, _SWAP, Effect.DONE), sweep)
    yield Operation("sweep after a complete that did not commit", assembled, sweep, upload=True)
    yield Operation("sweep after a complete", committed, sweep, upload=True)
    yield Operation("sweep an unfinished upload", _an_unfinished_upload, sweep, upload=True)
    yield Operation("second visit: a large write that wrote no blob", settled(before_blob), sweep)
    yield Operation("second visit: a large write that did not commit", settled(unreferenced), sweep)
    yield Operation("second visit: an overwrite by large", settled(overwritten), sweep)
    yield Operation("second visit: an overwritten upload", settled(upload_overwritten), sweep)
    yield Operation("second visit: a complete that did not commit", settled(assembled), sweep, upload=True)
    yield Operation("second visit: an unfinished upload", settled(_an_unfinished_upload), sweep, upload=True)
    yield Operation("sweep an outcome", _an_outcome_at_its_end, sweep)
    yield Operation("sweep a marker", _a_marker_at_its_end, sweep)


async def _an_outcome_at_its_end(scene: Scene) -> None:
    await an_uploaded_object(scene)
    await scene.drain()
    await until_due(scene)


async def _a_marker_at_its_end(scene: Scene) -> None:
    await a_deleted_object(scene)
    await scene.pass_time(LIMITS.marker_retention_seconds + 1)


OPERATIONS = {
    operation.name: operation
    for each in (_writes(), _uploads(), _sessions(), _extensions(), _expiry(), _sweeps())
    for operation in each
}
