"""What a trace has: each call at its effect, with its actor, whatever becomes of the reply."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from tests.unit.tiering.world import LARGE, SMALL, BytesBody, World, object_id
from tierstore.backends.high_volume.contract import Inline, InlineHead, Row, RowHead
from tierstore.build import Stores, build_tiering
from tierstore.errors import IncompleteBody, NoSuchUpload, OutcomeUnknown, Unavailable
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.testing.faults import (
    ArriveLate,
    FailBefore,
    FaultScript,
    FaultyChangeLog,
    FaultyHighVolume,
    FaultyLongTerm,
    LoseReply,
)
from tierstore.testing.traces import (
    Actor,
    Answer,
    Begun,
    Called,
    Completing,
    Delivered,
    Ended,
    Kind,
    Recorder,
    Taken,
    acting,
    bound,
    look,
    recorded,
)
from tierstore.tiering.sweeper import Sweeper
from tierstore.types.ids import Revision
from tierstore.types.metadata import Metadata, TimeToLive


class Recorded:
    """A tiering layer over stores in memory, with faults, all of it recorded."""

    def __init__(self, *, keeping: bool = False) -> None:
        self.world = World(Limits.tiny())
        raw = Stores(self.world.raw_high_volume, self.world.raw_long_term, self.world.raw_changelog)
        self.recorder = Recorder(keeping=keeping)
        self.inner = recorded(raw, self.recorder, self.world.clock)
        self.script = FaultScript()
        faulty = Stores(
            FaultyHighVolume(self.inner.high_volume, self.script),
            FaultyLongTerm(self.inner.long_term, self.script),
            FaultyChangeLog(self.inner.changelog, self.script),
        )
        self.cleanup = TaskOwner(8, lambda _name, _error: None)
        self.tiering = build_tiering(
            acting(faulty, self.recorder),
            limits=self.world.limits,
            clock=self.world.clock,
            ids=self.world.ids,
            cleanup=self.cleanup,
        )

    @property
    def sweeper(self) -> Sweeper:
        return self.tiering.sweeper

    async def put(self, payload: bytes, metadata: Metadata | None = None) -> Actor:
        """Store ``payload``, and let what it leaves to be done end."""
        with self.recorder.operation(Kind.PUT, "a", object_id("k")) as actor:
            await self.tiering.store.put(object_id("k"), metadata or Metadata(), BytesBody(payload))
        await self.cleanup.drain(5)
        return actor

    def calls(self, *names: str) -> list[Called]:
        """The recorded calls, or those of ``names``."""
        return [one for one in self.recorder.records if isinstance(one, Called) and (not names or one.name in names)]


async def test_an_operation_and_what_it_leaves_to_be_done_are_one_actor() -> None:
    """Calls off the path count as those of the operation that left them, between and after its beginning and end."""
    run = Recorded()
    first = await run.put(LARGE)
    second = await run.put(LARGE)
    assert [call.name for call in run.calls() if call.actor == second] == [
        "high_volume.head",
        "changelog.record",
        "long_term.put",
        "high_volume.point",
        "long_term.delete",
        "changelog.forget",
    ]
    assert {call.actor for call in run.calls()} == {first, second}
    begun, ended = (
        [place for place, one in enumerate(run.recorder.records) if isinstance(one, kind) and one.actor == second]
        for kind in (Begun, Ended)
    )
    assert begun < [run.recorder.records.index(run.calls("long_term.delete")[0])] > ended


async def test_what_matters_is_recorded_and_no_payload() -> None:
    """A call has its arguments in the contract's order, its result, and the store's time; payloads are left out."""
    run = Recorded()
    await run.put(SMALL)
    with run.recorder.operation(Kind.READ, "a", object_id("k")):
        await run.tiering.store.get(object_id("k"), None)
    (written,), (read,) = run.calls("high_volume.put_inline"), run.calls("high_volume.read")
    assert written.arguments == (object_id("k"),)
    assert written.at == run.world.clock.now()
    assert isinstance(read.result, Row)
    assert isinstance(read.result.content, InlineHead)
    await run.put(LARGE)
    (pointed,) = run.calls("high_volume.point")
    _, base, content, not_after = pointed.arguments
    assert isinstance(base, RowHead)
    assert base.version == read.result.version
    assert content.revision == run.calls("long_term.put")[0].arguments[0].uuid
    assert (pointed.result, not_after > pointed.at) == (True, True)


async def test_calls_can_be_kept_in_full() -> None:
    """With every argument by its name, what was taken of a source and delivered of a stream; passing calls, too."""
    run = Recorded(keeping=True)
    await run.put(SMALL)
    await run.put(LARGE)
    (written,), (put,) = run.calls("high_volume.put_inline"), run.calls("long_term.put")
    assert written.kept is not None
    assert written.kept.arguments.keys() == {"object_id", "content", "expires"}
    assert written.kept.arguments["content"].payload == SMALL
    assert put.kept is not None
    source = put.kept.arguments["source"]
    assert isinstance(source, Taken)
    assert (bytes(source.taken), source.ended, source.error) == (LARGE, True, None)
    revision = put.kept.arguments["revision"]
    assert put.kept.answer.revision == revision
    stream = await run.inner.long_term.get(revision)
    assert isinstance(stream, Delivered)
    first = await anext(aiter(stream))
    assert (bytes(stream.delivered), stream.ended, stream.size) == (first, False, len(LARGE))
    async for _ in stream:
        continue
    await stream.aclose()
    assert (bytes(stream.delivered), stream.ended) == (LARGE, True)
    await run.inner.changelog.identity()
    assert run.calls()[-1].name == "changelog.identity"


async def test_a_source_that_fails_is_kept_with_its_error() -> None:
    """What was taken of it before, and what it failed with; the failing call is kept, too."""
    run = Recorded(keeping=True)

    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise IncompleteBody("scripted")

    revision = Revision(object_id("k"), UUID(int=1))
    with pytest.raises(IncompleteBody):
        await run.inner.long_term.put(revision, broken(), None)
    (put,) = run.calls("long_term.put")
    assert put.kept is not None
    source = put.kept.arguments["source"]
    assert (bytes(source.taken), source.ended, type(source.error)) == (b"some", False, IncompleteBody)
    assert put.kept.answer is None


async def test_nothing_is_kept_unasked() -> None:
    """Otherwise a trace has neither payloads nor calls in passing, and streams are handed on as they are."""
    run = Recorded()
    await run.put(LARGE)
    await run.inner.high_volume.identity()
    assert {call.kept for call in run.calls()} == {None}
    assert not run.calls("high_volume.identity")
    stream = await run.inner.long_term.get(run.calls("long_term.put")[0].arguments[0])
    assert stream is not None
    assert not isinstance(stream, Delivered)
    await stream.aclose()


async def test_a_call_without_an_effect_is_not_recorded_and_one_without_a_reply_is() -> None:
    """A trace has what happened: not what failed before, but what the caller was not told."""
    run = Recorded()
    run.script.at("high_volume.put_inline", FailBefore(Unavailable("scripted")), LoseReply(OutcomeUnknown("scripted")))
    for recorded_calls in (0, 1):
        with pytest.raises(Unavailable):
            await run.put(SMALL)
        assert len(run.calls("high_volume.put_inline")) == recorded_calls
    ends = [one.answer for one in run.recorder.records if isinstance(one, Ended)]
    assert ends == [Answer.UNKNOWN, Answer.UNKNOWN]


async def test_a_late_effect_counts_as_its_callers() -> None:
    """An effect that is ``bound`` where it was called has the caller's actor, in whatever task it comes."""
    run = Recorded()

    class Late(FaultScript):
        async def around(self, call, effect):  # type: ignore[no-untyped-def]  # because it is as in `FaultScript`
            return await super().around(call, bound(effect))

    script = Late()
    high_volume = FaultyHighVolume(run.inner.high_volume, script)
    script.at("high_volume.put_inline", ArriveLate(OutcomeUnknown("scripted")))
    with pytest.raises(OutcomeUnknown), run.recorder.operation(Kind.PUT, "a", object_id("k")):
        await high_volume.put_inline(object_id("k"), Inline(b"", SMALL), None)
    with run.recorder.operation(Kind.LOOK, "the judge"):
        assert await script.arrive() == 1
        assert (await high_volume.head(object_id("k"))) is not None
    kinds = [call.actor.kind for call in run.calls() if call.actor is not None]
    assert kinds == [Kind.PUT, Kind.LOOK]


async def test_the_end_tells_what_the_caller_was_told() -> None:
    """No such upload is a refusal; all other errors, and a cancellation, tell nothing."""
    run = Recorded()
    with run.recorder.operation(Kind.INITIATE, "a", object_id("k")):
        upload = await run.tiering.uploads.initiate(object_id("k"), Metadata())
    with run.recorder.operation(Kind.ABORT, "a", object_id("k"), upload.revision):
        await run.tiering.uploads.abort(upload)
    with (
        pytest.raises(NoSuchUpload),
        run.recorder.operation(Kind.COMPLETE, "a", object_id("k"), upload.revision) as attempt,
    ):
        await run.tiering.uploads.complete(upload, [])
    await run.cleanup.drain(5)
    with pytest.raises(asyncio.CancelledError), run.recorder.operation(Kind.DELETE, "a", object_id("k")):
        raise asyncio.CancelledError
    ends = [(one.actor.kind, one.answer) for one in run.recorder.records if isinstance(one, Ended)]
    assert ends == [
        (Kind.INITIATE, Answer.OK),
        (Kind.ABORT, Answer.OK),
        (Kind.COMPLETE, Answer.REFUSED),
        (Kind.DELETE, Answer.UNKNOWN),
    ]
    assert attempt.upload == upload.revision


async def test_each_settling_has_an_actor_of_its_own() -> None:
    """A run of the sweeper is one operation; each entry, and each expired tombstone, that it settles is another."""
    run = Recorded()
    await run.put(LARGE, Metadata(expiration=TimeToLive(1)))
    run.script.at("long_term.put", *[FailBefore(Unavailable("scripted"))] * 2)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await run.put(LARGE)
    run.world.clock.advance(2)
    with run.recorder.operation(Kind.SWEEP, "b") as sweep:
        await run.sweeper.run_once()
    actors = {call.actor for call in run.calls("changelog.condemn") if call.actor is not None}
    assert [actor.kind for actor in actors] == [Kind.SETTLE] * len(actors)
    assert len(actors) == len(run.calls("changelog.condemn")) >= 2
    for call in run.calls("high_volume.fence", "changelog.resume_later"):
        assert call.actor in actors
    (swapped,) = run.calls("high_volume.compare_and_write")
    assert swapped.actor is not None
    assert (swapped.actor.kind, swapped.actor.instance) == (Kind.EXPIRE, "b")
    assert {call.actor for call in run.calls("changelog.due", "high_volume.expired")} == {sweep}


async def test_an_assembly_is_recorded_before_it_is_called() -> None:
    """What is announced may have its effect from then on; the call itself is recorded when it has returned."""
    run = Recorded()
    with run.recorder.operation(Kind.INITIATE, "a", object_id("k")):
        upload = await run.tiering.uploads.initiate(object_id("k"), Metadata())
    await run.inner.long_term.abort(upload.revision)
    with pytest.raises(NoSuchUpload), run.recorder.operation(Kind.COMPLETE, "a", object_id("k"), upload.revision):
        await run.inner.long_term.complete(upload, [])
    announced, failed, _ = run.recorder.records[-3:]
    assert isinstance(announced, Completing)
    assert announced.revision == upload.revision
    assert isinstance(failed, Called)
    assert isinstance(failed.error, NoSuchUpload)


async def test_a_look_shows_everything() -> None:
    """Rows, blobs and entries, as the raw stores have them."""
    run = Recorded()
    await run.put(LARGE)
    run.script.at("high_volume.point", LoseReply(OutcomeUnknown("scripted")))
    run.script.at("high_volume.head", None, FailBefore(Unavailable("scripted")))
    with pytest.raises(OutcomeUnknown):
        await run.put(LARGE)
    await look(run.inner, run.recorder)
    rows, blobs, entries = run.calls()[-3:]
    assert [row.object_id for row in rows.result] == [object_id("k")]
    assert (len(blobs.result), len(entries.result)) == (2, 2)
    assert {call.actor.kind for call in (rows, blobs, entries) if call.actor is not None} == {Kind.LOOK}
