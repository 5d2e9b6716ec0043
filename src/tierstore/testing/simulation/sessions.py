"""The clients of resumable uploads in a simulated run.

They send their bytes in pieces, through any server; ask for the offset when they do not know it; are cut off, give up,
and race each other. A session is one write of its object's: whoever is told that it is complete acknowledges it.
"""

import asyncio
from random import Random

from tierstore.errors import EntityTooSmall, IncompleteBody, NoSuchUpload, OffsetMismatch, TierstoreError
from tierstore.testing.simulation.calls import Caller, NoAnswer, Payload, Session, object_id, payload_of
from tierstore.testing.simulation.history import Act
from tierstore.testing.simulation.judge import Violation
from tierstore.testing.simulation.plan import Action, Kind
from tierstore.testing.simulation.servers import Server
from tierstore.testing.traces import Kind as TraceKind
from tierstore.types.resumable import Advance, Stored

_CALLS_PER_ATTEMPT = 4
"""How often a client calls on behalf of a session for each time that it would try another operation."""


class _GoesOn(Exception):
    """The session is not complete, and holds ``offset`` bytes."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class SessionClients(Caller):
    """Carries out the actions on sessions, each as a client of its own."""

    async def act(self, action: Action, random: Random) -> None:
        """Begin a session and send its bytes, or go on with or cancel one that another client has begun."""
        if action.kind is Kind.SESSION:
            await self._upload(action, random)
        elif (session := self._around.sessions.get(action.upload)) is not None:
            await (self._cancel if action.kind is Kind.CANCEL else self._go_on)(session, random)

    async def _upload(self, action: Action, random: Random) -> None:
        value = f"{action.number}.s"
        size = random.choice([0, random.randint(1, 64), random.randint(1, 64), random.randint(65, 240)])
        expiration = self._expiration(random)
        metadata = self._value(value, size, expiration)
        begun = await self._persist(
            random,
            TraceKind.INITIATE,
            action.key,
            lambda server: server.service.create_session(object_id(action.key), metadata, size),
        )
        if begun is None:
            return
        session = self._around.sessions[action.number] = Session(action.key, value, size, begun)
        self._mind_deadline(value, expiration)
        self._around.history.begin(action.key, Act.WRITE, value)
        together = [self._go_on(session, Random(random.random())) for _ in range(random.choice([0, 1, 1, 1, 2, 3]))]
        async with asyncio.TaskGroup() as attempts:
            for attempt in together:
                attempts.create_task(attempt)

    async def _go_on(self, session: Session, random: Random) -> None:
        """Send what is missing until there is a final answer, or the attempts are used up."""
        offset: int | None = random.choice([0, None])
        for _ in range(self._around.plan.attempts * _CALLS_PER_ATTEMPT):
            over, offset = await self._call(session, offset, random, whole=random.random() < 0.3)
            if over:
                return
            await self._pause(random)

    async def end_once(self, session: Session, random: Random) -> bool:
        """Ask for the offset, and send all that is missing; return whether there was a final answer."""
        over, offset = await self._call(session, None, random, whole=True)
        if not over and offset is not None:
            over, _ = await self._call(session, offset, random, whole=True)
        return over

    async def _call(
        self, session: Session, offset: int | None, random: Random, *, whole: bool
    ) -> tuple[bool, int | None]:
        """Append from ``offset``, or ask for it. Returns whether the answer was final, and where to go on if known."""
        around = self._around
        stored_before = session.stored
        hasty = not whole and random.random() < 0.1
        body, size = (None, 0) if offset is None else self._piece(session, offset, random, whole=whole)

        async def ask(server: Server) -> Advance:
            if body is None or offset is None:
                return await server.service.query_session(session.session)
            return await server.service.append(session.session, offset, body)

        try:
            await self._ask(
                random,
                TraceKind.RESUME,
                session.key,
                ask,
                session.session.upload.revision,
                patience_seconds=around.plan.latency * random.choice([1, 4, 10]) if hasty else None,
                accept=_accept,
            )
        except NoAnswer:
            return False, None
        except IncompleteBody:
            around.counts["appends cut off"] += 1
            return False, None
        except EntityTooSmall as error:
            around.counts["short pieces refused"] += 1
            if offset is None or offset + size == session.size:
                raise Violation(f"the last piece of {session.value} was refused: {error!r}") from error
            return await self._call(session, offset, random, whole=True)
        except (OffsetMismatch, _GoesOn) as answer:
            self._learn(session, stored_before, answer)
            return False, answer.offset
        except NoSuchUpload:
            self._ended(session)
            return True, None
        except TierstoreError as error:
            raise Violation(f"(4) a piece of {session.value} is right, and was refused: {error!r}") from error
        self._completed(session)
        return True, None

    def _piece(self, session: Session, offset: int, random: Random, *, whole: bool) -> tuple[Payload, int]:
        """The next bytes to send, and how many they are said to be."""
        rest = payload_of(session.value, session.size)[offset:]
        piece = rest if whole or random.random() < 0.4 else rest[: random.randint(0, len(rest))]
        cut = not whole and bool(piece) and random.random() < 0.2
        sent = piece[: random.randrange(len(piece))] if cut else piece
        chunk = random.choice([8, 30, 240])
        chunks = [sent[start : start + chunk] for start in range(0, len(sent), chunk)]
        return Payload(piece, chunks or [b""], cut=cut), len(piece)

    def _learn(self, session: Session, stored_before: int, answer: OffsetMismatch | _GoesOn) -> None:
        """A client is told an offset, of which ``stored_before`` was known before it asked."""
        self._around.counts["appends refused" if isinstance(answer, OffsetMismatch) else "appends acknowledged"] += 1
        if not stored_before <= answer.offset <= session.size:
            raise Violation(f"(3) {stored_before} bytes of {session.value} were stored, and then {answer.offset}")
        session.stored = max(session.stored, answer.offset)

    def _ended(self, session: Session) -> None:
        """A client is told that there is no such session."""
        self._around.judge.failed(session.session.upload.revision.uuid)
        self._around.counts["sessions failed"] += 1

    def _completed(self, session: Session) -> None:
        """A client is told that the object has been committed."""
        history = self._around.history
        self._around.judge.succeeded(session.session.upload.revision.uuid)
        for seen in history.by_key[session.key]:
            if seen.value == session.value and seen.act is Act.WRITE and not seen.answered:
                history.end(seen)
        self._around.counts["sessions complete"] += 1

    async def _cancel(self, session: Session, random: Random) -> None:
        revision = session.session.upload.revision
        try:
            answer = await self._persist(
                random, TraceKind.ABORT, session.key, lambda server: _cancel(server, session), revision
            )
        except NoSuchUpload:  # also of one that is complete
            return
        if answer:
            self._around.counts["sessions cancelled"] += 1
            self._around.judge.failed(revision.uuid)


async def _cancel(server: Server, session: Session) -> bool:
    await server.service.cancel_session(session.session)
    return True


def _accept(advance: Advance) -> None:
    """Raise `_GoesOn` if there is more to send: then the upload has not been completed."""
    if isinstance(advance, Stored):
        raise _GoesOn(advance.offset)
