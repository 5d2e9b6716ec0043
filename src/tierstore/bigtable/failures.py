"""The one place where the errors of Bigtable's client become ours.

A call that only reads fails with `Unavailable`. A write fails with `OutcomeUnknown`, unless the error says that it was
refused or never sent: the client does not send a conditional mutation, or an append, a second time, and neither do we.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud.bigtable.data.exceptions import MutationsExceptionGroup
from grpc import RpcError  # type: ignore[import-untyped]  # because it has no types of its own

from tierstore.errors import Busy, InvariantBroken, OutcomeUnknown, StorageFull, TierstoreError, Unavailable

log = structlog.get_logger(__name__)

_NOT_SENT = ("failed to connect to all addresses", "getting metadata from plugin failed")
"""How gRPC says that a call was never sent. Where it finds other words, the outcome is called unknown, which is
safe."""
_REFUSED = (
    exceptions.NotFound,
    exceptions.Forbidden,
    exceptions.Unauthorized,
    exceptions.FailedPrecondition,
    exceptions.MethodNotImplemented,
)
_WRONG = (exceptions.InvalidArgument, exceptions.OutOfRange)


@contextmanager
def translated(*, writes: bool) -> Iterator[None]:
    """Raise our errors in place of the client's."""
    try:
        yield
    except MutationsExceptionGroup as group:
        raise _translation(_first(group), writes=writes) from group
    except (exceptions.GoogleAPIError, GoogleAuthError, RpcError) as error:
        raise _translation(error, writes=writes) from error


def _translation(error: BaseException, *, writes: bool) -> TierstoreError:
    text = str(error)
    if isinstance(error, GoogleAuthError) or any(words in text.lower() for words in _NOT_SENT):
        return Unavailable("Bigtable cannot be reached")
    if isinstance(error, exceptions.ResourceExhausted) and (exhausted := _exhausted(text.lower())):
        return exhausted
    if isinstance(error, _WRONG):
        return InvariantBroken(f"Bigtable does not take a request: {text}")
    if isinstance(error, _REFUSED):
        log.error("Bigtable refuses a request", reason=text)
        return Unavailable("Bigtable refuses the request")
    if writes:
        return OutcomeUnknown("Bigtable did not say whether it has written")
    return Unavailable("Bigtable did not answer")


def _exhausted(text: str) -> TierstoreError | None:
    """What is used up; None if ``text`` does not say.

    gRPC calls streams that were reset by that name, too, and answers that are too long: then all may have happened.
    """
    if "storage" in text:
        return StorageFull("Bigtable is full")
    return Busy("Bigtable's quota is used up") if "quota" in text else None


def _first(group: BaseException) -> BaseException:
    """The error at the bottom of a group's first member: what the last attempt for the first row met."""
    for _ in range(10):
        inner = getattr(group, "exceptions", ()) or ([group.__cause__] if group.__cause__ else [])
        if not inner:
            break
        group = inner[-1]
    return group
