"""What the clients of a simulated run are told of objects, held against what there can be."""

from random import Random

from tierstore.backends.long_term.contract import BlobStream
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.testing.simulation.calls import Surroundings, payload_of
from tierstore.testing.simulation.history import Seen
from tierstore.testing.simulation.judge import Violation
from tierstore.tiering.objects import OpenObject
from tierstore.types.expiry import AfterCreation, AfterNow, AtInstant, ExpiryTarget
from tierstore.types.metadata import ObjectInfo, TimeToIdle, deadline


class Deadlines:
    """What clients are told of deadlines, and the extensions that they have asked for.

    A deadline that is shown is one that the object was given: at its creation, by an access or by an extension; and it
    is no earlier than one that was shown of the same object before.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._asked: dict[str, list[ExpiryTarget]] = {}
        """By key: all extensions that may have happened, whatever they were told."""
        self._shown: dict[str, list[tuple[float, UnixMicros]]] = {}
        """By value: when a read of it had ended, and the deadline that it was told."""

    def draw(self, key: str, random: Random) -> ExpiryTarget:
        """Where an extension leads that is about to be asked for."""
        seconds = random.randint(0, 1 + 2 * self._around.plan.ttl)
        instant = self._around.earliest_clock() + seconds * MICROS_PER_SECOND + random.randrange(MICROS_PER_SECOND)
        target = random.choice((AtInstant(instant), AfterNow(seconds), AfterCreation(seconds)))
        self._asked.setdefault(key, []).append(target)
        return target

    def earliest(self, target: ExpiryTarget) -> UnixMicros:
        """What an extension that begins now will at least lead to."""
        match target:
            case AtInstant(instant):
                return instant
            case AfterNow(seconds) if not self._around.plan.clocks_jump:
                return self._around.earliest_clock() + seconds * MICROS_PER_SECOND
            case _:
                return 0

    def seen(self, key: str, read: Seen, info: ObjectInfo) -> None:
        """A read has ended, and its client is shown ``info``. Raises `Violation`."""
        shown, value = info.time_expires, info.metadata.origin
        if shown is None or value is None:
            return
        earlier = self._shown.setdefault(value, [])
        if any(ended < read.begun and before > shown for ended, before in earlier):
            raise Violation(f"(3) the deadline of {value} was {max(earlier)[1]}, and then {shown}")
        earlier.append((read.ended, shown))
        if not self._around.plan.clocks_jump and not self._may_be(key, shown, info):
            raise Violation(f"(7) {value} has the deadline {shown}, which nobody has given it: {info}")

    def _may_be(self, key: str, shown: UnixMicros, info: ObjectInfo) -> bool:
        """Whether an object may have this deadline."""
        latest = self._around.latest_clock()
        asked = self._asked.get(key, [])
        if shown in {target.instant for target in asked if isinstance(target, AtInstant)}:
            return True
        expiration = info.metadata.expiration
        given = deadline(expiration, info.time_created)
        bounds = [latest + target.seconds * MICROS_PER_SECOND for target in asked if not isinstance(target, AtInstant)]
        if isinstance(expiration, TimeToIdle):
            bounds.append(latest + expiration.seconds * MICROS_PER_SECOND)
        return given is not None and (shown == given or given < shown <= max(bounds, default=given))


class Answers:
    """What clients are told of objects: noted in the history, once it has been held against what there can be."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self.deadlines = Deadlines(around)

    def check_unexpired(self, info: ObjectInfo, clock: UnixMicros) -> None:
        """Raise `Violation` if an object that was read when its server's clock was at ``clock`` had expired by then."""
        if info.time_expires is not None and info.time_expires <= clock and not self._around.plan.clocks_jump:
            raise Violation(f"(7) an object was read at {clock} that had expired at {info.time_expires}")

    def read(self, key: str, seen: Seen, info: ObjectInfo, payload: bytes) -> None:
        """A client has read an object, whole. Raises `Violation`."""
        self._check_payload(info.metadata.origin, info, payload)
        self.found(key, seen, info)

    def found(self, key: str, seen: Seen, info: ObjectInfo) -> None:
        """A client is told that there is this object. Raises `Violation`."""
        seen.value = info.metadata.origin
        self._around.history.end(seen)
        self.deadlines.seen(key, seen, info)

    def absent(self, seen: Seen) -> None:
        """A client is told that there is no object."""
        seen.latest_clock = self._around.latest_clock()
        self._around.history.end(seen)

    def _check_payload(self, value: str | None, info: ObjectInfo, payload: bytes) -> None:
        if value is None or value not in self._around.sizes:
            raise Violation(f"(6) an object was read that nobody has written: {info}")
        if payload != payload_of(value, self._around.sizes[value]) or info.size != len(payload):
            raise Violation(f"(6) the object {value} was read with a payload that is not its own: {payload!r}, {info}")


async def payload_in(found: OpenObject) -> bytes:
    """The payload of an opened object, which is closed then."""
    if isinstance(found.payload, bytes):
        return found.payload
    return await _read_all(found.payload)


async def _read_all(stream: BlobStream) -> bytes:
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()
