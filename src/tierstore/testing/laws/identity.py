"""The laws of a store's identity, which are the same for all three contracts."""

import asyncio
from abc import abstractmethod
from contextlib import AsyncExitStack
from typing import Protocol
from uuid import UUID

from tierstore.testing.laws.suite import LawSuite

ADOPTERS = 16
ONE, OTHER = UUID(int=1 << 64), UUID(int=2 << 64)


class Store(Protocol):
    """What every store has."""

    async def identity(self) -> UUID | None:
        """See the contracts."""
        ...

    async def adopt(self, identity: UUID) -> UUID:
        """See the contracts."""
        ...

    async def close(self) -> None:
        """See the contracts."""
        ...


class IdentityLaws(LawSuite):
    """A store keeps the first identity that it is given, and no other, for as long as it lives."""

    @abstractmethod
    async def open_store(self) -> Store:
        """Open one more instance on the store of this test, as another process would."""

    async def _opened(self, stack: AsyncExitStack) -> Store:
        store = await self.open_store()
        stack.push_async_callback(store.close)
        return store

    async def test_a_new_store_has_no_identity(self) -> None:
        """A store that was never given an identity says so, and asking gives it none."""
        async with AsyncExitStack() as stack:
            store, other = await self._opened(stack), await self._opened(stack)
            for _ in range(2):
                assert await store.identity() is None
                assert await other.identity() is None

    async def test_adopt_keeps_the_first_identity(self) -> None:
        """`adopt` gives the identity to a store that has none; later ones get that one back, in every instance."""
        async with AsyncExitStack() as stack:
            store, other = await self._opened(stack), await self._opened(stack)
            assert await store.adopt(ONE) == ONE
            assert await store.adopt(ONE) == ONE
            assert await store.adopt(OTHER) == ONE
            assert await other.adopt(OTHER) == ONE
            assert [await each.identity() for each in (store, other)] == [ONE, ONE]

    async def test_one_of_many_adopters_wins(self) -> None:
        """Of many that adopt at the same time, over two instances, one wins, and all are told which."""
        async with AsyncExitStack() as stack:
            stores = await self._opened(stack), await self._opened(stack)
            drawn = [UUID(int=number) for number in range(1, ADOPTERS + 1)]
            told = await asyncio.gather(*(stores[number % 2].adopt(uuid) for number, uuid in enumerate(drawn)))
            assert len(set(told)) == 1
            assert told[0] in drawn
            assert [await store.identity() for store in stores] == [told[0]] * 2

    async def test_an_identity_survives_reopening(self) -> None:
        """The identity belongs to the store, not to an instance."""
        async with AsyncExitStack() as stack:
            await (await self._opened(stack)).adopt(ONE)
        async with AsyncExitStack() as stack:
            store = await self._opened(stack)
            assert await store.identity() == ONE
            assert await store.adopt(OTHER) == ONE
