"""One client: makes the requests that its seed draws, and has the ledger keep what came of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random

from tests.kill.answers import Answer, Verdict
from tests.kill.history import Piece, Result
from tests.kill.ledger import Ledger
from tests.kill.payloads import payload_of
from tests.kill.plan import HOT_KEYS, INLINE_MAX_BYTES, PATIENCE_SECONDS, QUIET_KEYS_PER_ROUND, WEIGHTS, Action
from tests.kill.public_wire import PublicWire
from tests.kill.raw_wire import RawWire
from tests.kill.server import LivingServers
from tests.kill.session_load import SessionLoad, SharedSessions
from tests.kill.sessions import Session
from tests.kill.uploads import PartTry, Upload, UploadLedger, names_of
from tierstore.limits import KIB, MIB

Wire = RawWire | PublicWire

_PART_TRIES_MAX = 3
_COMPLETES_MAX = 5
_UPLOADS_OPEN_MAX = 6
_UPLOADS_REPEATED = 12
_LAST_PART = 9
_NOBODY_LISTENS_SECONDS = 0.02


@dataclass(slots=True)
class Shared:
    """What the clients of one campaign share."""

    ledger: Ledger
    uploads: UploadLedger
    sessions: SharedSessions
    server: LivingServers
    part_bytes_min: int = 0
    weights: Mapping[Action, int] = field(default_factory=lambda: WEIGHTS)
    open_uploads: list[Upload] = field(default_factory=list)
    """Left by one client for another to go on with."""
    round_number: int = 0
    until: float = 0.0
    """When the load of this round ends."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return time.monotonic() >= self.until


class LoadClient:
    """Client ``number``: every third is the public client, the others are raw requests."""

    def __init__(self, number: int, shared: Shared, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._shared = shared
        self._patience_seconds = patience_seconds
        self._kind = PublicWire if number % 3 == 2 else RawWire
        self._wires: dict[str, Wire] = {}
        self._connecting = asyncio.Lock()
        self.name = f"client {number}, {self._kind.name}"
        self.sessions = SessionLoad(shared.sessions, self.name, self._ask, lambda: shared.is_over)

    async def close(self) -> None:
        """Close its connections."""
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            await wire.__aexit__()

    async def load(self, random: Random) -> None:
        """Make requests until the round is over."""
        actions = {
            Action.PUT: self._put,
            Action.DELETE: self._delete,
            Action.GET: self._get,
            Action.RANGE: self._range,
            Action.HEAD: self._head,
            Action.UPLOAD: self._upload,
            Action.RESUME: self._resume,
            Action.COMPLETE_AGAIN: self._complete_again,
            Action.SESSION: self._session,
            Action.GO_ON: self._go_on,
            Action.ASK_AGAIN: self.sessions.ask_again,
        }
        choices, weights = list(self._shared.weights), list(self._shared.weights.values())
        while not self._shared.is_over:
            await actions[random.choices(choices, weights)[0]](random)

    async def read_back(self, key: str) -> bool:
        """Read ``key`` once, for the ledger; return whether an answer came."""
        answer = await self._ask(lambda wire: wire.get(key))
        return self._shared.ledger.read(key, answer, f"{self.name}, reading back")

    async def decide(self, upload: Upload) -> None:
        """Ask once more what became of an upload; end it if it is still open."""
        if upload.named:
            await self._complete(upload, upload.named, None)
        if not upload.decided:
            await self._abort(upload)

    async def concluded(self, upload: Upload | Session) -> bool:
        """Try to bring an upload of either kind to its end; return whether it is known now what became of it."""
        if isinstance(upload, Session):
            await self.sessions.conclude(upload)
            return upload.decided
        await self._conclude(upload)
        return upload.settled

    async def _conclude(self, upload: Upload) -> None:
        """Complete an upload, with the parts that were named last or with those it has; abort it if that cannot be.

        A completion that says nothing is left at that: nobody has ended the upload, so trying again has to help.
        """
        if not upload.named:
            answer = await self._ask(lambda wire: wire.parts(upload.write.key, upload.upload_id))
            self._shared.uploads.listed(upload, answer)
            names = {number: etag for number, (etag, _) in sorted(answer.parts.items())}
            if not names:
                await self._abort(upload)
                return
        else:
            names = upload.named
        if await self._complete(upload, names, None) is Result.NOT_YET:
            await self._abort(upload)

    async def _ask(self, request: Callable[[Wire], Awaitable[Answer]]) -> Answer:
        self._shared.ledger.counts["operations"] += 1
        async with self._shared.server.requests() as url:
            answer = await request(await self._wire_to(url))
        if answer.verdict is Verdict.UNSENT:
            self._shared.server.nobody_listens()
            await asyncio.sleep(_NOBODY_LISTENS_SECONDS)
        return answer

    async def _wire_to(self, url: str) -> Wire:
        async with self._connecting:
            if url not in self._wires:
                wire = self._kind(url, self._patience_seconds)
                self._wires[url] = await wire.__aenter__()
            return self._wires[url]

    def _key(self, random: Random) -> str:
        if random.random() < 0.12:
            return f"quiet-{self._shared.round_number}-{random.randrange(QUIET_KEYS_PER_ROUND)}"
        return f"hot-{min(random.randrange(HOT_KEYS), random.randrange(HOT_KEYS))}"

    async def _put(self, random: Random) -> None:
        ledger = self._shared.ledger
        write = ledger.new_write(self._key(random), _ttl(random))
        payload = ledger.content(write, Piece(write.identity, _size(random)))
        slowly, leaves = random.random() < 0.25, _leaves(random)
        answer = await self._ask(lambda wire: wire.put(write, payload, slowly=slowly, seconds=leaves))
        ledger.put(write, answer, self.name)

    async def _delete(self, random: Random) -> None:
        key, leaves = self._key(random), _leaves(random)
        answer = await self._ask(lambda wire: wire.delete(key, seconds=leaves))
        self._shared.ledger.delete(key, answer, self.name)

    async def _get(self, random: Random) -> None:
        key = self._key(random)
        self._shared.ledger.read(key, await self._ask(lambda wire: wire.get(key)), self.name)

    async def _range(self, random: Random) -> None:
        key, first = self._key(random), random.choice([0, random.randrange(MIB)])
        wanted = (first, first + random.randrange(1, 256 * KIB))
        self._shared.ledger.read(key, await self._ask(lambda wire: wire.get(key, wanted)), self.name)

    async def _head(self, random: Random) -> None:
        key = self._key(random)
        self._shared.ledger.read(key, await self._ask(lambda wire: wire.head(key)), self.name)

    async def _upload(self, random: Random) -> None:
        if len(self._shared.open_uploads) >= _UPLOADS_OPEN_MAX:
            await self._resume(random)
            return
        write = self._shared.ledger.new_write(self._key(random), _ttl(random))
        upload = self._shared.uploads.initiated(write, await self._ask(lambda wire: wire.initiate(write)))
        if upload is None:
            return
        numbers = random.sample(range(1, _LAST_PART + 1), random.randint(1, 4))
        await asyncio.gather(*[self._part(upload, number, random) for number in numbers[:2]])
        for number in numbers[2:] + [number for number in numbers if random.random() < 0.2]:
            await self._part(upload, number, random)
        await self._end_upload(upload, names_of(list(upload.current().values())), random)

    async def _resume(self, random: Random) -> None:
        """Go on with an upload that was left, maybe by a client of another life, from its listing."""
        opened = self._shared.open_uploads
        if not opened:
            return
        upload = opened.pop(random.randrange(len(opened)))
        answer = await self._ask(lambda wire: wire.parts(upload.write.key, upload.upload_id))
        self._shared.uploads.listed(upload, answer)
        if answer.verdict is Verdict.ABSENT:
            return
        if answer.verdict is not Verdict.DONE:
            opened.append(upload)
            return
        names = {number: etag for number, (etag, _) in sorted(answer.parts.items())}
        if not names or random.random() < 0.4:
            part = await self._part(upload, _LAST_PART, random)
            if part is not None and part.etag is not None:
                names[_LAST_PART] = part.etag
        await self._end_upload(upload, names, random)

    async def _session(self, random: Random) -> None:
        if self.sessions.are_enough:
            await self.sessions.go_on(random)
            return
        await self.sessions.upload(self._shared.ledger.new_write(self._key(random), _ttl(random)), random)

    async def _go_on(self, random: Random) -> None:
        await self.sessions.go_on(random)

    async def _complete_again(self, random: Random) -> None:
        """Complete an upload that somebody has tried to complete before, whatever came of it."""
        known = [upload for upload in self._shared.uploads.uploads[-_UPLOADS_REPEATED:] if upload.named]
        if known:
            upload = random.choice(known)
            times = random.choice([1, 1, 2, 3])
            await asyncio.gather(*[self._complete(upload, upload.named, _leaves(random)) for _ in range(times)])

    async def _part(self, upload: Upload, number: int, random: Random) -> PartTry | None:
        """Store a part, in a few tries; return the one that was acknowledged."""
        size = random.choice([1, 700, random.randrange(1, 80 * KIB), random.randrange(1, 400 * KIB)])
        if number != _LAST_PART:
            size += self._shared.part_bytes_min
        for _ in range(_PART_TRIES_MAX):
            part = self._shared.uploads.new_part(upload, number, size, time.monotonic())
            payload = payload_of(part.piece.name, part.piece.size)
            answer = await self._ask(partial(_send_part, upload, number, payload))
            self._shared.uploads.stored(upload, part, answer)
            if part.acknowledged:
                return part
            if answer.verdict is Verdict.ABSENT or self._shared.is_over:
                break
        return None

    async def _end_upload(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        if not names or self._shared.is_over or random.random() < 0.12:
            self._shared.open_uploads.append(upload)
            return
        way = random.choice(
            [
                *(self._once, self._once, self._some, self._until_told, self._at_once, self._wrong_first),
                *(self._abort_it, self._racing_abort, self._racing_part),
            ]
        )
        await way(upload, names, random)

    async def _once(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        await self._complete(upload, names, _leaves(random))

    async def _some(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        """Some of the parts make the object, and the others are nobody's."""
        some = sorted(random.sample(list(names), random.randint(1, len(names))))
        await self._complete(upload, {number: names[number] for number in some}, _leaves(random))

    async def _until_told(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        for _ in range(_COMPLETES_MAX):
            if await self._complete(upload, names, _leaves(random)) is not Result.UNKNOWN:
                return

    async def _at_once(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        times = random.randint(2, _COMPLETES_MAX)
        await asyncio.gather(*[self._complete(upload, names, None) for _ in range(times)])

    async def _wrong_first(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        await self._complete(upload, names | {max(names): "none"}, None)
        await self._complete(upload, names, _leaves(random))

    async def _abort_it(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        await self._abort(upload)

    async def _racing_abort(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        await asyncio.gather(self._complete(upload, names, _leaves(random)), self._abort(upload))

    async def _racing_part(self, upload: Upload, names: dict[int, str], random: Random) -> None:
        racing = self._part(upload, random.choice(list(names)), random)
        await asyncio.gather(racing, self._complete(upload, names, _leaves(random)))

    async def _complete(self, upload: Upload, names: dict[int, str], leaves: float | None) -> Result:
        self._shared.uploads.completing(upload, names, time.monotonic())
        answer = await self._ask(lambda wire: wire.complete(upload.write.key, upload.upload_id, names, seconds=leaves))
        return self._shared.uploads.completed(upload, names, answer, self.name)

    async def _abort(self, upload: Upload) -> Result:
        self._shared.uploads.abort_begins(upload, time.monotonic())
        answer = await self._ask(lambda wire: wire.abort(upload.write.key, upload.upload_id))
        return self._shared.uploads.aborted(upload, answer, self.name)


async def _send_part(upload: Upload, number: int, payload: bytes, wire: Wire) -> Answer:
    return await wire.part(upload.write.key, upload.upload_id, number, payload)


def _size(random: Random) -> int:
    return random.choice(
        [
            *(0, 1, 100),
            random.randrange(INLINE_MAX_BYTES),
            random.randrange(INLINE_MAX_BYTES),
            INLINE_MAX_BYTES + random.randint(0, 1),
            random.randrange(INLINE_MAX_BYTES, 600 * KIB),
            random.randrange(INLINE_MAX_BYTES, 2 * MIB),
        ]
    )


def _ttl(random: Random) -> float | None:
    return random.choice([1.0, 2.0]) if random.random() < 0.12 else None


def _leaves(random: Random) -> float | None:
    """After how many seconds a client loses its patience; None: not soon."""
    return random.uniform(0.003, 0.08) if random.random() < 0.1 else None
