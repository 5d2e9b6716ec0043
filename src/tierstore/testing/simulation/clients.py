"""The clients of a simulated run: they call, wait so long, try again at another server, and note what they saw."""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, assert_never

from tierstore.errors import ClientMistake, Conflict, NoSuchUpload, ObjectNotFound
from tierstore.testing.simulation.answers import Answers, payload_in
from tierstore.testing.simulation.batches import BatchClients
from tierstore.testing.simulation.calls import Begun, Caller, NoAnswer, Payload, Surroundings, object_id, payload_of
from tierstore.testing.simulation.history import Act, Seen
from tierstore.testing.simulation.judge import Violation
from tierstore.testing.simulation.plan import Action, Kind
from tierstore.testing.simulation.servers import Server, dice
from tierstore.testing.simulation.sessions import SessionClients
from tierstore.testing.traces import Kind as TraceKind
from tierstore.types.metadata import Expiration, ObjectInfo, TimeToIdle, TimeToLive
from tierstore.types.multipart import PartName, UploadId

_UNNAMED_PART = 8
"""The number of a part that no list names."""


def _permit(_: Expiration) -> None:
    """No policy has anything against it."""


class Clients(Caller):
    """Carries out actions, each as a client of its own."""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._answers = Answers(around)
        self.sessions = SessionClients(around)
        self.batches = BatchClients(around, self._answers)

    async def act(self, action: Action) -> None:
        """Carry out ``action``."""
        random = Random(action.seed)
        dice.set(random)
        match action.kind:
            case Kind.PUT_SMALL | Kind.PUT_LARGE | Kind.DELETE:
                await self._write(action, random)
            case Kind.GET:
                await self.read(action.key, random)
            case Kind.HEAD:
                await self._head(action, random)
            case Kind.EXTEND:
                await self._extend(action, random)
            case Kind.UPLOAD:
                await self._upload(action, random)
            case Kind.COMPLETE | Kind.ABORT | Kind.LATE_PART:
                if (begun := self._around.uploads.get(action.upload)) is not None:
                    await self._meddle(action.kind, begun, random)
            case Kind.SESSION | Kind.RESUME | Kind.CANCEL:
                await self.sessions.act(action, random)
            case Kind.BATCH:
                await self.batches.act(action, random)
            case _:
                assert_never(action.kind)

    async def _meddle(self, kind: Kind, begun: Begun, random: Random) -> None:
        """Do something to an upload that another client has begun."""
        if kind is Kind.COMPLETE:
            await self._complete(begun, random)
        elif kind is Kind.ABORT:
            await self._abort(begun, random)
        else:
            await self._late_part(begun, random)

    async def _write(self, action: Action, random: Random) -> None:
        for attempt in range(self._around.plan.attempts):
            if await self.write_once(action.kind, action.key, f"{action.number}.{attempt}", random):
                return
            await self._pause(random)

    async def write_once(
        self, kind: Kind, key: str, value: str, random: Random, expiration: Expiration | None = None
    ) -> bool:
        """Put ``value`` or delete; return whether it was acknowledged."""
        seen, work = self._prepared(kind, key, value, random, expiration)
        try:
            await self._ask(random, TraceKind.DELETE if kind is Kind.DELETE else TraceKind.PUT, key, work)
        except NoAnswer:
            return False
        self._around.history.end(seen)
        self._around.counts["deletes acknowledged" if kind is Kind.DELETE else "puts acknowledged"] += 1
        return True

    def _prepared(
        self, kind: Kind, key: str, value: str, random: Random, expiration: Expiration | None
    ) -> tuple[Seen, Callable[[Server], Coroutine[Any, Any, object]]]:
        """The operation, which begins now, and what it asks of a server."""
        history = self._around.history
        if kind is Kind.DELETE:
            return history.begin(key, Act.DELETE), lambda server: server.service.delete(object_id(key))
        size = random.randint(8, 64) if kind is Kind.PUT_SMALL else random.randint(65, 300)
        metadata = self._value(value, size, expiration or self._expiration(random))
        self._mind_deadline(value, metadata.expiration)
        payload = payload_of(value, size)
        return (
            history.begin(key, Act.WRITE, value),
            lambda server: server.service.put(object_id(key), metadata, Payload(payload)),
        )

    async def read(self, key: str, random: Random) -> bool:
        """Read the object once, whole; return whether there was an answer."""

        async def get(server: Server) -> tuple[ObjectInfo, bytes]:
            clock = server.clock.now()
            found = await server.service.get(object_id(key), None)
            self._answers.check_unexpired(found.info, clock)
            return found.info, await payload_in(found)

        history = self._around.history
        seen = history.begin(key, Act.READ)
        try:
            info, payload = await self._ask(random, TraceKind.READ, key, get)
        except NoAnswer:
            history.forget(key, seen)
            return False
        except ObjectNotFound:
            self._answers.absent(seen)
        else:
            self._answers.read(key, seen, info, payload)
        return True

    async def _head(self, action: Action, random: Random) -> None:
        history = self._around.history
        seen = history.begin(action.key, Act.READ)
        try:
            found = await self._ask(
                random, TraceKind.READ, action.key, lambda server: server.service.head(object_id(action.key))
            )
        except NoAnswer:
            history.forget(action.key, seen)
            return
        except ObjectNotFound:
            self._answers.absent(seen)
        else:
            self._answers.found(action.key, seen, found.info)

    async def _extend(self, action: Action, random: Random) -> None:
        """Extend the expiry, once or several times at once, and look again when it would have come."""
        ttl = self._around.plan.ttl
        kind = random.choice([None, Kind.PUT_SMALL, Kind.PUT_LARGE])
        if kind is not None and ttl:
            expiration = random.choice((TimeToLive(ttl), TimeToIdle(ttl)))
            await self.write_once(kind, action.key, f"{action.number}.e", random, expiration)
        together = [self._extend_once(action, Random(random.random())) for _ in range(random.choice([1, 1, 2]))]
        async with asyncio.TaskGroup() as attempts:
            for attempt in together:
                attempts.create_task(attempt)
        if random.random() < 0.5:
            await asyncio.sleep(ttl * random.uniform(0.9, 1.5))
            await self.read(action.key, random)

    async def _extend_once(self, action: Action, random: Random) -> None:
        """Extend the expiry of whatever it is that is there."""
        history, around = self._around.history, self._around
        target = self._answers.deadlines.draw(action.key, random)
        seen = history.begin(action.key, Act.EXTEND)
        seen.until = self._answers.deadlines.earliest(target)
        try:
            await self._ask(
                random,
                TraceKind.EXTEND,
                action.key,
                lambda server: server.service.extend_expiry(object_id(action.key), target, _permit),
            )
        except NoAnswer:
            history.forget(action.key, seen)
            return
        except Conflict:  # it does not expire, or somebody was faster
            around.counts["extensions refused"] += 1
            history.forget(action.key, seen)
            return
        except ObjectNotFound:
            seen.act, seen.until, seen.latest_clock = Act.READ, 0, around.latest_clock()
        else:
            around.counts["extensions acknowledged"] += 1
        history.end(seen)

    async def _upload(self, action: Action, random: Random) -> None:
        value, size = f"{action.number}.u", random.randint(1, 240)
        metadata = self._value(value, size, self._expiration(random))
        payload = payload_of(value, size)
        upload = await self._persist(
            random,
            TraceKind.INITIATE,
            action.key,
            lambda server: server.service.initiate_upload(object_id(action.key), metadata),
        )
        if upload is None:
            return
        pieces = [payload[start : start + 100] for start in range(0, size, 100)]
        names = []
        for number, piece in enumerate(pieces, start=1):
            name = await self._part(random, upload, number, piece)
            if name is None:
                return
            names.append(name)
        begun = Begun(action.key, value, upload, names)
        self._around.uploads[action.number] = begun
        self._mind_upload(begun, metadata.expiration)
        together = [self._complete(begun, Random(random.random())) for _ in range(random.choice([0, 1, 1, 1, 2, 3]))]
        async with asyncio.TaskGroup() as attempts:
            for attempt in together:
                attempts.create_task(attempt)

    def _mind_upload(self, begun: Begun, expiration: Expiration) -> None:
        """From now on somebody may complete it: one write, whatever the number of attempts."""
        self._mind_deadline(begun.value, expiration)
        self._around.history.begin(begun.key, Act.WRITE, begun.value)

    async def _part(self, random: Random, upload: UploadId, number: int, piece: bytes) -> PartName | None:
        try:
            part = await self._persist(
                random,
                TraceKind.PARTS,
                upload.revision.object_id.key,
                lambda server: server.service.upload_part(upload, number, Payload(piece), None),
            )
        except NoSuchUpload:
            self._around.judge.failed(upload.revision.uuid)
            return None
        return None if part is None else PartName(part.number, part.etag)

    async def _complete(self, begun: Begun, random: Random) -> None:
        for _ in range(self._around.plan.attempts):
            if await self.complete_once(begun, random):
                return
            await self._pause(random)

    async def complete_once(self, begun: Begun, random: Random) -> bool:
        """One attempt to complete an upload; return whether there was a final answer."""
        revision = begun.upload.revision.uuid
        judge = self._around.judge
        try:
            await self._ask(
                random,
                TraceKind.COMPLETE,
                begun.key,
                lambda server: server.service.complete_upload(begun.upload, begun.parts),
                begun.upload.revision,
            )
        except NoAnswer:
            return False
        except NoSuchUpload:
            judge.failed(revision)
            begun.outcome = begun.outcome or "failed"
            self._around.counts["uploads failed"] += 1
            return True
        except ClientMistake as error:
            raise Violation(f"(4) the list of parts is right, and was refused: {error!r}") from error
        judge.succeeded(revision)
        history = self._around.history
        for seen in history.by_key[begun.key]:
            if seen.value == begun.value and seen.act is Act.WRITE and not seen.answered:
                history.end(seen)
        begun.outcome = "complete"
        self._around.counts["uploads complete"] += 1
        return True

    async def _abort(self, begun: Begun, random: Random) -> None:
        try:
            answer = await self._persist(
                random, TraceKind.ABORT, begun.key, lambda server: _abort(server, begun.upload), begun.upload.revision
            )
        except NoSuchUpload:
            return
        if answer:
            self._around.judge.failed(begun.upload.revision.uuid)

    async def _late_part(self, begun: Begun, random: Random) -> None:
        body = payload_of(f"{begun.value}.late", 40)
        try:
            await self._persist(
                random,
                TraceKind.PARTS,
                begun.key,
                lambda server: server.service.upload_part(begun.upload, _UNNAMED_PART, Payload(body), None),
            )
        except NoSuchUpload:
            self._around.counts["late parts refused"] += 1


async def _abort(server: Server, upload: UploadId) -> bool:
    await server.service.abort_upload(upload)
    return True
