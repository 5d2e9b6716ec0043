"""PostgreSQL's errors as tierstore's: the one place where they are translated.

Guarantees: an error of a statement that may have been carried out is `OutcomeUnknown` if it writes, everything else
says that nothing happened. The texts name the server and its complaint, never the password or a statement's arguments.
"""

from collections.abc import Mapping
from typing import Final

import asyncpg

from tierstore.errors import (
    Broken,
    CorruptObject,
    InvariantBroken,
    OutcomeUnknown,
    StartupError,
    StorageFull,
    TierstoreError,
    Unavailable,
    private,
)

DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # as its protocol says when a server ends in the middle of an answer
    OSError,
    TimeoutError,
)
"""What a call of the driver raises when the statement, the connection or the server fails."""

_REPEATED: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: rolled back, and free to be tried again."""
_READ_ONLY: Final = "25006"
_STATEMENT_COMPLETION_UNKNOWN: Final = "40003"
_CONNECTION_EXCEPTION: Final = "08"
"""Class of codes. With these, whatever is called an error by who is between us and the server, the outcome is lost."""
_HINT: Final = "a pooler that does not keep prepared statements? Set prepared_statements = false"
_KINDS: Final[Mapping[str, tuple[type[TierstoreError], str]]] = {
    "53100": (StorageFull, ""),
    "XX001": (CorruptObject, ""),
    "XX002": (CorruptObject, ""),
    "26000": (Unavailable, f" ({_HINT})"),
    "42P05": (Unavailable, f" ({_HINT})"),
    "TS001": (InvariantBroken, ""),  # raised by our own functions in the database
}
"""What a refusal means by its code (PostgreSQL manual, appendix A), where it is not just a passing condition."""
_OUR_FAULT: Final = frozenset({"22", "23"})
"""Classes of codes: what we have sent makes no sense to it."""


def is_refusal(error: BaseException) -> bool:
    """Whether the server has refused the statement, rolled it back, and keeps the connection."""
    if _state(error)[:2] == _CONNECTION_EXCEPTION or _state(error) == _STATEMENT_COMPLETION_UNKNOWN:
        return False
    return isinstance(error, asyncpg.PostgresError) and (error.severity_en or error.severity) == "ERROR"


def is_lost_connection(error: BaseException) -> bool:
    """Whether the connection failed, and not the statement: on another one it may well succeed."""
    return not is_refusal(error) and not isinstance(error, TimeoutError)


def may_be_repeated(error: BaseException) -> bool:
    """Whether the statement was rolled back because of others at the same time."""
    return is_refusal(error) and _state(error) in _REPEATED


def spoils_connection(error: BaseException) -> bool:
    """Whether the connection is of no more use: broken, busy with what was given up, or not to a primary."""
    return not is_refusal(error) or _state(error) == _READ_ONLY


def translated(error: BaseException, *, writes: bool, place: str) -> TierstoreError:
    """What an error of a statement means that had been handed to the driver, on the server at ``place``."""
    if not is_refusal(error):
        if writes:
            text = f"PostgreSQL at {place} has not answered a write: {_complaint(error)}"
            return private(OutcomeUnknown(text), "the database has not answered a write")
        text = f"PostgreSQL at {place} has not answered: {_complaint(error)}"
        return private(Unavailable(text), "the database has not answered")
    kind, hint = _KINDS.get(_state(error), (Unavailable, ""))
    if _state(error)[:2] in _OUR_FAULT:
        kind = Broken
    full = kind is StorageFull
    return private(
        kind(f"PostgreSQL at {place}: {_complaint(error)}{hint}"),
        "the database is full" if full else "the database cannot do that now",
    )


def unreachable(error: BaseException, *, place: str) -> Unavailable:
    """No connection could be made, so that nothing happened."""
    hint = _KINDS.get(_state(error), (Unavailable, ""))[1]
    text = f"PostgreSQL at {place} cannot be reached: {_complaint(error)}{hint}"
    return private(Unavailable(text), "the database cannot be reached")


def startup_error(error: BaseException, *, place: str) -> StartupError:
    """What an operator is told when the first connection, or the schema, fails."""
    match error:
        case ValueError():  # the driver's kind of it, too
            return _unreadable(error)
        case asyncpg.InvalidAuthorizationSpecificationError():  # the password's kind of it, too
            advice = "check user and password, and pg_hba.conf on the server"
        case asyncpg.InvalidCatalogNameError():
            advice = "create the database, or name another one in the url"
        case asyncpg.InsufficientPrivilegeError():
            advice = "grant the user what is missing, or have its owner create the schema"
        case asyncpg.LockNotAvailableError():
            advice = "another process has been migrating the schema for long; wait for it"
        case asyncpg.ReadOnlySQLTransactionError():
            advice = "it is a replica or set to read-only; name the primary in the url"
        case asyncpg.TooManyConnectionsError():
            advice = "lower the number of connections here, or raise max_connections there"
        case asyncpg.InvalidSQLStatementNameError() | asyncpg.DuplicatePreparedStatementError():
            advice = _HINT
        case asyncpg.PostgresError():
            advice = "nothing can be stored there as it is"
        case _:
            advice = "check that it runs, and that its address is right"
    return StartupError(f"PostgreSQL at {place}: {_complaint(error)}; {advice}")


def _unreadable(error: ValueError) -> StartupError:
    if isinstance(error, asyncpg.ClientConfigurationError):
        return StartupError(f"the PostgreSQL url asks for what cannot be had: {_complaint(error)}")
    return StartupError("the PostgreSQL url cannot be read; it is written postgresql://user@host:port/database")


def _state(error: BaseException) -> str:
    return (isinstance(error, asyncpg.PostgresError) and error.sqlstate) or ""


def _complaint(error: BaseException) -> str:
    """The error in a line, without details and hints, which may repeat what was sent."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
