"""Sources of bytes, made again as they were."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tierstore import errors


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a source is to yield, and how it ends."""

    octets: bytes
    ends: str
    """``whole``, ``left`` if nobody asked for more, or the kind of error that it fails with."""


class Source:
    """Yields what a `Recipe` says, in two chunks, and ends as it says.

    Of a source that nobody had read to its end the rest is not known: it is made up, of the size that was announced.
    """

    def __init__(self, recipe: Recipe, size: int | None) -> None:
        octets = recipe.octets
        self.made_up = recipe.ends == "left"
        """Whether what it yields is not what it was: nobody had read that to its end."""
        if size is not None and self.made_up:
            octets = octets.ljust(size, b"\0")
        self.octets = octets
        half = len(octets) // 2
        self._chunks = [chunk for chunk in (octets[:half], octets[half:]) if chunk]
        self._ends = recipe.ends

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        if self._chunks:
            return self._chunks.pop(0)
        if self._ends in {"whole", "left"}:
            raise StopAsyncIteration
        raise getattr(errors, self._ends)("as recorded")
