"""Every error of Bigtable's client is one of ours, and says of a write whether it may have happened."""

from collections.abc import Callable

import pytest
from google.api_core import exceptions
from google.auth.exceptions import RefreshError
from google.cloud.bigtable.data import DeleteAllFromRow, RowMutationEntry
from google.cloud.bigtable.data.exceptions import FailedMutationEntryError, MutationsExceptionGroup

from tierstore.bigtable.failures import translated
from tierstore.errors import Busy, InvariantBroken, OutcomeUnknown, StorageFull, TierstoreError, Unavailable


def made(kind: Callable[..., Exception], *arguments: object) -> Exception:
    """An error of a library that does not say what its errors take."""
    return kind(*arguments)


UNSURE: list[Exception] = [
    made(exceptions.DeadlineExceeded, "late"),
    made(exceptions.ServiceUnavailable, "recvmsg: connection reset by peer"),
    made(exceptions.InternalServerError, "stream removed"),
    made(exceptions.Aborted, "try again"),
    made(exceptions.Unknown, "stream removed"),
    made(exceptions.Cancelled, "channel closed"),
    made(exceptions.RetryError, "time is up", None),
    made(exceptions.ResourceExhausted, "Received RST_STREAM with error code 11"),
    made(exceptions.ResourceExhausted, "CLIENT: Received message larger than max (5000000 vs. 4194304)"),
]
SURE: list[tuple[Exception, type[TierstoreError]]] = [
    (made(exceptions.ServiceUnavailable, "failed to connect to all addresses; last error: refused"), Unavailable),
    (made(exceptions.ServiceUnavailable, "Getting metadata from plugin failed with error: no token"), Unavailable),
    (made(RefreshError, "no token"), Unavailable),
    (made(exceptions.NotFound, "table not found"), Unavailable),
    (made(exceptions.Forbidden, "no permission"), Unavailable),
    (made(exceptions.PermissionDenied, "no permission"), Unavailable),
    (made(exceptions.Unauthenticated, "no credentials"), Unavailable),
    (made(exceptions.FailedPrecondition, "no single-row transactions in this application profile"), Unavailable),
    (made(exceptions.ResourceExhausted, "quota of requests"), Busy),
    (made(exceptions.ResourceExhausted, "cluster is out of storage"), StorageFull),
    (made(exceptions.InvalidArgument, "row is too big"), InvariantBroken),
]


@pytest.mark.parametrize("error", UNSURE, ids=repr)
def test_a_write_without_an_answer_is_unknown(error: Exception) -> None:
    """A read without one is only unavailable, and is never called unknown."""
    with pytest.raises(OutcomeUnknown), translated(writes=True):
        raise error
    with pytest.raises(Unavailable) as caught, translated(writes=False):
        raise error
    assert type(caught.value) is Unavailable


@pytest.mark.parametrize(("error", "kind"), SURE, ids=repr)
@pytest.mark.parametrize("writes", [False, True])
def test_what_was_refused_or_never_sent_has_not_happened(
    error: Exception, kind: type[TierstoreError], *, writes: bool
) -> None:
    """The same error for reads and writes; what the library said is kept for the log."""
    with pytest.raises(TierstoreError) as caught, translated(writes=writes):
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error


def test_a_group_is_what_its_rows_met() -> None:
    """Of a write of several rows, the error of the last attempt decides."""
    entry = RowMutationEntry(b"key", [DeleteAllFromRow()])
    for error, kind in (
        (made(exceptions.ResourceExhausted, "quota"), Busy),
        (made(exceptions.DeadlineExceeded, ""), OutcomeUnknown),
    ):
        failed = FailedMutationEntryError(0, entry, error)
        with pytest.raises(kind), translated(writes=True):
            raise MutationsExceptionGroup([failed], 1)


def test_what_is_ours_passes() -> None:
    """Our own errors, and what is no error of the library's, are left alone."""
    for error in (Busy("full"), ValueError("a mistake")):
        with pytest.raises(type(error)) as caught, translated(writes=True):
            raise error
        assert caught.value is error
