"""Tokens are at hand while they are good, and nobody waits for long for another one."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.auth.credentials import Credentials
from google.auth.exceptions import RefreshError, TransportError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tierstore.backends.long_term.gcs_tokens import GoogleTokens
from tierstore.errors import Unavailable
from tierstore.object_storage.transport import Answer
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock

STALE, FRESH = timedelta(seconds=30), timedelta(hours=1)


class Account(Credentials):
    """Credentials that give numbered tokens, at once or when they are released, or an error."""

    def __init__(self, lifetime: timedelta = FRESH) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # because google-auth has no types for it
        self.lifetime = lifetime
        self.refreshes = 0
        self.same_token = False
        self.error: Exception | None = None
        self.release = threading.Event()
        self.release.set()

    def refresh(self, request: Any) -> None:
        assert request is not None
        self.release.wait(5)
        self.refreshes += 1
        if self.error is not None:
            raise self.error
        self.token = "token-1" if self.same_token else f"token-{self.refreshes}"
        self.expiry = (datetime.now(UTC) + self.lifetime).replace(tzinfo=None)


class Desk:
    """Tokens of an account, and the clock that they are asked by."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.account = Account()
        self.clock = ManualClock()
        self.tasks = TaskOwner(8, lambda _, error: None if isinstance(error, Unavailable) else pytest.fail(str(error)))
        self.tokens = GoogleTokens(self.account, threads, self.tasks, self.clock, 0.2)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A new one, whose account has given no token yet."""
    with ThreadPoolExecutor(1) as threads:
        desk = Desk(threads)
        yield desk
        desk.account.release.set()
        await desk.tasks.drain(5)


def refused() -> Answer:
    """What a service answers to a token that it does not take."""
    return Answer(401, CIMultiDictProxy(CIMultiDict()), b"")


async def test_a_fresh_token_is_at_hand(desk: Desk) -> None:
    """However many ask at once, one refresh gives it to all; after that nobody waits."""
    assert set(await asyncio.gather(*(desk.tokens.bearer() for _ in range(20)))) == {"token-1"}
    assert await desk.tokens.bearer() == "token-1"
    assert desk.account.refreshes == 1
    headers = await desk.tokens.headers("GET", URL("http://s/"), {"Range": "bytes=0-1"})
    assert {key.lower(): value for key, value in headers.items()} == {
        "range": "bytes=0-1",
        "authorization": "Bearer token-1",
    }


async def test_a_stale_token_is_used_while_the_next_one_comes(desk: Desk) -> None:
    """Nobody waits for the refresh, and there is one at a time."""
    desk.account.lifetime = STALE
    await desk.tokens.bearer()
    desk.account.release.clear()
    desk.account.lifetime = FRESH
    assert [await desk.tokens.bearer() for _ in range(5)] == ["token-1"] * 5
    assert len(desk.tasks) == 1
    desk.account.release.set()
    await desk.tasks.drain(5)
    assert await desk.tokens.bearer() == "token-2"
    assert desk.account.refreshes == 2


async def test_a_refresh_that_hangs_is_not_waited_for(desk: Desk) -> None:
    """Who needs a token is told in time; the refresh goes on, and its token is used."""
    desk.account.release.clear()
    with pytest.raises(Unavailable, match="in time"):
        await desk.tokens.bearer()
    with pytest.raises(Unavailable, match="in time"):
        await desk.tokens.bearer()
    desk.account.release.set()
    assert await desk.tokens.bearer() == "token-1"
    assert desk.account.refreshes == 1


@pytest.mark.parametrize("error", [RefreshError, TransportError])
async def test_a_refresh_that_fails_is_begun_again_later(desk: Desk, error: type[Exception]) -> None:
    """While the old token is good it is used, and not every request begins a refresh; later one does."""
    desk.account.lifetime = STALE
    await desk.tokens.bearer()
    desk.account.error = error("no: for a reason")
    for _ in range(5):
        assert await desk.tokens.bearer() == "token-1"
        await desk.tasks.drain(5)
    assert desk.account.refreshes == 2
    desk.account.error = None
    desk.clock.advance(11)
    assert await desk.tokens.bearer() == "token-1"
    await desk.tasks.drain(5)
    assert await desk.tokens.bearer() == "token-3"


async def test_a_refused_token_is_replaced_once(desk: Desk) -> None:
    """However many requests it was refused to; and other answers do not matter."""
    await desk.tokens.bearer()
    desk.clock.advance(5)
    assert not desk.tokens.renew(Answer(403, CIMultiDictProxy(CIMultiDict()), b""))
    assert await desk.tokens.bearer() == "token-1"
    assert desk.tokens.renew(refused())
    assert await desk.tokens.bearer() == "token-2"
    for _ in range(5):
        assert desk.tokens.renew(refused())
        assert await desk.tokens.bearer() == "token-2"
    assert desk.account.refreshes == 2


async def test_a_source_that_has_no_other_token_is_believed(desk: Desk) -> None:
    """A metadata server gives out the same token until shortly before its end: better that one than none."""
    desk.account.same_token = True
    await desk.tokens.bearer()
    desk.clock.advance(5)
    assert desk.tokens.renew(refused())
    assert await desk.tokens.bearer() == "token-1"
    assert desk.account.refreshes == 2
    assert await desk.tokens.bearer() == "token-1"
    assert desk.account.refreshes == 2
