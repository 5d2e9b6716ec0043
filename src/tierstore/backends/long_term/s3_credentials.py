"""Signatures of requests to S3 (SigV4), and the credentials for them: botocore's, refreshed in a thread beside the
requests.

Guarantees: signing does not wait while the credentials are good; those that are about to end are replaced while
requests still use them; at most one refresh runs at a time, and nobody waits for one longer than ``timeout_seconds``. A
secret is in no text, log or ``repr`` of ours. A payload is not part of its signature: it is checked in other ways, and
needs not be read twice.

Does not: know where credentials come from. botocore does, in its usual order: the environment, a web identity,
profiles, the container's or the instance's metadata service; and it says when they are to be refreshed, by the
machine's clock.
"""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.exceptions import BotoCoreError, CredentialRetrievalError
from botocore.session import Session
from yarl import URL

from tierstore.backends.long_term.s3_answers import code_of
from tierstore.clock import Clock
from tierstore.errors import StartupError, Unavailable
from tierstore.object_storage.transport import Answer
from tierstore.tasks import TaskOwner

log = structlog.get_logger(__name__)

_PAUSE_SECONDS = 10.0
"""How long after a refresh the next one is begun, while the credentials are still good."""
_TOO_OLD = frozenset({"ExpiredToken", "TokenRefreshRequired", "InvalidToken"})
_UNSIGNED = "UNSIGNED-PAYLOAD"


class _Signer(S3SigV4Auth):
    """botocore's, for payloads that it does not see."""

    def payload(self, request: AWSRequest) -> str:  # noqa: ARG002  # because it is the same for all
        return _UNSIGNED


class S3Credentials:
    """The credentials of one account, and its signatures. Built by `open`; used from one event loop."""

    def __init__(
        self,
        credentials: Credentials,
        region: str,
        threads: ThreadPoolExecutor,
        tasks: TaskOwner,
        clock: Clock,
        timeout_seconds: float,
    ) -> None:
        self._credentials = credentials
        self._region = region
        self._threads = threads
        self._tasks = tasks
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._frozen: ReadOnlyCredentials | None = None
        self._signer: _Signer | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._next_refresh = -float("inf")

    @classmethod
    async def open(
        cls, *, profile: str, region: str, tasks: TaskOwner, clock: Clock, timeout_seconds: float
    ) -> "S3Credentials":
        """Find the credentials. Raises `StartupError` with a sentence for the operator."""
        logging.getLogger("botocore").setLevel(logging.CRITICAL)  # it says what services have answered; we say the rest
        threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="s3-credentials")
        try:
            async with asyncio.timeout(timeout_seconds):
                found = await asyncio.get_running_loop().run_in_executor(threads, _found, profile)
            if found is None:
                raise StartupError(
                    "no credentials for S3 were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, "
                    "or run where a role is attached"
                )
            opened = cls(found, region, threads, tasks, clock, timeout_seconds)
            await opened._refreshed()
        except (BotoCoreError, Unavailable, TimeoutError) as error:
            threads.shutdown(wait=False, cancel_futures=True)
            raise StartupError(f"the credentials for S3 cannot be had: {_reason(error)}") from error
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        return opened

    async def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        """``headers``, and those that sign them. Raises `Unavailable` if there are no credentials that are good."""
        signer = await self._good_signer()
        request = AWSRequest(method, str(url), headers=dict(headers))
        signer.add_auth(request)
        return dict(request.headers.items())

    def renew(self, answer: Answer) -> bool:
        """Whether ``answer`` says that the credentials are too old; then they are not used again."""
        if answer.status not in {400, 403} or code_of(answer) not in _TOO_OLD:
            return False
        if not isinstance(self._credentials, RefreshableCredentials):
            return False
        self._signer = None
        return True

    def close(self) -> None:
        """End the thread. Whoever closes has ended the tasks before. Safe to repeat."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _good_signer(self) -> _Signer:
        credentials = self._credentials
        if isinstance(credentials, RefreshableCredentials) and self._signer is not None:
            if credentials.refresh_needed(0):
                self._signer = None  # they have ended
            elif credentials.refresh_needed() and self._clock.monotonic() >= self._next_refresh:
                self._refreshing = self._begin_refresh()
        if self._signer is None:
            await self._refreshed()
        if self._signer is None:
            raise Unavailable("there are no credentials for S3 that are good")
        return self._signer

    async def _refreshed(self) -> None:
        """Wait for a refresh. Raises `Unavailable` if it fails, or takes too long; then it goes on."""
        refreshing = self._begin_refresh()
        done, _ = await asyncio.wait([refreshing], timeout=self._timeout_seconds)
        if not done:
            raise Unavailable("the credentials for S3 were not refreshed in time")
        refreshing.result()

    def _begin_refresh(self) -> "asyncio.Task[None]":
        """The refresh that is under way, or a new one."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._tasks.run("s3_credentials", self._refresh())
            self._tasks.disown(self._refreshing, Unavailable)  # who waits is told; and it is in the log
        return self._refreshing

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            # botocore decides by itself whether there is anything to do, and asks whoever gives the credentials.
            self._frozen = await loop.run_in_executor(self._threads, self._credentials.get_frozen_credentials)
        except Exception as error:  # what a provider raises is not of one kind
            log.warning("the credentials for S3 were not refreshed", reason=_reason(error))
            raise Unavailable("the credentials for S3 could not be refreshed") from error
        finally:
            self._next_refresh = self._clock.monotonic() + _PAUSE_SECONDS
        self._signer = _Signer(self._frozen, "s3", self._region)


def _found(profile: str) -> Credentials | None:
    """The credentials of the chain. May read files, and ask a metadata service."""
    session = Session(profile=profile or None)
    return session.get_credentials()


def _reason(error: Exception) -> str:
    """What went wrong, in words. Not what a service has answered: that may hold what it should not."""
    if isinstance(error, CredentialRetrievalError):
        return f"{error.kwargs.get('provider', 'their service')} gives none"
    if isinstance(error, TimeoutError):
        return "their service does not answer"
    return str(error).partition("\n")[0] if isinstance(error, (BotoCoreError, Unavailable)) else type(error).__name__
