"""What all strollers have: dice, instants near those that count, and keys that break a store's rules for names."""

from random import Random
from typing import Any, Final
from uuid import UUID

from tests.engines.histories.notation import uuid_of
from tests.engines.histories.scene import Scene
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.types.ids import SESSION_UUID_BIT, ObjectId, Scope

BY: Final = "a stroller"
SECOND: Final = MICROS_PER_SECOND
_KEYS = ("k", "k/", "k//../c", "ключ %2F\x00\u2028", "K", "k" * 300)


class Stroller:
    """Calls one store in a scene, about three objects of one usecase."""

    def __init__(self, scene: Scene, random: Random) -> None:
        self.scene = scene
        self.random = random
        usecase = f"strolls-{random.randrange(10)}"
        scopes = ((), (Scope("org", "1"),), (Scope("org", "1"), Scope("a", "$!'")))
        self.objects = [ObjectId(usecase, random.choice(scopes), key) for key in random.sample(_KEYS, 3)]

    async def ask(self, name: str, **arguments: Any) -> Any:
        return await self.scene.ask(BY, name, **arguments)

    def object(self) -> ObjectId:
        return self.random.choice(self.objects)

    def uuid(self, version: int = 4) -> UUID:
        return uuid_of(self.random.getrandbits(128) & ~SESSION_UUID_BIT, version)

    def around(self, instant: UnixMicros) -> UnixMicros:
        """Just then, just before or after it, or much later."""
        return instant + self.random.choice([-SECOND, -1, 0, 1, SECOND, 150 * SECOND])

    def soon(self) -> UnixMicros:
        return self.around(self.scene.clock.now())

    def later(self) -> UnixMicros:
        """An instant that is not past, mostly."""
        return self.scene.clock.now() + self.random.choice([0, 1, *[900 * SECOND] * 4, -1])

    def octets(self, size_max: int) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, size_max // 2, size_max]))
