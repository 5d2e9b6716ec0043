"""Bearer tokens for Google's services: application default credentials, refreshed in a thread beside the requests.

Guarantees: `bearer` does not wait while the token is good; one that is about to end is replaced while requests still
use it; at most one refresh runs at a time, and nobody waits for one longer than ``timeout_seconds``. A token is in no
text, log or ``repr`` of ours.

Does not: know where credentials come from. google-auth does: the environment (``GOOGLE_APPLICATION_CREDENTIALS``), a
login of ``gcloud``, workload identity, or the machine's metadata server; and it says when a token is no longer fresh,
by the machine's clock, which is also the one that its end was computed by.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import google.auth
import structlog
from google.auth import exceptions
from google.auth.credentials import Credentials, TokenState
from google.auth.transport.requests import Request
from yarl import URL

from tierstore.clock import Clock
from tierstore.errors import StartupError, Unavailable
from tierstore.object_storage.transport import Answer, Authorization
from tierstore.tasks import TaskOwner

log = structlog.get_logger(__name__)

T = TypeVar("T")

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_UNAUTHENTICATED = 401
_TRUST_SECONDS = 1.0
"""How long a new token is not suspected of being the one that was refused."""
_RETRY_SECONDS = 10.0
"""How long after a refresh that failed the next one is begun, while the token is still good."""


class GoogleTokens(Authorization):
    """The tokens of one account. Built by `open`; used from one event loop."""

    def __init__(
        self, credentials: Credentials, threads: ThreadPoolExecutor, tasks: TaskOwner, clock: Clock, seconds: float
    ) -> None:
        self._credentials = credentials
        self._threads = threads
        self._tasks = tasks
        self._clock = clock
        self._timeout_seconds = seconds
        self._request = _bounded(Request(), seconds)
        self._refreshing: asyncio.Task[None] | None = None
        self._failed_until = -float("inf")
        self._refreshed_at = -float("inf")
        self._distrusted: str | None = None
        """A token that the service has refused, although google-auth takes it for good."""

    @classmethod
    async def open(cls, *, tasks: TaskOwner, clock: Clock, timeout_seconds: float) -> "GoogleTokens":
        """Find the credentials and get a first token. Raises `StartupError` with a sentence for the operator."""
        threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="google-auth")
        try:
            loop = asyncio.get_running_loop()
            credentials, _ = await loop.run_in_executor(threads, _found)
            tokens = cls(credentials, threads, tasks, clock, timeout_seconds)
            await tokens.bearer()
        except exceptions.DefaultCredentialsError as error:
            threads.shutdown(wait=False)
            raise StartupError(
                f"no credentials of Google Cloud were found: {_first_line(error)}; set GOOGLE_APPLICATION_CREDENTIALS, "
                "or run where a service account is attached"
            ) from error
        except Unavailable as error:
            threads.shutdown(wait=False)
            why = _first_line(error.__cause__ if isinstance(error.__cause__, exceptions.GoogleAuthError) else error)
            raise StartupError(f"the credentials of Google Cloud give no token: {why}") from error
        except BaseException:
            threads.shutdown(wait=False)
            raise
        return tokens

    async def bearer(self) -> str:
        """A token that is good now. Raises `Unavailable` if there is none and none can be had in time."""
        match self._state():
            case TokenState.FRESH:
                return self._token
            case TokenState.STALE:
                if self._clock.monotonic() >= self._failed_until:
                    _ = self._begin_refresh()
                return self._token
            case _:
                await self._refreshed()
                return self._token

    async def headers(
        self,
        method: str,  # noqa: ARG002  # because a bearer token is the same for all requests
        url: URL,  # noqa: ARG002  # because of the same
        headers: Mapping[str, str],
    ) -> Mapping[str, str]:
        await self.bearer()
        authorized = dict(headers)
        # The token, and who is billed, if the credentials say so.
        self._credentials.apply(authorized)  # type: ignore[no-untyped-call]  # because google-auth has no types for it
        return authorized

    def renew(self, answer: Answer) -> bool:
        if answer.status != _UNAUTHENTICATED:
            return False
        # Of many requests that one token was refused to, the first is the cause of a new one, and not each.
        if self._clock.monotonic() - self._refreshed_at >= _TRUST_SECONDS:
            self._distrusted = self._credentials.token
        return True

    def close(self) -> None:
        """End the thread. Whoever closes has ended the tasks before. Safe to repeat."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def _token(self) -> str:
        if self._credentials.token is None:
            raise Unavailable("the credentials of Google Cloud give no token")
        return str(self._credentials.token)

    def _state(self) -> TokenState:
        if self._distrusted is not None and self._credentials.token == self._distrusted:
            return TokenState.INVALID
        state: TokenState = self._credentials.token_state
        return state

    async def _refreshed(self) -> None:
        """Wait for a refresh. Raises `Unavailable` if it fails, or takes too long; then it goes on."""
        refreshing = self._begin_refresh()
        done, _ = await asyncio.wait([refreshing], timeout=self._timeout_seconds)
        if not done:
            raise Unavailable("the credentials of Google Cloud were not refreshed in time")
        refreshing.result()

    def _begin_refresh(self) -> "asyncio.Task[None]":
        """The refresh that is under way, or a new one."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._tasks.run("google_tokens", self._refresh())
            self._tasks.disown(self._refreshing, Unavailable)  # who waits is told; and it is in the log
        return self._refreshing

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._credentials.refresh, self._request)
        except exceptions.GoogleAuthError as error:
            self._failed_until = self._clock.monotonic() + _RETRY_SECONDS
            log.warning("the credentials of Google Cloud were not refreshed", reason=_first_line(error))
            raise Unavailable("the credentials of Google Cloud could not be refreshed") from error
        self._refreshed_at = self._clock.monotonic()
        # A source that goes on giving out the token that was refused (metadata servers keep theirs) has no better one.
        self._distrusted = None


def _found() -> tuple[Credentials, str | None]:
    """The application default credentials, and the project they are of. May ask the metadata server."""
    credentials, project = google.auth.default(scopes=[SCOPE])
    return credentials, project


def _bounded(request: Request, seconds: float) -> Callable[..., Any]:
    """``request``, which by itself waits for two minutes, with another bound for each of its waits."""

    def call(
        url: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Any:
        return request(url, method=method, body=body, headers=headers, **({"timeout": seconds} | more))

    return call


def _first_line(error: Exception) -> str:
    """What google-auth says, without the answer of a server that may follow."""
    return str(error.args[0] if error.args else error).partition("\n")[0]
