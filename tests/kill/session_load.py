"""What a client does with resumable uploads: sends them in pieces, breaks off, goes on elsewhere, races, cancels."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from tests.kill.answers import Answer
from tests.kill.history import Result, Write
from tests.kill.sessions import Session, SessionLedger
from tierstore.limits import KIB, MIB

_PIECES_MAX = 8
_OPEN_MAX = 6
_REPEATED = 12
_RACERS = 3


@dataclass(slots=True)
class SharedSessions:
    """What the clients of one campaign share of them."""

    ledger: SessionLedger
    part_bytes_min: int = 0
    open: list[Session] = field(default_factory=list)
    """Left by one client for another to go on with."""


class SessionLoad:
    """The resumable uploads of the client called ``name``.

    ``ask`` makes a request by a wire; ``is_over`` tells when the load ends.
    """

    def __init__(
        self, shared: SharedSessions, name: str, ask: Callable[..., Awaitable[Answer]], is_over: Callable[[], bool]
    ) -> None:
        self._shared = shared
        self._name = name
        self._ask = ask
        self._is_over = is_over

    async def upload(self, write: Write, random: Random) -> None:
        """Begin one, and send some of it, or all."""
        size = self._size(random)
        answer = await self._ask(lambda wire: wire.begin(write, size))
        session = self._shared.ledger.created(write, size, answer)
        if session is not None:
            await self._send(session, random)

    async def go_on(self, random: Random) -> None:
        """Go on with one that was left, maybe in another life, from where the server says."""
        if not self._shared.open:
            return
        session = self._shared.open.pop(random.randrange(len(self._shared.open)))
        await self.ask_progress(session)
        await self._send(session, random)

    @property
    def are_enough(self) -> bool:
        """Whether so many were left that none should be begun."""
        return len(self._shared.open) >= _OPEN_MAX

    async def ask_again(self, random: Random) -> None:
        """Send the last piece of one again, or ask how far it has come, whatever came of it."""
        known = self._shared.ledger.sessions[-_REPEATED:]
        if not known:
            return
        session = random.choice(known)
        if session.ending < time.monotonic() and random.random() < 0.5:
            start = random.randrange(len(session.payload)) if session.payload else 0
            await self._piece(session, start, len(session.payload), random)
        else:
            await self.ask_progress(session)

    async def ask_progress(self, session: Session) -> Result:
        """Ask how far it has come."""
        answer = await self._ask(lambda wire: wire.progress(session.write.key, session.token))
        return self._shared.ledger.told(session, answer, self._name)

    async def cancel(self, session: Session) -> Result:
        """Cancel it."""
        self._shared.ledger.cancel_begins(session, time.monotonic())
        answer = await self._ask(lambda wire: wire.cancel(session.write.key, session.token))
        return self._shared.ledger.cancelled(session, answer, self._name)

    async def decide(self, session: Session) -> None:
        """Ask what became of it; if it is still open, send what is missing, or cancel it if nothing was ever sent."""
        if await self.ask_progress(session) is not Result.NOT_YET:
            return
        if session.sent_to:
            await self._piece(session, session.offset, len(session.payload), None)
        else:
            await self.cancel(session)

    async def conclude(self, session: Session) -> None:
        """Send what is missing of it: nobody has ended it, so trying again has to help."""
        if await self.ask_progress(session) is Result.NOT_YET:
            await self._piece(session, session.offset, len(session.payload), None)

    async def _send(self, session: Session, random: Random) -> None:
        for _ in range(_PIECES_MAX):
            if session.decided:
                return
            if self._is_over() or random.random() < 0.08:
                break
            if random.random() < 0.04:
                await self.cancel(session)
                return
            start, size = session.offset, len(session.payload)
            piece = random.choice([size, random.randrange(1, 200 * KIB), random.randrange(1, MIB)])
            end = min(size, start + max(piece, session.granularity))
            if random.random() < 0.12:
                ends = [end, size, end][: random.randint(2, _RACERS)]
                await asyncio.gather(*[self._piece(session, start, each, random) for each in ends])
            elif await self._piece(session, start, end, random) is Result.UNKNOWN:
                await self.ask_progress(session)
        if not session.decided:
            self._shared.open.append(session)

    async def _piece(self, session: Session, start: int, end: int, random: Random | None) -> Result:
        slowly = random is not None and random.random() < 0.2
        leaves = random.uniform(0.003, 0.08) if random is not None and random.random() < 0.12 else None
        piece = session.payload[start:end]
        self._shared.ledger.sending(session, end, time.monotonic())
        answer = await self._ask(
            lambda wire: wire.append(session.write.key, session.token, start, piece, slowly=slowly, seconds=leaves)
        )
        return self._shared.ledger.told(session, answer, self._name)

    def _size(self, random: Random) -> int:
        """Often enough for several pieces."""
        small, large = random.randrange(600 * KIB), self._shared.part_bytes_min + random.randrange(2 * MIB)
        return random.choice([0, 1, 100, random.randrange(64 * KIB), small, large])
