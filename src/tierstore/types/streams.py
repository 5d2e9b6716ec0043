"""Streams of bytes: what a write reads from."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from tierstore.errors import ClientDisconnected, IncompleteBody, RequestTimeout


class Body(ABC):
    """The payload of a request, read once, in order: an async iterator of non-empty chunks.

    Iteration raises `IncompleteBody` when the body ends before its announced length, `ObjectTooLarge` when it grows
    beyond what an object may have, `ClientDisconnected` when the caller goes away. It ends normally only when the body
    is whole.
    """

    size: int | None
    """Announced bytes; None when the length is not known beforehand."""
    complete: bool = False
    """Whether the whole body has been read."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    @abstractmethod
    async def __anext__(self) -> bytes:
        """The next chunk, not empty."""


class BodyPassedOn(Body):
    """A body that is another one, with something done when a chunk of it is taken. A subclass says what."""

    def __init__(self, inner: Body) -> None:
        self._inner = inner
        self.size = inner.size

    @property
    def complete(self) -> bool:  # type: ignore[override]  # because it is the inner body's, which goes on changing
        """Whether the whole body has been read."""
        return self._inner.complete


class BodyUntilCut(BodyPassedOn):
    """A body that ends where its sender went away, or was too slow, and says so: for who keeps what has come."""

    def __init__(self, inner: Body) -> None:
        super().__init__(inner)
        self.error: IncompleteBody | ClientDisconnected | RequestTimeout | None = None
        """Why it ended before it was whole."""

    @property
    def complete(self) -> bool:  # type: ignore[override]  # because it goes on changing
        """Whether all that will ever come has been read."""
        return super().complete or self.error is not None

    async def __anext__(self) -> bytes:
        if self.error is not None:
            raise StopAsyncIteration
        try:
            return await anext(self._inner)
        except (IncompleteBody, ClientDisconnected, RequestTimeout) as error:
            self.error = error
            raise StopAsyncIteration from None
