"""Streams of bytes: async iterators of non-empty chunks, and the few things done with them."""

from collections.abc import AsyncIterator


async def prefixed(head: list[bytes], tail: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks of ``head``, letting go of each, then those of ``tail``."""
    head.reverse()
    while head:
        yield head.pop()
    async for chunk in tail:
        yield chunk
