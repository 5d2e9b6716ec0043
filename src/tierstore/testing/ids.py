"""Identifiers that a seed repeats."""

from random import Random
from uuid import UUID

from tierstore.idsource import IdSource


class SeededIds(IdSource):
    """Draws everything from one generator: the same seed and the same order of calls give the same identifiers.

    Two sources that write to one store need different seeds.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def uuid(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)

    def version(self) -> bytes:
        return self._random.randbytes(16)

    def jitter(self) -> float:
        return self._random.random()
